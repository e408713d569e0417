"""Baseline criteria, as their papers define them.

Random; magnitude (L1, L2); mean activation; sensitivity |W2| * ||W1||; Taylor (Molchanov, Mallya, Tyree,
Frosio and Kautz, "Importance Estimation for Neural Network Pruning", CVPR 2019, arXiv:1906.10771); SNIP (Lee,
Ajanthan and Torr, ICLR 2019, arXiv:1810.02340); Wanda (Sun, Liu, Bair and Kolter, "A Simple and Effective
Pruning Approach for Large Language Models", ICLR 2024, arXiv:2306.11695); FLAP (An, Zhao, Yu, Tang and Wang,
"Fluctuation-based Adaptive Structured Pruning for Large Language Models", AAAI 2024, arXiv:2312.11983).
SynFlow and ridge leverage have their own modules.
Biases and normalisation are never pruned as single weights, nor do they enter a magnitude.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from secateur.allocation import allocate, prunable, weight_sizes
from secateur.core import (
    Budget,
    Group,
    InputError,
    Layer,
    Moments,
    Plan,
    PruningGraph,
    Slot,
    Statistics,
    Weights,
)
from secateur.methods.base import ScoreMethod, Scores, required, weight_plan
from secateur.methods.unit_sums import (
    consumer_slots,
    input_factors,
    moments_of,
    power_sums,
    producer_slots,
    reading_features,
    unit_sums,
)

__all__ = ["FLAP", "SNIP", "Activation", "Magnitude", "Random", "Sensitivity", "Taylor", "Wanda"]

Measured = tuple[Layer, Slot, Moments]


@dataclass(frozen=True, kw_only=True)
class Random(ScoreMethod):
    """Uniform scores, drawn for each group or weight from the seed and its name.

    Example:
        >>> Random().needs(Weights(0.5))
        frozenset()
    """

    name: ClassVar[str] = "random"

    def needs(self, budget: Budget) -> frozenset[str]:
        """Return nothing."""
        return frozenset()

    def unit_scores(self, graph: PruningGraph, statistics: Statistics) -> Scores:
        """Draw a number for each unit."""
        return {g.name: self._draw(statistics.seed, g.name, (g.size,)) for g in prunable(graph)}

    def weight_scores(self, graph: PruningGraph, statistics: Statistics) -> Scores:
        """Draw a number for each weight."""
        return {k: self._draw(statistics.seed, k, graph.shapes[k]) for k in weight_sizes(graph)}

    def _draw(self, seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
        named_seed = zlib.crc32(f"{seed}/{name}".encode())
        return torch.rand(shape, generator=torch.Generator().manual_seed(named_seed), dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class Magnitude(ScoreMethod):
    """The Lp norm of a unit's weights; the absolute value of a single weight.

    Args:
        p: 1 or 2.
        over: The weights that produce the unit (rows), that consume it (columns), or both.
        normalize: See `ScoreMethod`; True, because a norm grows with the fan-in.
    """

    name: ClassVar[str] = "magnitude"
    p: Literal[1, 2] = 1
    over: Literal["producers", "consumers", "both"] = "producers"
    normalize: bool = True

    def needs(self, budget: Budget) -> frozenset[str]:
        """Return nothing: the weights are always there."""
        return frozenset()

    def unit_scores(self, graph: PruningGraph, statistics: Statistics) -> Scores:
        """Return the norm of what each unit owns."""

        def score(group: Group) -> Tensor:
            produced = producer_slots(graph, group) if self.over != "consumers" else ()
            consumed = consumer_slots(graph, group) if self.over != "producers" else ()
            return power_sums(statistics.weights, produced + consumed, group.size, self.p).pow(1 / self.p)

        return {g.name: score(g) for g in prunable(graph)}

    def weight_scores(self, graph: PruningGraph, statistics: Statistics) -> Scores:
        """Return |w|."""
        return {k: statistics.weights[k].detach().abs() for k in weight_sizes(graph)}


@dataclass(frozen=True, kw_only=True)
class Activation(ScoreMethod):
    """The mean activation of a unit as input of its consumers, averaged over them.

    After a ReLU the mean equals the mean absolute value; elsewhere positive and negative values may cancel.

    No weight reads positions of queries and keys.  Their activation is what they add to the logits of
    attention, q_j k_j, over all pairs of a query and a key (`LogitMoments`): its mean, its mean square, or,
    in place of the mean absolute value, which the moments do not give, the root of the mean square.

    Args:
        statistic: ``"absolute"``: mean |x|; ``"mean"``: the plain mean; ``"second"``: mean square.
        normalize: See `ScoreMethod`; True, because layers differ in scale.
    """

    name: ClassVar[str] = "activation"
    statistic: Literal["absolute", "mean", "second"] = "absolute"
    normalize: bool = True

    def needs(self, budget: Budget) -> frozenset[str]:
        """Return the moments of the weights' inputs."""
        return frozenset({"moments"})

    def unit_scores(self, graph: PruningGraph, statistics: Statistics) -> Scores:
        """Average the statistic over the input features that each unit is to its consumers."""
        return {g.name: self._score(graph, statistics, g) for g in prunable(graph)}

    def _score(self, graph: PruningGraph, statistics: Statistics, group: Group) -> Tensor:
        if (logits := statistics.logits.get(group.name)) is not None:
            return logits.second.sqrt() if self.statistic == "absolute" else getattr(logits, self.statistic)
        parts = []
        for layer, slot, moments in _measured(graph, statistics, group, graph.consumers(group)):
            values: Tensor = getattr(moments, self.statistic).double()
            parts.append(values[reading_features(graph, layer, slot).to(values.device)].mean(1))
        return torch.stack([p.to(parts[0].device) for p in parts]).mean(0)


@dataclass(frozen=True, kw_only=True)
class Wanda(ScoreMethod):
    """|w| times the root mean square of the input that the weight multiplies.

    A unit's score is the sum over the weights that read it (as in FLAP's comparison, where it is called
    Wanda-sp), that produce it, or both.  Single weights compete within their output row, as published: each
    row of a layer loses equally many.

    No weight reads positions of queries and keys: each is the weight that the other meets.  As consumer of
    such a unit counts the root mean square of what it adds to the logits of attention, which for one position
    is the product of the root mean squares of q_j and k_j, the score of type II of MoDeGPT (Lin et al., ICLR
    2025, arXiv:2408.09632).

    Args:
        over: The weights that a unit's score sums: those that produce it, those that consume it, or both.
        normalize: See `ScoreMethod`; True, because the sum grows with the number of weights.
    """

    name: ClassVar[str] = "wanda"
    over: Literal["producers", "consumers", "both"] = "consumers"
    normalize: bool = True

    def needs(self, budget: Budget) -> frozenset[str]:
        """Return the moments of the weights' inputs."""
        return frozenset({"moments"})

    def unit_scores(self, graph: PruningGraph, statistics: Statistics) -> Scores:
        """Sum the scores of the weights that each unit owns."""

        def score(group: Group) -> Tensor:
            read = graph.consumers(group) if self.over != "producers" else ()
            made = graph.producers(group) if self.over != "consumers" else ()
            logits = statistics.logits.get(group.name) if self.over != "producers" else None
            both = _measured(graph, statistics, group, read + made) if logits is None or made else []
            sums = _weighted_sums(statistics, group, both, _wanda_scores)
            return sums if logits is None else sums + logits.second.sqrt().to(sums.device)

        return {g.name: score(g) for g in prunable(graph)}

    def weight_scores(self, graph: PruningGraph, statistics: Statistics) -> Scores:
        """Return |w| times the root mean square of its input."""
        layers = {layer.weight: layer for layer in reversed(graph.prunable_weights())}
        return {
            name: _wanda_scores(
                statistics.weights[name].detach(),
                layer,
                required(statistics.moments, graph.input_key(layer), "moments", self.name),
            )
            for name, layer in layers.items()
        }

    def plan_weights(self, graph: PruningGraph, statistics: Statistics, budget: Weights) -> Plan:
        """Give each layer its count, spread it evenly over the rows, and keep the highest of each row."""
        scores = self.weight_scores(graph, statistics)
        allocation = allocate(graph, budget, scores)
        layers = {layer.weight: layer for layer in reversed(graph.prunable_weights())}
        order = {name: _by_rank_in_row(s, layers[name]) for name, s in scores.items()}
        return weight_plan(self.name, graph, budget, allocation, scores, statistics.seed, order)


@dataclass(frozen=True, kw_only=True)
class FLAP(ScoreMethod):
    """The variance of a unit times the squared norm of the weights that read it, summed over them.

    This is how much the consumers' outputs fluctuate because of the unit; its mean can move into a bias.
    Of positions of queries and keys it is the variance, over the keys of a query, of what they add to the
    logits of attention: the softmax does not see their mean.

    Args:
        normalize: See `ScoreMethod`; True. FLAP standardises the scores of each layer instead.
    """

    name: ClassVar[str] = "flap"
    normalize: bool = True

    def needs(self, budget: Budget) -> frozenset[str]:
        """Return the moments of the weights' inputs."""
        return frozenset({"moments"})

    def unit_scores(self, graph: PruningGraph, statistics: Statistics) -> Scores:
        """Sum variance times squared weight over the weights that read each unit."""

        def score(group: Group) -> Tensor:
            if (logits := statistics.logits.get(group.name)) is not None:
                return logits.variance
            read = _measured(graph, statistics, group, graph.consumers(group))
            return _weighted_sums(statistics, group, read, _fluctuations)

        return {g.name: score(g) for g in prunable(graph)}


@dataclass(frozen=True, kw_only=True)
class Sensitivity(ScoreMethod):
    """|W2[0, i]| * ||W1[i, :]||: the weight that consumes a unit times the norm of those that produce it.

    With many outputs or consumers the absolute value becomes the L2 norm over all weights that consume the
    unit; with many producers the norm is over all their rows.  Biases do not count.
    """

    name: ClassVar[str] = "sensitivity"
    normalize: bool = True

    def needs(self, budget: Budget) -> frozenset[str]:
        """Return nothing: the weights are always there."""
        return frozenset()

    def unit_scores(self, graph: PruningGraph, statistics: Statistics) -> Scores:
        """Return the product of both norms, or the first alone if no weight consumes the unit."""

        def score(group: Group) -> Tensor:
            produced = power_sums(statistics.weights, producer_slots(graph, group), group.size, 2).sqrt()
            consumed = consumer_slots(graph, group)
            if not consumed:
                return produced
            return produced * power_sums(statistics.weights, consumed, group.size, 2).sqrt()

        return {g.name: score(g) for g in prunable(graph)}


@dataclass(frozen=True, kw_only=True)
class Taylor(ScoreMethod):
    """The first-order change of the loss when a gate on the unit closes, squared, summed over examples.

    The examples of a causal language model are its tokens, each with its own loss.
    For single weights, the square of gradient times weight, which ranks as SNIP does.
    """

    name: ClassVar[str] = "taylor"

    def needs(self, budget: Budget) -> frozenset[str]:
        """Return "taylor" for units, "gradients" for single weights."""
        return frozenset({"gradients" if isinstance(budget, Weights) else "taylor"})

    def unit_scores(self, graph: PruningGraph, statistics: Statistics) -> Scores:
        """Return the sum over examples of (d loss / d gate)^2."""
        return {
            g.name: required(statistics.taylor, g.name, "taylor", self.name).double() for g in prunable(graph)
        }

    def weight_scores(self, graph: PruningGraph, statistics: Statistics) -> Scores:
        """Return (gradient * weight)^2."""
        return {k: _saliency(statistics, k, self.name).square() for k in weight_sizes(graph)}


@dataclass(frozen=True, kw_only=True)
class SNIP(ScoreMethod):
    """Connection sensitivity |dL/dmask| = |gradient * weight|, the gradient summed over the batches.

    A unit's score is the sum over the weights that produce it.  Dropout is off and BatchNorm uses its
    running statistics, as in all collection of statistics.
    """

    name: ClassVar[str] = "snip"

    def needs(self, budget: Budget) -> frozenset[str]:
        """Return the gradients."""
        return frozenset({"gradients"})

    def unit_scores(self, graph: PruningGraph, statistics: Statistics) -> Scores:
        """Sum the sensitivities of the weights that produce each unit."""

        def score(group: Group) -> Tensor:
            slots = producer_slots(graph, group)
            values = {s.tensor: _saliency(statistics, s.tensor, self.name) for s in slots}
            return unit_sums(values, slots, group.size)

        return {g.name: score(g) for g in prunable(graph)}

    def weight_scores(self, graph: PruningGraph, statistics: Statistics) -> Scores:
        """Return |gradient * weight|."""
        return {k: _saliency(statistics, k, self.name) for k in weight_sizes(graph)}


def _saliency(statistics: Statistics, name: str, method: str) -> Tensor:
    gradient: Tensor = required(statistics.gradients, name, "gradients", method)
    return (gradient.double() * statistics.weights[name].detach().double()).abs()


def _measured(
    graph: PruningGraph, statistics: Statistics, group: Group, layers: tuple[tuple[Layer, Slot], ...]
) -> list[Measured]:
    """Return those layers, out of some that own units of a group, whose input was measured."""
    pairs = [(layer, slot) for layer, slot in layers if layer.in_axis is not None]
    found = [(layer, slot, moments_of(graph, statistics, layer)) for layer, slot in pairs]
    measured = [(layer, slot, moments) for layer, slot, moments in found if moments is not None]
    if not measured:
        weights = [slot.tensor for _, slot in layers] or [s.tensor for s in group.slots_with("in")]
        raise InputError(
            f"there are no moments for group {group.name!r}, read by {weights or 'no weight'}: "
            f"collect 'moments' on data that reaches it, or use a criterion on weights alone"
        )
    return measured


def _weighted_sums(
    statistics: Statistics,
    group: Group,
    measured: list[Measured],
    scored: Callable[[Tensor, Layer, Moments], Tensor],
) -> Tensor:
    """Score the weights of each layer by its input, and sum what each unit owns, float64 [units]."""
    total = torch.zeros(group.size, dtype=torch.float64)
    for layer, slot, moments in measured:
        scores = scored(statistics.weights[slot.tensor].detach(), layer, moments)
        total = total + unit_sums({slot.tensor: scores}, (slot,), group.size).to(total.device)
    return total


def _wanda_scores(weight: Tensor, layer: Layer, moments: Moments) -> Tensor:
    norms = moments.second.double().sqrt().to(weight.device)
    return weight.double().abs() * input_factors(layer, norms, weight.shape)


def _fluctuations(weight: Tensor, layer: Layer, moments: Moments) -> Tensor:
    variance = (moments.second - moments.mean.square()).double().clamp(min=0).to(weight.device)
    return weight.double().square() * input_factors(layer, variance, weight.shape)


def _by_rank_in_row(scores: Tensor, layer: Layer) -> Tensor:
    """Return scores that take the best of every output row, then the second of every row, and so on.

    Of equal rank, the higher score comes first.
    """
    rows = scores.movedim(layer.out_axis or 0, 0)
    flat = rows.flatten(1)
    rank = flat.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    place = flat.flatten().argsort(dim=0, descending=True, stable=True).argsort(dim=0).view_as(rank)
    return -(rank + place.double() / place.numel()).view_as(rows).movedim(0, layer.out_axis or 0)
