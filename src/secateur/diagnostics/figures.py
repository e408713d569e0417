"""Sections of a report page, and their plotly figures, as plain dicts that JSON can hold.

Colours are names such as ``"var(--c0)"``. The page replaces them, so that figures follow its light and dark
colours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

__all__ = [
    "GREY",
    "KEPT",
    "REMOVED",
    "Json",
    "bars",
    "evenly_spaced",
    "figure",
    "lines",
    "not_drawn",
    "palette_colour",
    "points",
    "round_numbers",
    "section",
]

Json = dict[str, Any]
KEPT, REMOVED, GREY = "var(--c0)", "var(--c1)", "var(--soft)"
DIGITS = 5
COLOURS = 12


def section(
    title: str,
    text: str,
    rows: Iterable[Json] = (),
    figure: Json | None = None,
    *,
    layer: str = "",
) -> Json:
    """Return a section of the page; the arguments are the attributes of `secateur.html.Section`."""
    return {"title": title, "text": text, "rows": list(rows), "figure": figure, "layer": layer}


def not_drawn(reasons: Mapping[str, str], of: str = "") -> list[Json]:
    """Return a section that lists what is not drawn, by reason; no section if everything is drawn.

    Example:
        >>> not_drawn({"a": "no order", "b": "no order", "c": "too large"})[0]["text"]
        'a, b: no order; c: too large.'
    """
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    text = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())
    return [section("Not drawn", f"{of}{text}.")] if text else []


def figure(traces: Sequence[Json], x: str, y: str, **layout: Any) -> Json:
    """Return a figure with titles on its axes; `xaxis` and `yaxis` in `layout` add to them."""
    xaxis = {"title": {"text": x}} | layout.pop("xaxis", {})
    yaxis = {"title": {"text": y}} | layout.pop("yaxis", {})
    return {"data": list(traces), "layout": {"xaxis": xaxis, "yaxis": yaxis, **layout}}


def points(
    x: Iterable[Any],
    y: Iterable[Any],
    name: str,
    colour: str,
    *,
    symbol: str = "circle",
    size: int = 8,
    text: Iterable[str] | None = None,
) -> Json:
    """Return a trace of markers; `text` is shown under the pointer."""
    marker = {"color": colour, "symbol": symbol, "size": size}
    trace: Json = {"type": "scatter", "mode": "markers", "x": list(x), "y": list(y), "name": name}
    trace |= {"marker": marker, "cliponaxis": False}
    if text is not None:
        trace |= {"text": list(text), "hovertemplate": "%{text}<extra></extra>"}
    return trace


def lines(
    x: Iterable[Any], y: Iterable[Any], name: str, colour: str, *, mode: str = "lines", **line: Any
) -> Json:
    """Return a trace of joined lines; None in `x` and `y` breaks a line."""
    style = {"color": colour, "width": 2, **line}
    return {"type": "scatter", "mode": mode, "x": list(x), "y": list(y), "name": name, "line": style}


def bars(x: Iterable[Any], y: Iterable[Any], name: str, colour: str) -> Json:
    """Return a trace of bars."""
    return {"type": "bar", "x": list(x), "y": list(y), "name": name, "marker": {"color": colour}}


def palette_colour(number: int) -> str:
    """Return a colour of the page's palette."""
    return f"var(--c{number % COLOURS})"


def evenly_spaced(items: Sequence[Any], count: int) -> list[Any]:
    """Return at most `count` items, evenly spaced, with the first and the last.

    Example:
        >>> evenly_spaced(range(10), 4)
        [0, 3, 6, 9]
    """
    chosen = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[i] for i in chosen]


def round_numbers(value: Any) -> Any:
    """Round numbers to five significant digits, also in arrays and lists.

    Example:
        >>> round_numbers([1.23456789, 2])
        [1.2346, 2]
    """
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return round_numbers(value.tolist())
    if isinstance(value, (list, tuple)):
        return [round_numbers(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
