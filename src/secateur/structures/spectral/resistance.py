"""Effective resistance and leverage of every edge of a layer's graph.

D. A. Spielman, N. Srivastava, "Graph sparsification by effective resistances", SIAM J. Comput. 40 (2011);
S. Laenen, "One-shot neural network pruning via spectral graph sparsification", arXiv:2306.08849 (2023).
They take the resistances from the pseudo-inverse of the (n1 + n2)-node Laplacian.  Here they come from the
Schur complement on the smaller side, or from a closed series with a proven error bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from secateur.structures.spectral.graph import Bipartite, bipartite, checked_scores
from secateur.structures.spectral.schur import (
    NotPositiveDefinite,
    bytes_needed,
    full_precision,
    gram,
    schur,
    schur_batch,
)
from secateur.structures.spectral.series import error_bound, gram_certificate, moments, series, triplets

__all__ = ["Resistance", "effective_resistance", "leverage"]

ResistanceMethod = Literal["auto", "exact", "series", "pinv"]

_EXACT = 1e-4  # rounding error above which "exact" moves from float32 to float64
_LARGEST_ERROR = 0.1  # rounding error in float64 above which the result would be meaningless
_REPAIR = 8  # triplets with which "auto" tries to repair the series
_WIDE = 1024  # smaller side from which that pays
_GRAM = 8192  # smaller side up to which method "series" forms a product to sharpen its bound


@dataclass(frozen=True, eq=False)
class Resistance:
    """Effective resistances of all pairs (row, column) of a graph, with an error bound.

    Attributes:
        values: Resistances in the shape and type of the scores; infinite between components.
        method: The method that computed them: "exact", "series", "series+k" (k triplets) or "pinv".
        dtype: Type of the arithmetic; may be wider than that of the values.
        bound: Relative error: for the series a proven bound, else an estimate, rounding times condition.
        foster: Relative residual of Foster's identity, sum of w_e R_e = nodes - components.
        components: Number of components with at least one edge, summed over a batch.
        why: Why this method was chosen.
    """

    values: Tensor
    method: str
    dtype: torch.dtype
    bound: float
    foster: float
    components: int
    why: str


def effective_resistance(
    scores: Tensor,
    method: ResistanceMethod = "auto",
    *,
    tol: float = 1e-2,
    rank: int = 0,
    memory: int = 3 * 2**30,
) -> Resistance:
    """Compute the effective resistance of every edge of a bipartite graph.

    Args:
        scores: Non-negative edge weights [inputs, outputs], or [graphs, inputs, outputs]; 0: no edge.
        method: "exact" (Schur complement), "series" (closed series with `rank` singular triplets),
            "pinv" (dense pseudo-inverse in float64, the slow reference), or "auto": the series where its
            proven bound is within `tol`, else exact, in float32 where that suffices, else in float64.
        tol: Relative error that "auto" accepts.
        rank: Up to this many singular triplets repair the "series" of a weakly connected graph: those that
            converge.
        memory: Bytes that the exact method may allocate, the result included; the series needs little besides
            its result.

    Raises:
        ValueError: If the scores are not a weighted graph, or an option does not exist.
        MemoryError: If the exact method does not fit into `memory`.
        ArithmeticError: If the graph is singular in float64 or violates Foster's identity.

    Example:
        >>> result = effective_resistance(torch.ones(3, 2))
        >>> round(float(result.values[0, 0]), 5), result.method       # K_{3,2}: (n1 + n2 - 1) / (n1 n2)
        (0.66667, 'exact')
    """
    scores = checked_scores(scores)
    if method not in ("auto", "exact", "series", "pinv"):
        raise ValueError(f"no method {method!r}; there are 'auto', 'exact', 'series' and 'pinv'")
    if not tol > 0 or rank < 0 or (rank and method != "series"):
        raise ValueError(
            f"tol must be positive, rank (for 'series' only) not negative; got {tol!r}, {rank!r}"
        )
    with full_precision():
        if scores.dim() == 2:
            return _solve_graph(scores, method, tol, rank, memory)
        return _solve_batch(scores, method, tol, rank, memory)


def _solve_batch(scores: Tensor, method: ResistanceMethod, tol: float, rank: int, memory: int) -> Resistance:
    """Solve dense graphs together, others one after the other."""
    if len(scores) > 1 and method in ("auto", "exact") and bool((scores > 0).all()):
        result = _dense_batch(scores, tol if method == "auto" else _EXACT, memory)
        if result is not None:
            return result
    if len(scores) == 1:
        one = _solve_graph(scores[0], method, tol, rank, memory)
        return Resistance(one.values[None], *(getattr(one, x) for x in _FACTS))
    results = [
        _solve_graph(x, method, tol, rank, memory) if bool(x.any()) else _edgeless_result(x) for x in scores
    ]
    worst = max(results, key=lambda x: x.bound)
    foster, components = max(x.foster for x in results), sum(x.components for x in results)
    names = ", ".join(sorted({x.method for x in results} - {"none"}))
    values = torch.stack([x.values for x in results])
    return Resistance(values, names, worst.dtype, worst.bound, foster, components, worst.why)


_FACTS = ("method", "dtype", "bound", "foster", "components", "why")


def _edgeless_result(S: Tensor) -> Resistance:
    return Resistance(torch.full_like(S, math.inf), "none", S.dtype, 0.0, 0.0, 0, "a graph without edges")


def _dense_batch(scores: Tensor, tol: float, memory: int) -> Resistance | None:
    graphs, n1, n2 = scores.shape
    tall = scores if n1 >= n2 else scores.mT
    need = 4 * scores.numel() * scores.itemsize + 5 * graphs * min(n1, n2) ** 2 * scores.itemsize
    # `schur_batch` does not rescale: with weights far from 1 the squares could overflow or vanish.
    if need > memory or not 1e-12 < float(scores.amax()) < 1e12:
        return None
    try:
        values, norm, sums = schur_batch(tall)
    except NotPositiveDefinite:
        return None
    bound = _rounding_error(scores.dtype, norm)
    foster = float((sums / (n1 + n2 - 1) - 1).abs().max())
    if bound > tol or foster > _foster_limit(scores.dtype, bound):
        return None
    why = f"{graphs} dense graphs of one shape, batched"
    return Resistance(values if n1 >= n2 else values.mT, "exact", scores.dtype, bound, foster, graphs, why)


def _solve_graph(S: Tensor, method: ResistanceMethod, tol: float, rank: int, memory: int) -> Resistance:
    if method == "pinv":
        return _by_pseudo_inverse(S)
    graph = bipartite(S)
    if method == "series":
        return _by_series(graph, rank)
    if method == "exact":
        return _by_schur(graph, _EXACT, memory, "requested", None)
    return _choose_method(graph, tol, memory)


def _choose_method(graph: Bipartite, tol: float, memory: int) -> Resistance:
    """Choose the cheapest method whose error bound is within `tol`.

    The error of the series depends on the second singular value of the normalised scores.  A bound on it
    from moments is free, but loose; one from the Gram matrix H costs a matrix product, and the exact method
    needs H as well.  If both fail, a few large singular values may be to blame: computing their triplets
    removes them from the bound, which pays off only for wide layers.  Otherwise compute exactly.
    """
    if graph.S.shape[1] <= 48:
        return _by_schur(graph, tol, memory, "a small side: exact costs no more than the series", None)
    moment = moments(graph)
    loose = error_bound(moment, math.sqrt(moment.rest), graph.S.dtype)
    if loose <= tol:
        return _series_result(
            graph, *series(graph, moment), "series", loose, f"bound {loose:.1e} within {tol:g}"
        )
    _check_memory(graph, graph.S.dtype, memory)
    H = gram(graph.S, graph.d1)
    sharp = error_bound(moment, gram_certificate(H, graph, graph.d2), graph.S.dtype)
    if sharp <= tol:
        return _series_result(
            graph, *series(graph, moment), "series", sharp, f"bound {sharp:.1e} within {tol:g}"
        )
    leading = triplets(graph, _REPAIR, H, converged=1e-9) if graph.S.shape[1] >= _WIDE else None
    bound = math.inf if leading is None else error_bound(moment, 0.0, graph.S.dtype, leading)
    if leading is not None and bound <= tol:
        why = f"bound {bound:.1e} within {tol:g}, without repair {sharp:.1e}"
        values, foster = series(graph, moment, leading)
        return _series_result(graph, values, foster, f"series+{len(leading.s)}", bound, why)
    return _by_schur(graph, tol, memory, f"the series' bound {min(sharp, bound):.1e} exceeds {tol:g}", H)


def _by_series(graph: Bipartite, rank: int) -> Resistance:
    moment = moments(graph)
    H = gram(graph.S, graph.d1) if graph.S.shape[1] <= _GRAM else None
    leading = triplets(graph, rank, H, converged=1e-9) if rank else None
    sigma = math.sqrt(moment.rest)
    if H is not None and leading is None:
        sigma = min(sigma, gram_certificate(H, graph, graph.d2))
    bound = error_bound(moment, sigma, graph.S.dtype, leading)
    name = "series" if leading is None else f"series+{len(leading.s)}"
    return _series_result(graph, *series(graph, moment, leading), name, bound, "requested")


def _series_result(
    graph: Bipartite, values: Tensor, total: float, name: str, bound: float, why: str
) -> Resistance:
    # Foster: sum of w_e R_e = nodes - components, to within the relative error of the R_e.
    residual = abs(total / (graph.nodes - graph.components) - 1)
    if residual > bound + 1e-12:
        raise ArithmeticError(_foster_message(residual, bound, name, graph.S.dtype))
    return Resistance(graph.restore(values), name, graph.S.dtype, bound, residual, graph.components, why)


def _by_schur(graph: Bipartite, tol: float, memory: int, why: str, H: Tensor | None) -> Resistance:
    dtype = graph.S.dtype
    if dtype == torch.float32:
        narrow = _try_schur(graph, dtype, memory, H)
        if narrow is not None and narrow[1] <= tol and narrow[2] <= _foster_limit(dtype, narrow[1]):
            return Resistance(graph.restore(narrow[0]), "exact", dtype, *narrow[1:], graph.components, why)
        why += "; float32 has too few digits for this graph"
    # H is reusable only in its own type; the float32 attempt has overwritten it.
    wide = _try_schur(graph, torch.float64, memory, H if dtype == torch.float64 else None)
    if wide is None or wide[1] > _LARGEST_ERROR:
        raise ArithmeticError(
            "the graph is singular in float64: parts of it are connected only by weights too small to count. "
            "Scale the scores, or set the smallest to zero so that the parts become components"
        )
    values, bound, residual = wide
    if residual > _foster_limit(torch.float64, bound):
        raise ArithmeticError(
            _foster_message(residual, _foster_limit(torch.float64, bound), "exact", torch.float64)
        )
    return Resistance(graph.restore(values), "exact", torch.float64, bound, residual, graph.components, why)


def _try_schur(
    graph: Bipartite, dtype: torch.dtype, memory: int, H: Tensor | None
) -> tuple[Tensor, float, float] | None:
    _check_memory(graph, dtype, memory)
    try:
        values, norm, total = schur(graph, dtype, H)
    except NotPositiveDefinite:
        return None
    return values, _rounding_error(dtype, norm), abs(total / (graph.nodes - graph.components) - 1)


def _check_memory(graph: Bipartite, dtype: torch.dtype, memory: int) -> None:
    n1, n2 = graph.S.shape
    need = bytes_needed(n1, n2, dtype, graph.S.dtype)
    if need > memory:
        raise MemoryError(
            f"exact resistances of a {n1} x {n2} graph in {dtype} take {need / 2**30:.2f} GiB, more than "
            f"memory={memory / 2**30:.2f} GiB. Raise `memory`, or use method='series'"
        )


def _rounding_error(dtype: torch.dtype, norm: float) -> float:
    return 4 * torch.finfo(dtype).eps * norm


def _foster_limit(dtype: torch.dtype, bound: float) -> float:
    return max(1e-5 if dtype == torch.float32 else 1e-9, 64 * bound)


def _foster_message(residual: float, limit: float, method: str, dtype: torch.dtype) -> str:
    return (
        f"Foster's identity fails: the leverages sum to nodes - components only within {residual:.1e} "
        f"(limit {limit:.1e}, method {method!r} in {dtype}). The weights span more decades than the type "
        "has digits; scale the scores or set the smallest ones to zero"
    )


def _by_pseudo_inverse(S: Tensor) -> Resistance:
    """Invert the whole Laplacian through its eigenvalues, dropping one zero for each component."""
    graph = bipartite(S)
    W = graph.S.double()
    n1, n2 = W.shape
    L = torch.zeros(n1 + n2, n1 + n2, dtype=torch.float64, device=W.device)
    L[:n1, n1:], L[n1:, :n1] = -W, -W.T
    L.diagonal().copy_(torch.cat([W.sum(1), W.sum(0)]))
    eigenvalues, U = torch.linalg.eigh(L)
    half = U[:, graph.components :] * eigenvalues[graph.components :].rsqrt()
    P = half @ half.T
    p = P.diagonal()
    R = p[:n1, None] + p[None, n1:] - 2 * P[:n1, n1:]
    residual = abs(float((W * R).sum()) / (graph.nodes - graph.components) - 1)
    bound = _rounding_error(torch.float64, float(eigenvalues[-1] / eigenvalues[graph.components]))
    if not residual <= _foster_limit(torch.float64, bound):
        raise ArithmeticError(
            _foster_message(residual, _foster_limit(torch.float64, bound), "pinv", torch.float64)
        )
    values = graph.restore(R.to(S.dtype))
    return Resistance(values, "pinv", torch.float64, bound, residual, graph.components, "requested")


def leverage(scores: Tensor, resistance: Resistance | None = None, **options: object) -> Tensor:
    """Return l_e = w_e R_e of every edge: the share of random spanning trees that use it; 0 off the edges.

    Args:
        scores: Non-negative edge weights [inputs, outputs] or [graphs, inputs, outputs].
        resistance: Their resistances, if known; else they are computed.
        **options: Passed to `effective_resistance`.

    Example:
        >>> round(float(leverage(torch.ones(3, 2)).sum()), 5)         # Foster: nodes - components
        4.0
    """
    scores = checked_scores(scores)
    if resistance is None:
        resistance = effective_resistance(scores, **options)  # type: ignore[arg-type]
    if resistance.values.shape != scores.shape:
        raise ValueError(f"resistances {tuple(resistance.values.shape)} do not fit {tuple(scores.shape)}")
    return torch.where(scores > 0, scores * resistance.values, scores.new_zeros(())).clamp_(max=1)
