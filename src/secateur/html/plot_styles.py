"""Plot styles of methods and repairs, the same in every plot of a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["method_styles", "repair_fills"]

COLOURS = 12
SYMBOLS = "circle square diamond cross x triangle-up triangle-down pentagon hexagon triangle-left"
SYMBOLS += " triangle-right star-diamond"
GLYPHS = "●■◆✚✖▲▼⬟⬢◀▶✦"
SHAPES = list(zip(SYMBOLS.split(), GLYPHS, strict=True))
FILLS = ("filled", "dotted", "pale")


def method_styles(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Return colour, symbol and glyph of each method, in the order of appearance; 144 of them differ.

    Example:
        >>> method_styles([{"method": "taylor"}, {"method": "random"}])["random"]
        {'colour': 'var(--c1)', 'symbol': 'square', 'glyph': '■'}
    """
    styles = {}
    for number, name in enumerate(_names(rows, "method")):
        symbol, glyph = SHAPES[(number + number // COLOURS) % len(SHAPES)]
        styles[name] = {"colour": f"var(--c{number % COLOURS})", "symbol": symbol, "glyph": glyph}
    return styles


def repair_fills(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return how markers of each repair are filled: open without a repair, the others cycle.

    Example:
        >>> repair_fills([{"repair": "fold"}, {"repair": None}, {"repair": "refit"}])
        {'fold': 'filled', 'none': 'open', 'refit': 'dotted'}
    """
    names = _names(({"repair": row.get("repair") or "none"} for row in rows), "repair")
    repairs = [name for name in names if name != "none"]
    return {name: FILLS[repairs.index(name) % len(FILLS)] if name in repairs else "open" for name in names}


def _names(rows: Iterable[Mapping[str, Any]], key: str) -> list[str]:
    return list(dict.fromkeys(str(row[key]) for row in rows if row.get(key) is not None))
