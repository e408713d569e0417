"""Figures 2, 3 and 4 of the paper, from the rows of the spectral study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from secateur_studies.figures import curves, grid, heatmap, with_title
from secateur_studies.findings import Figure
from secateur_studies.rows import Column, Rows, distinct, group, mean, percent, pivot, select, spread
from secateur_studies.spectral.experiments import AT_START, CONNECTIVITY, RETRAINED, WHOLE
from secateur_studies.spectral.mask_variants import DENSE, MAIN

__all__ = ["figures"]

COLOURS = ("var(--c0)", "var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)")


def figures(rows: Rows) -> list[Figure]:
    """Return the figures that have rows."""
    drawn = [_figure2(rows), _figure3(rows), _figure4(rows)]
    return [figure for figure in drawn if figure is not None]


def _accuracy_lines(rows: Rows, variants: Sequence[str], **more: Any) -> Mapping[str, Any]:
    """Return accuracy over density with standard deviations, a line for each variant."""
    series, styles = {}, dict[str, dict[str, Any]]()
    for number, variant in enumerate(variants):
        cells = sorted(group(select(rows, variant=variant), "density").items())
        accuracies = [[row["accuracy"] for row in same] for _, same in cells]
        series[variant] = [
            (density, float(np.mean(a))) for ((density,), _), a in zip(cells, accuracies, strict=True)
        ]
        deviations = [float(np.std(a, ddof=1)) if len(a) > 1 else 0.0 for a in accuracies]
        bars = {"type": "data", "array": deviations}
        line = {"color": COLOURS[number]}
        styles[variant] = {"error_y": bars, "line": line, "legendgroup": variant, **more}
    density, accuracy = with_title("density", type="log"), with_title("test accuracy, %")
    return curves(series, density, accuracy, styles=styles)


def _describe_setting(rows: Rows) -> str:
    width = rows[0]["width"]
    narrow = "full width" if width == 1 else f"{width:.3g} of the published channels"
    return f"Data: {', '.join(distinct(rows, 'data'))}; {narrow}; {len(distinct(rows, 'seed'))} seeds."


def _figure2(rows: Rows) -> Figure | None:
    """One panel for each score (down) and network (across)."""
    start = select(rows, part=AT_START)
    if not start:
        return None
    nets, scores = distinct(start, "net"), distinct(start, "score")
    panels = {
        f"{net}, {score}": _accuracy_lines(
            select(start, score=score, net=net), MAIN, showlegend=(score, net) == (scores[0], nets[0])
        )["data"]
        for score in scores
        for net in nets
    }
    columns: dict[str, Column] = {"whole": ("accuracy", {"part": WHOLE})}
    columns |= {percent(d): ("accuracy", {"density": d}) for d in distinct(start, "density")}
    both = sorted(select(rows, part={AT_START, WHOLE}, net=set(nets)), key=lambda r: r["part"] == AT_START)
    both = [{"score": "", "variant": DENSE, **row} for row in both]
    wide = pivot(both, {"net": "network", "score": "score", "variant": "variant"}, columns, spread)
    wide.sort(key=lambda line: nets.index(line["network"]))
    text = f"Test accuracy in percent, mean and standard deviation over seeds. {_describe_setting(start)}"
    title = "Figure 2: pruning at initialisation, sparsify and greedy"
    return Figure("figure2", title, grid(panels, len(nets), {"type": "log"}), text, wide)


def _figure3(rows: Rows) -> Figure | None:
    same = select(rows, part=RETRAINED)
    if not same:
        return None
    variants = [variant for variant in distinct(same, "variant") if variant != DENSE]
    columns: dict[str, Column] = {"whole": ("accuracy", {"density": 1.0})}
    columns |= {percent(d): ("accuracy", {"density": d}) for d in distinct(same, "density") if d < 1}
    wide = pivot(same, ["variant"], columns, spread)
    title = f"Figure 3: {same[0]['net']} pruned after training, retrained from its initial weights"
    text = (
        "Test accuracy in percent, mean and standard deviation over seeds. The paper does not state "
        f"whether its MagPrune ranks within layers (`greedy`) or over all layers. {_describe_setting(same)}"
    )
    return Figure("figure3", title, _accuracy_lines(same, variants), text, wide)


def _figure4(rows: Rows) -> Figure | None:
    """One panel for each variant: lambda_2 of every layer over density."""
    same = select(rows, part=CONNECTIVITY)
    if not same:
        return None
    layers, densities = distinct(same, "layer"), sorted(distinct(same, "density"))
    heads = [percent(density) for density in densities]
    panels: dict[str, list[dict[str, Any]]] = {}
    for variant in (v for v in distinct(same, "variant") if v != DENSE):
        members = select(same, variant={variant, DENSE})
        z = [[mean(select(members, layer=name, density=d), "lambda2") for d in densities] for name in layers]
        panels[variant] = [heatmap(heads, layers, z, zmin=0, zmax=1, showscale=not panels)]
    columns: dict[str, Column] = {name: ("lambda2", {"layer": name}) for name in layers}
    shown = pivot(sorted(same, key=lambda r: r["density"]), ["density", "variant"], columns)
    shown = [{**line, "density": percent(line["density"])} for line in shown]
    text = (
        "lambda_2 of the normalised Laplacian of the largest component of every layer, means over seeds. 1 "
        "is as well connected as a complete graph, or a component that has shrunk to a star."
    )
    title = "Figure 4: connectivity of every layer after training"
    return Figure("figure4", title, grid(panels, len(panels)), text, shown)
