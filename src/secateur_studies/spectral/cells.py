"""The cells of the study: each trains what it speaks of and returns rows.

Rows say by "part" what they are: ``table 1``, ``dense``, ``figure 2``, ``controls``, ``figure 3``,
``figure 4`` (a layer's connectivity), ``one shot``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from torch import nn

from secateur.apply.mask import mask
from secateur.apply.scale import scaled
from secateur.apply.shrink import shrink
from secateur.core import Plan, PruningGraph, Statistics, Units, Weights
from secateur.data import Dataset
from secateur.methods import Magnitude, Method, Random
from secateur.methods.spectral import Spectral
from secateur.methods.spectral.connectivity import condition_number, layer_connectivity
from secateur.statistics.collect import collect_statistics
from secateur.tracing.trace import trace
from secateur_studies.spectral.subjects import FULL, Scale, accuracy_of, fit, load_data, make, normalised
from secateur_studies.spectral.ways import masks_of, of_every, ranked, sized_like

__all__ = ["figure2", "figure3", "oneshot", "table1"]

Row = dict[str, Any]
Rows = list[Row]
SAMPLES = 100  # examples behind SNIP, as in the paper
EXACT = 1e-6  # below any bound of the series, above the rounding of float32
NODES = 1500  # graphs up to which the dense eigenproblem of the condition number is worth its time


@cache
def _data(net: str, folders: tuple[tuple[str, str], ...], side: int | None) -> Dataset:
    return normalised(load_data(net, dict(folders), Scale(side=side), 0))


class _Subject:
    """An untrained network of one seed, its data, and how it is trained."""

    def __init__(self, net: str, seed: int, scale: Mapping[str, Any], folders: Mapping[str, str]) -> None:
        self.net, self.seed, self.scale = net, seed, Scale.from_json(scale)
        self.data = _data(net, tuple(sorted(folders.items())), self.scale.side)
        self.model = make(net, self.data, self.scale, seed)
        self.network = trace(self.model, self.data.parts["train"][0][:2])

    def look(self, model: nn.Module, needs: set[str]) -> Statistics:
        """Gather evidence from the calibration part."""
        return collect_statistics(
            model, self.network, self.data.batches("calibration", 50, SAMPLES), needs, self.seed
        )

    def trained(self, masks: Mapping[str, Any] | None = None) -> nn.Module:
        """Train from the initial weights, under masks if there are any."""
        return fit(self.model, self.data, self.scale, self.seed, masks)

    def accuracy(self, model: nn.Module) -> float:
        """Measure on the test part, in percent."""
        return accuracy_of(model, self.data, self.scale)

    def row(self, part: str, **facts: Any) -> Row:
        """Return a row, which says first what it is about."""
        about = {"part": part, "net": self.net, "data": self.data.name, "width": self.scale.width}
        return {**about, "seed": self.seed, **facts}


def table1(
    net: str, seed: int, scale: dict[str, Any], folders: dict[str, str], density: float, repeats: int
) -> Rows:
    """Algorithm 2 against Algorithm 1, both exact: time at full width, accuracy at the study's.

    The time of Algorithm 2 by the series, where its bound allows, is ``"seconds by series"``.

    Args:
        net: Name of the network.
        seed: Seed of weights, training and draws.
        scale: `Scale.to_json`.
        folders: Folders of data by name.
        density: Published share of the weights that stay.
        repeats: Times are the least of so many.
    """
    subject = _Subject(net, seed, scale, folders)
    whole = make(net, subject.data, FULL, seed)
    wide = trace(whole, subject.data.parts["train"][0][:2])
    evidence = collect_statistics(whole, wide, None, set(), seed)
    own = min(1.0, density * subject.scale.sparser)
    exact: dict[str, Method] = {
        "layer": Spectral(graph="layer", allocation="one-epsilon", mode="paper", tol=EXACT),
        "network": Spectral(graph="network", allocation="one-epsilon", mode="paper"),
    }
    series = Spectral(graph="layer", allocation="one-epsilon", mode="paper")
    rows = []
    for graph, method in exact.items():
        seconds = {"seconds": _seconds(method, wide, evidence, density, repeats)}
        if graph == "layer":
            seconds["seconds by series"] = _seconds(series, wide, evidence, density, repeats)
        plan = method.plan(subject.network, subject.look(subject.model, set()), Weights(own))
        reached = subject.accuracy(subject.trained(plan.masks))
        rows.append(subject.row("table 1", graph=graph, density=own, accuracy=reached, **seconds))
    return rows


def _seconds(
    method: Method, network: PruningGraph, evidence: Statistics, density: float, repeats: int
) -> float:
    """Processor time of a plan, the least of several."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        method.plan(network, evidence, Weights(density))
        times.append(time.process_time() - start)
    return min(times)


def figure2(
    net: str,
    seed: int,
    scale: dict[str, Any],
    folders: dict[str, str],
    part: str,
    score: str,
    way: str,
    densities: list[float],
) -> Rows:
    """Prune at initialisation in one way and train; way ``"dense"`` only trains.

    Args:
        net: Name of the network.
        seed: Seed of weights, training and draws.
        scale: `Scale.to_json`.
        folders: Folders of data by name.
        part: What the rows are called: ``"figure 2"`` or ``"controls"``.
        score: Score of the weights.
        way: Of `ways.WAYS`, or ``"dense"``.
        densities: Shares of the weights that stay.
    """
    subject = _Subject(net, seed, scale, folders)
    if way == "dense":
        return [subject.row("dense", accuracy=subject.accuracy(subject.trained()))]
    needs = {"snip": {"gradients"}, "synflow": {"flow"}}.get(score, set())
    evidence = subject.look(subject.model, needs)
    rows = []
    for density in densities:
        masks = masks_of(way, subject.network, evidence, density, score, subject.scale.rounds)
        reached = subject.accuracy(subject.trained(masks))
        dead = layer_connectivity(subject.network, evidence.weights, masks).values()
        facts = {
            "score": score,
            "way": way,
            "density": density,
            "accuracy": reached,
            "least share": min(x.share for x in dead),
            "dead outputs": sum(x.dead_outputs for x in dead),
        }
        rows.append(subject.row(part, **facts))
    return rows


def figure3(
    net: str, seed: int, scale: dict[str, Any], folders: dict[str, str], way: str, densities: list[float]
) -> Rows:
    """Prune a trained network by magnitudes in one way, retrain from the initial weights; connectivity.

    Args:
        net: Name of the network.
        seed: Seed of weights, training and draws.
        scale: `Scale.to_json`.
        folders: Folders of data by name.
        way: Of `ways.WAYS`, or ``"dense"``.
        densities: Shares of the weights that stay.
    """
    subject = _Subject(net, seed, scale, folders)
    trained = subject.trained()
    weights, evidence = trained.state_dict(), subject.look(trained, set())
    if way == "dense":
        whole = subject.row("figure 3", way=way, density=1.0, accuracy=subject.accuracy(trained))
        return [whole, *_layers(subject, way, 1.0, weights, {})]
    rows = []
    for density in densities:
        masks = masks_of(way, subject.network, evidence, density)
        reached = subject.accuracy(subject.trained(masks))
        rows.append(subject.row("figure 3", way=way, density=density, accuracy=reached))
        rows += _layers(subject, way, density, weights, masks)
    return rows


def _layers(
    subject: _Subject, way: str, density: float, weights: Mapping[str, Any], masks: Mapping[str, Any]
) -> Rows:
    found = layer_connectivity(subject.network, weights, masks)
    small = {name: m for name, m in masks.items() if m.shape[0] + m[0].size <= NODES}
    conditions = condition_number(subject.network, weights, small) if small else {}
    return [
        subject.row(
            "figure 4",
            way=way,
            density=density,
            layer=name,
            lambda2=x.lambda2,
            share=x.share,
            components=x.components,
            dead_inputs=x.dead_inputs,
            dead_outputs=x.dead_outputs,
            edges=x.edges,
            condition=conditions.get(name),
        )
        for name, x in found.items()
    ]


def oneshot(
    net: str,
    seed: int,
    scale: dict[str, Any],
    folders: dict[str, str],
    densities: list[float],
    units: list[float],
    floor: float,
) -> Rows:
    """Prune a trained network without retraining: single weights, ranked globally with a floor; units.

    Args:
        net: Name of the network.
        seed: Seed of weights, training and draws.
        scale: `Scale.to_json`.
        folders: Folders of data by name.
        densities: Shares of the weights that stay.
        units: Shares of the units that stay.
        floor: Every layer keeps at least this part of the even share of the smallest layer.
    """
    subject = _Subject(net, seed, scale, folders)
    trained = subject.trained()
    evidence = subject.look(trained, {"moments"})

    def row(what: str, way: str, kept: float, model: nn.Module) -> Row:
        reached = subject.accuracy(model)
        return subject.row("one shot", what=what, way=way, kept=kept, accuracy=reached)

    rows = [row("weights", "dense", 1.0, trained)]
    for density in densities:
        least = min(math.prod(subject.network.shapes[x.weight]) for x in subject.network.prunable_weights())
        budget = Weights(density, scope="global", floor=max(1, round(floor * density * least)))
        pruned = _weights(trained, subject.network, evidence, budget)
        rows += [row("weights", way, density, model) for way, model in pruned]
    smaller = _units(trained, subject.network, evidence, units)
    return rows + [row("units", way, keep, model) for way, keep, model in smaller]


def _weights(
    model: nn.Module, network: PruningGraph, evidence: Statistics, budget: Weights
) -> Iterator[tuple[str, nn.Module]]:
    methods: dict[str, Method] = {
        "magnitude": Magnitude(),
        "leverage of |w|": Spectral(mode="top", allocation="global"),
        "leverage of (|w| input)^2": Spectral(mode="top", allocation="global", score="activation", power=2),
    }
    plans = {way: method.plan(network, evidence, budget) for way, method in methods.items()}
    drawn = Spectral(allocation="one-epsilon")
    plans["one epsilon"] = drawn.plan(network, evidence, budget)
    yield from ((way, mask(model, plan)) for way, plan in plans.items())
    factors = drawn.factors(network, evidence, plans["one epsilon"])
    yield "one epsilon, times 1 / p", scaled(mask(model, plans["one epsilon"]), factors)
    masks = ranked(network, evidence, budget, "activation")
    yield "|w| input", mask(model, Plan(network, "greedy", masks=masks))
    sizes = plans["leverage of (|w| input)^2"].masks
    for way, score in (("magnitude, sizes of leverage", "magnitude"), ("random, sizes of leverage", None)):
        masks = sized_like(sizes, network, evidence, score)
        yield way, mask(model, Plan(network, "greedy", masks=masks))
    if budget.keep == 0.5:
        yield "leverage, 2:4", mask(model, Spectral(pattern="2:4").plan(network, evidence, Weights(0.5)))
        for way, score in (("magnitude, 2:4", "magnitude"), ("|w| input, 2:4", "activation")):
            masks = of_every(network, evidence, score, 2, 4)
            yield way, mask(model, Plan(network, "greedy", masks=masks))


def _units(
    model: nn.Module, network: PruningGraph, evidence: Statistics, shares: Sequence[float]
) -> Iterator[tuple[str, float, nn.Module]]:
    methods: dict[str, Method] = {"magnitude": Magnitude(), "leverage": Spectral(), "random": Random()}
    for way, method in methods.items():
        for keep in shares:
            yield way, keep, shrink(model, method.plan(network, evidence, Units(keep)))
