"""Plans in which the budget is an upper bound: only units on offer go, however many the budget asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from secateur.allocation import Allocation, allocate, make_equal
from secateur.core import Budget, IntArray, Merge, NothingToPrune, Plan, PruningGraph, Statistics
from secateur.methods.base import Choice, unit_plan

__all__ = ["Offer", "capped_plan"]


@dataclass(frozen=True, eq=False)
class Offer:
    """The units that may go from one group.

    Attributes:
        order: Units that may go, in the order in which they go.
        note: For the plan.
        merge: Returns, for units that go, how they follow from units that stay; None: they are only removed.
    """

    order: IntArray
    note: Mapping[str, Any] = field(default_factory=dict)
    merge: Callable[[IntArray], Merge] | None = None


def capped_plan(
    method: str,
    graph: PruningGraph,
    statistics: Statistics,
    budget: Budget,
    offers: Mapping[str, Offer],
    hint: str,
) -> Plan:
    """Remove the units on offer, at most as many as the budget asks of each group.

    Raises:
        NothingToPrune: If nothing is on offer; the message ends with `hint`.
    """
    if not any(len(offer.order) for offer in offers.values()):
        raise NothingToPrune(f"{method!r} removes nothing: {hint}")
    asked = allocate(graph, budget)
    sizes = {name: graph.group(name).size for name in asked.counts}
    offered = {n: len(offers[n].order) if n in offers else 0 for n in sizes}
    possible = {n: max(c, sizes[n] - offered[n]) for n, c in asked.counts.items()}
    left = make_equal(graph, possible)
    gone = {n: offers[n].order[: sizes[n] - c] for n, c in left.items() if n in offers}
    wanted = {n: sizes[n] - asked.counts[n] for n in gone}
    notes = {n: {**offers[n].note, "asked": wanted[n], "removed": len(gone[n])} for n in gone}
    keep = {n: np.setdiff1d(np.arange(size), gone.get(n, ())) for n, size in sizes.items()}
    merges = {n: build(removed) for n, removed in gone.items() if len(removed) and (build := offers[n].merge)}
    counts = {n: len(kept) for n, kept in keep.items()}
    reached = Allocation(counts, asked.what, asked.target, sum(counts.values()) / sum(sizes.values()))
    return replace(
        unit_plan(method, graph, budget, reached, Choice(keep, merges, notes), statistics.seed),
        budget=f"at most {budget!r}",
    )
