"""Values as text, and rows as a Markdown table."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

__all__ = ["format_value", "markdown_table"]


def markdown_table(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None, *, right: Collection[str] = ()
) -> str:
    """Return rows as a Markdown table, without a newline at the end.

    Args:
        rows: Rows, each from column name to value. A missing value leaves its cell empty.
        columns: Columns in order; by default all of them, in the order of their appearance.
        right: Columns to align right. Columns with numbers always are.

    Example:
        >>> print(markdown_table([{"method": "random", "accuracy": 0.51234}]))
        | method | accuracy |
        |---|---:|
        | random | 0.5123 |
    """
    names = list(dict.fromkeys(key for row in rows for key in row)) if columns is None else list(columns)
    numeric = {name for name in names if name in right or any(_is_number(row.get(name)) for row in rows)}
    lines = [
        _line(map(_cell, names)),
        "|" + "".join("---:|" if name in numeric else "---|" for name in names),
        *(_line(_cell(row.get(name)) for name in names) for row in rows),
    ]
    return "\n".join(lines)


def format_value(value: Any) -> str:
    """Return a value as text for a table: numbers with four significant digits, None as an empty text.

    Example:
        >>> format_value(1234567), format_value(0.98765432), format_value(3e-12), format_value(True)
        ('1,234,567', '0.9877', '3e-12', 'yes')
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(item)}" for key, item in value.items())
    if isinstance(value, (tuple, list)):
        return ", ".join(map(_cell, value))
    return format_value(value).replace("|", "\\|").replace("\n", " ")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
