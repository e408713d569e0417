"""A portrait along the order of influence: Hasse diagrams, and profiles over density."""

from __future__ import annotations

from typing import Any

import numpy as np

from secateur.allocation import prunable
from secateur.core import Group, InputError, Statistics
from secateur.diagnostics.context import Look, short
from secateur.methods.lattice.connection_strength import within
from secateur.methods.lattice.unit_order import PROFILE_DENSITIES, UnitOrder, unrolled
from secateur.structures.order import density_profile

NODES = 150
UNITS = 4096


def lattice_portrait(look: Look) -> dict[str, Any]:
    """Return the portrait.

    Returns:
        ``"structure"``, ``"orders"`` (by group: the elements with what covers them, and the profile over
        density), ``"skipped"`` (by group, what is not drawn of it and why).
    """
    graph = look.plan.graph
    statistics = look.statistics(look.needs())
    orders = look.method.orders(graph, statistics)
    found, skipped = {}, {}
    for group in prunable(graph):
        order = orders[group.name]
        if order.poset is None:
            skipped[group.name] = f"{order.notes['reading']}: there is no order"
        found[group.name] = {
            "units": group.size,
            "reading": order.notes["reading"],
            "irreducible": int(order.irreducible.sum()),
            **_diagram(look, group, order),
            "profile": _profile(look, statistics, group, order),
        }
    return {"structure": "lattice", "orders": found, "skipped": skipped}


def _diagram(look: Look, group: Group, order: UnitOrder) -> dict[str, Any]:
    """Return the elements that units of the group are, and the covers among them."""
    if order.poset is None or order.element is None:
        return {"elements": 0, "height": 0, "nodes": [], "covers": []}
    poset, own = order.poset, np.unique(order.element)
    heights = poset.heights()
    inside = [(int(a), int(b)) for a in own for b in np.intersect1d(poset.upper_covers(int(a)), own)]
    chosen = _most_covered(own, inside)
    stays = np.array(look.stays(group))
    nodes = [_node(order, int(e), stays, int(heights[e])) for e in chosen]
    place = {int(e): at for at, e in enumerate(chosen)}
    covers = [[place[a], place[b]] for a, b in inside if a in place and b in place]
    return {"elements": len(own), "height": int(heights[own].max()), "nodes": nodes, "covers": covers}


def _most_covered(own: Any, covers: list[tuple[int, int]]) -> list[int]:
    if len(own) <= NODES:
        return own.tolist()
    degree = np.zeros(int(own.max()) + 1, np.int64)
    np.add.at(degree, np.array(covers, np.int64).ravel(), 1)
    return sorted(own[np.argsort(-degree[own], kind="stable")[:NODES]].tolist())


def _node(order: UnitOrder, element: int, stays: Any, height: int) -> dict[str, Any]:
    units = np.flatnonzero(order.element == element)
    return {
        "element": element,
        "units": units.tolist(),
        "height": height,
        "irreducible": bool(order.irreducible[units].any()),
        "stays": bool(stays[units].any()),
        "enters": short(float(order.enters[units].sum())),
    }


def _profile(look: Look, statistics: Statistics, group: Group, order: UnitOrder) -> list[dict[str, Any]]:
    """Describe the order of the strongest weights at several densities, as the plan does or anew."""
    if "profile" in order.notes:
        return order.notes["profile"]
    if group.size > UNITS:
        return []
    strength = within(look.plan.graph, statistics, group)
    if strength is not None and strength.any():
        return [p.as_dict() for p in density_profile(strength, PROFILE_DENSITIES)]
    return [row for density in PROFILE_DENSITIES for row in _unrolled(look, statistics, group, density)]


def _unrolled(look: Look, statistics: Statistics, group: Group, density: float) -> list[dict[str, Any]]:
    """Describe units before what reads them, where the density leaves an edge."""
    try:
        order = unrolled(look.plan.graph, statistics, group, density, False)
    except InputError:
        return []
    notes = order.notes
    return [
        {
            "density": density,
            "edges": notes["edges"],
            "irreducible": notes["irreducible"],
            "informative": "warning" not in notes,
        }
    ]


__all__ = ["lattice_portrait"]
