"""Least squares for the correction of a weight, with a ridge that is chosen on rows kept apart.

Letters: z are the rows that reach a weight V in the pruned network, t what its output should be without the
bias, c a constant.  In each block of the weight (a group of a convolution; otherwise there is one block)

    min over V, c of  mean |V z + c - t|^2 + r s |V - V_0|^2

with s the mean variance of z's features and r the relative ridge.  With the covariances S of z and C of t
with z, the correction U = V - V_0 satisfies U (S + r s I) = C - V_0 S.  So a large ridge gives back V_0.
Without a constant c, second moments take the place of covariances.

Products are made in the rows' own type and added up in float64.  With a constant, rows count from their first
mean, so that little is lost in the difference of second moments and means.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["RIDGES", "InputSums", "OriginalSums", "TargetSums", "WeightSolution", "solve"]

RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
FIRST = 4  # number of the ridge that the search starts from
ROWS = 4096  # in one product
COLUMNS = 256  # of a product with itself that are made at once
TINY = 1e-300


class InputSums:
    """Sums over the rows z that reach a weight, and factors of their covariance.

    Args:
        first: Some of the rows [n, blocks, features].
        centred: Whether the layer can take a constant.
    """

    def __init__(self, first: Tensor, centred: bool) -> None:
        """Start without rows."""
        _, blocks, features = first.shape
        self.centred, self.count = centred, 0
        self.shift = first.mean(0) if centred else first.new_zeros(blocks, features)
        self._gram = first.new_zeros(blocks, features, features, dtype=torch.float64)
        self._sum = first.new_zeros(blocks, features, dtype=torch.float64)
        self._second: Tensor | None = None
        self._factors: dict[float, Tensor | None] = {}

    def add(self, z: Tensor) -> None:
        """Add rows [n, blocks, features]."""
        for part in z.split(ROWS):
            rows = (part - self.shift).transpose(0, 1)
            for start in range(0, rows.shape[2], COLUMNS):  # the other triangle is the same
                stop = start + COLUMNS
                self._gram[:, start:stop, start:] += (rows[..., start:stop].mT @ rows[..., start:]).double()
            self._sum += rows.sum(1).double()
        self.count += len(z)
        self._second = None

    def finite(self) -> bool:
        """Return whether the sums are finite."""
        return bool(self._gram.isfinite().all())

    def mean(self) -> Tensor:
        """Return the mean of the rows less the shift [blocks, features]."""
        return self._sum / self.count

    def second(self) -> Tensor:
        """Return the mean of z z^T less the shift [blocks, features, features]."""
        if self._second is None:
            self._second = (self._gram.triu() + self._gram.triu(1).mT) / self.count
        return self._second

    def covariance(self) -> Tensor:
        """Return S [blocks, features, features]."""
        mean = self.mean()
        return self.second() - mean[:, :, None] * mean[:, None, :] if self.centred else self.second().clone()

    def factor(self, ridge: float) -> Tensor | None:
        """Return the Cholesky factor of S + r s I, or None if rounding makes it indefinite."""
        if ridge not in self._factors:
            A = self.covariance()
            scale = A.diagonal(dim1=1, dim2=2).mean(1).clamp_min(TINY)
            A.diagonal(dim1=1, dim2=2).add_(ridge * scale[:, None])
            factor, info = torch.linalg.cholesky_ex(A)
            self._factors[ridge] = None if bool(info.any()) else factor
        return self._factors[ridge]


class TargetSums:
    """Sums over the pairs of rows z and targets t [n, blocks, outputs].

    Args:
        inputs: The sums over z.
        first: Some of the targets.
    """

    def __init__(self, inputs: InputSums, first: Tensor) -> None:
        """Start without rows."""
        _, blocks, outputs = first.shape
        self.inputs, self.count = inputs, 0
        self.shift = first.mean(0) if inputs.centred else first.new_zeros(blocks, outputs)
        self._cross = first.new_zeros(blocks, outputs, inputs.shift.shape[1], dtype=torch.float64)
        self._sum = first.new_zeros(blocks, outputs, dtype=torch.float64)
        self._square = first.new_zeros(blocks, dtype=torch.float64)

    def add(self, z: Tensor, t: Tensor) -> None:
        """Add pairs of rows."""
        for part, goal in zip(z.split(ROWS), t.split(ROWS), strict=True):
            rows = (part - self.inputs.shift).transpose(0, 1)
            goals = (goal - self.shift).transpose(0, 1)
            self._cross += (goals.mT @ rows).double()
            self._sum += goals.sum(1).double()
            self._square += goals.square().sum((1, 2)).double()
        self.count += len(z)

    def set(self, count: int, cross: Tensor, summed: Tensor, square: Tensor) -> None:
        """Take the number of pairs, the sums of t z^T, of t, and in each block of |t|^2, less the shifts."""
        self.count, self._cross, self._sum, self._square = count, cross, summed, square

    def finite(self) -> bool:
        """Return whether the sums are finite."""
        return bool(self._cross.isfinite().all()) and bool(self._square.isfinite().all())

    def mean(self) -> Tensor:
        """Return the mean of the targets less the shift [blocks, outputs]."""
        return self._sum / self.count

    def cross(self) -> Tensor:
        """Return C [blocks, outputs, features]."""
        means = self.mean()[:, :, None] * self.inputs.mean()[:, None, :]
        return self._cross / self.count - means if self.inputs.centred else self._cross / self.count

    def square(self) -> float:
        """Return the mean square of the targets, less their mean if the layer can take a constant."""
        return float(
            (self._square / self.count - (self.mean().square().sum(1) if self.inputs.centred else 0)).sum()
        )

    def error(self, V: Tensor, c: Tensor) -> Tensor:
        """Return the mean of |V z + c - t|^2 in each block, at least 0 despite rounding.

        Args:
            V: Weight [blocks, outputs, features].
            c: Constant [blocks, outputs].
        """
        # About the shifts, V z + c - t = V z' + d - t' with d = c + V shift_z - shift_t.
        d = c + (V @ self.inputs.shift.double()[:, :, None])[:, :, 0] - self.shift.double()
        z, t = self.inputs.mean(), self.mean()
        quadratic = ((V @ self.inputs.second()) * V).sum((1, 2)) + d.square().sum(1)
        mixed = (V * (self._cross / self.count)).sum((1, 2)) + (d * t).sum(1)
        linear = 2 * (d * (V @ z[:, :, None])[:, :, 0]).sum(1) - 2 * mixed
        return (quadratic + linear + self._square / self.count).clamp_min(0)


class OriginalSums:
    """Sums over the pairs of rows z and rows x of the original, from which those for any t = W x follow.

    Several weights read the same rows, or a weight has more outputs than x has features: then it is cheaper
    not to make the targets.

    Args:
        inputs: The sums over z.
        first: Some of the rows x [n, blocks, features].
    """

    def __init__(self, inputs: InputSums, first: Tensor) -> None:
        """Start without rows."""
        self._inputs, self._x = inputs, InputSums(first, inputs.centred)
        sizes = (*first.shape[1:], inputs.shift.shape[1])
        self._cross = first.new_zeros(sizes, dtype=torch.float64)

    def add(self, z: Tensor, x: Tensor) -> None:
        """Add pairs of rows."""
        for part, other in zip(z.split(ROWS), x.split(ROWS), strict=True):
            rows = (part - self._inputs.shift).transpose(0, 1)
            self._cross += ((other - self._x.shift).transpose(0, 1).mT @ rows).double()
        self._x.add(x)

    def targets(self, W: Tensor) -> TargetSums:
        """Return the sums over z and t = W x, for a weight [blocks, outputs, features] in float64."""
        first = (W @ self._x.shift.to(W)[:, :, None])[:, :, 0]
        targets = TargetSums(self._inputs, first[None])
        x, count = self._x, self._x.count
        squares = ((W @ x.second()) * W).sum((1, 2)) * count
        targets.set(count, W @ self._cross, count * (W @ x.mean()[:, :, None])[:, :, 0], squares)
        return targets

    def finite(self) -> bool:
        """Return whether the sums are finite."""
        return bool(self._cross.isfinite().all()) and self._x.finite()


@dataclass(frozen=True, eq=False)
class WeightSolution:
    """A solved weight.

    Attributes:
        V: The weight [blocks, outputs, features], float64.
        c: The constant [blocks, outputs]; unchanged if the layer cannot take one.
        ridge: The ridge of each block; infinite where V_0 stays.
        before: Error of V_0 on the rows that chose the ridge, relative to the variance of t.
        after: Error of V there.
    """

    V: Tensor
    c: Tensor
    ridge: Tensor
    before: float
    after: float


def solve(fitting: TargetSums, apart: TargetSums | None, V: Tensor, c: Tensor) -> WeightSolution:
    """Solve for a weight; choose the ridge, or V_0 itself, by the error on the rows kept apart.

    Args:
        fitting: Pairs to fit.
        apart: Pairs kept apart; without any, those of `fitting`.
        V: V_0 [blocks, outputs, features], float64.
        c: Its constant [blocks, outputs], float64.

    Example:
        >>> z = torch.randn(64, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> inputs = InputSums(z, centred=True)
        >>> targets = TargetSums(inputs, 2 * z[..., :1] + 1)
        >>> inputs.add(z)
        >>> targets.add(z, 2 * z[..., :1] + 1)
        >>> solution = solve(targets, None, torch.zeros(1, 1, 3).double(), torch.zeros(1, 1).double())
        >>> f"{float(solution.V[0, 0, 0]):.3f} z + {float(solution.c[0, 0]):.3f}"
        '2.000 z + 1.000'
    """
    check = apart if apart is not None and apart.count else fitting
    inputs = fitting.inputs
    rest = fitting.cross() - V @ inputs.covariance()
    before = check.error(V, c)
    best_V, best_c, best = V, c, before
    chosen = last = start = torch.full_like(before, torch.inf)
    # The error falls with the ridge up to the best one, and rises from there on: search from the middle.
    for ridges in (RIDGES[FIRST:], RIDGES[FIRST - 1 :: -1]):
        for ridge in ridges:
            factor = inputs.factor(ridge)
            if factor is None:
                continue
            trial = V + torch.cholesky_solve(rest.mT, factor).mT
            constant = _constant(fitting, trial) if inputs.centred else c
            error = check.error(trial, constant)
            better = error < best
            best = torch.where(better, error, best)
            best_V = torch.where(better[:, None, None], trial, best_V)
            best_c = torch.where(better[:, None], constant, best_c)
            chosen = torch.where(better, ridge, chosen)
            if ridge == RIDGES[FIRST]:
                start = error
            if bool((error > last).all()):
                break
            last = error
        last = start
        if bool((chosen > RIDGES[FIRST]).all()):
            break
    scale = max(check.square(), TINY)
    return WeightSolution(best_V, best_c, chosen, float(before.sum()) / scale, float(best.sum()) / scale)


def _constant(fitting: TargetSums, V: Tensor) -> Tensor:
    """Return the c that makes the means of V z + c and t equal."""
    z = fitting.inputs.mean() + fitting.inputs.shift.double()
    return fitting.mean() + fitting.shift.double() - (V @ z[:, :, None])[:, :, 0]
