"""Figures as Plotly's JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["bars", "curves", "grid", "heatmap", "with_title"]

Plot = dict[str, Any]
Points = Sequence[tuple[Any, Any]]


def with_title(text: str, **more: Any) -> Plot:
    """Return an axis or a colour bar with a title."""
    return {"title": {"text": text}, **more}


def curves(
    series: Mapping[str, Points],
    x: Plot,
    y: Plot,
    *,
    mode: str = "lines+markers",
    styles: Mapping[str, Plot] | None = None,
) -> Plot:
    """Return one line for each series of points.

    Args:
        series: Name -> points (x, y).
        x: The horizontal axis.
        y: The vertical axis.
        mode: Plotly's mode of all traces.
        styles: Name -> properties of its trace.
    """
    data = [
        {
            "type": "scatter",
            "mode": mode,
            "name": name,
            "x": [at for at, _ in points],
            "y": [height for _, height in points],
            **(styles or {}).get(name, {}),
        }
        for name, points in series.items()
    ]
    return {"data": data, "layout": {"xaxis": x, "yaxis": y}}


def bars(series: Mapping[str, Points], y: Plot) -> Plot:
    """Return grouped bars."""
    data = [
        {"type": "bar", "name": name, "x": [at for at, _ in points], "y": [height for _, height in points]}
        for name, points in series.items()
    ]
    return {"data": data, "layout": {"barmode": "group", "yaxis": y}}


def heatmap(x: Sequence[Any], y: Sequence[Any], z: Sequence[Sequence[Any]], **more: Any) -> Plot:
    """Return the trace of a heat map; `z` has a row for each `y`."""
    return {"type": "heatmap", "x": list(x), "y": list(y), "z": z, **more}


def grid(
    panels: Mapping[str, Sequence[Plot]], columns: int, x: Plot | None = None, y: Plot | None = None
) -> Plot:
    """Return panels side by side, row by row.

    Args:
        panels: Heading -> traces.
        columns: Panels in a row.
        x: Properties of every horizontal axis.
        y: Properties of every vertical axis.
    """
    rows = -(-len(panels) // columns)
    data: list[Plot] = []
    layout: Plot = {"grid": {"rows": rows, "columns": columns, "pattern": "independent"}, "annotations": []}
    layout |= {"height": 260 * rows} if rows > 1 else {}
    for number, (heading, traces) in enumerate(panels.items(), 1):
        tag = "" if number == 1 else str(number)
        data += [{**trace, "xaxis": f"x{tag}", "yaxis": f"y{tag}"} for trace in traces]
        layout |= {f"xaxis{tag}": dict(x or {}), f"yaxis{tag}": dict(y or {})}
        place = {"xref": f"x{tag} domain", "yref": f"y{tag} domain", "x": 0.5, "y": 1.12}
        layout["annotations"].append({"text": heading, "showarrow": False, **place})
    return {"data": data, "layout": layout}
