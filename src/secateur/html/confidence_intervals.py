"""Means and confidence intervals of runs that differ only in the seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from secateur.html.rows import IDENTITY, Row

__all__ = ["mean_interval", "seed_intervals", "t_quantile"]

LEVEL = 0.95


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and the ends of its 95 % interval by Student's t; all are equal for a single value.

    Example:
        >>> [round(x, 3) for x in mean_interval([1.0, 2.0, 3.0])], mean_interval([2.0])
        ([2.0, -0.484, 4.484], (2.0, 2.0, 2.0))
    """
    n, mean = len(values), fmean(values)
    if n == 1:
        return mean, mean, mean
    half = t_quantile(LEVEL, n - 1) * stdev(values) / math.sqrt(n)
    return mean, mean - half, mean + half


def t_quantile(level: float, degrees: int) -> float:
    """Return t such that Student's t is in [-t, t] with probability `level`.

    Example:
        >>> round(t_quantile(0.95, 4), 3)
        2.776
    """
    from scipy.special import stdtrit  # scipy takes a while to import

    return float(stdtrit(degrees, (1 + level) / 2))


def seed_intervals(rows: Sequence[Row], axes: Sequence[str]) -> list[Row]:
    """Group the rows that differ only in the seed; several draws of one seed count as their mean.

    Args:
        rows: Flat runs.
        axes: Columns with numbers.

    Returns:
        For each group its row numbers (``"rows"``), the number of seeds (``"seeds"``), and by axis the mean
        and the ends of its interval (``"values"``). Empty if no two runs differ only in the seed.
    """
    keys = [key for key in IDENTITY if key != "seed"]
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(tuple(str(row.get(key)) for key in keys), []).append(number)
    seeds = [len({rows[number].get("seed") for number in group}) for group in groups.values()]
    if max(seeds, default=0) < 2:
        return []
    return [
        {
            "rows": group,
            "seeds": count,
            "values": {axis: _interval([rows[number] for number in group], axis) for axis in axes},
        }
        for group, count in zip(groups.values(), seeds, strict=True)
    ]


def _interval(rows: Sequence[Row], axis: str) -> list[float] | None:
    by_seed: dict[str, list[float]] = {}
    for row in rows:
        value = row.get(axis)
        if isinstance(value, (int, float)) and math.isfinite(value):
            by_seed.setdefault(str(row.get("seed")), []).append(value)
    means = [fmean(values) for values in by_seed.values()]
    return list(mean_interval(means)) if means else None
