"""Diagnostics of the matroid method: unexplained shares, hyperplane arrangements, windows of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.allocation import prunable
from secateur.core import Group, Statistics
from secateur.core.markdown import format_value
from secateur.diagnostics.context import DiagnosticContext
from secateur.diagnostics.figures import (
    GREY,
    KEPT,
    REMOVED,
    Json,
    evenly_spaced,
    figure,
    lines,
    not_drawn,
    palette_colour,
    points,
    round_numbers,
    section,
)
from secateur.methods.matroid.activations import basis_order
from secateur.methods.matroid.weight_rows import augmented_rows, eligible
from secateur.structures.matroid import (
    IntervalMatroid,
    LinearMatroid,
    TooMany,
    cell_dimension,
    count_regions,
    is_positroid,
    is_totally_positive,
    is_uniform,
    maximal_minor_signs,
    tail_partition,
    window_ranks,
)
from secateur.structures.matroid.sliding import normalized_rows

__all__ = ["clip_line", "matroid_sections"]

Floats = NDArray[np.float64]
MOST_ENTRIES = 1_000_000
MOST_LINES = 60
MOST_EXACT = 512  # entries of rows in rational arithmetic
MOST_SETS = 5_000  # sets, minors or restrictions to count; rational arithmetic takes a second
CURVE_POINTS = 200
MOST_CLASSES = 10
LEAST_RESIDUAL = 1e-9  # a logarithmic axis cannot show 0


def matroid_sections(context: DiagnosticContext) -> list[Json]:
    """Return sections on the activations, and on the rows [W | b] of each group that has such rows."""
    graph, ground = context.plan.graph, context.method.ground
    statistics = context.statistics(frozenset({"gram"} if ground == "activations" else ()))
    sections = [_residual_curves(context, statistics)] if ground == "activations" else []
    skipped, large = {}, {}
    for group in prunable(graph):
        reason = eligible(graph, group)
        if not reason:
            rows = augmented_rows(graph, statistics, group)
            reason = (
                f"{rows.size:,} entries, the limit is {MOST_ENTRIES:,}" if rows.size > MOST_ENTRIES else ""
            )
        if reason:
            skipped[group.name] = reason.removeprefix(f"{group.name}: ")
        else:
            sections += [*_arrangement(context, group, rows), _windows(context, group, rows)]
            if rows.size <= MOST_EXACT:
                sections.append(_positroid(context, group, rows))
            else:
                large[group.name] = (
                    f"more than {MOST_EXACT} entries, which take minutes in rational arithmetic"
                )
    exact = not_drawn(large, "Exact facts on the matroid of the rows [W | b] of ")
    return sections + not_drawn(skipped, "Rows [W | b] of ") + exact


def _residual_curves(context: DiagnosticContext, statistics: Statistics) -> Json:
    traces, rows = [], []
    groups = prunable(context.plan.graph)
    for number, group in enumerate(groups):
        _, basis = basis_order(context.plan.graph, statistics, group, context.method.objective)
        total = float(basis.residuals[0])
        residuals = round_numbers((basis.residuals / (total if total > 0 else 1.0)).clamp_min(0))
        kept = int(context.kept_units(group).sum())
        by_plan = context.plan.notes.get(group.name, {}).get("residual")
        counts = sorted({*evenly_spaced(range(group.size + 1), CURVE_POINTS), kept})
        shown = [residuals[m] if residuals[m] > LEAST_RESIDUAL else None for m in counts]
        shares = [m / group.size for m in counts]
        traces.append(lines(shares, shown, f"group {group.name}", palette_colour(number)))
        if by_plan is not None:
            mark = points(
                [kept / group.size], [by_plan], f"{group.name}: plan", palette_colour(number), size=11
            )
            traces.append(mark | {"showlegend": False})
        rows += [
            {
                "group": group.name,
                "kept": m,
                "units": group.size,
                "unexplained": residuals[m],
                "by the plan": by_plan if m == kept else None,
            }
            for m in counts
        ]
    text = (
        "Units are added one by one, each time the unit that explains most. A line gives the share that is "
        "still unexplained when that share of the units is kept. The point is the plan, after its exchanges. "
        "A line that falls early belongs to a group whose units depend on a few of them."
    )
    yaxis = {"type": "log", "exponentformat": "power"}
    drawn = figure(traces, "share of the units kept", "share unexplained", yaxis=yaxis)
    return section("What the kept units leave unexplained", text, rows, drawn)


def _arrangement(context: DiagnosticContext, group: Group, rows: Floats) -> list[Json]:
    """Draw where the units' hyperplanes cut a plane through the layer's inputs, if these are single rows."""
    layer, _ = context.plan.graph.producers(group)[0]
    inputs = context.inputs_of(layer.weight)
    if inputs is None or rows.shape[1] < 3 or len(inputs[0]) < 3 or layer.kind != "linear":
        return []
    x, classes = inputs
    centre, directions, plane, axes = _plane(x)
    cloud = (x - centre) @ directions.T
    low, high = cloud.min(0), cloud.max(0)
    margin = 0.1 * np.maximum(high - low, 1e-9)
    low, high = low - margin, high + margin
    W, bias = rows[:, :-1], rows[:, -1]
    # On the plane x = centre + s d1 + t d2, the hyperplane w x + b = 0 is a line in s and t.
    cuts = np.column_stack([W @ directions.T, W @ centre + bias]).tolist()
    ends = {unit: clip_line(a, b, c, low, high) for unit, (a, b, c) in enumerate(cuts)}
    crossing = [(unit, *round_numbers(pair)) for unit, pair in ends.items() if pair is not None]
    kept = context.kept_units(group)
    table = [
        {"unit": unit, "kept": bool(kept[unit]), "x": p[0], "y": p[1], "to x": q[0], "to y": q[1]}
        for unit, p, q in evenly_spaced(crossing, MOST_LINES)
    ]
    text = (
        "Each unit is on at one side of its hyperplane and off at the other. Lines are where the hyperplanes "
        f"of {len(table)} units cut {plane}; points are inputs of the layer. {len(crossing)} of {len(rows)} "
        "hyperplanes cross the part that is shown."
    )
    box = round_numbers([low, high])
    drawn = figure(
        [*_hyperplanes(table), *_input_points(round_numbers(cloud), classes)],
        *axes,
        xaxis={"range": [box[0][0], box[1][0]]},
        yaxis={"range": [box[0][1], box[1][1]]},
    )
    title = f"Hyperplane arrangement of group {group.name}"
    return [section(title, text, table, drawn, layer=group.name)]


def _plane(x: Floats) -> tuple[Floats, Floats, str, tuple[str, str]]:
    """Return a point of the plane, its two directions, a description, and names of the axes."""
    if x.shape[1] == 2:
        return np.zeros(2), np.eye(2), "the plane of the inputs", ("input 0", "input 1")
    centre = x.mean(0)
    _, sizes, directions = np.linalg.svd(x - centre, full_matrices=False)
    share = float((sizes[:2] ** 2).sum() / max((sizes**2).sum(), 1e-300))
    plane = f"the plane through the mean input along the two directions of most variance ({share:.0%} of it)"
    return centre, directions[:2], plane, ("first principal direction", "second principal direction")


def clip_line(a: float, b: float, c: float, low: Floats, high: Floats) -> tuple[Floats, Floats] | None:
    """Return the ends of the part of the line a s + b t + c = 0 inside a box, or None.

    Args:
        a: Coefficient of the first coordinate.
        b: Coefficient of the second coordinate.
        c: Constant.
        low: Smallest coordinates [2].
        high: Largest coordinates [2].

    Example:
        >>> p, q = clip_line(1.0, -1.0, 0.0, np.zeros(2), np.ones(2))
        >>> p.tolist(), q.tolist()
        ([0.0, 0.0], [1.0, 1.0])
    """
    length = a * a + b * b
    if length == 0:
        return None
    # Points of the line are foot + r * along; each side of the box bounds r.
    foot, along = np.array([-a * c, -b * c]) / length, np.array([-b, a])
    with np.errstate(divide="ignore", invalid="ignore"):
        to_low, to_high = (low - foot) / along, (high - foot) / along
    inside = (foot >= low) & (foot <= high)
    first = np.where(along == 0, np.where(inside, -np.inf, np.inf), np.minimum(to_low, to_high)).max()
    last = np.where(along == 0, np.where(inside, np.inf, -np.inf), np.maximum(to_low, to_high)).min()
    if not first < last:
        return None
    ends = sorted([(foot + first * along).tolist(), (foot + last * along).tolist()])
    return np.array(ends[0]), np.array(ends[1])


def _hyperplanes(table: Sequence[Json]) -> list[Json]:
    traces = []
    for kept, name, colour, dash in ((True, "kept", KEPT, "solid"), (False, "removed", REMOVED, "dot")):
        chosen = [line for line in table if line["kept"] is kept]
        x = [v for line in chosen for v in (line["x"], line["to x"], None)]
        y = [v for line in chosen for v in (line["y"], line["to y"], None)]
        if chosen:
            trace = lines(x, y, f"{name} unit", colour, dash=dash, width=1)
            traces.append(trace | {"hoverinfo": "skip"})
    return traces


def _input_points(cloud: Sequence[Sequence[float]], classes: Sequence[Any]) -> list[Json]:
    """Return a trace for each class; one trace if there is one class, or more than colours."""
    labels = sorted({str(label) for label in classes})
    if not 1 < len(labels) <= MOST_CLASSES:
        classes, labels = [""] * len(cloud), [""]
    traces = []
    for number, label in enumerate(labels):
        chosen = [p for p, other in zip(cloud, classes, strict=True) if str(other) == label]
        x, y = [p[0] for p in chosen], [p[1] for p in chosen]
        name = f"class {label}" if label else "inputs"
        traces.append(points(x, y, name, palette_colour(number + 2), size=6))
    return traces


def _windows(context: DiagnosticContext, group: Group, rows: Floats) -> Json:
    exact = context.method.exact and context.method.ground == "windows"
    rtol = context.method.rtol if context.method.ground == "windows" else None
    tail = tail_partition(rows, exact=exact, rtol=rtol)
    ranks = _ranks_of_windows(rows, tail.rank, exact, rtol)
    gap = "exact" if exact else format_value(float(tail.gap))
    in_tail = set(tail.tail.tolist())
    text = (
        f"{len(rows)} rows [W | b] with {rows.shape[1] - 1} inputs have rank {tail.rank}: {len(ranks)} "
        f"windows of {tail.rank} neighbours, {tail.deficient} of them deficient, smallest gap {gap}. "
        f"{len(rows) - len(in_tail)} rows are essential, {len(in_tail)} are the tail."
    )
    if len(ranks) == 1:
        text += " A single window has every row, so there is no tail."
    kept = context.kept_units(group)
    table = [
        {
            "unit": unit,
            "deficient windows": count,
            "part": "tail" if unit in in_tail else "essential",
            "kept": bool(kept[unit]),
            "rank of the window from here": ranks[unit] if unit < len(ranks) else None,
        }
        for unit, count in enumerate(tail.windows.tolist())
    ]
    name = "rank of the window that starts here"
    traces = [lines(range(len(ranks)), ranks, name, GREY, mode="lines+markers"), *_unit_points(table)]
    yaxis = {"rangemode": "tozero"} | ({"dtick": 1} if tail.rank < 10 else {})
    label = "rank; deficient windows with the unit"
    drawn = figure(traces, "unit, in the order of the layer", label, yaxis=yaxis)
    title = f"Windows of rows of group {group.name}, and their tail"
    return section(title, text, table, drawn, layer=group.name)


def _positroid(context: DiagnosticContext, group: Group, rows: Floats) -> Json:
    """List exact facts on the rows' matroid, signs and hyperplanes, where these are few enough."""
    linear, interval = LinearMatroid(rows, exact=True), IntervalMatroid(rows)
    n, k = len(rows), interval.rank
    kept = rows[context.kept_units(group)]
    facts = {
        "rank": lambda: k,
        "uniform": lambda: is_uniform(linear, MOST_SETS),
        "positroid, in the order of the layer": lambda: is_positroid(linear, MOST_SETS),
        "dimension of its positroid cell": lambda: f"{cell_dimension(interval)} of {k * (n - k)}",
        "W is totally positive": lambda: is_totally_positive(rows[:, :-1], MOST_SETS),
        "maximal minors of [W | b], + / 0 / -": lambda: "{0.positive} / {0.zero} / {0.negative}".format(
            maximal_minor_signs(rows, MOST_SETS)
        ),
        "regions of the arrangement": lambda: count_regions(rows, MOST_SETS),
        "regions, kept units": lambda: count_regions(kept, MOST_SETS),
    }
    table = [{"fact": name, "value": _or_too_many(value)} for name, value in facts.items()]
    text = (
        "The rows as exact rationals. Uniform: any rows as many as the rank are independent. Positroid: the "
        "matroid has all bases that its Grassmann necklace allows; this depends on the order of the units. A "
        "point of the totally non-negative Grassmannian has no maximal minors of both signs. Regions: the "
        "pieces, each with its own set of active units, into which the hyperplanes cut the input space."
    )
    return section(f"Matroid of the rows of group {group.name}", text, table, None, layer=group.name)


def _or_too_many(value: Callable[[], Any]) -> str:
    try:
        result = value()
    except TooMany as error:
        return f"not counted: {error}"
    return {True: "yes", False: "no"}[result] if isinstance(result, bool) else str(result)


def _ranks_of_windows(rows: Floats, rank: int, exact: bool, rtol: float | None) -> list[int]:
    if rank in (0, len(rows)):
        return [rank] if rank else []
    if exact:
        return IntervalMatroid(rows).window_ranks(rank).tolist()
    return window_ranks(normalized_rows(rows), rank, rtol=rtol).ranks.tolist()


def _unit_points(table: Sequence[Json]) -> list[Json]:
    """Return a trace for each kind of unit."""
    traces = []
    for part, symbol in (("essential", "circle"), ("tail", "diamond")):
        for kept, name, colour in ((True, "kept", KEPT), (False, "removed", REMOVED)):
            chosen = [row for row in table if row["part"] == part and row["kept"] is kept]
            x, y = [row["unit"] for row in chosen], [row["deficient windows"] for row in chosen]
            if chosen:
                traces.append(points(x, y, f"{part}, {name}", colour, symbol=symbol))
    return traces
