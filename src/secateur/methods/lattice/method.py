"""The lattice method: an order of influence among units.

"Lattice-Based Pruning in Recurrent Neural Networks via Poset Modeling", arXiv:2502.16525.  Algorithm 1
keeps the meet-irreducible units of the dependency lattice; of the others it prunes those with mu below a
threshold.  Made rigorous on the network's own weights: the strongest edges form a digraph, its strongly
connected components a poset, and its Dedekind-MacNeille completion is the smallest lattice around it.
Algorithms 2 and 3 draw a random adjacency that ignores the weights: `adjacency="binary"`, `"continuous"`.

docs/lattice.md lists what the paper leaves open and how it is decided here, with measurements: the paper's
rule keeps the weakly driven units and is worse than chance on trained networks, so it is not the default.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur.allocation import Allocation, allocate, make_equal, prunable, ranked
from secateur.core import Budget, Group, InputError, Layer, Plan, PruningGraph, Statistics, Weights
from secateur.methods.base import ScoreMethod, Scores, best, unit_plan
from secateur.methods.lattice.unit_order import UnitOrder, drawn, from_data, group_order, over_network

__all__ = ["Lattice"]


@dataclass(frozen=True, kw_only=True)
class Lattice(ScoreMethod):
    """Rank units by irreducibility in an order, then by centrality.

    The paper's Algorithm 1 is ``Lattice(adjacency="weights", centrality="mu")``.

    Args:
        adjacency: ``"data"``: a context of (sample, time) against units that fire, in which a unit is
            reducible if its extent is an intersection of the extents of other units that are still there;
            ``"weights"``: the order of influence along the network's own weights; ``"binary"`` and
            ``"continuous"``: random, as in Algorithm 2 (the first half is declared irreducible) and 3.
        reading: For weights, ``"condensed"``: components of the digraph among the units; ``"unrolled"``:
            units at one time step before their consumers at the next.  Units that no weight connects are
            always unrolled.
        span: For weights, ``"layer"``: each group by itself; ``"network"``: one digraph over all groups.
        density: For weights, share of the possible edges in the digraph; the strongest are taken.
        centrality: ``"in-strength"``: what enters a unit; ``"mu"``: its inverse, the paper's;
            ``"out-strength"``; ``"moebius"``: |mu(0, x)| by the Moebius function of the poset;
            ``"lattice-moebius"``: the same in its completion, as in line 3 of Algorithm 1, if that has at
            most 100,000 elements; for data also ``"flow"``: out-strength times the root mean square of the
            activation; ``"gap"``: the sequence in which units become redundant.  By default ``"flow"`` for
            data, else ``"in-strength"``.
        tau: The threshold of Algorithm 1: units that are not irreducible and whose centrality is below it go,
            but never more than the budget allows: use ``Units(0.01)`` for tau alone.  Not for data.
        prefer: Which units stay first: irreducible ones (as in the paper), reducible ones, or neither.
        include_top: For weights, count a greatest element as irreducible.
        quantile: For data, a unit fires where its absolute activation is above this quantile of the group's.
        tolerance: For data, share of the objects in which an extent may differ from an intersection.

    Budgets in `Weights` zero rows of the recurrent matrices only, as the paper does; the units stay.  With
    ``"binary"`` and no tau they zero single entries, drawn with the density, as the sparsities of Table I
    suggest; with tau, the rows of the first half stay.

    Example:
        >>> from secateur.core import Units
        >>> Lattice().needs(Units(0.5)), Lattice(adjacency="weights").needs(Units(0.5))
        (frozenset({'activations'}), frozenset())
    """

    name: ClassVar[str] = "lattice"
    adjacency: Literal["data", "weights", "binary", "continuous"] = "data"
    reading: Literal["condensed", "unrolled"] = "condensed"
    span: Literal["layer", "network"] = "layer"
    density: float = 0.03
    centrality: (
        Literal["flow", "in-strength", "out-strength", "mu", "moebius", "lattice-moebius", "gap"] | None
    ) = None
    tau: float | None = None
    prefer: Literal["irreducible", "reducible", "neither"] = "irreducible"
    include_top: bool = False
    quantile: float = 0.8
    tolerance: float = 0.02

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.centrality is None:
            default = "flow" if self.adjacency == "data" else "in-strength"
            object.__setattr__(self, "centrality", default)
        if not (0 < self.density <= 1 and 0 < self.quantile < 1 and 0 <= self.tolerance < 1):
            raise InputError(
                f"density must be in (0, 1], quantile in (0, 1) and tolerance in [0, 1); got {self.density}, "
                f"{self.quantile} and {self.tolerance}"
            )
        drawn_lack = {"flow", "gap", "moebius", "lattice-moebius"}
        lacking = {"weights": {"flow", "gap"}, "binary": drawn_lack, "continuous": drawn_lack}
        if self.centrality in lacking.get(self.adjacency, ()):
            raise InputError(f"adjacency={self.adjacency!r} has no centrality {self.centrality!r}")
        if self.tau is not None and (
            not self.tau > 0 or self.adjacency == "data" or self.prefer != "irreducible"
        ):
            raise InputError(
                "tau must be positive, and removes reducible units of small centrality: use it with "
                f"adjacency='weights', 'binary' or 'continuous' and prefer='irreducible'; got "
                f"tau={self.tau!r}, adjacency={self.adjacency!r} and prefer={self.prefer!r}"
            )

    def needs(self, budget: Budget) -> frozenset[str]:
        """Return the activations if the order comes from data."""
        return frozenset({"activations"} if self.adjacency == "data" else ())

    def unit_scores(self, graph: PruningGraph, statistics: Statistics) -> Scores:
        """Return the rank of each unit as a share of its group [units]; 1 is best."""
        return {name: self._score(order) for name, order in self.orders(graph, statistics).items()}

    def plan_units(self, graph: PruningGraph, statistics: Statistics, budget: Budget) -> Plan:
        """Rank, keep the best, and describe the order in the notes."""
        orders = self.orders(graph, statistics)
        scores = {name: self._score(order) for name, order in orders.items()}
        allocation = self._allocate(graph, budget, scores, orders, statistics)
        choice = best(scores, allocation.counts)
        plan = unit_plan(self.name, graph, budget, allocation, choice, statistics.seed)
        return replace(plan, notes={**plan.notes, **_order_notes(orders)})

    def _allocate(
        self,
        graph: PruningGraph,
        budget: Budget,
        scores: Scores,
        orders: Mapping[str, UnitOrder],
        statistics: Statistics,
    ) -> Allocation:
        """Return the budget's counts, at least those that tau keeps."""
        allocation = allocate(graph, budget, scores, statistics.losses)
        if self.tau is None:
            return allocation
        counts = {n: max(count, self._count_above(orders[n])) for n, count in allocation.counts.items()}
        return replace(allocation, counts=make_equal(graph, counts))

    def _count_above(self, order: UnitOrder) -> int:
        """Count the units that Algorithm 1 keeps: irreducible ones, and those of centrality tau or more."""
        return int((order.irreducible | (order.centrality(str(self.centrality)) >= (self.tau or 0))).sum())

    def plan_weights(self, graph: PruningGraph, statistics: Statistics, budget: Weights) -> Plan:
        """Zero rows of the recurrent matrices; for "binary" without tau, single entries."""
        orders = self.orders(graph, statistics)
        masks: dict[str, NDArray[np.bool_]] = {}
        for group in prunable(graph):
            rows = self._rows(orders[group.name], group, budget.keep)
            for layer, _ in graph.producers(group):
                if layer.reads == "state":
                    masks[layer.weight] = self._mask(graph, statistics, layer, rows, budget.keep)
        if not masks:
            raise InputError(
                f"{self.name!r} zeroes rows of recurrent matrices, and no group has one; use Units, Params "
                "or Macs"
            )
        reached = float(np.mean([mask.mean() for mask in masks.values()]))
        notes = {**_order_notes(orders), "reached": {"weights": reached}}
        return Plan(graph, self.name, {}, masks, {}, repr(budget), statistics.seed, notes)

    def orders(self, graph: PruningGraph, statistics: Statistics) -> dict[str, UnitOrder]:
        """Return the order of each group.

        Raises:
            InputError: If statistics are missing, weights or activations are not finite, the density leaves
                no edge, or a requested Moebius value exceeds the 64-bit integers.
        """
        groups = prunable(graph)
        try:
            if self.adjacency == "data":
                context = (self.quantile, self.tolerance)
                return {g.name: from_data(graph, statistics, g, *context) for g in groups}
            if self.adjacency in ("binary", "continuous"):
                return {g.name: drawn(statistics, g, self.adjacency) for g in groups}
            if self.span == "network":
                return over_network(graph, statistics, groups, self.density, self.include_top)
            options = (self.density, self.include_top, self.reading == "unrolled")
            return {g.name: group_order(graph, statistics, g, *options) for g in groups}
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"no order of influence: {error}") from error

    def _score(self, order: UnitOrder) -> Tensor:
        values = order.centrality(str(self.centrality))
        n = len(values)
        if self.prefer == "neither":
            kind = np.zeros(n, np.bool_)
        else:
            kind = order.irreducible == (self.prefer == "irreducible")
        if self.prefer == "irreducible" and order.place is not None:
            values = np.where(order.irreducible, values, order.place)
        # Ties go to the lower index: the position is the last key, descending.
        ascending = np.lexsort((-np.arange(n), values, kind))
        rank = np.empty(n)
        rank[ascending] = np.arange(1, n + 1) / n
        return torch.from_numpy(rank)

    def _rows(self, order: UnitOrder, group: Group, density: float) -> NDArray[np.bool_]:
        count = max(1, round(density * group.size))
        count = count if self.tau is None else max(count, self._count_above(order))
        kept = ranked(self._score(order))[:count]
        rows = np.zeros(group.size, np.bool_)
        rows[kept] = True
        return rows

    def _mask(
        self,
        graph: PruningGraph,
        statistics: Statistics,
        layer: Layer,
        rows: NDArray[np.bool_],
        density: float,
    ) -> NDArray[np.bool_]:
        shape = graph.shapes[layer.weight]
        if self.adjacency == "binary" and self.tau is None:
            generator = np.random.default_rng([statistics.seed, zlib.crc32(layer.weight.encode())])
            drawn_entries = generator.random((shape[0] // layer.gates, shape[1])) < density
            return np.tile(drawn_entries, (layer.gates, 1))
        return np.repeat(np.tile(rows, layer.gates)[:, None], shape[1], axis=1)


def _order_notes(orders: Mapping[str, UnitOrder]) -> dict[str, Any]:
    """Return the notes of all orders; warn if an order is uninformative."""
    messages = [order.notes["warning"] for order in orders.values() if "warning" in order.notes]
    for text in dict.fromkeys(messages):
        warnings.warn(text, stacklevel=4)
    return {"order": {name: order.notes for name, order in orders.items()}}
