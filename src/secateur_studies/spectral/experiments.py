"""The jobs of the spectral study. Each trains its network and returns rows.

All take the name of the network `net`, the `seed` of weights, training and draws, a `scale` (`Scale.to_json`)
and the `folders` of data by name. Densities are shares of the weights that stay.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from torch import nn

from secateur.apply.mask import mask
from secateur.apply.shrink import shrink
from secateur.core import Plan, PruningGraph, Statistics, Units, Weights
from secateur.data import Dataset
from secateur.methods import Magnitude, Method, Random
from secateur.methods.spectral import Spectral
from secateur.methods.spectral.connectivity import condition_number, layer_connectivity
from secateur.statistics.collect import collect_statistics
from secateur.tracing.trace import trace
from secateur_studies.spectral.mask_variants import (
    DENSE,
    choose_masks,
    rank_weights,
    top_of_blocks,
    with_sizes,
)
from secateur_studies.spectral.models import (
    FULL,
    Scale,
    load_data,
    make_network,
    measure_accuracy,
    normalise,
    train_network,
)

__all__ = ["figure2", "figure3", "oneshot", "table1"]

Row = dict[str, Any]
Masks = Mapping[str, Any]
TABLE, AT_START, CONTROL, WHOLE = "table 1", "figure 2", "controls", "dense"
RETRAINED, CONNECTIVITY, ONE_SHOT = "figure 3", "figure 4", "one shot"
LEVERAGE = "leverage of (|w| input)^2"
SAMPLES = 100  # examples for SNIP, as in the paper
EXACT = 1e-6  # below any bound of the series, above the rounding of float32
NODES = 1500  # largest graph for the dense eigenproblem of the condition number


@cache
def _data(net: str, folders: tuple[tuple[str, str], ...], side: int | None) -> Dataset:
    return normalise(load_data(net, dict(folders), Scale(side=side), 0))


class _Experiment:
    """An untrained network of one seed, its data, and how to train it."""

    def __init__(self, net: str, seed: int, scale: Mapping[str, Any], folders: Mapping[str, str]) -> None:
        self.net, self.seed, self.scale = net, seed, Scale.from_json(scale)
        self.data = _data(net, tuple(sorted(folders.items())), self.scale.side)
        self.model = make_network(net, self.data, self.scale, seed)
        self.graph = trace(self.model, self.data.parts["train"][0][:2])

    def collect(self, model: nn.Module, needs: set[str]) -> Statistics:
        """Collect statistics from the calibration part."""
        batches = self.data.batches("calibration", 50, SAMPLES)
        return collect_statistics(model, self.graph, batches, needs, self.seed)

    def train(self, masks: Masks | None = None) -> nn.Module:
        """Train from the initial weights, under masks if given."""
        return train_network(self.model, self.data, self.scale, self.seed, masks)

    def test(self, model: nn.Module) -> float:
        """Return the test accuracy in percent."""
        return measure_accuracy(model, self.data, self.scale)

    def row(self, part: str, **values: Any) -> Row:
        """Return a row of this experiment."""
        common = {"part": part, "net": self.net, "data": self.data.name, "width": self.scale.width}
        return {**common, "seed": self.seed, **values}


def table1(
    net: str, seed: int, scale: dict[str, Any], folders: dict[str, str], density: float, repeats: int
) -> list[Row]:
    """Time Algorithms 1 and 2, both exact, at full width, and train with their masks at the study's width.

    Where its bound allows, the time of Algorithm 2 by the series is ``"seconds by series"``. `density` is the
    published one. Of `repeats` runs the shortest time counts.
    """
    experiment = _Experiment(net, seed, scale, folders)
    whole = make_network(net, experiment.data, FULL, seed)
    wide = trace(whole, experiment.data.parts["train"][0][:2])
    statistics = collect_statistics(whole, wide, None, set(), seed)
    sparse = min(1.0, density * experiment.scale.sparser)
    exact: dict[str, Method] = {
        "layer": Spectral(graph="layer", allocation="one-epsilon", mode="paper", tol=EXACT),
        "network": Spectral(graph="network", allocation="one-epsilon", mode="paper"),
    }
    series = Spectral(graph="layer", allocation="one-epsilon", mode="paper")
    rows = []
    for name, method in exact.items():
        seconds = {"seconds": _time_plan(method, wide, statistics, density, repeats)}
        if name == "layer":
            seconds["seconds by series"] = _time_plan(series, wide, statistics, density, repeats)
        plan = method.plan(experiment.graph, experiment.collect(experiment.model, set()), Weights(sparse))
        accuracy = experiment.test(experiment.train(plan.masks))
        rows.append(experiment.row(TABLE, graph=name, density=sparse, accuracy=accuracy, **seconds))
    return rows


def _time_plan(
    method: Method, graph: PruningGraph, statistics: Statistics, density: float, repeats: int
) -> float:
    """Return the least processor time of several runs of a plan."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        method.plan(graph, statistics, Weights(density))
        times.append(time.process_time() - start)
    return min(times)


def figure2(
    net: str,
    seed: int,
    scale: dict[str, Any],
    folders: dict[str, str],
    part: str,
    score: str,
    variant: str,
    densities: list[float],
) -> list[Row]:
    """Prune at initialisation and train; variant `DENSE` only trains.

    `part` is `AT_START` or `CONTROL`, `score` the score of the weights.
    """
    experiment = _Experiment(net, seed, scale, folders)
    if variant == DENSE:
        return [experiment.row(WHOLE, accuracy=experiment.test(experiment.train()))]
    needs = {"snip": {"gradients"}, "synflow": {"flow"}}.get(score, set())
    statistics = experiment.collect(experiment.model, needs)
    rows = []
    for density in densities:
        masks = choose_masks(variant, experiment.graph, statistics, density, score, experiment.scale.rounds)
        accuracy = experiment.test(experiment.train(masks))
        layers = layer_connectivity(experiment.graph, statistics.weights, masks).values()
        values = {
            "score": score,
            "variant": variant,
            "density": density,
            "accuracy": accuracy,
            "least share": min(x.share for x in layers),
            "dead outputs": sum(x.dead_outputs for x in layers),
        }
        rows.append(experiment.row(part, **values))
    return rows


def figure3(
    net: str,
    seed: int,
    scale: dict[str, Any],
    folders: dict[str, str],
    variant: str,
    densities: list[float],
) -> list[Row]:
    """Prune a trained network by magnitudes, retrain it from its initial weights, measure connectivity."""
    experiment = _Experiment(net, seed, scale, folders)
    trained = experiment.train()
    weights, statistics = trained.state_dict(), experiment.collect(trained, set())
    if variant == DENSE:
        accuracy = experiment.test(trained)
        whole = experiment.row(RETRAINED, variant=variant, density=1.0, accuracy=accuracy)
        return [whole, *_measure_layers(experiment, variant, 1.0, weights, {})]
    rows = []
    for density in densities:
        masks = choose_masks(variant, experiment.graph, statistics, density)
        accuracy = experiment.test(experiment.train(masks))
        rows.append(experiment.row(RETRAINED, variant=variant, density=density, accuracy=accuracy))
        rows += _measure_layers(experiment, variant, density, weights, masks)
    return rows


def _measure_layers(
    experiment: _Experiment, variant: str, density: float, weights: Masks, masks: Masks
) -> Iterator[Row]:
    """Yield the connectivity of each layer."""
    connectivity = layer_connectivity(experiment.graph, weights, masks)
    small = {name: m for name, m in masks.items() if m.shape[0] + m[0].size <= NODES}
    conditions = condition_number(experiment.graph, weights, small) if small else {}
    columns = ("lambda2", "share", "components", "dead_inputs", "dead_outputs", "edges")
    for name, layer in connectivity.items():
        values = {column: getattr(layer, column) for column in columns}
        values |= {"layer": name, "condition": conditions.get(name)}
        yield experiment.row(CONNECTIVITY, variant=variant, density=density, **values)


def oneshot(
    net: str,
    seed: int,
    scale: dict[str, Any],
    folders: dict[str, str],
    densities: list[float],
    units: list[float],
    floor: float,
) -> list[Row]:
    """Prune a trained network without retraining: single weights, ranked globally with a floor; units.

    `units` are shares of the units that stay. Every layer keeps at least the part `floor` of the even share
    of the smallest layer.
    """
    experiment = _Experiment(net, seed, scale, folders)
    trained, graph = experiment.train(), experiment.graph
    statistics = experiment.collect(trained, {"moments"})

    def row(what: str, variant: str, kept: float, model: nn.Module) -> Row:
        accuracy = experiment.test(model)
        return experiment.row(ONE_SHOT, what=what, variant=variant, kept=kept, accuracy=accuracy)

    rows = [row("weights", DENSE, 1.0, trained)]
    for density in densities:
        least = min(math.prod(graph.shapes[layer.weight]) for layer in graph.prunable_weights())
        budget = Weights(density, scope="global", floor=max(1, round(floor * density * least)))
        pruned = _prune_weights(trained, graph, statistics, budget)
        rows += [row("weights", variant, density, model) for variant, model in pruned]
    smaller = _prune_units(trained, graph, statistics, units)
    return rows + [row("units", variant, keep, model) for variant, keep, model in smaller]


def _prune_weights(
    model: nn.Module, graph: PruningGraph, statistics: Statistics, budget: Weights
) -> Iterator[tuple[str, nn.Module]]:
    def apply_masks(masks: Masks) -> nn.Module:
        return mask(model, Plan(graph, "greedy", masks=masks))

    methods: dict[str, Method] = {
        "magnitude": Magnitude(),
        "leverage of |w|": Spectral(mode="top", allocation="global"),
        LEVERAGE: Spectral(mode="top", allocation="global", score="activation", power=2),
    }
    plans = {name: method.plan(graph, statistics, budget) for name, method in methods.items()}
    for name, reweight in {"one epsilon": False, "one epsilon, times 1 / p": True}.items():
        drawn = Spectral(allocation="one-epsilon", reweight=reweight)
        plans[name] = drawn.plan(graph, statistics, budget)
    yield from ((name, mask(model, plan)) for name, plan in plans.items())
    yield "|w| input", apply_masks(rank_weights(graph, statistics, budget, "activation"))
    sizes = plans[LEVERAGE].masks
    yield "magnitude, sizes of leverage", apply_masks(with_sizes(sizes, graph, statistics, "magnitude"))
    yield "random, sizes of leverage", apply_masks(with_sizes(sizes, graph, statistics, None))
    if budget.keep == 0.5:
        yield "leverage, 2:4", mask(model, Spectral(pattern="2:4").plan(graph, statistics, Weights(0.5)))
        yield "magnitude, 2:4", apply_masks(top_of_blocks(graph, statistics, "magnitude", 2, 4))
        yield "|w| input, 2:4", apply_masks(top_of_blocks(graph, statistics, "activation", 2, 4))


def _prune_units(
    model: nn.Module, graph: PruningGraph, statistics: Statistics, shares: Sequence[float]
) -> Iterator[tuple[str, float, nn.Module]]:
    methods: dict[str, Method] = {"magnitude": Magnitude(), "leverage": Spectral(), "random": Random()}
    for name, method in methods.items():
        for keep in shares:
            yield name, keep, shrink(model, method.plan(graph, statistics, Units(keep)))
