"""Figures 2 and 3 of arXiv:2002.07376, drawn from the study's rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import mean, pstdev
from typing import Any

from secateur_studies.common import Figure
from secateur_studies.mip.tables import Rows, grouped

__all__ = ["figures"]

COLOURS = {"FC-3": "#2b6cb0", "LeNet-5": "#c2553f", "FC-4": "#2e7d5b", "VGG-16": "#7a5195"}
Words = Callable[[Rows], list[str]]
SHOWN = ("net", "data", "set", "epoch", "lambda", "ref", "ours", "pruned")


def figures(rows: Mapping[str, Rows]) -> list[Figure]:
    """Return the figures that there are rows for."""
    found = [
        _figure("figure2a", "Figure 2a: random balanced sets of images", rows["images"], "set", _sets),
        _figure("figure2b", "Figure 2b: scores after every epoch", rows["epochs"], "epoch", _epochs),
        _figure("figure3", "Figure 3: the trade-off lambda", rows["lambdas"], "lambda", _lambdas),
    ]
    return [figure for figure in found if figure is not None]


def _figure(name: str, title: str, rows: Rows, axis: str, words: Words) -> Figure | None:
    if not rows:
        return None
    data: list[dict[str, Any]] = []
    for (net, source), same in grouped(rows, "net", "data").items():
        x, colour = [row[axis] for row in same], COLOURS[net]
        label = f"{net}, {source}"
        data += [
            _line(f"{label}: whole", x, [row["ref"] for row in same], colour, "dot"),
            _line(f"{label}: pruned", x, [row["ours"] for row in same], colour, "solid"),
            _line(f"{label}: share pruned", x, [row["pruned"] for row in same], colour, "dash"),
        ]
    scale: dict[str, Any] = {"type": "log"} if axis == "lambda" else {}
    layout = {
        "xaxis": {"title": {"text": axis}, **scale},
        "yaxis": {"title": {"text": "percent"}, "rangemode": "tozero"},
    }
    shown = [{key: row[key] for key in SHOWN if key in row} for row in rows]
    return Figure(name, title, {"data": data, "layout": layout}, " ".join(words(rows)), shown)


def _line(name: str, x: list, y: list, colour: str, dash: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": x,
        "y": [round(v, 3) for v in y],
        "line": {"color": colour, "dash": dash},
        "marker": {"size": 5},
    }


def _sets(rows: Rows) -> list[str]:
    """Say how much the accuracy moves between sets."""
    said = []
    for (net, data), same in grouped(rows, "net", "data").items():
        ours, pruned = ([row[key] for row in same] for key in ("ours", "pruned"))
        said.append(
            f"{net} on {data}: over {len(same)} sets of images the pruned network has {mean(ours):.1f} % "
            f"(standard deviation {pstdev(ours):.2f}) with {min(pruned):.1f} to {max(pruned):.1f} % of the "
            f"units removed; the whole one {same[0]['ref']:.1f} %."
        )
    return said


def _epochs(rows: Rows) -> list[str]:
    """Say how far pruned and whole network are apart after each epoch."""
    said = []
    for (net, data), same in grouped(rows, "net", "data").items():
        lost = [row["ref"] - row["ours"] for row in same]
        said.append(
            f"{net} on {data}: after each of {len(same)} epochs the pruned network is {min(lost):.1f} to "
            f"{max(lost):.1f} points below the whole one; the share removed goes from "
            f"{same[0]['pruned']:.1f} to {same[-1]['pruned']:.1f} %."
        )
    return said


def _lambdas(rows: Rows) -> list[str]:
    """Say what the ends of the range of lambda give."""
    said = []
    for (net, data), same in grouped(rows, "net", "data").items():
        low, high = same[0], same[-1]
        said.append(
            f"{net} on {data}: lambda from {low['lambda']:g} to {high['lambda']:g} takes the share removed "
            f"from {low['pruned']:.1f} to {high['pruned']:.1f} % and the accuracy from {low['ours']:.1f} to "
            f"{high['ours']:.1f} % (whole: {low['ref']:.1f} %)."
        )
    return said
