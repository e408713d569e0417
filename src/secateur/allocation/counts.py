"""Counts that a group may keep, and families of them that grow until a target is met."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from secateur.allocation.ranking import ranked
from secateur.core import IntArray

__all__ = ["Family", "Steps", "apportion", "ranked_counts", "round_half_up", "search", "shared_counts"]


def round_half_up(x: float) -> int:
    """Return the nearest integer, halves up; 0.29 * 50 is a half."""
    return int(x + 0.5 + 1e-9)


class Steps(NamedTuple):
    """The counts that a group may keep: multiples of `round_to` from `floor` up, and the whole."""

    size: int
    floor: int = 1
    round_to: int = 1

    @property
    def first(self) -> int:
        """Smallest allowed count."""
        return min(self.size, -(-self.floor // self.round_to) * self.round_to)

    def below(self, x: float) -> int:
        """Largest allowed count up to x, or the first."""
        if x + 1e-9 >= self.size:
            return self.size
        return max(self.first, int((x + 1e-9) // self.round_to) * self.round_to)

    def above(self, count: int) -> int:
        """Next allowed count."""
        return min(self.size, count + self.round_to)

    def nearest(self, x: float) -> int:
        """Allowed count nearest to x, the larger of two."""
        low = self.below(x)
        high = self.above(low)
        return high if 2 * (x + 1e-9) >= low + high else low

    def counts(self) -> IntArray:
        """All allowed counts, rising."""
        return np.unique([*range(self.first, self.size, self.round_to), self.size])


def apportion(steps: list[Steps], targets: list[float], total: int) -> list[int]:
    """Round targets to allowed counts, down and then up by largest remainder while the total allows."""
    counts = [s.below(t) for s, t in zip(steps, targets, strict=True)]
    left = total - sum(counts)
    for i in sorted(range(len(counts)), key=lambda i: (counts[i] - targets[i], i)):
        gain = steps[i].above(counts[i]) - counts[i]
        if 0 < gain <= left:
            counts[i] += gain
            left -= gain
    return counts


class Family(NamedTuple):
    """Counts that grow with an index from 0 to `last`."""

    last: int
    at: Callable[[int], list[int]]


def search(family: Family, amount: Callable[[list[int]], float], target: float) -> list[int]:
    """Return the last member of a family whose amount is not above the target; the first at least."""
    low, high = 0, family.last
    while low < high:
        middle = (low + high + 1) // 2
        if amount(family.at(middle)) <= target * (1 + 1e-12):
            low = middle
        else:
            high = middle - 1
    return family.at(low)


def shared_counts(steps: list[Steps], raw: np.ndarray) -> Family:
    """Counts for one share s of all groups, min(1, s * raw) of each, at every s where one changes."""
    middles = [(s.counts()[1:] + s.counts()[:-1]) / 2 / (s.size * r) for s, r in zip(steps, raw, strict=True)]
    knots = np.unique(np.concatenate([[0.0], *middles]))

    def at(i: int) -> list[int]:
        return [s.nearest(min(1.0, knots[i] * r) * s.size) for s, r in zip(steps, raw, strict=True)]

    return Family(len(knots) - 1, at)


def ranked_counts(steps: list[Steps], scores: list[Tensor]) -> Family:
    """Counts when blocks of units join by falling mean score, ties by group, then by block."""
    blocks = [_block_scores(s, x) for s, x in zip(steps, scores, strict=True)]
    group = np.repeat(np.arange(len(steps)), [len(b) for b in blocks])
    gain = np.concatenate([np.diff(s.counts()) for s in steps])
    value = np.concatenate(blocks)
    order = np.argsort(-value, kind="stable")[: int((value > -np.inf).sum())]
    first = np.array([s.first for s in steps])

    def at(m: int) -> list[int]:
        joined = np.bincount(group[order[:m]], weights=gain[order[:m]], minlength=len(steps))
        return [int(x) for x in first + joined]

    return Family(len(order), at)


def _block_scores(steps: Steps, scores: Tensor) -> np.ndarray:
    falling = scores.detach().double().cpu().numpy()[ranked(scores)]
    edges = steps.counts()[:-1]
    if not len(edges):
        return np.empty(0)
    means = np.add.reduceat(falling, edges) / np.diff(steps.counts())
    # Means of equal scores may differ in the last bit; a group's blocks must join in their order.
    return np.minimum.accumulate(means)
