"""Diagnostics of the lattice method: the Hasse diagram of each group's order, its profile over density."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secateur.allocation import prunable
from secateur.core import BoolArray, Group, InputError, IntArray, Statistics
from secateur.diagnostics.context import DiagnosticContext
from secateur.diagnostics.figures import (
    GREY,
    KEPT,
    REMOVED,
    Json,
    figure,
    lines,
    not_drawn,
    palette_colour,
    points,
    round_numbers,
    section,
)
from secateur.methods.lattice.connection_strength import within
from secateur.methods.lattice.unit_order import PROFILE_DENSITIES, UnitOrder, unrolled
from secateur.structures.order import Poset, density_profile

__all__ = ["lattice_sections", "layered_positions"]

MOST_NODES = 150
MOST_PROFILE_UNITS = 4096
SWEEPS = 6
COUNTS = ("elements", "largest", "parts", "irreducible")
KINDS = (
    (True, True, "irreducible, kept", KEPT, "circle"),
    (True, False, "irreducible, removed", REMOVED, "circle"),
    (False, True, "reducible, kept", KEPT, "circle-open"),
    (False, False, "reducible, removed", REMOVED, "circle-open"),
)
Edges = Sequence[tuple[int, int]]


def lattice_sections(context: DiagnosticContext) -> list[Json]:
    """Return for each group the Hasse diagram of its order, if it has one, and the order's profile."""
    statistics = context.statistics()
    orders = context.method.orders(context.plan.graph, statistics)
    sections, skipped = [], {}
    for group in prunable(context.plan.graph):
        order = orders[group.name]
        if order.poset is None or order.element is None:
            skipped[group.name] = f"{order.notes['reading']}: there is no order"
        else:
            kept = context.kept_units(group)
            sections.append(_hasse_diagram(group, order, order.poset, order.element, kept))
        profile = _profile_rows(context, statistics, group, order)
        if profile:
            sections.append(_profile(group, profile))
    return sections + not_drawn(skipped)


def _hasse_diagram(group: Group, order: UnitOrder, poset: Poset, element: IntArray, kept: BoolArray) -> Json:
    """Draw the elements that have units, and the covers between them."""
    elements = np.unique(element)
    heights = poset.heights()
    covers = [
        (int(a), int(b)) for a in elements for b in np.intersect1d(poset.upper_covers(int(a)), elements)
    ]
    chosen = _most_covered(elements, covers)
    nodes = [_node(order, element, e, int(heights[e]), kept) for e in chosen]
    place = {e: at for at, e in enumerate(chosen)}
    edges = [(place[a], place[b]) for a, b in covers if a in place and b in place]
    more = (
        f" Only the {len(nodes)} elements with most covers are drawn." if len(nodes) < len(elements) else ""
    )
    if not edges and len(nodes) > 1:
        more += " No two units are comparable: the order says nothing here."
    text = (
        f"Reading: {order.notes['reading']}. The {group.size} units are {len(elements)} elements, of height "
        f"{int(heights[elements].max())}; {int(order.irreducible.sum())} units are meet-irreducible.{more} A "
        "line leads up from an element to one that covers it. An element is kept if any of its units is."
    )
    for at, node in enumerate(nodes):
        node["covered by"] = ", ".join(str(chosen[b]) for a, b in edges if a == at)
    top = max(node["height"] for node in nodes)
    drawn = figure(
        _traces(nodes, edges),
        "",
        "height",
        xaxis={"visible": False},
        yaxis={"dtick": max(1, top // 10)},
        height=520,
    )
    title = f"Hasse diagram of group {group.name}"
    return section(title, text, nodes, drawn, layer=group.name)


def _most_covered(elements: IntArray, covers: Edges) -> list[int]:
    """Return the elements with most covers above and below, at most `MOST_NODES`, in their order."""
    if len(elements) <= MOST_NODES:
        return elements.tolist()
    degree = np.zeros(int(elements.max()) + 1, np.int64)
    np.add.at(degree, np.array(covers, np.int64).ravel(), 1)
    return sorted(elements[np.argsort(-degree[elements], kind="stable")[:MOST_NODES]].tolist())


def _node(order: UnitOrder, element: IntArray, number: int, height: int, kept: BoolArray) -> Json:
    units = np.flatnonzero(element == number)
    return {
        "element": number,
        "units": ", ".join(map(str, units)),
        "height": height,
        "irreducible": bool(order.irreducible[units].any()),
        "kept": bool(kept[units].any()),
        "in-strength": round_numbers(float(order.enters[units].sum())),
    }


def _traces(nodes: Sequence[Json], edges: Edges) -> list[Json]:
    """Return the covers, and the elements of each kind."""
    y = [node["height"] for node in nodes]
    x = layered_positions(y, edges)
    across, up = ([v for a, b in edges for v in (side[a], side[b], None)] for side in (x, y))
    traces = [lines(across, up, "covers", GREY, width=1) | {"hoverinfo": "skip"}]
    size = 14 if len(nodes) <= 60 else 9
    for irreducible, kept, name, colour, symbol in KINDS:
        chosen = [i for i, n in enumerate(nodes) if (n["irreducible"], n["kept"]) == (irreducible, kept)]
        if chosen:
            text = [_describe(nodes[i]) for i in chosen]
            at = [x[i] for i in chosen], [y[i] for i in chosen]
            traces.append(points(*at, name, colour, symbol=symbol, text=text, size=size))
    return traces


def _describe(node: Json) -> str:
    units = node["units"].split(", ")
    more = f" and {len(units) - 6} more" if len(units) > 6 else ""
    first = ", ".join(units[:6])
    return f"units {first}{more}<br>height {node['height']}, in-strength {node['in-strength']:.4g}"


def layered_positions(heights: Sequence[int], edges: Edges) -> list[float]:
    """Return a horizontal position for each element: levels centred, each element near its neighbours.

    Each level is sorted by the barycentres of its elements' neighbours, upwards and downwards in turn
    (Sugiyama, Tagawa and Toda 1981).

    Args:
        heights: Level of each element.
        edges: Pairs of elements.

    Example:
        >>> layered_positions([0, 0, 1], [(0, 2), (1, 2)])
        [-0.5, 0.5, 0.0]
    """
    levels: dict[int, list[int]] = {}
    for node, height in enumerate(heights):
        levels.setdefault(height, []).append(node)
    neighbours: list[list[int]] = [[] for _ in heights]
    for a, b in edges:
        neighbours[a].append(b)
        neighbours[b].append(a)
    position = [0.0] * len(heights)

    def spread(nodes: Sequence[int]) -> None:
        for at, node in enumerate(nodes):
            position[node] = at - (len(nodes) - 1) / 2

    def barycentre(node: int) -> tuple[float, int]:
        near = [position[other] for other in neighbours[node]]
        return (sum(near) / len(near) if near else position[node], node)

    for nodes in levels.values():
        spread(nodes)
    for sweep in range(SWEEPS):
        for height in sorted(levels, reverse=bool(sweep % 2)):
            levels[height].sort(key=barycentre)
            spread(levels[height])
    return position


def _profile_rows(
    context: DiagnosticContext, statistics: Statistics, group: Group, order: UnitOrder
) -> list[Json]:
    """Describe the order of the strongest weights at several densities: from the plan, or computed here."""
    if "profile" in order.notes:
        return order.notes["profile"]
    if group.size > MOST_PROFILE_UNITS:
        return []
    strength = within(context.plan.graph, statistics, group)
    if strength is not None and strength.any():
        return [profile.as_dict() for profile in density_profile(strength, PROFILE_DENSITIES)]
    return [row for density in PROFILE_DENSITIES for row in _unrolled(context, statistics, group, density)]


def _unrolled(context: DiagnosticContext, statistics: Statistics, group: Group, density: float) -> list[Json]:
    """Describe the order of units and their consumers, if the density leaves an edge."""
    try:
        notes = unrolled(context.plan.graph, statistics, group, density, False).notes
    except InputError:
        return []
    return [
        {
            "density": density,
            "edges": notes["edges"],
            "irreducible": notes["irreducible"],
            "informative": "warning" not in notes,
        }
    ]


def _profile(group: Group, profile: Sequence[Json]) -> Json:
    density = [row["density"] for row in profile]
    counts = [key for key in COUNTS if all(key in row for row in profile)]
    traces = [
        lines(density, [row[key] for row in profile], key, palette_colour(number), mode="lines+markers")
        for number, key in enumerate(counts)
    ]
    text = (
        "The order of the strongest weights at other densities. It is informative if some, but not all, of "
        f"the {group.size} units are irreducible and no element has most of them."
    )
    xaxis = {"type": "log", "tickvals": density}
    drawn = figure(traces, "share of the possible edges", "number", xaxis=xaxis)
    title = f"Profile of group {group.name} over density"
    return section(title, text, profile, drawn, layer=group.name)
