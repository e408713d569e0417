"""The removed features of a layer as a linear function of the kept ones, from their Gram matrix.

Letters as in `fold`: K and R are the numbers of the kept and the removed features, m their means, S their
covariance.  Least squares gives C = S_RK (S_KK + ridge)^-1 and c = m_R - C m_K.

What does not depend on the ridge is computed once: for n features and o outputs, k of the features kept, one
ridge costs k^3 / 3 + 2 k^2 (n - k) + 2 o k n operations, the factor, C and the error of the output.  S_KK is
gathered from the Gram matrix for each ridge and becomes its factor, so besides the Gram matrices of a wide
layer (1.5 GiB at 14,336 features) there is one matrix of that order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from secateur.core import IntArray

__all__ = ["Fit", "OutputError", "Regression", "SecondMoments"]

COLUMNS = 2048  # of a Gram matrix that are gathered at once
PARALLEL = 1e-12  # 1 - cos^2 below which two features count as multiples of one another


@dataclass(frozen=True, eq=False)
class Fit:
    """How the removed features of a consumer follow from its kept ones.

    Attributes:
        kept: Feature numbers K.
        removed: Feature numbers R.
        coefficients: C, float64 [R, K].
        offset: c, float64 [R]; 0 if the layer has no bias to take it.
        dead: Number of removed features that are 0 on the data.
        parallel: Number of removed features that are multiples of a kept one on the data.
    """

    kept: IntArray
    removed: IntArray
    coefficients: Tensor
    offset: Tensor
    dead: int = 0
    parallel: int = 0


class Regression:
    """Fits of the removed features for any ridge.

    Args:
        gram: Second moments of all features, float64.
        mean: Their means; zeros if the layer cannot take a constant.
        kept: Feature numbers K.
        removed: Feature numbers R.
    """

    def __init__(self, gram: Tensor, mean: Tensor, kept: IntArray, removed: IntArray) -> None:
        """Find dead features and multiples, which need no least squares."""
        self.kept, self.removed = kept, removed
        k, r = (torch.from_numpy(i).to(gram.device) for i in (kept, removed))
        self._means = mean[k], mean[r]
        self._gram, self._k = gram, k
        products, second = gram[r[:, None], k], gram.diagonal()
        self._floor = (1e-24 * second.max()).clamp_min(torch.finfo(second.dtype).tiny)
        # The covariance of constant features is rounding error, of this size; the matrix must stay definite.
        self._noise = 16 * torch.finfo(gram.dtype).eps * second[k].sum()
        self._dead = second[r] <= self._floor
        self._parallel = torch.zeros_like(self._dead)
        self._partners, self._factors = k[:0], second[:0]
        if len(kept) and len(removed):
            found = _find_multiples(products, second[r], second[k], self._dead)
            self._parallel, self._partners, self._factors = found
        self._S_RK = products.addr_(mean[r], mean[k], alpha=-1)

    def fit(self, ridge: float) -> Fit:
        """Return the fit for a ridge relative to the mean variance of the kept features."""
        C = self._S_RK.clone()
        exact = self._dead | self._parallel
        if C.numel():
            k, mean = self._k, self._means[0]
            A = self._gram[k[:, None], k].addr_(mean, mean, alpha=-1)  # S_KK
            size = ridge * A.diagonal().mean()
            A.diagonal().add_(size.clamp_min(self._noise).clamp_min(self._floor))
            # In place: LAPACK copies a matrix that is stored by rows, `cholesky_solve` both its operands.
            L = torch.linalg.cholesky(A.mT, out=A.mT)
            torch.linalg.solve_triangular(L, C.T, upper=False, out=C.T)
            torch.linalg.solve_triangular(L.T, C.T, upper=True, out=C.T)
            C[exact] = 0
            C[self._parallel.nonzero()[:, 0], self._partners] = self._factors
        # A dead feature and a multiple of a kept one have no constant part to give to the bias.
        offset = torch.where(exact, 0.0, self._means[1] - C @ self._means[0])
        counts = int(self._dead.sum()), int(self._parallel.sum())
        return Fit(self.kept, self.removed, C, offset, *counts)


def _find_multiples(
    products: Tensor, removed: Tensor, kept: Tensor, dead: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Find features that are a positive multiple of a kept one.

    x_r = a x_k on the data exactly if cos^2 = E[x_r x_k]^2 / (E[x_r^2] E[x_k^2]) is 1; then
    a = E[x_r x_k] / E[x_k^2].

    Args:
        products: E[x_r x_k] [R, K].
        removed: E[x_r^2].
        kept: E[x_k^2].
        dead: Which removed features are 0.

    Returns:
        Which features are [R]; of these, the numbers of the kept features and the factors a.
    """
    tiny = torch.finfo(products.dtype).tiny
    cosines = products.clamp_min(0).square_()
    best, partner = cosines.div_((removed[:, None] * kept[None]).clamp_min_(tiny)).max(1)
    multiples = (1 - best <= PARALLEL) & ~dead
    rows, partner = multiples.nonzero()[:, 0], partner[multiples]
    return multiples, partner, products[rows, partner] / kept[partner]


class SecondMoments(NamedTuple):
    """The mean G of x x^T, or a root F with F^T F = G where there are fewer rows than features.

    Attributes:
        matrix: G [features, features], or F [rows, features].
        root: Whether it is F.
    """

    matrix: Tensor
    root: bool

    def product(self, A: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Return A G, of these rows and columns of G."""
        if self.root:
            return A @ self.matrix[:, rows].T @ self.matrix[:, columns]
        return A @ self.matrix[rows[:, None], columns]

    def quadratic(self, M: Tensor, index: Tensor) -> float:
        """Return the trace of M G M^T, of these rows and columns of G."""
        if self.root:
            return float((M @ self.matrix[:, index].T).square().sum())
        total = 0.0
        for some, columns in zip(index.split(COLUMNS), M.split(COLUMNS, dim=1), strict=True):
            total += _inner(self.product(M, index, some), columns)
        return total


class OutputError:
    """The mean squared error of a layer's output without removed features, plain or with a fit.

    Args:
        W: The weight [outputs, features].
        second: Second moments of all features on the data that judges.
        mean: Their means.
        kept: Feature numbers K.
        removed: Feature numbers R.
    """

    def __init__(
        self, W: Tensor, second: SecondMoments, mean: Tensor, kept: IntArray, removed: IntArray
    ) -> None:
        """Compute what all fits share."""
        self._k, self._r = (torch.from_numpy(i).to(mean.device) for i in (kept, removed))
        self._W, self._second, self._mean = W, second, mean
        W_R = W[:, self._r]
        self._cross = second.product(W_R, self._r, self._k)
        self.plain = second.quadratic(W_R, self._r)

    def total(self) -> float:
        """Return the mean square of the output."""
        W_K = self._W[:, self._k]
        return self.plain + self._second.quadratic(W_K, self._k) + 2 * _inner(self._cross, W_K)

    def folded(self, fit: Fit) -> float:
        """Return the error with a fit: the mean square of W_R (x_R - C x_K - c)."""
        W_R = self._W[:, self._r]
        M = W_R @ fit.coefficients.to(W_R.device)
        shift = W_R @ fit.offset.to(W_R.device)
        quadratic = self.plain + self._second.quadratic(M, self._k) - 2 * _inner(self._cross, M)
        mean = W_R @ self._mean[self._r] - M @ self._mean[self._k]
        return quadratic + float((shift * (shift - 2 * mean)).sum())


def _inner(A: Tensor, B: Tensor) -> float:
    """Return the trace of A B^T, without a matrix of products."""
    return float(torch.dot(A.reshape(-1), B.reshape(-1)))
