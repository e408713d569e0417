"""The post's figures, drawn again from the study's networks and rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from secateur.studies.matroid.post import CRITERIA, FRACTIONS, Post, accuracy
from secateur.studies.matroid.published import CURVES_200, FACTS
from secateur.studies.matroid.tables import Rows, changes

__all__ = ["figures"]


def figures(nets: Sequence[Post], rows: Rows, where: Path) -> None:
    """Draw figures 1 to 5 again as HTML, the first two where their networks are among `nets`."""
    chosen = {(n.mode, len(n.w2), n.seed): n for n in nets}
    if ("tp_exponential", 20, 43) in chosen:
        _arrangement(chosen["tp_exponential", 20, 43]).write_html(where / "figure1.html")
    if ("tp_exponential", 50, 42) in chosen:
        _boundaries(chosen["tp_exponential", 50, 42]).write_html(where / "figure2.html")
    largest = max(r["units"] for r in rows)
    _curves(rows, largest).write_html(where / "figure3.html")
    _bars(rows).write_html(where / "figure4.html")
    widest = max((n for n in nets if n.mode == "tp_exponential"), key=lambda n: len(n.w2))
    _pipeline(widest).write_html(where / "figure5.html")


def _arrangement(net: Post) -> go.Figure:
    tail, xs = net.tail, np.array([net.x[:, 0].min() - 0.5, net.x[:, 0].max() + 0.5])
    published = f"{FACTS['figure 1: essential']:g} and {FACTS['figure 1: tail']:g} published"
    title = f"{len(tail.essential)} essential, {len(tail.tail)} tail ({published})"
    figure = go.Figure(layout={"title": title, "yaxis": {"range": [-2.5, 2]}})
    figure.add_scatter(x=net.x[:, 0], y=net.x[:, 1], mode="markers", marker={"color": net.y}, name="data")
    for i, (w0, w1) in enumerate(net.w1):
        colour = "#cd5c5c" if tail.windows[i] else "#608d7b"
        figure.add_scatter(x=xs, y=-(w0 * xs + net.b1[i]) / w1, mode="lines", line={"color": colour},
                           showlegend=False)
    return figure


def _boundaries(net: Post) -> go.Figure:
    """The original, 33 units of the tail removed, and the worst of 20 random removals of as many."""
    tail, h = net.tail.tail, len(net.w2)
    count = int(0.75 * len(tail))
    draws = [np.random.default_rng(s).choice(h, size=count, replace=False) for s in range(20)]
    worst = min(draws, key=lambda gone: accuracy(net, np.setdiff1d(np.arange(h), gone)))
    panels = {"original": np.array([], dtype=int), "matroid": tail[:count], "random": worst}
    keeps = {name: np.setdiff1d(np.arange(h), gone) for name, gone in panels.items()}
    titles = [f"{name}: {accuracy(net, keep):.1%}" for name, keep in keeps.items()]
    figure = make_subplots(1, 3, subplot_titles=titles)
    xs, ys = np.linspace(-1.5, 2.5, 80), np.linspace(-2, 1.5, 80)
    mesh = np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2)
    for column, keep in enumerate(keeps.values(), 1):
        side = (net.logits(keep, mesh) > 0).reshape(80, 80).astype(float)
        figure.add_heatmap(x=xs, y=ys, z=side, showscale=False, opacity=0.4, row=1, col=column)
        figure.add_scatter(x=net.x[:, 0], y=net.x[:, 1], mode="markers", marker={"color": net.y},
                           showlegend=False, row=1, col=column)
    return figure


def _curves(rows: Rows, units: int) -> go.Figure:
    figure = go.Figure(layout={"title": f"Change of accuracy, H = {units}, tp_exponential"})
    for criterion in CRITERIA:
        means = changes(rows, "tp_exponential", units, criterion).mean(0)
        figure.add_scatter(x=[0, *FRACTIONS], y=[0, *means], name=criterion)
        if units == 200:
            published = [0.0, *CURVES_200[criterion]]
            figure.add_scatter(x=[0, *FRACTIONS], y=published, mode="markers", name=f"{criterion}, published")
    return figure


def _bars(rows: Rows) -> go.Figure:
    dimensions = sorted({r["units"] for r in rows})
    figure = go.Figure(layout={"title": "Change of accuracy at 75 % of the tail, tp_exponential"})
    for criterion in CRITERIA:
        heights = [changes(rows, "tp_exponential", h, criterion).mean(0)[2] for h in dimensions]
        figure.add_bar(x=[f"H={h}" for h in dimensions], y=heights, name=criterion)
    return figure


def _pipeline(net: Post) -> go.Figure:
    """The four steps, with what they give on one network."""
    tail, h = net.tail, len(net.w2)
    count = round(0.75 * len(tail.tail))
    keep = np.setdiff1d(np.arange(h), tail.tail[:count])
    steps = [
        f"[W1 | b1]: {h} x 3<br>rank {tail.rank}",
        f"{len(tail.essential)} essential<br>{len(tail.tail)} tail",
        f"remove 75 % of the tail<br>{count} units, {len(keep)} stay",
        f"accuracy {accuracy(net):.1%}<br>to {accuracy(net, keep):.1%}",
    ]
    figure = go.Figure(layout={"title": f"The pipeline on one network, H = {h}", "height": 260})
    for i, text in enumerate(steps):
        figure.add_annotation(x=i, y=0, text=text, showarrow=False, bordercolor="#60728d", borderpad=8)
        if i:
            figure.add_annotation(x=i - 0.4, y=0, ax=-40, ay=0, text="", showarrow=True, arrowhead=2)
    figure.update_xaxes(visible=False, range=[-0.5, 3.5])
    figure.update_yaxes(visible=False, range=[-1, 1])
    return figure
