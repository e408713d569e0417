"""Bases of activations: which units to keep so that the others follow linearly from them.

Pivoted Cholesky on the (centred) Gram matrix of the activations is column-pivoted QR on the activations
themselves: each step takes the unit with the largest unexplained part, a greedy basis of large volume of the
activation matroid.  If the consuming weights are known, each step takes the unit that lowers the error of
their output most (orthogonal least squares).  Interpolative decomposition of layers: Chee, Flynn, Damle,
De Sa, "Model preserving compression for neural networks", NeurIPS 2022.

Letters: G the centred Gram matrix [n, n]; K kept, R removed; S = G - G[:, K] G[K, K]^-1 G[K, :] the part
not explained by K; Q [n, n] the consumer: the error of the output is tr(Q S) (Q = W^T W of its weight W).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.structures.matroid.greedy import FOLLOWS, GreedySearch, factor_root

__all__ = [
    "ActivationBasis",
    "Expression",
    "activation_basis",
    "center_gram",
    "check_consumer",
    "express",
    "output_error",
    "ridge_leverages",
]


@dataclass(frozen=True, eq=False)
class ActivationBasis:
    """An order in which to keep units, and what stays unexplained.

    Attributes:
        order: The first `count` units to keep, the most needed first, int64 [count]; to keep m units, keep
            `order[:m]`.
        residuals: What is unexplained with the first m kept, m = 0 .. count, float64 [count + 1]: tr(S), or
            tr(Q S) with a consumer.
        rank: Number of units, out of all, that can be taken before the rest follow to within rounding.
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


def center_gram(gram: Tensor, mean: Tensor | None = None) -> Tensor:
    """Return the covariance: mean of x x^T less the outer product of the means, float64 [n, n].

    Raises:
        ValueError: If the matrix is not finite and symmetric, or the mean does not fit.
    """
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or gram.shape[0] == 0:
        raise ValueError(f"a Gram matrix is square and not empty; got shape {tuple(gram.shape)}")
    g = gram.double()
    if not torch.isfinite(g).all():
        raise ValueError("the Gram matrix must be finite: look for NaN among the activations")
    if (g - g.T).abs_().max() > 2e-6 * g.abs().max():
        raise ValueError("a Gram matrix is symmetric; this one is not")
    if mean is None:
        return (g + g.T) / 2
    if mean.shape != g.shape[:1]:
        raise ValueError(f"the mean of {len(g)} units has shape ({len(g)},); got {tuple(mean.shape)}")
    return (g + g.T) / 2 - torch.outer(mean.double(), mean.double())


def activation_basis(
    gram: Tensor,
    mean: Tensor | None = None,
    *,
    consumer: Tensor | None = None,
    count: int | None = None,
    rtol: float = FOLLOWS,
    on_step: Callable[[int], None] | None = None,
) -> ActivationBasis:
    """Order units greedily, by their unexplained part or by what they add to the consumer's output.

    Operations, for n units, k = `count` and m outputs (the rank of Q, W its root [m, n]).  A step looks at
    the n - t units that are still open, t = 0 .. k - 1: the sum of n - t is k (n - k/2).
    - W and W G: 2/3 n^3 + m n^2 and 2 m n^2, once.
    - S: 2 (n - t)^2 a step, 2/3 (n^3 - (n - k)^3) in all, as one matrix product for a block of steps.
    - W S: 2 m (n - t) a step, in the same blocks.
    - The gains: 2 m (n - t) a step, 2 m k (n - k/2) in all, as a product of a matrix and a vector.  These
      are bound by memory and cost the most if m is large.
    - The rank: 2/3 (n - k)^3.
    No step makes a matrix.  A block copies S and W S once, without the units just taken.

    Args:
        gram: Mean of x x^T over the data [n, n]; any scale.
        mean: Mean of x [n]: centres the Gram matrix, as the consumer's bias can absorb the means.
        consumer: Q [n, n], positive semidefinite.  None: pivoted Cholesky.
        count: Number of units to take; None: all of them.
        rtol: A unit follows from the others if its unexplained part is under rtol times its variance.  When
            all others follow, they come next in the order, largest variance first.
        on_step: Called with the number of units taken so far, after every block of steps.

    Returns:
        The basis.  Of units that gain equally, the one with the lower index comes first.

    Raises:
        ValueError: If shapes do not fit, a value is not finite, or `count` or `rtol` is out of range.

    Example:
        >>> x = torch.tensor([[1.0, 2.0, 0.0], [2.0, 4.0, 1.0], [3.0, 6.0, 0.0]])
        >>> activation_basis(x.T @ x).order.tolist()
        [1, 2, 0]
    """
    if not 0 <= rtol < 1:
        raise ValueError(f"rtol must be in [0, 1); got {rtol!r}")
    g = center_gram(gram, mean)
    n = len(g)
    count = n if count is None else count
    if not 0 <= count <= n:
        raise ValueError(f"count must be in 0 .. {n}, the number of units; got {count!r}")
    reader = None if consumer is None else factor_root(check_consumer(consumer, g))
    search = GreedySearch(g, reader, rtol)
    search.take(count, on_step)
    order, residuals = search.order.copy(), search.residuals.copy()
    if len(order) < count:  # the rest follows: nothing is left to explain
        taken = set(order)
        by_variance = torch.argsort(g.diagonal(), descending=True, stable=True).tolist()
        order = [*order, *(j for j in by_variance if j not in taken)][:count]
        residuals = residuals + residuals[-1:] * (count + 1 - len(residuals))
    return ActivationBasis(
        torch.tensor(order, dtype=torch.int64, device=g.device),
        torch.tensor(residuals, dtype=torch.float64),
        search.rank(),
    )


def check_consumer(consumer: Tensor | None, g: Tensor) -> Tensor:
    """Return Q as a float64 matrix; None stands for the identity.

    Raises:
        ValueError: If it is not finite and symmetric, or does not fit the Gram matrix.
    """
    if consumer is None:
        return torch.eye(len(g), dtype=g.dtype, device=g.device)
    if consumer.shape != g.shape:
        raise ValueError(f"the consumer has shape {tuple(consumer.shape)}, the Gram matrix {tuple(g.shape)}")
    return center_gram(consumer)


def output_error(gram: Tensor, kept: Sequence[int] | Tensor, consumer: Tensor | None = None) -> float:
    """Return tr(Q S) for the kept units (tr(S) without a consumer), `gram` centred.

    Raises:
        ValueError: If shapes do not fit.
    """
    g = center_gram(gram)
    q = check_consumer(consumer, g)
    k = torch.as_tensor(kept, device=g.device)
    if k.numel() == 0:
        return float((q * g).sum())
    s = g - g[:, k] @ _solve(g[k][:, k], g[k])
    return max(float((q * s).sum()), 0.0)


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
    g = center_gram(gram, mean)
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


def ridge_leverages(gram: Tensor, ridge: float) -> Tensor:
    """Return how much of each unit ridge regression on all units keeps: the diagonal of G (G + r I)^-1.

    A unit that no others resemble scores near 1 if it is large against r; copies share their score.  The sum
    is the effective number of units.  Alaoui, Mahoney, "Fast randomized kernel ridge regression with
    statistical guarantees", NIPS 2015.

    Args:
        gram: Mean of x x^T [n, n], centred or not.
        ridge: r relative to the mean of the diagonal of `gram`, positive.

    Returns:
        float64 [n], in [0, 1).

    Raises:
        ValueError: If the matrix is not finite and symmetric, or the ridge is not positive.

    Example:
        >>> ridge_leverages(torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), 0.5)
        tensor([0.4000, 0.4000, 0.6667], dtype=torch.float64)
    """
    if not 0 < ridge < float("inf"):
        raise ValueError(f"the ridge must be a positive number; got {ridge!r}")
    g = center_gram(gram)
    size = g.diagonal().mean()
    if float(size) <= 0:
        return torch.zeros_like(g.diagonal())
    a = g / (ridge * size)
    a.diagonal().add_(1)
    return 1 - torch.cholesky_inverse(torch.linalg.cholesky(a)).diagonal()


def _solve(a: Tensor, b: Tensor) -> Tensor:
    """Solve a x = b, a positive semidefinite: by Cholesky, by least squares where that breaks down."""
    factor, info = torch.linalg.cholesky_ex(a)
    if int(info) == 0:
        return torch.cholesky_solve(b, factor)
    return torch.linalg.pinv(a, hermitian=True) @ b
