"""Runs that differ in the seed alone, taken together: means with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import stats

from secateur.report.rows import IDENTITY, Row

LEVEL = 0.95


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and its 95 % interval by Student's t; of a single value, the value thrice.

    Example:
        >>> [round(x, 3) for x in interval([1.0, 2.0, 3.0])], interval([2.0])
        ([2.0, -0.484, 4.484], (2.0, 2.0, 2.0))
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return mean, mean, mean
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * math.sqrt(variance / n)
    return mean, mean - half, mean + half


def spreads(rows: Sequence[Row], axes: Sequence[str]) -> list[Row]:
    """Gather the rows that differ in the seed alone.

    Args:
        rows: Flat runs.
        axes: Columns with numbers.

    Returns:
        For each of them ``"rows"`` (their numbers) and ``"values"``: by axis mean, lower and upper end.
        Empty where no two runs differ in the seed alone.
    """
    keys = [key for key in IDENTITY if key != "seed"]
    found: dict[tuple[str, ...], list[int]] = {}
    for at, row in enumerate(rows):
        found.setdefault(tuple(str(row.get(key)) for key in keys), []).append(at)
    if all(len({rows[at].get("seed") for at in group}) < 2 for group in found.values()):
        return []
    return [
        {"rows": group, "values": {axis: _values(rows, group, axis) for axis in axes}}
        for group in found.values()
    ]


def _values(rows: Sequence[Row], group: Sequence[int], axis: str) -> list[float] | None:
    found = [rows[at].get(axis) for at in group]
    numbers = [v for v in found if isinstance(v, (int, float)) and math.isfinite(v)]
    return list(interval(numbers)) if numbers else None


__all__ = ["LEVEL", "interval", "spreads"]
