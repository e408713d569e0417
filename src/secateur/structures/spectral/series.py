"""Effective resistances by a closed series of order m = |E|, with a proven bound on its error.

Let A be the normalised adjacency matrix of a bipartite graph with N = D1^-1/2 S D2^-1/2, and
y = D^-1/2 (e_u - e_v).  In one component y has no part along the eigenvector of eigenvalue 1 of A, so
R(u, v) = y^T (I - A)^-1 y.  The eigenvalue -1 contributes 1 / vol exactly (vol: the volume of one side).
On the rest, where the eigenvalues are +-sigma_i, i >= 2, three terms of the Neumann series are closed:

    R ~ (1 + a_u) / d_u + (1 + b_v) / d_v - 2 S_uv / (d_u d_v) + 1 / vol,
    a_u = sum_v S_uv^2 / (d_u d_v) - d_u / vol,   b_v by symmetry.

The remainder is x^T A^3 (I - A)^-1 x, x the rest of y, so that

    |error| <= sigma_2 / (1 - sigma_2) (a_u / d_u + b_v / d_v)                                      (1)

since x^T A^2 x = a_u / d_u + b_v / d_v.  Any upper bound on sigma_2 will do, and iterative solvers give
none (they approach it from below).  Certified ones: sigma_2^2 <= |N|_F^2 - c, from the sums a that the
series has anyway; and sigma_2^2 <= min(|G|_F, |G|_inf), G = N^T N - sum_c q_c q_c^T, at the cost of a
product.  The series satisfies Foster's identity whatever sigma_2 is, so there the identity checks only the
arithmetic.

Repair by k singular triplets.  Take V [n2, k] orthonormal and orthogonal to the q_c, N V = P diag(s) with P
orthonormal (an SVD of N V rotates V so), E = N^T P - V diag(s).  Then A differs by |E| in norm from A', in
which the triplets (s, P, V) are exact and the rest of N is (I - P P^T) N (I - V V^T), of norm at most
f = (|N|_F^2 - c - |s|^2)^1/2.  The triplets' part of the remainder is added in closed form; (1) holds with f
and with a, b less their parts; and A' for A costs at most |E| (1 / ((1 - sigma)(1 - s_1)) + 3) |x|^2, where
sigma <= max(s_1, f) + |E|.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.structures.spectral.graph import Bipartite
from secateur.structures.spectral.schur import row_blocks

__all__ = ["SeriesMoments", "Triplets", "error_bound", "gram_certificate", "moments", "series", "triplets"]


@dataclass(frozen=True, eq=False)
class SeriesMoments:
    """Second moments of a graph's normalised adjacency matrix.

    Attributes:
        a: a_u of each row [n1].
        b: b_v of each column [n2].
        edge: An upper bound on N_uv over all edges.
        rest: |N|_F^2 less the number of components: the sum of sigma_i^2 over the other singular values.
    """

    a: Tensor
    b: Tensor
    edge: float
    rest: float


def moments(graph: Bipartite) -> SeriesMoments:
    """Compute the second moments in one pass over the weights."""
    S, d1, d2 = graph.S, graph.d1, graph.d2
    a, b, inverse = torch.empty_like(d1), torch.zeros_like(d2), 1 / d2
    for rows in row_blocks(S, 1 << 18, 64):
        square = S[rows].square()
        torch.mv(square, inverse, out=a[rows])
        b.addmv_(square.T, 1 / d1[rows])
    a, b = a / d1, b / d2
    volume1, volume2 = graph.volumes(d2)
    edge = math.sqrt(min(float(a.max()), float(b.max())))
    rest = max(0.0, float(a.sum(dtype=torch.float64)) - graph.components)
    return SeriesMoments((a - d1 / volume1).clamp_(min=0), (b - d2 / volume2).clamp_(min=0), edge, rest)


def gram_certificate(H: Tensor, graph: Bipartite, d2: Tensor, V: Tensor | None = None) -> float:
    """Return a certified upper bound on the norm of N, the q_c and the orthonormal V projected away.

    Args:
        H: S^T D1^-1 S.
        graph: The graph.
        d2: Degrees of the columns in the type of H.
        V: Orthonormal columns [n2, k], orthogonal to the q_c; without them the bound is on sigma_2.
    """
    r, q = d2.rsqrt(), graph.kernel(d2)
    # G = N^T N - sum_c q_c q_c^T, then (I - V V^T) G (I - V V^T) expanded; both norms bound sigma^2.
    G = (H * r[:, None]).mul_(r[None, :]).addmm_(q, q.T, alpha=-1)
    if V is not None:
        V = V.to(G.dtype)
        GV = G @ V
        G.addmm_(GV, V.T, alpha=-1).addmm_(V, GV.T - (V.T @ GV) @ V.T, alpha=-1)
    rounding = len(d2) * torch.finfo(d2.dtype).eps
    norm = min(float(torch.linalg.matrix_norm(G)), float(torch.linalg.matrix_norm(G, float("inf"))))
    return math.sqrt(norm + rounding)


@dataclass(frozen=True, eq=False)
class Triplets:
    """Approximate singular triplets of N in float64, with their error.

    Attributes:
        s: Singular values in descending order [k].
        x: Rows' vectors, divided by the square root of the degree [n1, k].
        z: Columns' vectors [n2, k].
        error: The norm |E| of their residual, 0 if they are exact.
        rest: A certified bound on the norm of the rest of N.
    """

    s: Tensor
    x: Tensor
    z: Tensor
    error: float
    rest: float


def triplets(
    graph: Bipartite, k: int, H: Tensor | None = None, *, converged: float = math.inf, seed: int = 0
) -> Triplets | None:
    """Find the k leading triplets after the trivial ones by subspace iteration, from a seeded start.

    Args:
        graph: The graph.
        k: Number of triplets.
        H: S^T D1^-1 S, if known: makes the iteration cheaper and the bound on the rest sharper.
        converged: Keep only the leading triplets whose residual is at most this; None if there is none.
        seed: Seed of the start.
    """
    d1, d2 = graph.to(torch.float64)
    q = graph.kernel(d2)
    V = _subspace(graph, d1, d2, q, k, H, seed)
    P, s, W = torch.linalg.svd(_product(graph, d1, d2, V), full_matrices=False)
    V = V @ W.T
    E = _transposed_product(graph, d1, d2, P) - V * s
    exact = (torch.linalg.vector_norm(E, dim=0) <= converged)[:k]
    k = int(exact.long().cumprod(0).sum())
    if k == 0:
        return None
    P, s, V, E = P[:, :k], s[:k], V[:, :k], E[:, :k]
    frobenius = float((_row_squares(graph, d2) / d1).sum())
    rest = math.sqrt(max(0.0, frobenius - graph.components - float(s.square().sum())))
    if H is not None:
        rest = min(rest, gram_certificate(H, graph, d2.to(H.dtype), V))
    error = float(torch.linalg.matrix_norm(E, 2))
    return Triplets(s, P / d1.sqrt()[:, None], V / d2.sqrt()[:, None], error, rest)


def _subspace(
    graph: Bipartite, d1: Tensor, d2: Tensor, q: Tensor, k: int, H: Tensor | None, seed: int
) -> Tensor:
    """Orthonormal columns near the leading right singular vectors of N, orthogonal to the q_c [n2, k + 4]."""
    width = min(k + 4, len(d2) - graph.components)
    start = torch.randn(len(d2), width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    V, r = start.to(d2.device), d2.rsqrt()[:, None]
    # With H an iteration costs n2^2 instead of two passes over S; the last ones use S, in float64.
    if H is not None:
        for _ in range(16):
            V = torch.linalg.qr(V - q @ (q.T @ V)).Q
            V = r * (H @ (r * V).to(H.dtype)).double()
    for _ in range(16 if H is None else 4):
        V = torch.linalg.qr(V - q @ (q.T @ V)).Q
        V = _transposed_product(graph, d1, d2, _product(graph, d1, d2, V))
    return torch.linalg.qr(V - q @ (q.T @ V)).Q


def _product(graph: Bipartite, d1: Tensor, d2: Tensor, V: Tensor) -> Tensor:
    scaled = V / d2.sqrt()[:, None]
    parts = [graph.S[rows].double() @ scaled for rows in row_blocks(graph.S)]
    return torch.cat(parts) / d1.sqrt()[:, None]


def _transposed_product(graph: Bipartite, d1: Tensor, d2: Tensor, P: Tensor) -> Tensor:
    scaled = P / d1.sqrt()[:, None]
    out = torch.zeros(len(d2), P.shape[1], dtype=torch.float64, device=P.device)
    for rows in row_blocks(graph.S):
        out.addmm_(graph.S[rows].double().T, scaled[rows])
    return out / d2.sqrt()[:, None]


def _row_squares(graph: Bipartite, d2: Tensor) -> Tensor:
    return torch.cat([graph.S[rows].double().square() @ (1 / d2) for rows in row_blocks(graph.S)])


def error_bound(
    moment: SeriesMoments, sigma: float, dtype: torch.dtype, leading: Triplets | None = None
) -> float:
    """Bound the relative error of `series`, given a certified bound on sigma_2 (unused with triplets).

    R >= 1/d_u + 1/d_v - 2 S_uv/(d_u d_v) + 1/vol, since the second-order remainder is non-negative, and
    that is at least (1/d_u + 1/d_v) (1 - max N_uv) by the inequality of the means.
    """
    spread = max(float(moment.a.max()), float(moment.b.max()))
    slack = 1 - moment.edge
    drift = 0.0
    if leading is not None:
        top = max(float(leading.s[0]), leading.rest)
        gap, sigma = 1 - top - leading.error, leading.rest  # 1 - sigma >= gap; (1) holds with the rest's f
        drift = leading.error * (1 / (gap * (1 - top)) + 3) if gap > 0 else math.inf
    if sigma >= 1 or slack <= 0:
        return math.inf
    return (sigma / (1 - sigma) * spread + drift) / slack + 64 * torch.finfo(dtype).eps


def series(graph: Bipartite, moment: SeriesMoments, leading: Triplets | None = None) -> tuple[Tensor, float]:
    """Evaluate the series, with the triplets' part of its remainder where they are given.

    Returns:
        Resistances [n1, n2] (meaningless across components) and Foster's sum of weight times resistance.
    """
    S, d1, d2 = graph.S, graph.d1, graph.d2
    volume1, _ = graph.volumes(d2)
    row_term, column_term = 1 + moment.a + d1 / volume1, (1 + moment.b) / d2
    inverse, slope = 1 / d1, -2 / d2
    out, foster = torch.empty_like(S), 0.0
    # (1 + a_u + d_u / vol) / d_u = (1 + a_u) / d_u + 1 / vol: the last term rides on the row's.
    for rows in row_blocks(S, 1 << 17, 64):
        block, R = S[rows], out[rows]
        torch.addcmul(row_term[rows, None], block, slope[None, :], out=R)
        torch.addcmul(column_term[None, :], R, inverse[rows, None], out=R)
        if leading is not None:
            _add_remainder(R, leading, rows)
        foster += float((block * R).sum())
    return out, foster


def _add_remainder(R: Tensor, leading: Triplets, rows: slice) -> None:
    """Add sum over +-s of 1/2 (x_u -+ z_v)^2 (1 / (1 -+ s) - 1 -+ s - s^2) for each triplet."""
    for s, x, z in zip(leading.s.tolist(), leading.x.T, leading.z.T, strict=True):
        for sign in (1.0, -1.0):
            part = (x[rows, None] - sign * z[None, :]).square_()
            R += part.mul_(0.5 * sign * s**3 / (1 - sign * s)).to(R.dtype)
