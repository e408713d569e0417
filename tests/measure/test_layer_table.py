"""Layers timed alone: which they are, how they run at other widths, and the step of widths that pays."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bank import BANK
from torch import nn

import secateur as sc
from secateur.allocation import graph_cost
from secateur.allocation.cost import STACKED
from secateur.measure import layer_table
from secateur.measure.latency import resize_batch
from secateur.measure.layer_shapes import LayerShape, TimedLayer, find_timed_layers
from secateur.measure.layer_table import measure_layers, time_shapes

CPU = torch.device("cpu"), torch.float32, 1
NETWORKS = {
    "LeNet-5, Flatten": {"conv", "linear"},
    "ResNeXt (grouped convolution)": {"conv", "linear"},
    "LSTM, 2 layers, bidirectional, time first": {"recurrent", "linear"},
    "Small GPT, tied": {"linear"},
    "Experts in one tensor": {"linear", ""},
}


def layers_of(name: str) -> tuple[Any, list[TimedLayer]]:
    args, kwargs = BANK[name].example()
    model = BANK[name].build().eval()
    graph = sc.trace(model, args, (), kwargs)
    return graph, find_timed_layers(model, graph, (args, kwargs), 2)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_layers_of_a_network_run_alone(name: str) -> None:
    """Every layer but those without an operation of their own runs, whole and narrower."""
    graph, layers = layers_of(name)
    assert {layer.kind for layer in layers} <= NETWORKS[name]
    shapes = [s for x in layers if x.kind for s in x.shapes(*x.full)]
    draw = layer_table._drawn(*CPU[:2])
    for shape in dict.fromkeys(shapes):
        shape.runner(draw)()
    if "recurrent" not in NETWORKS[name]:  # the recurrent matrix is timed with the other one
        stacked = [x.positions * prod(graph.shapes[x.weight]) for x in graph.layers if x.kind in STACKED]
        assert sum(x.macs for x in layers) == pytest.approx(2 * (graph_cost(graph).macs - sum(stacked)))


def test_calls_and_their_sizes_are_those_of_the_pass() -> None:
    shared = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    head = [nn.Flatten(), nn.Linear(4 * 36, 8), nn.ReLU(), nn.Linear(8, 2)]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), shared, nn.ReLU(), shared, *head).eval()
    x = torch.ones(2, 3, 8, 8)
    graph = sc.trace(model, x)
    arguments = resize_batch(((x,), {}), 0, 5)
    first, conv, wide, last = find_timed_layers(model, graph, arguments, 5)
    assert first.calls == {(5, 8, 8): 1} and conv.calls == {(5, 6, 6): 2}
    assert wide.calls == last.calls == {(5,): 1}
    ((shape, count),) = conv.shapes(3, 3).items()
    assert (shape.kind, shape.inputs, shape.outputs, count) == ("conv", 3, 3, 2)
    assert not model._forward_pre_hooks and not shared._forward_pre_hooks


@pytest.mark.parametrize(
    ("layer", "x", "full", "narrower"),
    [
        (nn.Conv2d(8, 8, 3, groups=8), (2, 8, 6, 6), (1, 8), ((1, 4), 4)),  # depthwise: groups go
        (nn.ConvTranspose1d(8, 4, 3, stride=2, output_padding=1), (2, 8, 6), (8, 4), ((8, 2), 1)),
        (nn.Conv3d(4, 8, (1, 2, 3), dilation=2), (1, 4, 7, 7, 7), (4, 8), ((2, 8), 1)),
        (nn.Conv1d(4, 8, 3, padding="same"), (2, 4, 9), (4, 8), ((2, 8), 1)),
    ],
)
def test_convolutions_of_every_form(layer: nn.Module, x: Any, full: Any, narrower: Any) -> None:
    """A shape computes outputs of the layer's own size, and of the narrower layer's."""
    first = nn.Conv1d if len(x) == 3 else nn.Conv2d if len(x) == 4 else nn.Conv3d
    model = nn.Sequential(first(x[1], x[1], 1), layer, nn.Flatten(), nn.LazyLinear(2)).eval()
    inputs = torch.ones(x)
    model(inputs)
    graph = sc.trace(model, inputs)
    timed = next(y for y in find_timed_layers(model, graph, ((inputs,), {}), x[0]) if y.weight == "1.weight")
    assert timed.full == full
    draw = layer_table._drawn(*CPU[:2])
    ((shape, _),) = timed.shapes(*full).items()
    assert shape.runner(draw)().shape == layer(inputs).shape
    ends, groups = narrower
    ((shape, _),) = timed.shapes(*ends).items()
    assert dict(shape.options)["groups"] == groups
    assert shape.runner(draw)().shape[2:] == layer(inputs).shape[2:]


def known(milliseconds: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let layers take what a function of inputs and outputs says."""

    def times(shapes: Sequence[LayerShape], *_: Any) -> dict[LayerShape, float]:
        return {shape: milliseconds(shape.inputs, shape.outputs) for shape in shapes}

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(layer_table, "time_shapes", times)


def linear(width: int, narrows: tuple[bool, bool] = (True, True)) -> TimedLayer:
    return TimedLayer("w", (1, 0), "linear", {(7,): 2}, (), 14.0, narrows, (width, width))


@pytest.mark.parametrize("step", [8, 16, 32, 64])
def test_the_step_is_the_smallest_without_a_penalty(
    step: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known(lambda i, o: 1.0 * i * (-(-o // step) * step), monkeypatch, tmp_path)
    (times,), found = measure_layers([linear(256)], *CPU)
    assert found == step
    # On the grid, whose widths are multiples of 32, the times are those measured, twice: two calls.
    assert float(times(256, 128)) == pytest.approx(2 * 256 * 128)


def test_a_slow_width_costs_as_much_as_the_next_faster_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Times never fall with the width, so that a search never takes a narrower and slower layer."""
    known(lambda i, o: 9.0 if o == 32 else 1e-3 * o, monkeypatch, tmp_path)
    (times,), _ = measure_layers([linear(64)], *CPU)
    assert (np.diff(np.array(times.milliseconds), axis=1) >= 0).all()


def test_widths_that_stay_are_timed_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known(lambda i, o: float(i + o), monkeypatch, tmp_path)
    (times,), _ = measure_layers([linear(64, (False, True))], *CPU)
    assert times.inputs == (0, 64) and times.outputs == (8, 16, 32, 64)
    assert float(times(64, 32)) == float(times(10, 32)) == 2 * 96


def test_what_cannot_be_timed_counts_by_the_rate_of_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known(lambda i, o: 2.0 * i * o, monkeypatch, tmp_path)
    other = TimedLayer("v", (1, 0), "", {}, (), 14.0, (True, True), (32, 32), 3)
    times, _ = measure_layers([linear(64), other], *CPU)
    rate = 2 * 2.0 * 64 * 64 / (14 * 64 * 64)
    assert not times[1].measured
    assert float(times[1](16, 32)) == pytest.approx(rate * 14 * 3 * 16 * 32)


def test_shapes_that_do_not_run_are_left_out() -> None:
    good = LayerShape("linear", 3, 4, (5,))
    options = (("kernel", (9, 9)), ("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1))
    bad = LayerShape("conv", 3, 4, (1, 2, 2), options)  # a kernel larger than its input
    found = time_shapes([good, bad], *CPU)
    assert list(found) == [good] and found[good] > 0
    assert good.key() == "linear 3 -> 4 on [5]"
