"""Paired comparisons, on top of `secateur.bench.statistics`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from secateur.bench.statistics import bootstrap, holm, paired_p
from secateur_studies.rows import Rows, group, mean

__all__ = ["Comparison", "compare", "correct", "paired_differences"]

LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """The mean of paired differences.

    Attributes:
        mean: The mean.
        low: Lower end of the 95 % bootstrap interval, or None for one pair.
        high: Upper end, or None for one pair.
        count: Number of pairs.
        p: P-value of the paired t-test, NaN for one pair; after `correct`, Holm-corrected.
        corrected: Whether the outcome follows the corrected p-value instead of the interval.
    """

    mean: float
    low: float | None
    high: float | None
    count: int
    p: float = math.nan
    corrected: bool = False

    @property
    def outcome(self) -> str:
        """``"ahead"``, ``"behind"``, ``"tie"``, or ``"one pair"``."""
        if self.low is None or self.high is None:
            return "one pair"
        if self.p >= LEVEL if self.corrected else self.low <= 0 <= self.high:
            return "tie"
        return "ahead" if self.mean > 0 else "behind"

    def __str__(self) -> str:
        """Return mean, interval and outcome."""
        interval = "," if self.low is None else f" [{self.low:+.1f}, {self.high:+.1f}]"
        return f"{self.mean:+.1f}{interval} {self.outcome}"


def compare(differences: Sequence[float], examples: float | None = None) -> Comparison | None:
    """Summarise paired differences, or return None if there are none.

    Args:
        differences: One for each pair.
        examples: Test examples behind each difference, as in `secateur.bench.statistics.paired_p`.

    Example:
        >>> compare([1.0, 2.0, 3.0]).outcome, str(compare([2.0])), compare([])
        ('ahead', '+2.0, one pair', None)
    """
    if not differences:
        return None
    interval, p = bootstrap(differences), paired_p(differences, examples)
    alone = interval.count == 1
    low, high = (None, None) if alone else (interval.low, interval.high)
    return Comparison(interval.estimate, low, high, interval.count, p)


def correct(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Correct the p-values of comparisons for their number by Holm's method."""
    adjusted = holm([comparison.p for comparison in comparisons])
    return [replace(c, p=p, corrected=True) for c, p in zip(comparisons, adjusted, strict=True)]


def paired_differences(
    first: Rows, second: Rows, value: str, on: Sequence[str], over: str = "seed"
) -> list[float]:
    """Return differences of two sides, paired by some columns and then averaged over all but one.

    Args:
        first: Rows of the one side.
        second: Rows of the other side.
        value: Column to compare.
        on: Columns in which a pair agrees. Rows of one side with equal values are averaged.
        over: The differences are averaged within each value of this column; it is in `on`.

    Example:
        >>> a = [{"seed": 0, "x": 3.0}, {"seed": 1, "x": 5.0}]
        >>> b = [{"seed": 1, "x": 1.0}, {"seed": 0, "x": 1.0}, {"seed": 0, "x": 2.0}]
        >>> paired_differences(a, b, "x", ["seed"])
        [1.5, 4.0]
    """
    ours, theirs = group(first, *on), group(second, *on)
    differences: dict[object, list[float]] = {}
    for key, rows in ours.items():
        if key in theirs:
            one, other = mean(rows, value), mean(theirs[key], value)
            if one is not None and other is not None:
                differences.setdefault(key[list(on).index(over)], []).append(one - other)
    return [float(np.mean(values)) for values in differences.values()]
