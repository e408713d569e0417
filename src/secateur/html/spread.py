"""Runs that differ in the seed alone, taken together: means with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import stats

from secateur.html.rows import IDENTITY, Row

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
    """Gather the rows that differ in the seed alone; several draws of one seed count as their mean.

    Args:
        rows: Flat runs.
        axes: Columns with numbers.

    Returns:
        For each of them ``"rows"`` (their numbers), ``"seeds"`` (how many) and ``"values"``: by axis mean,
        lower and upper end.  Empty where no two runs differ in the seed alone.
    """
    keys = [key for key in IDENTITY if key != "seed"]
    found: dict[tuple[str, ...], list[int]] = {}
    for at, row in enumerate(rows):
        found.setdefault(tuple(str(row.get(key)) for key in keys), []).append(at)
    seeds = {key: len({rows[at].get("seed") for at in group}) for key, group in found.items()}
    if max(seeds.values(), default=0) < 2:
        return []
    return [
        {"rows": group, "seeds": seeds[key], "values": {axis: _values(rows, group, axis) for axis in axes}}
        for key, group in found.items()
    ]


def _values(rows: Sequence[Row], group: Sequence[int], axis: str) -> list[float] | None:
    by_seed: dict[str, list[float]] = {}
    for at in group:
        value = rows[at].get(axis)
        if isinstance(value, (int, float)) and math.isfinite(value):
            by_seed.setdefault(str(rows[at].get("seed")), []).append(value)
    means = [math.fsum(found) / len(found) for found in by_seed.values()]
    return list(interval(means)) if means else None


__all__ = ["LEVEL", "interval", "spreads"]
