"""The greedy search for a basis of activations: pivoted Cholesky in blocks of steps.

Letters as in `activations`: S is what the units taken so far leave unexplained, W a root of the consumer Q.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["FOLLOWS", "GreedySearch", "factor_root", "independent_units"]

# A unit follows from the others, to within rounding, if a smaller share of its variance is unexplained.
FOLLOWS = 1e-12
# Gains closer than this are equal: the lower index wins, whatever the order of summation.
_TIE = 1e-9
# |B_j|^2 is computed again if rounding in its updates could exceed _TIE: this times 2^-52 is below it.
_TRUSTED = 1e6
# Steps between two updates of the whole matrices.
_BLOCK = 64


class GreedySearch:
    """The state of the greedy search: S, and B = S W^T for a root W of Q, on the units still open.

    Within a block of steps, S and B stay as they were at its start.  Steps append a column c of the Cholesky
    factor and d = W c: now S is S - C C^T and B is B - C D^T.  The part of unit j is S_jj; its gain is
    |B_j|^2 / S_jj, or S_jj without a consumer.  Both are updated in every step.
    """

    def __init__(self, g: Tensor, reader: Tensor | None, rtol: float) -> None:
        """Start with no unit taken; `reader` is W [m, n], None to gain the part itself."""
        self.s = g.clone()
        self.floor = rtol * g.diagonal()
        self.units = torch.arange(len(g), device=g.device)
        self.order: list[int] = []
        self.b: Tensor | None = None
        total = g.diagonal().sum()
        if reader is not None:
            self.b = g @ reader.T
            total = (self.b * reader.T).sum()
        self.residuals = [max(float(total), 0.0)]

    def take(self, count: int, on_step: Callable[[int], None] | None = None) -> None:
        """Take units until there are `count`, or until the rest follow from them."""
        while len(self.order) < count:
            before = len(self.order)
            self._block(min(_BLOCK, count - before))
            if on_step is not None:
                on_step(len(self.order))
            if len(self.order) == before:
                return

    def rank(self) -> int:
        """Return how many units can be taken in all; the search ends here."""
        if _full_factor(self.s, self.floor) is not None:
            return len(self.order) + len(self.units)
        self.b = None
        self.take(len(self.order) + len(self.units))
        return len(self.order)

    def _block(self, steps: int) -> None:
        part = self.s.diagonal().clone()
        gains = None if self.b is None else _Gains(self.b, steps)
        c = self.s.new_zeros(steps, len(part))
        residual, step = self.residuals[-1], 0
        while step < steps:
            usable = part > self.floor
            gain = part if gains is None else gains.at(part, usable, c[:step])
            gain = torch.where(usable, gain, -torch.inf)
            best = gain.max()
            if best == -torch.inf:
                break
            pivot = int((gain >= best * (1 - _TIE)).byte().argmax())
            size = part[pivot].sqrt()
            c[step] = (self.s[pivot] - c[:step, pivot] @ c[:step]) / size
            if gains is not None:
                residual -= gains.take(pivot, c[: step + 1], size)
            part -= c[step] ** 2
            part[pivot] = -torch.inf
            if gains is None:
                residual = float(part.clamp(min=0).sum())
            self.order.append(int(self.units[pivot]))
            self.residuals.append(max(residual, 0.0))
            step += 1
        self._close(c[:step], part > -torch.inf, gains)

    def _close(self, c: Tensor, open_: Tensor, gains: _Gains | None) -> None:
        """Drop the units taken in this block and bring S and B up to date."""
        k = open_.nonzero()[:, 0]
        c = c.index_select(1, k)
        self.s = self.s.index_select(0, k).index_select(1, k).addmm_(c.T, c, alpha=-1)
        self.floor, self.units = self.floor[k], self.units[k]
        if gains is not None:
            self.b = gains.b.index_select(0, k).addmm_(c.T, gains.d[: len(c)], alpha=-1)


class _Gains:
    """|B_j|^2 of each open unit within a block of steps."""

    def __init__(self, b: Tensor, steps: int) -> None:
        self.b, self.d = b, b.new_zeros(steps, b.shape[1])
        self.squares = torch.linalg.vector_norm(b, dim=1) ** 2
        self.summed = self.squares.clone()  # when last computed in full

    def at(self, part: Tensor, usable: Tensor, c: Tensor) -> Tensor:
        """Return |B_j|^2 / S_jj, correct to _TIE of the largest.

        Updates round relative to the last full sum.  If the part has become small since then (the unit nearly
        follows), that error could pass for a gain.  So compute |B_j|^2 of such units again.
        """
        while True:
            gain = self.squares.clamp(min=0) / part
            best = torch.where(usable, gain, -torch.inf).max()
            stale = usable & (self.summed > _TRUSTED * best * part)
            if not stale.any():
                return gain
            rows = self.b[stale] - c[:, stale].T @ self.d[: len(c)]
            self.squares[stale] = self.summed[stale] = (rows**2).sum(1)

    def take(self, pivot: int, c: Tensor, size: Tensor) -> float:
        """Append d = B_p / sqrt(S_pp), update |B_j - c_j d|^2, return the gain |d|^2."""
        last = len(c) - 1
        d = (self.b[pivot] - c[:last, pivot] @ self.d[:last]) / size
        self.d[last] = d
        product = self.b @ d - (self.d[:last] @ d) @ c[:last]
        self.squares -= c[last] * (2 * product - (d @ d) * c[last])
        return float(d @ d)


def factor_root(q: Tensor) -> Tensor:
    """Return some W with W^T W = Q, of as few rows as Q has rank."""
    basis, factor = independent_units(q, max(FOLLOWS, len(q) * torch.finfo(q.dtype).eps))
    return torch.linalg.solve_triangular(factor, q[basis], upper=False)


def independent_units(a: Tensor, rtol: float = FOLLOWS) -> tuple[Tensor, Tensor]:
    """Return indices from which the others follow, and the Cholesky factor of their part of the matrix."""
    full = _full_factor(a, rtol * a.diagonal())
    if full is not None:
        return torch.arange(len(a), device=a.device), full
    search = GreedySearch(a, None, rtol)
    search.take(len(a))
    k = torch.tensor(search.order, dtype=torch.int64, device=a.device)
    factor, info = torch.linalg.cholesky_ex(a[k][:, k])
    if int(info):  # the last pivots were within rounding after all
        k = k[: int(info) - 1]
        factor = torch.linalg.cholesky(a[k][:, k])
    return k, factor


def _full_factor(a: Tensor, floor: Tensor) -> Tensor | None:
    """Return the Cholesky factor if no unit follows from others; one call is faster than a search."""
    factor, info = torch.linalg.cholesky_ex(a)
    return factor if int(info) == 0 and bool((factor.diagonal() ** 2 > floor).all()) else None
