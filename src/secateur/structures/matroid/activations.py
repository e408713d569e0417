"""Bases of activations: which units to keep so that the others follow linearly from them.

Pivoted Cholesky on the (centred) Gram matrix of the activations is column-pivoted QR on the activations
themselves: each step takes the unit with the largest part not yet explained, a greedy basis of large
volume of the activation matroid.  With the reading weights known, the unit is taken instead that lowers
the error of what is read most (orthogonal least squares).  Interpolative decomposition of layers: Chee,
Flynn, Damle, De Sa, "Model preserving compression for neural networks", NeurIPS 2022.

Letters: G the centred Gram matrix [n, n]; K kept, R removed; S = G - G[:, K] G[K, K]^-1 G[K, :] the part
not explained by K; Q [n, n] the consumer: the error of the output is tr(Q S) (Q = W^T W of the reader W).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# A unit whose unexplained share of variance is below this follows from the others to within rounding.
_FOLLOWS = 1e-12


@dataclass(frozen=True, eq=False)
class ActivationBasis:
    """An order in which to keep units, and what stays unexplained.

    Attributes:
        order: All units, the most needed first, int64 [n]; keeping m units means `order[:m]`.
        residuals: What is unexplained with the first m kept, m = 0 .. n, float64 [n + 1]: tr(S) or tr(Q S).
        rank: Number of units that could be taken before the rest followed to within rounding.
    """

    order: Tensor
    residuals: Tensor
    rank: int


@dataclass(frozen=True, eq=False)
class Expression:
    """Removed units by the kept ones: unit[removed] ~ coefficients @ unit[kept] + offset.

    Attributes:
        kept: Sorted units [K].
        removed: Sorted units [R].
        coefficients: float64 [R, K].
        offset: float64 [R].
        residual: Mean squared deviation of each removed unit, float64 [R].
    """

    kept: Tensor
    removed: Tensor
    coefficients: Tensor
    offset: Tensor
    residual: Tensor


def centered(gram: Tensor, mean: Tensor | None = None) -> Tensor:
    """Return the covariance: mean of x x^T less the outer product of the means, float64 [n, n].

    Raises:
        ValueError: Not a finite symmetric matrix, or a mean that does not fit.
    """
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or gram.shape[0] == 0:
        raise ValueError(f"a Gram matrix is square and not empty; got shape {tuple(gram.shape)}")
    g = gram.double()
    if not torch.isfinite(g).all():
        raise ValueError("the Gram matrix must be finite: look for NaN among the activations")
    if not torch.allclose(g, g.T, rtol=1e-6, atol=1e-6 * float(g.abs().max())):
        raise ValueError("a Gram matrix is symmetric; this one is not")
    if mean is None:
        return (g + g.T) / 2
    if mean.shape != g.shape[:1]:
        raise ValueError(f"the mean of {len(g)} units has shape ({len(g)},); got {tuple(mean.shape)}")
    return (g + g.T) / 2 - torch.outer(mean.double(), mean.double())


def activation_basis(
    gram: Tensor, mean: Tensor | None = None, *, consumer: Tensor | None = None, rtol: float = _FOLLOWS
) -> ActivationBasis:
    """Order units greedily: by their own unexplained part, or by the consumer's.

    Args:
        gram: Mean of x x^T over the data [n, n]; need not be scaled.
        mean: Mean of x [n]: centres the Gram matrix, as the reader's bias can absorb the means.
        consumer: Q [n, n], positive semidefinite.  None: pivoted Cholesky.
        rtol: Steps end where a unit's unexplained part falls under rtol times its own variance; what is left
            goes to the end of the order, largest variance first.

    Returns:
        The basis; time O(n^2) a step.

    Raises:
        ValueError: Bad shapes, values that are not finite, or `rtol` outside [0, 1).

    Example:
        >>> x = torch.tensor([[1.0, 2.0, 0.0], [2.0, 4.0, 1.0], [3.0, 6.0, 0.0]])
        >>> activation_basis(x.T @ x).order.tolist()
        [1, 2, 0]
    """
    if not 0 <= rtol < 1:
        raise ValueError(f"rtol must be in [0, 1); got {rtol!r}")
    g = centered(gram, mean)
    return _cholesky(g, rtol) if consumer is None else _output_greedy(g, _checked_consumer(consumer, g), rtol)


def _checked_consumer(consumer: Tensor | None, g: Tensor) -> Tensor:
    if consumer is None:
        return torch.eye(len(g), dtype=g.dtype, device=g.device)
    if consumer.shape != g.shape:
        raise ValueError(f"the consumer has shape {tuple(consumer.shape)}, the Gram matrix {tuple(g.shape)}")
    return centered(consumer)


def _cholesky(g: Tensor, rtol: float) -> ActivationBasis:
    """Diagonal-pivoted Cholesky; columns of the factor are made only when their pivot is taken."""
    n = g.shape[0]
    own = g.diagonal().clone()
    left, open_ = own.clone(), torch.ones(n, dtype=torch.bool, device=g.device)
    factor = g.new_zeros(n, n)
    order: list[int] = []
    residuals = [float(left.sum())]
    for step in range(n):
        usable = open_ & (left > rtol * own)
        if not usable.any():
            break
        pivot = int(torch.where(usable, left, -torch.inf).argmax())
        column = (g[:, pivot] - factor[:, :step] @ factor[pivot, :step]) / left[pivot].sqrt()
        factor[:, step] = column
        left = (left - column**2).clamp(min=0)
        open_[pivot], left[pivot] = False, 0.0
        order.append(pivot)
        residuals.append(float(left.sum()))
    return _completed(order, residuals, own)


def _output_greedy(g: Tensor, q: Tensor, rtol: float) -> ActivationBasis:
    """Take the unit that lowers tr(Q S) most: (S Q S)_jj / S_jj, S and S Q S kept up to date."""
    n = g.shape[0]
    own = g.diagonal().clone()
    root = _root(q)
    s, b = g.clone(), root @ g
    open_ = torch.ones(n, dtype=torch.bool, device=g.device)
    total = float((b * root).sum())
    order, residuals = [], [max(total, 0.0)]
    for _ in range(n):
        usable = open_ & (s.diagonal() > rtol * own)
        if not usable.any():
            break
        gain = torch.where(usable, (b**2).sum(0) / s.diagonal(), -torch.inf)
        pivot = int(gain.argmax())
        column = s[:, pivot] / s[pivot, pivot]
        total -= float(gain[pivot])
        b = b - torch.outer(b[:, pivot].clone(), column)
        s = torch.addr(s, s[pivot].clone(), column, alpha=-1.0)
        open_[pivot] = False
        order.append(pivot)
        residuals.append(max(total, 0.0))
    return _completed(order, residuals, own)


def _root(q: Tensor) -> Tensor:
    """Return some W with W^T W = Q, of as few rows as Q has rank."""
    values, vectors = torch.linalg.eigh(q)
    alive = values > values[-1].clamp(min=0) * q.shape[0] * torch.finfo(q.dtype).eps
    return vectors[:, alive].T * values[alive].sqrt()[:, None]


def _completed(order: list[int], residuals: list[float], own: Tensor) -> ActivationBasis:
    n, rank = own.numel(), len(order)
    taken = set(order)
    rest = [int(i) for i in torch.argsort(own, descending=True, stable=True) if int(i) not in taken]
    full = torch.tensor(residuals + [residuals[-1]] * (n - rank), dtype=torch.float64)
    return ActivationBasis(torch.tensor(order + rest, dtype=torch.int64, device=own.device), full, rank)


def output_error(gram: Tensor, kept: Sequence[int] | Tensor, consumer: Tensor | None = None) -> float:
    """Return tr(Q S) for the kept units (tr(S) without a consumer), `gram` centred.

    Raises:
        ValueError: Bad shapes.
    """
    g = centered(gram)
    q = _checked_consumer(consumer, g)
    k = torch.as_tensor(kept, device=g.device)
    if k.numel() == 0:
        return float((q * g).sum())
    s = g - g[:, k] @ _solve(g[k][:, k], g[k])
    return max(float((q * s).sum()), 0.0)


def swapped(
    gram: Tensor, kept: Sequence[int] | Tensor, consumer: Tensor | None = None, *, limit: int = 100
) -> tuple[Tensor, Tensor]:
    """Improve a choice by exchanging one kept for one removed unit while the error falls.

    Each round adds the unit that lowers tr(Q S) most and then drops the one that raises it least: both
    follow in O(n^2 r) from the inverse of G[K, K], r the rank of Q.

    Args:
        gram: Centred Gram matrix [n, n].
        kept: Units to start from.
        consumer: Q [n, n]; None: the identity.
        limit: Most rounds.

    Returns:
        The kept units, sorted, and the error before and after each exchange.

    Raises:
        ValueError: Bad shapes, or nothing kept.
    """
    g = centered(gram)
    q = _checked_consumer(consumer, g)
    chosen = [int(i) for i in kept]
    if not chosen:
        raise ValueError("swaps need at least one kept unit")
    root, errors = _root(q), [output_error(g, chosen, q)]
    for _ in range(limit):
        better = _exchanged(g, root, chosen)
        error = output_error(g, better, q)
        if not error < errors[-1] * (1 - 1e-9):
            break
        chosen = better
        errors.append(error)
    return torch.tensor(sorted(chosen)), torch.tensor(errors, dtype=torch.float64)


def _exchanged(g: Tensor, root: Tensor, chosen: list[int]) -> list[int]:
    """Add the best unit, then drop the cheapest.

    Dropping j costs |beta_j|^2 / (G_KK^-1)_jj, beta = root G_:K G_KK^-1 the refitted reader.
    """
    k = torch.tensor(chosen, device=g.device)
    s = g - g[:, k] @ _solve(g[k][:, k], g[k])
    part = s.diagonal().clone()
    part[k] = 0.0
    usable = part > _FOLLOWS * g.diagonal()
    if not usable.any():
        return chosen
    gain = torch.where(usable, ((root @ s) ** 2).sum(0) / part, -torch.inf)
    grown = [*chosen, int(gain.argmax())]
    k = torch.tensor(grown, device=g.device)
    inverse = _solve(g[k][:, k], torch.eye(len(grown), dtype=g.dtype, device=g.device))
    beta = root @ g[:, k] @ inverse
    cost = (beta**2).sum(0) / inverse.diagonal()
    worst = int(cost.argmin())
    return grown[:worst] + grown[worst + 1 :]


def express(
    gram: Tensor, kept: Sequence[int] | Tensor, mean: Tensor | None = None, *, ridge: float = 1e-6
) -> Expression:
    """Express the removed units by the kept ones, by ridge regression on the Gram matrix.

    Args:
        gram: Mean of x x^T [n, n].
        kept: Units kept.
        mean: Mean of x [n]; with it, the offset is fitted too.
        ridge: Relative to the mean variance of the kept units.

    Raises:
        ValueError: Bad shapes, a unit out of range, or a negative ridge.
    """
    if ridge < 0:
        raise ValueError(f"the ridge must be 0 or more; got {ridge}")
    g = centered(gram, mean)
    n = g.shape[0]
    k = torch.as_tensor(kept, device=g.device).long().unique()
    if k.numel() == 0 or int(k.min()) < 0 or int(k.max()) >= n:
        raise ValueError(f"kept units must be some of 0 .. {n - 1}; got {k.tolist()[:8]}")
    r = torch.tensor(sorted(set(range(n)) - set(k.tolist())), dtype=torch.int64, device=g.device)
    inner = g[k][:, k] + ridge * g.diagonal()[k].mean() * torch.eye(len(k), dtype=g.dtype, device=g.device)
    c = _solve(inner, g[k][:, r]).T
    spread = g[r][:, r].diagonal() - 2 * (c * g[r][:, k]).sum(1) + ((c @ g[k][:, k]) * c).sum(1)
    mu = g.new_zeros(n) if mean is None else mean.double()
    return Expression(k, r, c, mu[r] - c @ mu[k], spread.clamp(min=0))


def _solve(a: Tensor, b: Tensor) -> Tensor:
    """Solve a x = b, a positive semidefinite: by Cholesky, by least squares where that breaks down."""
    factor, info = torch.linalg.cholesky_ex(a)
    if int(info) == 0:
        return torch.cholesky_solve(b, factor)
    return torch.linalg.pinv(a, hermitian=True) @ b


__all__ = [
    "ActivationBasis",
    "Expression",
    "activation_basis",
    "centered",
    "express",
    "output_error",
    "swapped",
]
