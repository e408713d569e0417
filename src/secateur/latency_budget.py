"""Budgets of milliseconds: measure the layers, so that a plan can predict the time of a network.

The predicted time is the sum over the layers, each timed alone, plus a rest (elementwise work, norms, the
overhead of Python).  The rest has a constant part and a part in proportion to the outputs of the layers.  Two
measurements fit it: the original, and the smallest network that the budget allows.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
import torch
from torch import nn

from secateur.allocation.allocation import allowed_counts
from secateur.allocation.amounts import measured_table, predicted_latency
from secateur.allocation.cost import CostModel
from secateur.apply.shrink import shrink
from secateur.core import (
    Budget,
    InputError,
    IntArray,
    Latency,
    LatencyTable,
    LayerTimes,
    Plan,
    PruningGraph,
    SecateurError,
)
from secateur.core.budget import as_budget
from secateur.execution import device_and_dtype, duplicate
from secateur.measure.latency import latency, resize_batch, using_threads
from secateur.measure.layer_shapes import TimedLayer, find_timed_layers
from secateur.measure.layer_table import measure_layers
from secateur.views import as_called

__all__ = [
    "TOLERANCE",
    "RelativeTime",
    "fit_rest",
    "latencies_in",
    "note_prediction",
    "smallest_network",
    "time_models",
    "with_tables",
]

TOLERANCE = 0.05  # relative distance from the budget at which it holds
NOISE = 0.03  # relative error of a measured ratio at which it says nothing
ROUNDS = (15, 60)  # of a measurement, and of the one after a noisy one
LASTING, LIMIT = 0.03, 15.0  # seconds of one measurement, and of all of them but the first five


@dataclass(frozen=True)
class RelativeTime:
    """The time of a network, compared with the original's.

    Attributes:
        original: Milliseconds of the original.
        ratio: The network's time divided by the original's: median over rounds.
        spread: Distance between the quartiles of these ratios, relative to the median.
        rounds: Number of rounds.
    """

    original: float
    ratio: float
    spread: float
    rounds: int = 15

    @property
    def milliseconds(self) -> float:
        """Milliseconds of the network."""
        return self.original * self.ratio

    @property
    def noisy(self) -> bool:
        """Whether the median is too uncertain; its error is about the spread by the root of the rounds."""
        return self.spread > NOISE * sqrt(self.rounds)


def time_models(original: nn.Module, pruned: nn.Module, graph: PruningGraph, budget: Latency) -> RelativeTime:
    """Measure a network and the original in alternation, as a budget says; longer if the times are noisy."""
    models = {"original": _on_device(original, budget), "pruned": _on_device(pruned, budget)}
    times = _compare(models, graph, budget, ROUNDS[0])
    return _compare(models, graph, budget, ROUNDS[1]) if times.noisy else times


def _compare(
    models: Mapping[str, nn.Module], graph: PruningGraph, budget: Latency, rounds: int
) -> RelativeTime:
    rows = latency(
        models,
        graph.example_inputs,
        graph.example_kwargs,
        batch_sizes=(budget.batch,),
        batch_axis=budget.batch_axis,
        threads=budget.threads,
        repeats=rounds,
        limit=LIMIT,
        shortest=LASTING,
    )
    before, after = rows["original"][0], rows["pruned"][0]
    return RelativeTime(1e3 * before.median, 1 / (after.speedup or 1.0), after.spread or 0.0, after.repeats)


def _on_device(model: nn.Module, budget: Latency) -> nn.Module:
    """Return the model where a budget is measured: itself, or a copy on another device."""
    here = device_and_dtype(model)[0]
    if budget.device is None or torch.device(budget.device) == here:
        return model
    return duplicate(model).to(budget.device)


def with_tables(budget: Budget, model: nn.Module, graph: PruningGraph) -> Budget:
    """Return the budget with measured layers wherever it limits milliseconds, and shares instead of limits.

    Raises:
        InputError: If the device is missing, or if even the smallest network is not faster than the original.
    """
    if not latencies_in(budget):
        return budget
    return as_budget(
        [
            _with_table(part, model, graph) if isinstance(part, Latency) and part.table is None else part
            for part in budget.parts
        ]
    )


def _with_table(budget: Latency, model: nn.Module, graph: PruningGraph) -> Latency:
    device = _check_device(budget, model)
    dtype = device_and_dtype(model)[1] or torch.float32
    threads = budget.threads or torch.get_num_threads()
    arguments = resize_batch(
        (graph.example_inputs, dict(graph.example_kwargs)), budget.batch_axis, budget.batch
    )
    with using_threads(threads):
        found = find_timed_layers(model, graph, arguments, budget.batch)
        layers, step = measure_layers(found, device, dtype, threads)
    bare = replace(budget, table=LatencyTable(layers, step=step))
    smallest = smallest_network(graph, bare)
    times = _time_smallest(model, graph, budget, smallest)
    if times is None:
        whole = time_models(model, model, graph, budget)
        return replace(budget, table=_in_proportion(bare, graph, whole))
    return replace(budget, table=fit_rest(graph, bare, found, smallest, times))


def _check_device(budget: Latency, model: nn.Module) -> torch.device:
    """Return the device to measure on, or raise `InputError` if it is not there."""
    try:
        device = device_and_dtype(model)[0] if budget.device is None else torch.device(budget.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise InputError(
            f"{budget} cannot be measured on {budget.device!r}: {str(error).splitlines()[0]}. Name a device "
            f"of this machine, such as 'cpu'"
        ) from error
    if device.type == "meta":
        raise InputError(f"{budget} cannot be measured: the model is on the meta device, without values")
    return device


def _time_smallest(
    model: nn.Module, graph: PruningGraph, budget: Latency, keep: Mapping[str, IntArray]
) -> RelativeTime | None:
    """Measure the network with the fewest units that a budget allows; None if it does not run."""
    removed = {name: units for name, units in keep.items() if len(units) < graph.group(name).size}
    plan = Plan(graph, "", removed)
    try:
        return time_models(model, as_called(shrink(model, plan, check=False), plan), graph, budget)
    except SecateurError as error:
        warnings.warn(
            f"the smallest network does not run ({error}): the time outside of the layers is taken in "
            f"proportion to theirs",
            stacklevel=2,
        )
        return None


def _in_proportion(budget: Latency, graph: PruningGraph, times: RelativeTime) -> LatencyTable:
    table = measured_table(budget)
    return replace(table, scale=times.original / predicted_latency(graph, budget)({}), noise=times.spread)


def fit_rest(
    graph: PruningGraph,
    budget: Latency,
    layers: list[TimedLayer],
    smallest: Mapping[str, IntArray],
    times: RelativeTime,
) -> LatencyTable:
    """Return the table with a rest for which it is right about the original and the smallest network.

    The rest has a constant part and one in proportion to the outputs of the layers.  Where one of the two
    would be negative it is left out, and the layers are scaled instead.

    Raises:
        InputError: If the smallest network is not faster than the original.
    """
    if times.ratio >= 1 - TOLERANCE:
        raise InputError(
            f"{budget}: pruning does not make this network faster at batch {budget.batch}: the original "
            f"takes {times.original:.3g} ms, the smallest network {times.milliseconds:.3g} ms. What is left "
            f"is not spent in layers that get smaller; a larger batch may show a difference"
        )
    table, counts = measured_table(budget), CostModel(graph)
    rows = [counts.rows[x.weight, x.axes[1]] for x in table.layers]
    uses = np.array([x.positions for x in layers])
    outputs = [float(uses @ counts.lengths(keep)[rows]) for keep in ({}, smallest)]
    in_layers = [predicted_latency(graph, budget)(keep) for keep in ({}, smallest)]
    measured = times.original, times.milliseconds
    fallen = measured[0] - measured[1]
    per_output = (fallen - in_layers[0] + in_layers[1]) / max(outputs[0] - outputs[1], 1.0)
    scale = 1.0
    if per_output < 0:  # the layers alone are slower than in the network
        per_output, scale = 0.0, fallen / (in_layers[0] - in_layers[1])
    constant = measured[0] - scale * in_layers[0] - per_output * outputs[0]
    if constant < 0:
        factor = measured[0] / (measured[0] - constant)
        per_output, scale, constant = per_output * factor, scale * factor, 0.0
    grown = tuple(
        _with_outputs(x, per_output * use / scale) for x, use in zip(table.layers, uses, strict=True)
    )
    return replace(table, layers=grown, constant=constant, scale=scale, noise=times.spread)


def _with_outputs(layer: LayerTimes, per_output: float) -> LayerTimes:
    """Return the times of a layer and of the rest that its outputs cause."""
    rest = per_output * np.array(layer.outputs, dtype=float)
    if layer.outputs[0] == 0:  # this width stays
        rest[:] = rest[-1]
    rows = np.array(layer.milliseconds) + rest
    return replace(layer, milliseconds=tuple(tuple(map(float, row)) for row in rows))


def latencies_in(budget: Budget) -> tuple[Latency, ...]:
    """Return the parts of a budget that limit milliseconds."""
    return tuple(part for part in budget.parts if isinstance(part, Latency))


def smallest_network(graph: PruningGraph, budget: Budget) -> dict[str, IntArray]:
    """Return the fewest units of each group that a budget allows."""
    return {
        group.name: np.arange(allowed.first // len(groups))
        for groups, allowed in zip(graph.counted_together(), allowed_counts(graph, budget), strict=True)
        for group in groups
    }


def note_prediction(plan: Plan, budget: Budget) -> Plan:
    """Return a plan with a note on the latencies that the tables of its budget predict, if it has any."""
    notes = []
    for part in latencies_in(budget):
        amount = predicted_latency(plan.graph, part)
        whole = amount({})
        notes.append(
            {
                "batch": part.batch,
                "original": whole,
                "target": part.keep * whole,
                "predicted": amount(plan.keep),
            }
        )
    return replace(plan, notes={**plan.notes, "latency": notes}) if notes else plan
