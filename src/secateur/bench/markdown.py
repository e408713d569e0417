"""Rows in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.html import show

Row = Mapping[str, Any]


def markdown(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table; numbers stand on the right.

    Example:
        >>> print(markdown([{"method": "random", "accuracy": 0.51234}]))
        | method | accuracy |
        |---|---:|
        | random | 0.5123 |
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    numbers = {key for key in columns if any(_is_number(row.get(key)) for row in rows)}
    lines = [
        "| " + " | ".join(columns) + " |",
        "|" + "".join("---:|" if key in numbers else "---|" for key in columns),
    ]
    lines += ["| " + " | ".join(_cell(row.get(key)) for key in columns) + " |" for row in rows]
    return "\n".join(lines)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(item)}" for key, item in value.items())
    if isinstance(value, (tuple, list)):
        return ", ".join(map(_cell, value))
    return show(value).replace("|", "\\|").replace("\n", " ")


__all__ = ["markdown"]
