"""The post's five figures, drawn again from the study's rows, and one of ordinary networks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from secateur_studies.common import Figure
from secateur_studies.matroid.cells import EXTENT, FIGURE_1, FIGURE_2, SIDE
from secateur_studies.matroid.post import CRITERIA, FRACTIONS, moons
from secateur_studies.matroid.published import AT_75, CURVES_200
from secateur_studies.matroid.tables import Rows, changes, mean_of, part

__all__ = ["figures"]

Row = dict[str, Any]
ESSENTIAL, TAIL = "#2e7d5b", "#c2553f"


def figures(rows: Rows) -> list[Figure]:
    """Return the figures that there are rows for."""
    found = [_arrangement(rows), _boundaries(rows), _curves(rows), _bars(rows), _pipeline(rows), *_lost(rows)]
    return [figure for figure in found if figure is not None]


def _figure(name: str, title: str, data: list[Row], layout: Row, text: str, rows: Rows) -> Figure:
    return Figure(name, title, {"data": data, "layout": layout}, text, rows)


def _points(seed: int, panel: str = "") -> Row:
    x, y = moons(np.random.default_rng(seed))
    return {
        "type": "scatter",
        "mode": "markers",
        "x": x[:, 0].round(3).tolist(),
        "y": x[:, 1].round(3).tolist(),
        "marker": {"color": y.astype(int).tolist(), "size": 4, "colorscale": "Portland"},
        "showlegend": False,
        "hoverinfo": "skip",
        "xaxis": f"x{panel}",
        "yaxis": f"y{panel}",
    }


def _arrangement(rows: Rows) -> Figure | None:
    """Figure 1: the hyperplanes on which the units switch."""
    lines = part(rows, "figure 1")
    if not lines:
        return None
    data = [_points(FIGURE_1[2])]
    for line in lines:
        ys = [-(line["a"] * x + line["c"]) / line["b"] for x in EXTENT[0]]
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": list(EXTENT[0]),
                "y": ys,
                "showlegend": False,
                "name": f"unit {line['unit']}, {line['kind']}",
                "line": {"color": TAIL if line["kind"] == "tail" else ESSENTIAL, "width": 1.5},
            }
        )
    count = sum(line["kind"] == "tail" for line in lines)
    text = (
        f"{len(lines) - count} of the {len(lines)} lines are essential (green), {count} are the tail (red)."
    )
    layout = {"yaxis": {"range": list(EXTENT[1])}, "xaxis": {"range": list(EXTENT[0])}}
    shown = [{k: v for k, v in line.items() if k != "part"} for line in lines]
    return _figure("figure1", "Figure 1: hyperplane arrangement, H = 20", data, layout, text, shown)


def _boundaries(rows: Rows) -> Figure | None:
    """Figure 2: decisions before and after."""
    panels = part(rows, "figure 2")
    if not panels:
        return None
    data: list[Row] = []
    layout: Row = {"annotations": []}
    xs, ys = (np.linspace(low, high, SIDE).round(3).tolist() for low, high in EXTENT)
    for i, panel in enumerate(panels):
        tag = "" if i == 0 else str(i + 1)
        z = np.array([int(c) for c in panel["side"]]).reshape(SIDE, SIDE).tolist()
        data += [
            {
                "type": "heatmap",
                "x": xs,
                "y": ys,
                "z": z,
                "showscale": False,
                "opacity": 0.4,
                "xaxis": f"x{tag}",
                "yaxis": f"y{tag}",
            },
            _points(FIGURE_2[2], tag),
        ]
        layout |= {
            f"xaxis{tag}": {"domain": [i / 3 + 0.01, (i + 1) / 3 - 0.01]},
            f"yaxis{tag}": {"anchor": f"x{tag}", "showticklabels": i == 0},
        }
        layout["annotations"].append(
            {
                "text": f"{panel['panel']}: {panel['accuracy']:.1%}",
                "x": (i + 0.5) / 3,
                "y": 1.05,
                "xref": "paper",
                "yref": "paper",
                "showarrow": False,
            }
        )
    shown = [{k: p[k] for k in ("panel", "removed", "accuracy")} for p in panels]
    text = (
        "Decision regions: "
        + "; ".join(
            f"{p['panel']}, {p['removed']} of 50 units removed, accuracy {p['accuracy']:.1%}" for p in panels
        )
        + "."
    )
    return _figure("figure2", "Figure 2: decision boundaries, H = 50", data, layout, text, shown)


def _curves(rows: Rows) -> Figure | None:
    """Figure 3: every criterion along the tail, in the widest network."""
    units = max((r["units"] for r in part(rows, "post")), default=0)
    data: list[Row] = []
    shown: list[Row] = []
    for criterion in CRITERIA if units else ():
        ours = [0.0, *changes(rows, "tp_exponential", units, criterion).mean(0).tolist()]
        xs = [0.0, *FRACTIONS]
        data.append({"type": "scatter", "x": xs, "y": ours, "name": criterion})
        printed = [0.0, *CURVES_200[criterion]] if units == 200 else [None] * len(xs)
        if units == 200:
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": xs,
                    "y": printed,
                    "name": f"{criterion}, published",
                    "marker": {"symbol": "circle-open", "size": 10},
                }
            )
        shown += [
            {"criterion": criterion, "of the tail": x, "ours": o, "published": p}
            for x, o, p in zip(xs, ours, printed, strict=True)
        ]
    layout = {
        "xaxis": {"title": {"text": "share of the tail removed"}},
        "yaxis": {"title": {"text": "points"}},
    }
    title = f"Figure 3: change of accuracy along the tail, H = {units}"
    text = "Circles are the published points; lines ours."
    return _figure("figure3", title, data, layout, text, shown) if data else None


def _bars(rows: Rows) -> Figure | None:
    """Figure 4: 75 % of the tail, by width."""
    dimensions = sorted({r["units"] for r in part(rows, "post")})
    at = FRACTIONS.index(0.75)
    shown = [
        {
            "H": h,
            "criterion": c,
            "ours": float(changes(rows, "tp_exponential", h, c).mean(0)[at]),
            "published": AT_75.get(h, {}).get(c),
        }
        for h in dimensions
        for c in CRITERIA
    ]
    data = [
        {
            "type": "bar",
            "name": c,
            "x": [f"H = {r['H']}" for r in shown if r["criterion"] == c],
            "y": [r["ours"] for r in shown if r["criterion"] == c],
        }
        for c in CRITERIA
    ]
    layout = {"barmode": "group", "yaxis": {"title": {"text": "points"}}}
    text = "Bars hang down from 0 by the accuracy that each criterion loses."
    title = "Figure 4: 75 % of the tail removed"
    return _figure("figure4", title, data, layout, text, shown) if shown else None


def _pipeline(rows: Rows) -> Figure | None:
    """Figure 5: the four steps, with the means of the widest networks."""
    units = max((r["units"] for r in part(rows, "post")), default=0)
    where = {"mode": "tp_exponential", "units": units}
    tail = mean_of(part(rows, "partition"), "tail", **where)
    accuracy = mean_of(part(rows, "partition"), "accuracy", **where)
    if tail is None or accuracy is None:
        return None
    change = float(changes(rows, "tp_exponential", units, "matroid").mean(0)[FRACTIONS.index(0.75)])
    steps = [
        {"step": "augmented matrix [W1 | b1]", "units": units},
        {"step": "partition: tail", "units": tail},
        {"step": "75 % of the tail removed: units left", "units": units - 0.75 * tail},
        {"step": "accuracy in per cent", "units": 100 * accuracy},
        {"step": "accuracy after, in per cent", "units": 100 * accuracy + change},
    ]
    data = [{"type": "funnel", "y": [s["step"] for s in steps[:3]], "x": [s["units"] for s in steps[:3]]}]
    text = (
        f"Of {units} units {tail:.1f} are tail; 75 % of it goes, and accuracy changes by {change:.1f} points."
    )
    shown = [{"step": s["step"], "value": s["units"]} for s in steps]
    return _figure("figure5", f"Figure 5: the pipeline, means at H = {units}", data, {}, text, shown)


def _lost(rows: Rows) -> Iterator[Figure]:
    """Yield, for each ordinary network, points lost with fold against the share removed."""
    mine = [r for r in part(rows, "ordinary") if r["repair"] == "fold"]
    for model in dict.fromkeys(r["model"] for r in mine):
        cell = [r for r in mine if r["model"] == model]
        shares = sorted({r["removed"] for r in cell})
        shown = [
            {"criterion": c, "removed": s, "lost": mean_of(cell, "lost", criterion=c, removed=s)}
            for c in dict.fromkeys(r["criterion"] for r in cell)
            for s in shares
        ]
        data = [
            {
                "type": "scatter",
                "name": c,
                "x": shares,
                "y": [r["lost"] for r in shown if r["criterion"] == c],
            }
            for c in dict.fromkeys(r["criterion"] for r in cell)
        ]
        layout = {
            "xaxis": {"title": {"text": "share of units removed"}},
            "yaxis": {"title": {"text": "points lost"}, "rangemode": "tozero"},
        }
        text = f"Test accuracy lost with the fold, {model} on {cell[0]['data']}: the lower the better."
        yield _figure(f"lost-{model}", f"{model}: points lost with fold", data, layout, text, shown)
