"""Exact effective resistances of all edges of a bipartite graph, by elimination of its larger side.

With degrees D1 (rows), D2 (columns) and S [n1, n2], n1 >= n2, eliminating the rows from the Laplacian
leaves L2 = D2 - H, H = S^T D1^-1 S, on the columns.  A row u sits behind a resistance
1 / d_u at the average potential of its neighbours, weighted by z_u = S_u / d_u.  So for every pair in one
component

    R(u, v) = 1 / d_u + (z_u - e_v)^T K (z_u - e_v) = 1 / d_u + z_u^T K z_u + K_vv - 2 (z_u^T K)_v

for any K that inverts L2 on vectors that sum to zero on each component.  K = D2^-1/2 B^-1 D2^-1/2 with
B = D2^-1/2 L2 D2^-1/2 + sum_c q_c q_c^T, q_c ~ D2^1/2 1_c, which is positive definite whatever the number
of components.  The diagonal of L2 is the sum of its row's other entries, not d - H_vv, which would lose
the digits that a nearly closed row has left.  Cost: n1 n2^2 (product, symmetric half) + 2 n1 n2^2 + n2^3.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from secateur.structures.spectral.graph import Bipartite

__all__ = [
    "NotPositiveDefinite",
    "bytes_needed",
    "full_precision",
    "gram",
    "row_blocks",
    "schur",
    "schur_batch",
]

_BLOCK = 1 << 19


class NotPositiveDefinite(ArithmeticError):
    """The Schur complement is numerically singular in the chosen type."""


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply float32 matrices in float32 (no TF32, no bfloat16) inside the context."""
    places: list[Any] = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    if not all(hasattr(place, "fp32_precision") for place in places):  # torch before 2.9
        yield from _legacy_full_precision()
        return
    before = [place.fp32_precision for place in places]
    try:
        for place, value in zip(places, before, strict=True):
            if value in ("tf32", "bf16"):
                place.fp32_precision = "ieee"
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            if place.fp32_precision != value:
                place.fp32_precision = value


def _legacy_full_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def row_blocks(S: Tensor, elements: int = _BLOCK, least: int = 512) -> list[slice]:
    """Cut the rows into blocks of about that many elements."""
    step = max(least, elements // S.shape[1])
    return [slice(start, min(start + step, S.shape[0])) for start in range(0, S.shape[0], step)]


def bytes_needed(n1: int, n2: int, dtype: torch.dtype, out: torch.dtype) -> int:
    """Return the bytes that `schur` allocates at its peak, its result included."""
    block = min(n1, max(512, _BLOCK // n2)) * n2
    return out.itemsize * n1 * n2 + dtype.itemsize * (4 * n2 * n2 + 4 * block)


def gram(S: Tensor, d1: Tensor) -> Tensor:
    """Return H = S^T D1^-1 S [n2, n2] in the type of d1, computing only its lower triangle, in strips."""
    n2 = S.shape[1]
    H = d1.new_zeros(n2, n2)
    width = max(64, -(-n2 // 16))
    for rows in row_blocks(S):
        block = S[rows].to(d1.dtype)
        z = block / d1[rows, None]
        for start in range(0, n2, width):
            stop = min(start + width, n2)
            H[start:stop, :stop].addmm_(z[:, start:stop].T, block[:, :stop])
    lower = H.tril(-1)
    return H.tril_().add_(lower.T)


def _inverse_on_columns(H: Tensor, q: Tensor, d2: Tensor) -> tuple[Tensor, float]:
    """Return K and a bound on the norm of B^-1, that is on 1 / (1 - sigma_2^2).  Overwrites H."""
    r = d2.rsqrt()
    # The diagonal of L2 from its other entries: no cancellation (see the module's head).
    H.diagonal().zero_()
    off = H.sum(1)
    B = H.mul_(r[:, None]).mul_(r[None, :]).neg_()
    B.diagonal().copy_(off / d2)
    B.addmm_(q, q.T)
    factor, info = torch.linalg.cholesky_ex(B)
    if int(info) != 0:
        raise NotPositiveDefinite(f"the Schur complement is singular in {d2.dtype} at column {int(info)}")
    M = torch.cholesky_inverse(factor)
    norm = float(torch.linalg.matrix_norm(M, float("inf")))  # bounds the spectral norm: M is symmetric
    return M.mul_(r[:, None]).mul_(r[None, :]), norm


def schur(graph: Bipartite, dtype: torch.dtype, H: Tensor | None = None) -> tuple[Tensor, float, float]:
    """Compute all resistances of a graph, working in `dtype`.

    Foster's sum is taken from the same products, row by row: since z_u sums to 1 and S_u = d_u z_u, adding
    a number to a row of R adds d_u times that number.

    Args:
        graph: A prepared graph.
        dtype: Working type; the result has the type of the scores.
        H: `gram` in that type, if already known; it is overwritten.

    Returns:
        Resistances [n1, n2] (meaningless across components), a bound on 1 / (1 - sigma_2^2), and
        Foster's sum of weight times resistance.

    Raises:
        NotPositiveDefinite: If the type has too few digits for the graph.
    """
    S = graph.S
    d1, d2 = graph.to(dtype)
    K, norm = _inverse_on_columns(gram(S, d1) if H is None else H, graph.kernel(d2), d2)
    k = K.diagonal().clone()
    out = torch.empty_like(S)
    foster = d1.new_zeros((), dtype=torch.float64)
    for rows in row_blocks(S):
        z = S[rows].to(dtype) / d1[rows, None]
        R = torch.addmm(k, z, K, alpha=-2, out=out[rows] if out.dtype == dtype else None)
        # Row u of R is k_v - 2 (z_u^T K)_v so far.  Its product with z_u is z_u^T k - 2 z_u^T K z_u, which
        # gives z_u^T K z_u without another product; 1 / d_u + z_u^T K z_u is what the row still lacks.
        row_term = z @ k
        inner = z.mul_(R).sum(1)
        row_term = (row_term - inner) / 2 + 1 / d1[rows]
        R += row_term[:, None]
        foster += (inner + row_term).double() @ d1[rows].double()
        if out.dtype != dtype:
            out[rows] = R
    return out, norm, float(foster)


def schur_batch(S: Tensor) -> tuple[Tensor, float, Tensor]:
    """Compute what `schur` does for a batch [graphs, n1, n2] of graphs without zeros.

    Raises:
        NotPositiveDefinite: If the type has too few digits for one of the graphs.
    """
    d1, d2 = S.sum(2), S.sum(1)
    z = S / d1[:, :, None]
    H = z.mT @ S
    H.diagonal(dim1=1, dim2=2).zero_()
    r, q = d2.rsqrt(), (d2 / d2.sum(1, keepdim=True)).sqrt()
    B = q[:, :, None] * q[:, None, :] - H * r[:, :, None] * r[:, None, :]
    B.diagonal(dim1=1, dim2=2).add_(H.sum(2) / d2)
    factor, info = torch.linalg.cholesky_ex(B)
    if bool(info.any()):
        raise NotPositiveDefinite(f"{int((info != 0).sum())} of {len(S)} graphs are singular in {S.dtype}")
    M = torch.cholesky_inverse(factor)
    norm = float(M.abs().sum(2).max())
    K = M * r[:, :, None] * r[:, None, :]
    k = K.diagonal(dim1=1, dim2=2)
    R = k[:, None, :] - 2 * (z @ K)
    row_term = ((z @ k[:, :, None])[..., 0] - torch.linalg.vecdot(z, R)) / 2
    R += (row_term + 1 / d1)[:, :, None]
    return R, norm, torch.einsum("guv,guv->g", S, R)
