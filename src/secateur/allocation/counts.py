"""Counts that groups may keep, and paths of counts that grow until a target is met."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from secateur.allocation.ranking import ranked
from secateur.core import IntArray

__all__ = [
    "AllowedCounts",
    "CountPath",
    "apportion",
    "one_by_one",
    "one_step_more",
    "ranked_counts",
    "round_half_up",
    "search",
    "shared_counts",
]


def round_half_up(x: float) -> int:
    """Return the nearest integer, halves up, tolerating rounding error (0.29 * 50 is a half)."""
    return int(x + 0.5 + 1e-9)


class AllowedCounts(NamedTuple):
    """The counts that a group may keep: multiples of `round_to` from `floor` up, and all of it."""

    size: int
    floor: int = 1
    round_to: int = 1

    @property
    def first(self) -> int:
        """Return the smallest allowed count."""
        return min(self.size, -(-self.floor // self.round_to) * self.round_to)

    def below(self, x: float) -> int:
        """Return the largest allowed count up to x, or the first."""
        if x + 1e-9 >= self.size:
            return self.size
        return max(self.first, int((x + 1e-9) // self.round_to) * self.round_to)

    def above(self, count: int) -> int:
        """Return the next allowed count."""
        return min(self.size, count + self.round_to)

    def nearest(self, x: float) -> int:
        """Return the allowed count nearest to x; of two, the larger."""
        low = self.below(x)
        high = self.above(low)
        return high if 2 * (x + 1e-9) >= low + high else low

    def counts(self) -> IntArray:
        """Return all allowed counts, rising."""
        return np.unique([*range(self.first, self.size, self.round_to), self.size])


def apportion(allowed: list[AllowedCounts], targets: list[float], total: int) -> list[int]:
    """Round targets to allowed counts: all down, then up by largest remainder while the total allows."""
    counts = [a.below(target) for a, target in zip(allowed, targets, strict=True)]
    left = total - sum(counts)
    for i in sorted(range(len(counts)), key=lambda i: (counts[i] - targets[i], i)):
        gain = allowed[i].above(counts[i]) - counts[i]
        if 0 < gain <= left:
            counts[i] += gain
            left -= gain
    return counts


class CountPath(NamedTuple):
    """Counts of all groups as a function of an index from 0 to `last`; no count falls along it."""

    last: int
    at: Callable[[int], list[int]]


def search(path: CountPath, amount: Callable[[list[int]], float], target: float) -> list[int]:
    """Return the last counts of a path whose amount is at most the target, or else the first.

    The amount rises with the counts, so bisection finds them in log(last) evaluations.
    """
    low, high = 0, path.last
    while low < high:
        middle = (low + high + 1) // 2
        if amount(path.at(middle)) <= target * (1 + 1e-12):
            low = middle
        else:
            high = middle - 1
    return path.at(low)


def shared_counts(allowed: list[AllowedCounts], factors: np.ndarray) -> CountPath:
    """Return the path of one share s for all groups, which keep min(1, s * factor) of their units each."""
    # A group's count changes where s * factor * size passes the middle of two neighbouring allowed counts.
    # Between those values of s (the knots) nothing changes, so they are the whole path.
    knots = [np.zeros(1)]
    for a, factor in zip(allowed, factors, strict=True):
        counts = a.counts()
        knots.append((counts[1:] + counts[:-1]) / 2 / (a.size * factor))
    shares = np.unique(np.concatenate(knots))

    def at(i: int) -> list[int]:
        return [a.nearest(min(1.0, shares[i] * f) * a.size) for a, f in zip(allowed, factors, strict=True)]

    return CountPath(len(shares) - 1, at)


def one_by_one(path: CountPath) -> CountPath:
    """Return the path on which groups that change together change one after the other, the last ones first.

    Where counts are multiples of a large number, steps of all groups at once miss the target by far.

    Example:
        >>> allowed = [AllowedCounts(16, 8, 8), AllowedCounts(16, 8, 8)]
        >>> path = one_by_one(shared_counts(allowed, np.ones(2)))
        >>> [path.at(i) for i in range(path.last + 1)]
        [[8, 8], [8, 16], [16, 16]]
    """
    counts = [path.at(0)]
    for i in range(path.last):
        now, after = counts[-1], path.at(i + 1)
        for j in reversed(range(len(now))):
            if after[j] != now[j]:
                now = [*now[:j], after[j], *now[j + 1 :]]
                counts.append(now)
    return CountPath(len(counts) - 1, lambda i: counts[i])


def one_step_more(
    allowed: list[AllowedCounts], counts: list[int], amount: Callable[[list[int]], float], target: float
) -> list[int]:
    """Return counts of which each is one step larger where the amount allows it, the last ones first."""
    for i in reversed(range(len(counts))):
        more = [*counts[:i], allowed[i].above(counts[i]), *counts[i + 1 :]]
        counts = more if amount(more) <= target * (1 + 1e-12) else counts
    return counts


def ranked_counts(allowed: list[AllowedCounts], scores: list[Tensor]) -> CountPath:
    """Return the path on which blocks of units join by falling mean score, ties by group, then by block.

    A block is what takes a group from one allowed count to the next.  Blocks scored -inf never join.
    """
    blocks = [_block_scores(a, x) for a, x in zip(allowed, scores, strict=True)]
    group = np.repeat(np.arange(len(allowed)), [len(b) for b in blocks])
    gain = np.concatenate([np.diff(a.counts()) for a in allowed])
    value = np.concatenate(blocks)
    order = np.argsort(-value, kind="stable")[: int((value > -np.inf).sum())]
    first = np.array([a.first for a in allowed])

    def at(m: int) -> list[int]:
        # What each group gains from the m best blocks.
        joined = np.bincount(group[order[:m]], weights=gain[order[:m]], minlength=len(allowed))
        return [int(x) for x in first + joined]

    return CountPath(len(order), at)


def _block_scores(allowed: AllowedCounts, scores: Tensor) -> np.ndarray:
    """Return the mean score of each block of a group, its best units first."""
    falling = scores.detach().double().cpu().numpy()[ranked(scores)]
    edges = allowed.counts()[:-1]
    if not len(edges):
        return np.empty(0)
    means = np.add.reduceat(falling, edges) / np.diff(allowed.counts())
    # Means of equal scores may differ in the last bit; a group's blocks must join in their order.
    return np.minimum.accumulate(means)
