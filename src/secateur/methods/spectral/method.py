"""Spectral graph sparsification, after Laenen, arXiv:2306.08849 (TAG-ML 2023).

Algorithm 2 scores the weights, takes each layer's scores as a bipartite graph, and keeps a weight with
probability min(1, 5 ln n * leverage * epsilon); Algorithm 1 does so on the graph of the whole network.
Options cover what the paper leaves open: one epsilon for all layers or one for each, and how the exact
number is reached.  The paper's masks leave out the factors 1 / probability of Algorithm 1; ``reweight=True``
puts them into the plan.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from secateur.allocation import Allocation, allocate, prunable, top, top_of_every, weight_sizes
from secateur.allocation.counts import AllowedCounts, apportion
from secateur.core import (
    Budget,
    Group,
    InputError,
    NothingToPrune,
    Plan,
    PruningGraph,
    Statistics,
    Weights,
)
from secateur.methods.base import ScoreMethod, Scores
from secateur.methods.spectral.graphs import (
    Leverages,
    layer_leverages,
    network_leverages,
    split_heads,
    unfold,
)
from secateur.methods.spectral.scores import NEEDS, EdgeScore, edge_scores
from secateur.methods.unit_sums import consumer_slots, producer_slots, unit_sums
from secateur.structures import spectral

__all__ = ["Spectral"]

Spread = Literal["one-epsilon", "uniform", "erk", "global"]
Choose = Literal["systematic", "paper", "coverage", "top"]

SMALLEST_EPSILON = 1e-9  # keeps every edge; its square can be inverted


@dataclass(frozen=True, kw_only=True)
class Spectral(ScoreMethod):
    """Keep the weights that keep each layer's graph connected, or the units of large leverage.

    Args:
        score: The weight of an edge: "magnitude", "activation" (|w| times the root mean square of its input),
            "snip" or "synflow".
        power: Exponent on the score.
        allocation: How many weights each layer keeps.  "one-epsilon": one parameter for all layers, as many
            as it keeps on average; "uniform": the same share; "erk"; "global": leverages ranked together.  By
            default the budget's scope decides: "layer" is uniform, "erk" is erk, and "global" is one-epsilon,
            or global for modes without random draws.
        graph: "layer" (Algorithm 2), "head" (the same, the queries, keys and values of each head of attention
            as graphs of their own) or "network" (Algorithm 1).
        mode: "systematic": exact counts and probabilities; "paper": independent draws topped up; "coverage":
            grown for connectivity, not random; "top": largest leverage.
        epsilon: Algorithm 2's own input: each layer keeps an edge with probability min(1, 5 ln n * leverage /
            epsilon^2), and the counts follow.  The appendix writes epsilon for 1 / epsilon^2.  The budget is
            then the least share to keep: use ``Weights(0.01)`` for epsilon alone.
        reweight: Multiply the weights that stay by 1 / probability, as Algorithm 1 does; `Plan.factors` has
            the factors, and `sc.mask`, `sc.shrink` and saved results apply them.
        pattern: "2:4" and the like: of every m weights along the input axis the n of largest leverage stay,
            and the budget must ask for the share n / m.
        rounds: Rounds of SynFlow: the share falls geometrically, and each round scores what is left.
        over: For units: the edges of the weights that produce a unit, that consume it, or both.
        tol: Accepted relative error of the resistances of layers.

    Example:
        >>> sorted(Spectral(score="snip").needs(Weights(0.1)))
        ['gradients']
    """

    name: ClassVar[str] = "spectral"
    score: EdgeScore = "magnitude"
    power: float = 1.0
    allocation: Spread | None = None
    graph: Literal["layer", "head", "network"] = "layer"
    mode: Choose = "systematic"
    epsilon: float | None = None
    reweight: bool = False
    pattern: str | None = None
    rounds: int = 1
    over: Literal["producers", "consumers", "both"] = "both"
    tol: float = 1e-2

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        finite = self.power < float("inf") and self.tol < float("inf")
        if not (self.power > 0 and self.tol > 0 and self.rounds >= 1 and finite):
            raise InputError(
                "Spectral.power and tol must be positive and finite, rounds at least 1; got "
                f"{self.power}, {self.tol} and {self.rounds}"
            )
        if self.rounds > 1 and (self.score != "synflow" or self.pattern):
            raise InputError(
                "Spectral.rounds is for score='synflow' without a pattern: other scores stay the same"
            )
        if self.mode == "coverage" and self.graph == "network":
            raise InputError("mode='coverage' grows each layer's graph: use it with graph='layer'")
        if self.pattern is not None:
            _pattern(self.pattern)
        self._check_draws()

    def _check_draws(self) -> None:
        """Check the options that need probabilities."""
        drawn = self.mode in ("systematic", "paper") and self.pattern is None
        if self.reweight and not drawn:
            raise InputError(
                "Spectral.reweight divides by probabilities: it needs mode='systematic' or "
                "'paper', and no pattern"
            )
        if self.epsilon is None:
            return
        if not SMALLEST_EPSILON <= self.epsilon < float("inf"):
            raise InputError(
                f"Spectral.epsilon must be positive ({SMALLEST_EPSILON} or more) and finite; "
                f"got {self.epsilon!r}"
            )
        if not drawn or self.allocation is not None or self.rounds > 1:
            raise InputError(
                "Spectral.epsilon decides how many weights each layer keeps: use it with mode='systematic' "
                "or 'paper', rounds=1, and without allocation and pattern"
            )

    def needs(self, budget: Budget) -> frozenset[str]:
        """Return what the score needs."""
        return NEEDS[self.score]

    def leverages(self, graph: PruningGraph, statistics: Statistics) -> Leverages:
        """Return the leverage of every weight that a mask may zero."""
        return self._solve(graph, edge_scores(graph, statistics, self.score, self.power))

    def _solve(self, graph: PruningGraph, scores: Scores) -> Leverages:
        if self.graph == "network":
            return network_leverages(graph, scores)
        return layer_leverages(graph, scores, self.tol, heads=self.graph == "head")

    def unit_scores(self, graph: PruningGraph, statistics: Statistics) -> Scores:
        """Sum the leverages of each unit's edges.

        Raises:
            InputError: If `epsilon` or `reweight` is given, which are for single weights.
        """
        if self.epsilon is not None or self.reweight:
            raise InputError("Spectral.epsilon and reweight are for single weights: use a budget in Weights")
        values = self.leverages(graph, statistics).values
        return {g.name: self._unit_score(graph, g, values) for g in prunable(graph)}

    def _unit_score(self, graph: PruningGraph, group: Group, values: Mapping[str, Tensor]) -> Tensor:
        produced = producer_slots(graph, group) if self.over != "consumers" else ()
        consumed = consumer_slots(graph, group) if self.over != "producers" else ()
        slots = [slot for slot in produced + consumed if slot.tensor in values]
        if not slots:
            raise InputError(
                f"group {group.name!r} has no weight matrix among its {self.over}: no edge to score"
            )
        return unit_sums(values, slots, group.size)

    def weight_scores(self, graph: PruningGraph, statistics: Statistics) -> Scores:
        """Return the leverage of each weight."""
        return self.leverages(graph, statistics).values

    def plan_weights(self, graph: PruningGraph, statistics: Statistics, budget: Weights) -> Plan:
        """Decide how many weights each layer keeps, then which."""
        if self.pattern is not None:
            return self._plan_pattern(graph, statistics, budget)
        masks: dict[str, Tensor] = {}
        for t in range(1, self.rounds + 1):
            target = budget.after(t / self.rounds)
            scores = edge_scores(graph, statistics, self.score, self.power, masks)
            leverages = self._solve(graph, scores)
            allocation = self._allocate(graph, target, leverages)
            masks = {
                name: self._mask(graph, statistics.seed, name, count, scores[name], leverages)
                for name, count in allocation.counts.items()
            }
        return self._plan(graph, budget, statistics.seed, masks, leverages, allocation)

    def _factors(self, masks: Mapping[str, Tensor], leverages: Leverages) -> dict[str, Tensor]:
        """Return 1 / probability for the weights that stay, 1 for the others."""
        factors = {}
        for name, stays in masks.items():
            lev, nodes = leverages.values[name], leverages.nodes[name]
            count = min(int(stays.sum()), int((lev > 0).sum()))
            epsilon = self._parameter() or spectral.epsilon_for_count([lev], [nodes], count)
            p = spectral.inclusion(lev, nodes, epsilon)
            factors[name] = torch.where(stays & (p > 0), 1 / p.clamp_min(1e-300), 1.0)
        return factors

    def _parameter(self) -> float | None:
        """Return the appendix's parameter, epsilon^-2, if the counts follow from epsilon."""
        return None if self.epsilon is None else float(self.epsilon) ** -2

    def _allocate(self, graph: PruningGraph, budget: Weights, leverages: Leverages) -> Allocation:
        drawn = self.mode in ("systematic", "paper")
        by_scope: dict[str, Spread] = {
            "layer": "uniform",
            "erk": "erk",
            "global": "one-epsilon" if drawn else "global",
        }
        if self.epsilon is not None:
            return self._expected(graph, budget, leverages)
        spread = self.allocation or by_scope[budget.scope]
        if spread == "one-epsilon":
            return _one_epsilon(graph, budget, leverages)
        scope: Any = {"uniform": "layer", "erk": "erk", "global": "global"}[spread]
        return allocate(graph, replace(budget, scope=scope), leverages.values)

    def _expected(self, graph: PruningGraph, budget: Weights, leverages: Leverages) -> Allocation:
        """Return the numbers of weights that epsilon keeps on average, rounded."""
        counts = {
            name: round(float(spectral.inclusion(lev, leverages.nodes[name], self._parameter() or 0).sum()))
            for name, lev in leverages.values.items()
        }
        total = sum(lev.numel() for lev in leverages.values.values())
        share = sum(counts.values()) / total
        if share < budget.keep:
            raise InputError(
                f"epsilon={self.epsilon} keeps {share:.3g} of the weights on average, less than {budget} "
                "allows; use a smaller epsilon, or a smaller budget such as Weights(0.01)"
            )
        return Allocation(counts, "weights", budget.keep, share)

    def _mask(
        self, graph: PruningGraph, seed: int, name: str, count: int, scores: Tensor, leverages: Leverages
    ) -> Tensor:
        """Choose the weights of one layer; weights of score 0 are not edges and come last, in order."""
        lev = leverages.values[name]
        edges = int((lev > 0).sum())
        if self.mode == "top" or (count >= edges and self.epsilon is None):
            return top(lev, count)
        layer = graph.layer(name) if self.graph != "head" else split_heads(graph, graph.layer(name))
        bipartite, named_seed = unfold(layer, scores), zlib.crc32(f"spectral/{seed}/{name}".encode())
        generator = torch.Generator().manual_seed(named_seed)
        if self.mode == "coverage":
            return bipartite.fold(spectral.sparsify(bipartite.scores, count, mode="coverage").mask)
        kept = spectral.sparsify(
            bipartite.scores,
            count if self.epsilon is None else None,
            epsilon=self._parameter(),
            mode=self.mode,
            generator=generator,
            leverages=unfold(layer, lev).scores,
            nodes=leverages.nodes[name],
        )
        return bipartite.fold(kept.mask)

    def _plan_pattern(self, graph: PruningGraph, statistics: Statistics, budget: Weights) -> Plan:
        n, m = _pattern(self.pattern or "")
        if abs(budget.keep - n / m) > 1e-9:
            raise InputError(f"pattern {self.pattern!r} keeps {n / m:g} of the weights; got {budget}")
        leverages = self.leverages(graph, statistics)
        masks = {
            name: top_of_every(leverages.values[name], n, m, graph.layer(name).in_axis or 0)
            for name in weight_sizes(graph)
        }
        if all(bool(mask.all()) for mask in masks.values()):
            widths = {name: graph.shapes[name][graph.layer(name).in_axis or 0] for name in masks}
            raise NothingToPrune(
                f"pattern {self.pattern!r} removes nothing: it needs inputs in multiples of {m}, and the "
                f"layers have {widths}; drop the pattern, or use another one"
            )
        kept = {name: int(mask.sum()) for name, mask in masks.items()}
        total = sum(mask.numel() for mask in masks.values())
        allocation = Allocation(kept, "weights", budget.keep, sum(kept.values()) / total)
        return self._plan(graph, budget, statistics.seed, masks, leverages, allocation)

    def _plan(
        self,
        graph: PruningGraph,
        budget: Weights,
        seed: int,
        masks: Mapping[str, Tensor],
        leverages: Leverages,
        allocation: Allocation,
    ) -> Plan:
        zeroed = {name: mask.cpu().numpy() for name, mask in masks.items() if not bool(mask.all())}
        if not zeroed and budget.keep < 1:
            raise NothingToPrune(
                f"{budget} removes nothing: the counts are {dict(allocation.counts)}; keep less"
            )
        notes: dict[str, Any] = {name: dict(leverages.notes.get(name, {})) for name in zeroed}
        kept = sum(int(mask.sum()) for mask in masks.values())
        notes["reached"] = {"weights": kept / sum(mask.numel() for mask in masks.values())}
        factors: dict[str, Any] = {}
        if self.reweight:
            scaled = self._factors({name: masks[name] for name in zeroed}, leverages)
            factors = {name: factor.cpu().numpy() for name, factor in scaled.items()}
        return Plan(graph, self.name, {}, zeroed, {}, repr(budget), seed, notes, factors=factors)


def _one_epsilon(graph: PruningGraph, budget: Weights, leverages: Leverages) -> Allocation:
    """Return the number of weights of each layer that one epsilon keeps on average, rounded to the total."""
    checked = allocate(graph, replace(budget, scope="erk")).counts
    names, total = list(checked), sum(checked.values())
    levs, nodes = [leverages.values[x] for x in names], [leverages.nodes[x] for x in names]
    edges = sum(int((x > 0).sum()) for x in levs)
    if total > edges:
        raise InputError(
            f"{budget} keeps {total} weights, but only {edges} have a positive score and are edges. "
            "Ask for fewer, or use allocation='uniform'"
        )
    epsilon = spectral.epsilon_for_count(levs, nodes, total)
    means = [float(spectral.inclusion(x, n, epsilon).sum()) for x, n in zip(levs, nodes, strict=True)]
    allowed = [AllowedCounts(x.numel(), budget.floor) for x in levs]
    counts = _to_total(apportion(allowed, means, total), allowed, total)
    reached = sum(counts) / sum(x.numel() for x in levs)
    return Allocation(dict(zip(names, counts, strict=True)), "weights", budget.keep, reached)


def _to_total(counts: list[int], allowed: list[AllowedCounts], total: int) -> list[int]:
    """Reduce the largest counts until they sum to the total, which floors may exceed."""
    counts = list(counts)
    while sum(counts) > total:
        largest = max(range(len(counts)), key=lambda i: (counts[i] - allowed[i].first, -i))
        counts[largest] -= min(sum(counts) - total, counts[largest] - allowed[largest].first)
    return counts


def _pattern(pattern: str) -> tuple[int, int]:
    n, colon, m = pattern.partition(":")
    if not (colon and n.isdigit() and m.isdigit() and 0 < int(n) < int(m)):
        raise InputError(f"a pattern is written n:m with 0 < n < m, as in 2:4; got {pattern!r}")
    return int(n), int(m)
