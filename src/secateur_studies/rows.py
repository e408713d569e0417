"""Select, group and average the rows of a study, and arrange them as tables.

Rows are flat dictionaries. Their "part" tells which experiment a row comes from; each study names its parts
by constants. In all conditions a set stands for any of its members.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import stdev
from typing import Any

import numpy as np

__all__ = [
    "Column",
    "Row",
    "Rows",
    "across",
    "distinct",
    "group",
    "mean",
    "percent",
    "pivot",
    "select",
    "spread",
]

Row = Mapping[str, Any]
Rows = Sequence[Row]
Show = Callable[[Rows, str], Any]
Column = str | tuple[str, Row]


def select(rows: Rows, **where: Any) -> list[Row]:
    """Return the rows with these values.

    Example:
        >>> select([{"a": 1}, {"a": 2}, {"a": 3}], a={1, 3})
        [{'a': 1}, {'a': 3}]
    """
    return [row for row in rows if all(_matches(row.get(key), value) for key, value in where.items())]


def _matches(value: Any, wanted: Any) -> bool:
    return value in wanted if isinstance(wanted, (set, frozenset)) else value == wanted


def distinct(rows: Rows, key: str) -> list[Any]:
    """Return the values of a column in the order of their first appearance."""
    return list(dict.fromkeys(row[key] for row in rows if key in row))


def group(rows: Rows, *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    """Return the rows by the values of some columns, in the order of their first appearance."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key) for key in keys), []).append(row)
    return groups


def mean(rows: Rows, key: str) -> float | None:
    """Return the mean of a column, or None if no row has a value there."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return float(np.mean(values)) if values else None


def spread(rows: Rows, key: str) -> str:
    """Return the mean and the standard deviation of a column as text, or "" if no row has a value there.

    Example:
        >>> spread([{"a": 80.0}, {"a": 82.0}], "a"), spread([{"b": 1}], "a")
        ('81.0 ± 1.4', '')
    """
    values = [row[key] for row in rows if row.get(key) is not None]
    if not values:
        return ""
    return f"{np.mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def percent(share: float) -> str:
    """Return a share as the title of a column.

    Example:
        >>> percent(0.25)
        '25%'
    """
    return f"{share:.0%}"


def across(rows: Rows, key: str, value: str, descending: bool = False) -> dict[str, Column]:
    """Return columns for `pivot`: one for each share in the column `key`, with a summary of `value`."""
    shares = sorted(distinct(rows, key), reverse=descending)
    return {percent(share): (value, {key: share}) for share in shares}


def pivot(
    rows: Rows, by: Sequence[str] | Mapping[str, str], columns: Mapping[str, Column], show: Show = mean
) -> list[dict[str, Any]]:
    """Return one line for each combination of some columns, with a summary of other columns.

    Args:
        rows: The rows.
        by: Columns that distinguish the lines; a mapping gives their titles.
        columns: Title of each further column -> the column to summarise, with or without a condition.
        show: Summary of a column of some rows.

    Example:
        >>> rows = [{"m": "a", "cut": 0.5, "lost": 1.0}, {"m": "a", "cut": 0.5, "lost": 2.0}]
        >>> pivot(rows, {"m": "method"}, across(rows, "cut", "lost"))
        [{'method': 'a', '50%': 1.5}]
    """
    titles = by if isinstance(by, Mapping) else dict(zip(by, by, strict=True))
    lines = []
    for key, same in group(rows, *titles).items():
        line: dict[str, Any] = dict(zip(titles.values(), key, strict=True))
        for title, column in columns.items():
            value, where = (column, {}) if isinstance(column, str) else column
            line[title] = show(select(same, **where), value)
        lines.append(line)
    return lines
