"""The matroid method: four grounds of dependence among units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from secateur.allocation import prunable
from secateur.allocation.ranking import ranked
from secateur.core import Budget, Group, InputError, IntArray, Plan, PruningGraph, Statistics
from secateur.methods.base import Choice, Scores, SetMethod
from secateur.methods.matroid import rows, windows
from secateur.methods.matroid.activations import Objective, basis_order, choose_basis
from secateur.methods.matroid.upper_bound import capped_plan
from secateur.methods.unit_sums import power_sums, producer_slots
from secateur.structures.matroid.tail import Order

__all__ = ["Matroid"]

UNREAD = "magnitude, because no layer reads the units"
LOGITS = "root mean square of what the units add to the logits of attention"
Ground = Literal["activations", "rows", "patterns", "windows"]


@dataclass(frozen=True, kw_only=True)
class Matroid(SetMethod):
    """Remove units that depend on others, in one of four senses.

    ``ground="activations"`` keeps a basis of the activations on the data: it takes units greedily by what
    they explain, then exchanges them while that helps.  Follow it with the least-squares fold.  It works for
    any group that a weighted layer consumes; others (experts, tied autoencoders) keep the largest weights.

    ``ground="rows"`` removes units without changing the function: dead and unread units, positive multiples
    (`Plan.merges` has the factors), and constant or always active units that depend on others.  The network
    must be an affine-ReLU chain.  The budget is an upper bound.

    ``ground="patterns"`` goes on from there on the calibration data: units that are on and off together keep
    one basis of their rows of [W | b], and the others follow from it exactly (`Plan.merges`).  This is the
    published idea where it holds: the outputs on the data stay, and so do those at all inputs where no unit
    switches apart from its pattern.  The budget is an upper bound.

    ``ground="windows"`` is the published partition: units in rank-deficient windows of neighbouring rows of
    [W | b] are the tail, of which at most `share` goes.  The budget is an upper bound; to remove more than
    75 %, raise `share` and prune with a `Tolerance`.  The result depends on the order of the units: see
    `permutation_audit`.

    Args:
        ground: Which matroid.
        objective: For activations, the error to be small: ``"units"``, the unexplained part of the units
            (pivoted QR); ``"weighted"``, the same, each unit times the norm of the weights that read it; or
            ``"output"``, what the layers that consume the units then get wrong.  The last is smallest in
            each layer by itself, and farther from the original at the end of a deep network.
        swaps: For activations: largest number of exchanges in a group.
        order: For windows: the order in which the tail goes.
        share: For windows: the share of the tail that may go.
        exact: For windows: compute ranks over the rationals.
        rtol: For windows: numerical tolerance, None for numpy's.
        tolerance: For rows and patterns: how much directions of parallel rows may differ, and how far a
            dependent row may be from the span of others, relative to its length; 0 asks for exact parallels
            over the rationals, None allows for the rounding of the weights' dtype (4 eps).
        domain: For rows: the inputs on which the function must not change, "everywhere", "box" or "data".
        box: For rows: smallest and largest input value, for `domain="box"`.

    Example:
        >>> from secateur.core import Units
        >>> Matroid().needs(Units(0.5)), Matroid(ground="rows", domain="data").needs(Units(0.5)) >= {"images"}
        (frozenset({'gram'}), True)
    """

    name: ClassVar[str] = "matroid"
    ground: Ground = "activations"
    objective: Objective = "weighted"
    swaps: int = 30
    order: Order = "most-windows"
    share: float = 0.75
    exact: bool = False
    rtol: float | None = None
    tolerance: float | None = None
    domain: rows.Domain = "everywhere"
    box: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise InputError(f"Matroid.share must be in (0, 1], a share of the tail; got {self.share!r}")
        if self.rtol is not None and (self.exact or not 0 <= self.rtol < 1):
            raise InputError(f"Matroid.rtol must be in [0, 1), and None where exact=True; got {self.rtol!r}")
        if self.swaps < 0 or not (self.tolerance is None or 0 <= self.tolerance < float("inf")):
            raise InputError(
                f"swaps and tolerance must be 0 or more, and finite; got {self.swaps!r}, {self.tolerance!r}"
            )
        if not self.box[0] <= self.box[1]:
            raise InputError(f"Matroid.box is (smallest, largest) input value; got {self.box!r}")

    def needs(self, budget: Budget) -> frozenset[str]:
        """Return "gram", "chain" or nothing, by the ground."""
        if self.ground in ("rows", "patterns"):
            on_data = self.ground == "patterns" or self.domain == "data"
            return frozenset({"chain", "images"} if on_data else {"chain"})
        return frozenset({"gram"} if self.ground == "activations" else ())

    def choose(
        self, graph: PruningGraph, statistics: Statistics, counts: Mapping[str, int]
    ) -> Mapping[str, IntArray] | Choice:
        """Keep a basis of the activations of each group."""
        keep, notes = {}, {}
        for name, count in counts.items():
            group = graph.group(name)
            if graph.consumers(group):
                keep[name], notes[name] = choose_basis(
                    graph, statistics, group, count, self.objective, self.swaps
                )
            else:
                sizes, ground = _unread(graph, statistics, group)
                keep[name], notes[name] = np.sort(ranked(sizes)[:count]), {"ground": ground}
        return Choice(keep, notes=notes)

    def unit_scores(self, graph: PruningGraph, statistics: Statistics) -> Scores:
        """Score each unit by the share that is unexplained when the greedy order takes it."""
        self._check_ranks()
        scores = {}
        for group in prunable(graph):
            if not graph.consumers(group):
                scores[group.name], _ = _unread(graph, statistics, group)
                continue
            _, basis = basis_order(graph, statistics, group, self.objective)
            left = torch.cummin(basis.residuals[:-1], 0).values
            # A tiny slope keeps the greedy order among equal residuals.
            slope = torch.linspace(1e-12, 0, group.size, dtype=torch.float64)
            share = left / left[0] if float(left[0]) > 0 else torch.zeros_like(left)
            scores[group.name] = torch.empty_like(left).scatter_(0, basis.order.cpu(), share + slope)
        return scores

    def plan_units(self, graph: PruningGraph, statistics: Statistics, budget: Budget) -> Plan:
        """Keep a basis, or remove what the other grounds offer, up to the budget."""
        if self.ground == "activations":
            return super().plan_units(graph, statistics, budget)
        if budget.scope == "global":
            self._check_ranks()
        if self.ground == "rows":
            offers = rows.row_offers(graph, statistics, self.domain, self.box, self.tolerance)
            return capped_plan(self.name, graph, statistics, budget, offers, rows.HINT)
        if self.ground == "patterns":
            offers = rows.row_offers(graph, statistics, "data", self.box, self.tolerance, patterns=True)
            return capped_plan(self.name, graph, statistics, budget, offers, rows.PATTERNS_HINT)
        tails = windows.partitions(graph, statistics, self.exact, self.rtol)
        offers = windows.window_offers(tails, self.order, self.share, self.exact)
        return capped_plan(self.name, graph, statistics, budget, offers, windows.HINT)

    def orders_units(self) -> bool:
        """Return whether the ground orders units: only activations do."""
        return self.ground == "activations"

    def _check_ranks(self) -> None:
        if self.ground != "activations":
            raise InputError(f"ground {self.ground!r} ranks no groups; use scope='layer' or 'erk'")


def _unread(graph: PruningGraph, statistics: Statistics, group: Group) -> tuple[Tensor, str]:
    """Return the sizes of units that no layer reads, relative to the largest, and what they are.

    Of positions of queries and keys it is what they add to the logits of attention, else the L1 norm of what
    produces the unit.
    """
    if (logits := statistics.logits.get(group.name)) is not None:
        sizes, ground = logits.second.sqrt(), LOGITS
    else:
        sizes, ground = power_sums(statistics.weights, producer_slots(graph, group), group.size, 1), UNREAD
    return sizes / sizes.max().clamp_min(torch.finfo(sizes.dtype).tiny), ground
