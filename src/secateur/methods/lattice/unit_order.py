"""An order on the units of a group: which are irreducible, which central."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from secateur.core import Group, InputError, PruningGraph, Statistics
from secateur.methods.lattice.connection_strength import across, entering, onto_consumers, within
from secateur.structures.order import (
    CompletionTooLarge,
    Poset,
    attribute_order,
    density_profile,
    eliminate_attributes,
    strongest_edges,
)

__all__ = [
    "PROFILE_DENSITIES",
    "UnitOrder",
    "condensed",
    "drawn",
    "from_data",
    "group_order",
    "over_network",
    "unrolled",
]

PROFILE_DENSITIES = (0.005, 0.01, 0.02, 0.03, 0.06, 0.12, 0.25)
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class UnitOrder:
    """An order on the units of a group.

    Attributes:
        irreducible: Whether each unit is meet-irreducible [units].
        enters: Strength of the connections into each unit [units].
        leaves: Strength of the connections out of each unit [units].
        notes: JSON-able description; has "warning" if the order does not separate the units.
        poset: The order itself, or None for a random adjacency.
        element: The poset's element of each unit [units].
        place: For data, when units become redundant, the last highest [units].
        active: For data, root mean square of each unit's activation [units].
    """

    irreducible: NDArray[np.bool_]
    enters: FloatArray
    leaves: FloatArray
    notes: dict[str, Any]
    poset: Poset | None = None
    element: NDArray[np.int64] | None = None
    place: FloatArray | None = None
    active: FloatArray | None = None

    def centrality(self, name: str) -> FloatArray:
        """Return the centrality of each unit, by its name in `Lattice`.

        Raises:
            InputError: If the order has no such centrality, a Moebius value exceeds the 64-bit integers, or
                the lattice has too many elements for its Moebius function.
        """
        if name == "mu":
            return np.divide(1.0, self.enters, out=np.full(len(self.enters), np.inf), where=self.enters > 0)
        if name in ("moebius", "lattice-moebius") and self.poset is not None and self.element is not None:
            try:
                whole = self.poset if name == "moebius" else self.poset.completion()
                return np.abs(whole.moebius_from_bottom())[self.element].astype(np.float64)
            except (OverflowError, CompletionTooLarge) as error:
                raise InputError(f"{error}; rank by another centrality") from error
        flow = None if self.active is None else self.leaves * self.active
        known = {"in-strength": self.enters, "out-strength": self.leaves, "gap": self.place, "flow": flow}
        values = known.get(name)
        if values is None:
            raise InputError(f"an order of this kind has no centrality {name!r}")
        return values


def condensed(strength: FloatArray, density: float, include_top: bool, name: str) -> UnitOrder:
    """Order units by paths along the strongest edges between them; units on a cycle are one element.

    Args:
        strength: Strengths [from, to].
        density: Share of the possible edges.
        include_top: Count a greatest element as irreducible.
        name: Name of the units in a warning.
    """
    poset = Poset.from_digraph(strongest_edges(strength, density))
    *profile, here = (p.as_dict() for p in density_profile(strength, (*PROFILE_DENSITIES, density)))
    irreducible = np.isin(poset.component, poset.meet_irreducibles(include_top))
    count = int(irreducible.sum())
    notes: dict[str, Any] = {"reading": "condensed", "irreducible": count, "profile": profile}
    if not here["informative"]:
        notes["warning"] = (
            f"{name!r}: at density {density} the order is uninformative: the largest of {here['elements']} "
            f"components holds {here['largest']} of {len(strength)} units, {here['irreducible']} are "
            "irreducible; try another density (the plan's notes have the profile) or adjacency='data'"
        )
    return UnitOrder(irreducible, strength.sum(0), strength.sum(1), notes, poset, poset.component)


def over_network(
    graph: PruningGraph, statistics: Statistics, groups: Sequence[Group], density: float, include_top: bool
) -> dict[str, UnitOrder]:
    """Order the units of all groups in one digraph, across layers."""
    whole = condensed(across(graph, statistics, groups), density, include_top, "all groups together")
    orders, first = {}, 0
    for group in groups:
        units = slice(first, first := first + group.size)
        element = None if whole.element is None else whole.element[units]
        notes = {**whole.notes, "irreducible": int(whole.irreducible[units].sum())}
        orders[group.name] = replace(
            whole,
            irreducible=whole.irreducible[units],
            enters=whole.enters[units],
            leaves=whole.leaves[units],
            element=element,
            notes=notes,
        )
    return orders


def group_order(
    graph: PruningGraph, statistics: Statistics, group: Group, density: float, include_top: bool, unroll: bool
) -> UnitOrder:
    """Order the units of one group, unrolled if requested or if no weight connects them."""
    strength = None if unroll else within(graph, statistics, group)
    if strength is None or not strength.any():
        return unrolled(graph, statistics, group, density, include_top)
    return condensed(strength, density, include_top, group.name)


def unrolled(
    graph: PruningGraph, statistics: Statistics, group: Group, density: float, include_top: bool
) -> UnitOrder:
    """Order units before their consumers at the next step, along the strongest connections.

    A unit is then irreducible exactly if it has at most one consumer, or if another unit has all of its
    consumers.

    Raises:
        InputError: If the density leaves no connection.
    """
    onto = onto_consumers(graph, statistics, group)
    n, consumers = onto.shape
    kept = min(round(density * onto.size), int(np.count_nonzero(onto)))
    if kept == 0:
        needed = f"{0.5 / onto.size:.2g} would" if onto.any() else "their consumers have no weights"
        raise InputError(
            f"density {density} leaves no edge between the {n} units of {group.name!r} and the "
            f"{consumers} that consume them; {needed}"
        )
    source, target = np.unravel_index(np.argsort(-onto, axis=None, kind="stable")[:kept], onto.shape)
    digraph = sparse.coo_array((np.ones(kept), (source, n + target)), shape=(n + consumers, n + consumers))
    poset = Poset.from_digraph(digraph)
    irreducible = np.isin(np.arange(n), poset.meet_irreducibles(include_top))
    notes: dict[str, Any] = {"reading": "unrolled", "irreducible": int(irreducible.sum()), "edges": kept}
    if irreducible.all() or not irreducible.any():
        how_many = "all" if irreducible.all() else "no"
        notes["warning"] = (
            f"{group.name!r}: at density {density} {how_many} units are irreducible; only "
            "the centrality ranks them"
        )
    enters = entering(graph, statistics, group)
    return UnitOrder(irreducible, enters, onto.sum(1), notes, poset, poset.component[:n])


def from_data(
    graph: PruningGraph, statistics: Statistics, group: Group, quantile: float, tolerance: float
) -> UnitOrder:
    """Order units by the objects (sample, time) at which they fire.

    A unit fires where its absolute activation is above a quantile of the group's.  Units are tested one after
    the other: a unit is irreducible unless its extent is an intersection of others', up to the tolerance.

    Raises:
        InputError: If the activations of the group are missing or not finite.
    """
    if group.name not in statistics.activations:
        raise InputError(
            f"'lattice' needs 'activations' for {group.name!r}, which the statistics lack: "
            "collect them with needs={'activations'}, on data that reaches the group's consumers"
        )
    size = statistics.activations[group.name].detach().abs().double().cpu().numpy()
    if not np.isfinite(size).all():
        raise InputError(f"NaN or infinite activations in group {group.name!r}")
    fires = size > np.quantile(size, quantile)
    result = eliminate_attributes(fires, tolerance)
    place = np.empty(group.size)
    place[result.sequence] = np.arange(group.size)
    redundant = result.sequence[: np.count_nonzero(np.cumsum(result.gaps > tolerance) == 0)]
    irreducible = ~np.isin(np.arange(group.size), redundant)
    notes: dict[str, Any] = {
        "reading": "context from data",
        "objects": len(fires),
        "irreducible": int(irreducible.sum()),
    }
    if not fires.any():
        notes["warning"] = f"{group.name!r}: no unit ever fires, so the order is uninformative"
    poset = attribute_order(fires)
    enters, leaves = entering(graph, statistics, group), onto_consumers(graph, statistics, group).sum(1)
    active = np.sqrt(np.square(size).mean(0))
    return UnitOrder(irreducible, enters, leaves, notes, poset, poset.component, place, active)


def drawn(statistics: Statistics, group: Group, kind: str) -> UnitOrder:
    """Draw a random adjacency that ignores the weights: Algorithms 2 ("binary") and 3 ("continuous").

    Algorithm 2 declares the first half of the units irreducible; Algorithm 3 uses only the centrality.
    """
    generator = np.random.default_rng([statistics.seed, zlib.crc32(group.name.encode())])
    n = group.size
    if kind == "binary":
        adjacency = (generator.random((n, n)) < 0.5).astype(float)
        irreducible = np.arange(n) < (n + 1) // 2
    else:
        adjacency = generator.uniform(0.5, 2.0, (n, n))
        irreducible = np.zeros(n, np.bool_)
    notes = {"reading": f"drawn at random ({kind})", "irreducible": int(irreducible.sum())}
    return UnitOrder(irreducible, adjacency.sum(0), adjacency.sum(1), notes)
