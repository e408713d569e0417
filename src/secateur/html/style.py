"""The look of methods and repairs, the same in every plot of a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

COLOURS = 12
SHAPES = (
    ("circle", "●"),
    ("square", "■"),
    ("diamond", "◆"),
    ("cross", "✚"),
    ("x", "✖"),
    ("triangle-up", "▲"),
    ("triangle-down", "▼"),
    ("pentagon", "⬟"),
    ("hexagon", "⬢"),
    ("triangle-left", "◀"),
    ("triangle-right", "▶"),
    ("star-diamond", "✦"),
)
FILLS = ("filled", "dotted", "pale")


def styles(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Return colour, symbol and glyph of each method, in the order of appearance; 144 of them differ.

    Example:
        >>> styles([{"method": "taylor"}, {"method": "random"}])["random"]
        {'colour': 'var(--c1)', 'symbol': 'square', 'glyph': '■'}
    """
    found = {}
    for at, name in enumerate(_names(rows, "method")):
        symbol, glyph = SHAPES[(at + at // COLOURS) % len(SHAPES)]
        found[name] = {"colour": f"var(--c{at % COLOURS})", "symbol": symbol, "glyph": glyph}
    return found


def fills(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return how the marks of each repair are filled: open without one, the others in order of appearance.

    Example:
        >>> fills([{"repair": "fold"}, {"repair": None}, {"repair": "refit"}])
        {'fold': 'filled', 'none': 'open', 'refit': 'dotted'}
    """
    names = _names(rows, "repair")
    repairs = [name for name in names if name != "none"]
    return {name: FILLS[repairs.index(name) % len(FILLS)] if name in repairs else "open" for name in names}


def _names(rows: Iterable[Mapping[str, Any]], key: str) -> list[str]:
    absent = "none" if key == "repair" else None
    found = dict.fromkeys(row.get(key) or absent for row in rows)
    return [str(name) for name in found if name is not None]


__all__ = ["fills", "styles"]
