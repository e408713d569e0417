"""Pruning by the order of influence among units.

"Lattice-Based Pruning in Recurrent Neural Networks via Poset Modeling", arXiv:2502.16525.  Algorithm 1
keeps the meet-irreducible units of the dependency lattice, and prunes of the others those with mu below a
threshold.  Read rigorously, on the network's own weights: the strongest edges make a digraph, its strongly
connected components a poset, and its Dedekind-MacNeille completion the smallest lattice around it.
Algorithms 2 and 3 draw the adjacency at random, apart from the weights: `adjacency="binary"`, `"continuous"`.

What the paper leaves open, and how it is decided here, is in the documentation with measurements: its rule
keeps the weakly driven units and is worse than chance on trained networks.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from secateur.allocation import allocate, prunable, ranked
from secateur.core import Budget, Evidence, Group, InputError, Layer, Network, Plan, Weights, unknown
from secateur.methods.base import ScoreMethod, Scores, best, required, unit_plan
from secateur.methods.influence import across, entering, onto_readers, within
from secateur.structures.order import (
    Poset,
    density_profile,
    eliminate_attributes,
    mu_centrality,
    strongest_edges,
)

__all__ = ["PROFILE_DENSITIES", "Lattice", "UnitOrder"]

PROFILE_DENSITIES = (0.005, 0.01, 0.02, 0.03, 0.06, 0.12, 0.25)
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "adjacency": ("weights", "data", "binary", "continuous"),
    "reading": ("condensed", "unrolled"),
    "span": ("layer", "network"),
    "centrality": ("mu", "moebius", "in-strength", "out-strength"),
    "prefer": ("irreducible", "reducible", "neither"),
}


@dataclass(frozen=True, eq=False)
class UnitOrder:
    """What the order says about the units of a group.

    Attributes:
        irreducible: Whether each unit is meet-irreducible [units].
        centrality: Higher stays, among units of the same kind [units].
        notes: JSON-able description.
    """

    irreducible: NDArray[np.bool_]
    centrality: NDArray[np.float64]
    notes: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Lattice(ScoreMethod):
    """Rank units by irreducibility in the order of influence, then by centrality.

    Args:
        adjacency: ``"weights"``: the network's own weights; ``"data"``: a context of (sample, time) against
            units that fire, in which a unit is reducible if its extent is an intersection of others';
            ``"binary"`` and ``"continuous"``: random, as in Algorithms 2 and 3, with the first half of the
            units decreed irreducible, or none.
        reading: ``"condensed"``: components of the digraph among the units; ``"unrolled"``: units at one time
            before what reads them at the next.  Groups whose units no weight joins are always unrolled.
        span: ``"layer"``: each group by itself; ``"network"``: one digraph over all groups, feedback too.
        density: Share of the possible edges that make the digraph, the strongest.
        centrality: ``"mu"``: 1 / strength that enters (the paper's); ``"in-strength"``: its inverse;
            ``"out-strength"``; ``"moebius"``: |mu(0, x)| of the Moebius function.
        prefer: Which units stay first: irreducible ones (the paper's), reducible ones, or neither.
        include_top: Whether a greatest element counts as irreducible (the definition read literally).
        quantile: For data: a unit fires where its absolute activation is above this quantile of the group's.
        tolerance: For data: share of the objects by which an extent may miss an intersection.

    Budgets in `Weights` zero rows of the recurrent matrices only, as the paper does; the units stay alive.

    Example:
        >>> from secateur.core import Units
        >>> Lattice(adjacency="data").needs(Units(0.5))
        frozenset({'activations'})
    """

    name: ClassVar[str] = "lattice"
    adjacency: Literal["weights", "data", "binary", "continuous"] = "weights"
    reading: Literal["condensed", "unrolled"] = "condensed"
    span: Literal["layer", "network"] = "layer"
    density: float = 0.03
    centrality: Literal["mu", "moebius", "in-strength", "out-strength"] = "mu"
    prefer: Literal["irreducible", "reducible", "neither"] = "irreducible"
    include_top: bool = False
    quantile: float = 0.8
    tolerance: float = 0.02

    def __post_init__(self) -> None:
        """Check the options."""
        for option, known in _CHOICES.items():
            if getattr(self, option) not in known:
                raise InputError(unknown(f"Lattice.{option}", str(getattr(self, option)), known))
        if not (0 < self.density <= 1 and 0 < self.quantile < 1 and 0 <= self.tolerance < 1):
            raise InputError(
                f"density must be in (0, 1], quantile in (0, 1) and tolerance in [0, 1); got {self.density}, "
                f"{self.quantile} and {self.tolerance}"
            )

    def needs(self, budget: Budget) -> frozenset[str]:
        """Ask for activations where the order is made from data."""
        return frozenset({"activations"} if self.adjacency == "data" else ())

    def unit_scores(self, network: Network, evidence: Evidence) -> Scores:
        """Return the place of each unit in the ranking, as a share of its group [units]."""
        return {name: self._score(order) for name, order in self.orders(network, evidence).items()}

    def plan_units(self, network: Network, evidence: Evidence, budget: Budget) -> Plan:
        """Rank, keep the best, and note what the order looks like."""
        orders = self.orders(network, evidence)
        scores = {name: self._score(order) for name, order in orders.items()}
        allocation = allocate(network, budget, scores)
        choice = best(scores, allocation.counts)
        plan = unit_plan(self.name, network, budget, allocation, choice, evidence.seed)
        return replace(plan, notes={**plan.notes, **self._notes(orders)})

    def plan_weights(self, network: Network, evidence: Evidence, budget: Weights) -> Plan:
        """Zero rows of the recurrent matrices (for "binary", single entries drawn with the density)."""
        orders = self.orders(network, evidence)
        masks = {}
        for group in prunable(network):
            kept = ranked(self._score(orders[group.name]))[: max(1, round(budget.density * group.size))]
            rows = np.zeros(group.size, np.bool_)
            rows[kept] = True
            for layer, _ in network.makers(group):
                if layer.reads == "state":
                    masks[layer.weight] = self._mask(network, evidence, layer, rows, budget.density)
        if not masks:
            raise InputError(
                f"{self.name!r} zeroes rows of recurrent matrices, and no group has one; use Units, Params "
                "or Macs"
            )
        reached = float(np.mean([mask.mean() for mask in masks.values()]))
        notes = {**self._notes(orders), "reached": {"weights": reached}}
        return Plan(network, self.name, {}, masks, {}, repr(budget), evidence.seed, notes)

    def orders(self, network: Network, evidence: Evidence) -> dict[str, UnitOrder]:
        """Return what the order says about each prunable group.

        Raises:
            InputError: If evidence is missing, weights or activations are not finite, or the density leaves
                no edge.
        """
        groups = prunable(network)
        try:
            if self.adjacency == "data":
                return {g.name: self._from_data(evidence, g) for g in groups}
            if self.adjacency in ("binary", "continuous"):
                return {g.name: self._drawn(evidence, g) for g in groups}
            if self.span == "network":
                return self._whole(network, evidence, groups)
            return {g.name: self._own(network, evidence, g) for g in groups}
        except (ValueError, OverflowError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"no order of influence: {error}") from error

    def _own(self, network: Network, evidence: Evidence, group: Group) -> UnitOrder:
        strength = within(network, evidence, group)
        if strength is None or not strength.any() or self.reading == "unrolled":
            return self._unrolled(network, evidence, group)
        poset = Poset.from_digraph(strongest_edges(strength, self.density))
        profile = [p.as_dict() for p in density_profile(strength, (*PROFILE_DENSITIES, self.density))]
        irreducible = np.isin(poset.component, poset.meet_irreducibles(self.include_top))
        notes = {"reading": "condensed", "irreducible": int(irreducible.sum()), "profile": profile[:-1]}
        if not profile[-1]["informative"]:
            notes["warning"] = _warning(group.name, profile[-1])
        return UnitOrder(irreducible, self._centrality(poset, strength), notes)

    def _unrolled(self, network: Network, evidence: Evidence, group: Group) -> UnitOrder:
        onto = onto_readers(network, evidence, group)
        n, readers = onto.shape
        kept = min(round(self.density * onto.size), np.count_nonzero(onto))
        if kept == 0:
            raise InputError(f"density {self.density} leaves no edge between the {n} units of {group.name!r} "
                             f"and the {readers} that read them")
        source, target = np.unravel_index(np.argsort(-onto, axis=None, kind="stable")[:kept], onto.shape)
        graph = sparse.coo_array((np.ones(kept), (source, n + target)), shape=(n + readers, n + readers))
        poset = Poset.from_digraph(graph)
        irreducible = np.isin(np.arange(n), poset.meet_irreducibles(self.include_top))
        notes = {"reading": "unrolled", "irreducible": int(irreducible.sum()), "edges": int(kept)}
        if irreducible.all() or not irreducible.any():
            notes["warning"] = (f"{group.name!r}: at density {self.density} all units or none are irreducible; "
                                "only the centrality ranks them")
        enters = entering(network, evidence, group)
        mu = np.divide(1.0, enters, out=np.full(n, np.inf), where=enters > 0)
        moebius = np.abs(poset.moebius_from_bottom()[:n]).astype(float)
        values = {"mu": mu, "in-strength": enters, "out-strength": onto.sum(1), "moebius": moebius}
        return UnitOrder(irreducible, values[self.centrality], notes)

    def _whole(self, network: Network, evidence: Evidence, groups: Sequence[Group]) -> dict[str, UnitOrder]:
        strength = across(network, evidence, groups)
        poset = Poset.from_digraph(strongest_edges(strength, self.density))
        irreducible = np.isin(poset.component, poset.meet_irreducibles(self.include_top))
        centrality = self._centrality(poset, strength)
        profile = [p.as_dict() for p in density_profile(strength, (*PROFILE_DENSITIES, self.density))]
        found, first = {}, 0
        for group in groups:
            own = slice(first, first := first + group.size)
            notes: dict[str, Any] = {"reading": "condensed", "irreducible": int(irreducible[own].sum())}
            found[group.name] = UnitOrder(irreducible[own], centrality[own], notes)
        found[groups[0].name].notes["profile"] = profile[:-1]
        if not profile[-1]["informative"]:
            found[groups[0].name].notes["warning"] = _warning("all groups together", profile[-1])
        return found

    def _from_data(self, evidence: Evidence, group: Group) -> UnitOrder:
        rows: Tensor = required(evidence.activations, group.name, "activations", self.name)
        size = rows.detach().abs().double().cpu().numpy()
        if not np.isfinite(size).all():
            raise InputError(f"NaN or infinite activations in group {group.name!r}")
        fires = size > np.quantile(size, self.quantile)
        result = eliminate_attributes(fires, self.tolerance)
        place = np.empty(group.size)
        place[result.sequence] = np.arange(group.size)
        redundant = result.sequence[: np.count_nonzero(result.gaps <= self.tolerance)]
        irreducible = ~np.isin(np.arange(group.size), redundant)
        notes: dict[str, Any] = {"reading": "context from data", "objects": len(fires),
                                 "irreducible": int(irreducible.sum())}
        if not fires.any():
            notes["warning"] = f"{group.name!r}: no unit ever fires; the order says nothing"
        return UnitOrder(irreducible, place, notes)

    def _drawn(self, evidence: Evidence, group: Group) -> UnitOrder:
        generator = np.random.default_rng([evidence.seed, zlib.crc32(group.name.encode())])
        n = group.size
        if self.adjacency == "binary":
            adjacency = (generator.random((n, n)) < 0.5).astype(float)
            return UnitOrder(np.arange(n) < (n + 1) // 2, mu_centrality(adjacency), {"reading": "Algorithm 2"})
        adjacency = generator.uniform(0.5, 2.0, (n, n))
        return UnitOrder(np.zeros(n, np.bool_), mu_centrality(adjacency), {"reading": "Algorithm 3"})

    def _centrality(self, poset: Poset, strength: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.centrality == "mu":
            return mu_centrality(strength)
        if self.centrality == "moebius":
            return np.abs(poset.moebius_from_bottom()[poset.component]).astype(float)
        return strength.sum(0 if self.centrality == "in-strength" else 1)

    def _score(self, order: UnitOrder) -> Tensor:
        kind = {"irreducible": order.irreducible, "reducible": ~order.irreducible}.get(
            self.prefer, np.zeros_like(order.irreducible)
        )
        n = len(kind)
        # Of equals the first stays: positions enter as the last key, descending.
        ascending = np.lexsort((-np.arange(n), order.centrality, kind))
        place = np.empty(n)
        place[ascending] = np.arange(1, n + 1) / n
        return torch.from_numpy(place)

    def _mask(
        self, network: Network, evidence: Evidence, layer: Layer, rows: NDArray[np.bool_], density: float
    ) -> NDArray[np.bool_]:
        shape = network.shapes[layer.weight]
        if self.adjacency == "binary":
            generator = np.random.default_rng([evidence.seed, zlib.crc32(layer.weight.encode())])
            own = generator.random((shape[0] // layer.gates, shape[1])) < density
            return np.tile(own, (layer.gates, 1))
        return np.repeat(np.tile(rows, layer.gates)[:, None], shape[1], axis=1)

    def _notes(self, orders: Mapping[str, UnitOrder]) -> dict[str, Any]:
        notes: dict[str, Any] = {"order": {name: order.notes for name, order in orders.items()}}
        found = [order.notes["warning"] for order in orders.values() if "warning" in order.notes]
        for text in found:
            warnings.warn(text, stacklevel=4)
        return notes


def _warning(name: str, profile: Mapping[str, Any]) -> str:
    return (
        f"{name!r}: at density {profile['density']} the order says little: the largest of "
        f"{profile['elements']} components holds {profile['largest']} units and {profile['irreducible']} are "
        "irreducible; try another density (the plan's notes have the profile) or adjacency='data'"
    )
