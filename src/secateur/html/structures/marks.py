"""What the figures of all structures share: colours of what stays and what goes, traces, axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Json = dict[str, Any]
STAYS, GOES = "var(--c0)", "var(--c1)"


def points(x: Sequence[Any], y: Sequence[Any], name: str, colour: str, **more: Any) -> Json:
    """Return a trace of marks; `symbol`, `size` and `text` may be given."""
    marker = {"color": colour, "symbol": more.get("symbol", "circle"), "size": more.get("size", 8)}
    trace: Json = {"type": "scatter", "mode": "markers", "x": list(x), "y": list(y), "name": name}
    trace |= {"marker": marker, "cliponaxis": False}
    if "text" in more:
        trace |= {"text": list(more["text"]), "hovertemplate": "%{text}<extra></extra>"}
    return trace


def lines(x: Sequence[Any], y: Sequence[Any], name: str, colour: str | None = None, **more: Any) -> Json:
    """Return a trace of joined lines; None breaks a line."""
    line = {"width": more.get("width", 2), "dash": more.get("dash", "solid")}
    if colour is not None:
        line["color"] = colour
    return {
        "type": "scatter",
        "mode": "lines",
        "x": list(x),
        "y": list(y),
        "name": name,
        "line": line,
        "hoverinfo": more.get("hoverinfo", "all"),
    }


def bars(x: Sequence[Any], y: Sequence[Any], name: str, colour: str) -> Json:
    """Return a trace of bars."""
    return {"type": "bar", "x": list(x), "y": list(y), "name": name, "marker": {"color": colour}}


def figure(traces: Sequence[Json], x: str, y: str, **layout: Any) -> Json:
    """Return a figure with named axes; `xaxis` and `yaxis` in `layout` add to them."""
    axes = {
        "xaxis": {"title": {"text": x}} | layout.pop("xaxis", {}),
        "yaxis": {"title": {"text": y}} | layout.pop("yaxis", {}),
    }
    return {"data": list(traces), "layout": {**axes, **layout}}


def split(flags: Sequence[bool], *columns: Sequence[Any]) -> tuple[list[list[Any]], list[list[Any]]]:
    """Divide columns by a flag: those where it holds, and the others.

    Example:
        >>> split([True, False], [1, 2], ["a", "b"])
        ([[1], ['a']], [[2], ['b']])
    """
    yes = [[v for v, flag in zip(column, flags, strict=True) if flag] for column in columns]
    no = [[v for v, flag in zip(column, flags, strict=True) if not flag] for column in columns]
    return yes, no


def listed(groups: Mapping[str, str]) -> str:
    """Word why some groups are not drawn, each reason once.

    Example:
        >>> listed({"a": "no order", "b": "no order", "c": "too large"})
        'a, b: no order; c: too large'
    """
    by_reason: dict[str, list[str]] = {}
    for name, reason in groups.items():
        by_reason.setdefault(str(reason), []).append(name)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())


__all__ = ["GOES", "STAYS", "Json", "bars", "figure", "lines", "listed", "points", "split"]
