"""SynFlow: iterative pruning by conserved synaptic flow, without data.

Tanaka, Kunin, Yamins and Ganguli, "Pruning neural networks without any data by iteratively conserving
synaptic flow" (NeurIPS 2020, arXiv:2006.05467).  With R the summed output of the network whose parameters
are |theta|, for an input of ones, a parameter's score is |theta * dR/dtheta|.  In round t of T the best
rho^(t/T) stay, and the scores are computed again on what is left; in one shot, whole layers would go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from secateur.allocation import allocate, prunable, top, weight_sizes
from secateur.core import (
    Budget,
    Group,
    InputError,
    IntArray,
    Plan,
    PruningGraph,
    Slot,
    Statistics,
    Weights,
)
from secateur.core.indices import kept_axes
from secateur.methods.base import ScoreMethod, Scores, best, unit_plan, weight_plan
from secateur.methods.unit_sums import unit_sums

__all__ = ["SynFlow"]


@dataclass(frozen=True, kw_only=True)
class SynFlow(ScoreMethod):
    """Iterative synaptic flow, for single weights (as published) and for units.

    A unit's score is the flow into it: the sum over the weights and biases that produce it.

    Args:
        rounds: T.
        neutral_bn: Score with BatchNorm as at initialisation (scale 1, shift 0, mean 0, variance 1),
            because trained statistics break the conservation law.
    """

    name: ClassVar[str] = "synflow"
    rounds: int = 100
    neutral_bn: bool = False

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.rounds < 1:
            raise InputError(f"SynFlow.rounds must be at least 1; got {self.rounds}")

    def needs(self, budget: Budget) -> frozenset[str]:
        """Return the flow, which needs no data."""
        return frozenset({"flow"})

    def unit_scores(self, graph: PruningGraph, statistics: Statistics) -> Scores:
        """Return the flow into each unit of the whole network."""
        return self._unit_flow(graph, statistics, {})

    def orders_units(self) -> bool:
        """Return False: units go in rounds, and a count of least loss might bring some back."""
        return False

    def weight_scores(self, graph: PruningGraph, statistics: Statistics) -> Scores:
        """Return the flow through each weight of the whole network."""
        flow = self._flow(statistics, {})
        return {k: flow[k] for k in weight_sizes(graph)}

    def plan_units(self, graph: PruningGraph, statistics: Statistics, budget: Budget) -> Plan:
        """Remove units in rounds; a removed unit does not come back."""
        keep: Mapping[str, IntArray] = {}
        for target in _rounds(budget, self.rounds):
            scores = _without_removed(self._unit_flow(graph, statistics, keep), keep)
            if not keep:
                allocate(graph, budget, scores)  # if the last round would raise, raise now
            allocation = allocate(graph, target, self.comparable(scores, budget))
            choice = best(scores, allocation.counts)
            keep = choice.keep
        return unit_plan(self.name, graph, budget, allocation, choice, statistics.seed)

    def plan_weights(self, graph: PruningGraph, statistics: Statistics, budget: Weights) -> Plan:
        """Zero weights in rounds; a zeroed weight does not come back."""
        names = weight_sizes(graph)
        masks: dict[str, Tensor] = {}
        for target in _rounds(budget, self.rounds):
            flow = self._flow(statistics, masks)
            scores = {k: flow[k] for k in names}
            if not masks:
                allocate(graph, budget, scores)
            scores = {k: s.masked_fill(~masks[k], -torch.inf) if k in masks else s for k, s in scores.items()}
            allocation = allocate(graph, target, scores)
            masks = {k: top(scores[k], count) for k, count in allocation.counts.items()}
        return weight_plan(self.name, graph, budget, allocation, scores, statistics.seed)

    def _unit_flow(self, graph: PruningGraph, statistics: Statistics, keep: Mapping[str, IntArray]) -> Scores:
        flow = self._flow(statistics, _masks(graph, statistics, keep))
        return {g.name: unit_sums(flow, _parameters(graph, g), g.size) for g in prunable(graph)}

    def _flow(self, statistics: Statistics, masks: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if statistics.flow is None:
            raise InputError(f"{self.name!r} needs 'flow': collect it with needs={{'flow'}}; no data is read")
        return statistics.flow(masks, neutral_bn=self.neutral_bn)


def _rounds(budget: Budget, rounds: int) -> Iterable[Budget]:
    return (budget.after(t / rounds) for t in range(1, rounds + 1))


def _parameters(graph: PruningGraph, group: Group) -> tuple[Slot, ...]:
    slots = [s for s in group.slots if s.tensor in graph.parameters]
    return tuple(s for s in slots if s.role == "out") or tuple(slots)


def _without_removed(scores: Scores, keep: Mapping[str, IntArray]) -> Scores:
    def drop(name: str, s: Tensor) -> Tensor:
        if name not in keep:
            return s
        left = torch.full_like(s, -torch.inf)
        kept = torch.as_tensor(keep[name], device=s.device)
        left[kept] = s[kept]
        return left

    return {name: drop(name, s) for name, s in scores.items()}


def _masks(graph: PruningGraph, statistics: Statistics, keep: Mapping[str, IntArray]) -> dict[str, Tensor]:
    masks: dict[str, Tensor] = {}
    for (name, axis), stays in kept_axes(graph, keep).items():
        if name in graph.parameters:
            mask = masks.setdefault(name, torch.ones_like(statistics.weights[name], dtype=torch.bool))
            mask.index_fill_(axis, torch.from_numpy(np.flatnonzero(~stays)).to(mask.device), False)
    return masks
