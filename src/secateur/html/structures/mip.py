"""The program's page: importance of each unit, what the bounds decide, and what the solver proved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur.core.markdown import format_value
from secateur.html.section import Section
from secateur.html.structures.marks import GOES, STAYS, bars, figure, lines, points, split

STATES = {"off": "always off", "open": "undecided", "on": "always on"}


def mip_sections(portrait: Mapping[str, Any]) -> list[Section]:
    """Draw a portrait made by `secateur.diagnostics.mip`."""
    found = [_solver(portrait["solver"])]
    found += [_bounds(portrait["bounds"], portrait["images"], portrait["form"])] if portrait["bounds"] else []
    found += [
        _scores(name, layer, portrait["solver"].get("threshold"))
        for name, layer in portrait["layers"].items()
    ]
    return found


def _solver(solver: Mapping[str, Any]) -> Section:
    objective, bound = solver["objective"], solver["bound"]
    best, least = format_value(objective), format_value(bound)
    text = (
        f"The solver stopped as {solver['status']!r}: its best point has the objective {best}, "
        f"no point can have less than {least}, a gap of {format_value(solver['gap'])}. "
        f"{solver['free binaries']} on-off decisions were left open by the bounds."
    )
    traces = [
        points([objective], ["objective"], "best point", STAYS, size=13),
        points([bound], ["objective"], "proven bound", GOES, size=13, symbol="line-ns-open"),
    ]
    drawn = figure(traces, "objective", "", yaxis={"type": "category"}, height=240)
    rows = [
        {"what": key, "value": value if isinstance(value, (int, float)) else str(value)}
        for key, value in solver.items()
        if not isinstance(value, (dict, list))
    ]
    return Section(
        "What the solver proved",
        text,
        rows,
        drawn,
        f"Objective {best} and bound {least}",
    )


def _bounds(bounds: Mapping[str, Any], images: int, form: str) -> Section:
    names = list(bounds)
    colours = {"off": "var(--c10)", "open": "var(--c1)", "on": "var(--c2)"}
    traces = [
        bars(names, [b[key] for b in bounds.values()], word, colours[key]) for key, word in STATES.items()
    ]
    text = (
        f"What the {form!r} bounds say of every ReLU on the {images} images: its input is never positive, "
        "never negative, or either. Only the undecided ones need an on-off decision in the program."
    )
    rows = [
        {"layer": name, **{STATES[k]: b[k] for k in STATES}, "median width of the bounds": b["width"]}
        for name, b in bounds.items()
    ]
    drawn = figure(traces, "layer", "share of (image, unit)", xaxis={"type": "category"}, barmode="stack")
    return Section(
        "What the bounds decide",
        text,
        rows,
        drawn,
        f"Stacked shares of ReLUs that are off, undecided and on, for {', '.join(names)}",
    )


def _scores(name: str, layer: Mapping[str, Any], threshold: float | None) -> Section:
    scores, stays = layer["scores"], layer["stays"]
    order = sorted(range(len(scores)), key=lambda u: -scores[u])
    rank = {unit: place for place, unit in enumerate(order)}
    units = list(range(len(scores)))
    places, words = [rank[u] for u in units], [f"unit {u}: {scores[u]:.4g}" for u in units]
    kept, gone = split(stays, places, scores, words)
    traces = [
        points(kept[0], kept[1], "stays", STAYS, text=kept[2]),
        points(gone[0], gone[1], "goes", GOES, symbol="x", text=gone[2]),
    ]
    if threshold is not None:
        traces.append(lines([0, len(scores) - 1], [threshold] * 2, "threshold", "var(--soft)", dash="dash"))
    text = (
        "A score of 1 asks for all of a unit's activity on the images, 0 for none. Units stand by falling "
        f"score; of equal scores the more active unit stays. {len(gone[0])} of {len(scores)} go; "
        f"{layer['dead']} are active on no image."
    )
    rows = [{"unit": u, "score": s, "stays": k} for u, s, k in zip(units, scores, stays, strict=True)]
    drawn = figure(traces, "units by falling score", "importance score", yaxis={"range": [-0.05, 1.05]})
    return Section(
        f"Importance scores of group {name}",
        text,
        rows,
        drawn,
        f"Importance scores of the units of {name} in falling order",
        layer=name,
    )


__all__ = ["mip_sections"]
