"""The time of each layer of a network by its width, measured on the device it will run on.

A convolution or matrix product takes a + b * in + c * out + d * in * out, but for steps where widths pass
multiples of what the device computes at once.  So each distinct layer is timed on a grid of a few widths
that are such multiples, and interpolated in both directions.  Layers of one shape and type are one, and their
times are kept on disk.

Times are lower quartiles of rounds in turn: what other processes take only adds.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from secateur.core.latency_table import LayerTimes
from secateur.measure.latency import time_in_turn, timed, using_threads
from secateur.measure.layer_shapes import LayerShape, TimedLayer
from secateur.measure.time_cache import TimeCache, describe_environment

__all__ = ["measure_layers", "time_shapes"]

FRACTIONS = (1.0, 0.5, 0.25, 0.125)
MULTIPLE = 8  # of the widths that are timed
STEPS = (8, 16, 32, 64)
# A step is too small if its widths lie above the line between multiples of the largest by more than half of
# what they should save, and by more than the noise, one percent of the time of all layers.
LOST, NEGLIGIBLE = 0.5, 0.01
PROBED = 8  # layers that decide the step
ROUNDS, LIMIT = 7, 30.0
DRIFT = 1.3  # stored times that differ by more are stale
CHECKED = 3  # stored times that are taken again
Times = Mapping[LayerShape, float]


def measure_layers(
    layers: Sequence[TimedLayer], device: torch.device, dtype: torch.dtype, threads: int
) -> tuple[tuple[LayerTimes, ...], int]:
    """Return the times of layers by their widths, and the step of widths that the device likes.

    The time of a layer that does not run alone is estimated from its multiply-accumulates, at the rate of the
    others.

    Args:
        layers: What `find_timed_layers` found.
        device: Where to time.
        dtype: Type of the tensors.
        threads: Threads within an operation.
    """
    where = device, dtype, threads
    grids = [(_knots(x.full[0], x.narrows[0]), _knots(x.full[1], x.narrows[1])) for x in layers]
    shapes = [
        shape
        for layer, (inputs, outputs) in zip(layers, grids, strict=True)
        for i in (inputs if layer.kind else ())
        for o in outputs
        for shape in layer.shapes(i, o)
    ]
    known = dict(_times_of(shapes, *where))
    step, probes = _probe(layers, known)
    known |= _times_of(probes, *where)
    timed_layers = [x for x in layers if x.kind and all(s in known for s in x.shapes(*x.full))]
    spent = sum(_milliseconds(x, known, *x.full) for x in timed_layers)
    rate = spent / sum(x.macs for x in timed_layers) if timed_layers else 0.0
    tables = [_layer_times(x, grid, known, rate) for x, grid in zip(layers, grids, strict=True)]
    return tuple(tables), step(known)


def _milliseconds(layer: TimedLayer, known: Times, inputs: int, outputs: int) -> float:
    return sum(count * known[shape] for shape, count in layer.shapes(inputs, outputs).items())


def _knots(length: int, narrows: bool) -> list[int]:
    """Return the widths at which to time an axis, rising.

    Example:
        >>> _knots(256, True), _knots(20, True), _knots(3, False)
        ([32, 64, 128, 256], [2, 5, 8, 20], [3])
    """
    if not narrows:
        return [length]
    wanted = [length * fraction for fraction in FRACTIONS[1:]]
    rounded = [round(x / MULTIPLE) * MULTIPLE if x >= MULTIPLE else max(1, round(x)) for x in wanted]
    return sorted({length, *(x for x in rounded if x < length)})


def _layer_times(
    layer: TimedLayer, grid: tuple[list[int], list[int]], known: Times, rate: float
) -> LayerTimes:
    """Return the grid of a layer's times; they never fall with the width, so that more never costs less."""
    inputs, outputs = grid
    measured = bool(layer.kind) and all(
        s in known for i in inputs for o in outputs for s in layer.shapes(i, o)
    )
    if measured:
        values = np.array([[_milliseconds(layer, known, i, o) for o in outputs] for i in inputs])
    else:
        whole = layer.macs * rate
        values = np.array([[whole * i * o / np.prod(layer.full) for o in outputs] for i in inputs])
    for axis in (0, 1):
        values = np.maximum.accumulate(values, axis)
        if values.shape[axis] == 1:  # this width stays
            values = np.concatenate([values, values], axis)
    ends = [(0, *knots) if len(knots) == 1 else tuple(knots) for knots in grid]
    rows = tuple(tuple(map(float, row)) for row in values)
    return LayerTimes(layer.weight, layer.axes, ends[0], ends[1], rows, measured)


class _Probe:
    """Widths of one layer around a multiple of the largest step, and what the smaller steps cost there."""

    def __init__(self, layer: TimedLayer, axis: int, span: int) -> None:
        """Choose the widths."""
        self.layer, self.axis, self.span, self.count = layer, axis, span, 0
        self.top = layer.full[axis] // span * span

    def shapes(self, width: int) -> Mapping[LayerShape, int]:
        """Return what to time at a width."""
        at = [*self.layer.full]
        at[self.axis] = width
        return self.layer.shapes(*at)

    def widths(self) -> list[int]:
        """Return the widths: multiples of each step below the top, and the next multiple of the span."""
        return [self.top, self.top - self.span, *(self.top - x for x in STEPS if x < self.span)]

    def cost(self, known: Times, step: int) -> tuple[float, float]:
        """Return by how much the width one step below the top lies above the line, and the line below it.

        In milliseconds of all layers of this shape.
        """
        if step >= self.span or not all(s in known for w in self.widths() for s in self.shapes(w)):
            return 0.0, 0.0
        at = {w: sum(n * known[s] for s, n in self.shapes(w).items()) for w in self.widths()}
        line = np.interp(
            self.top - step, [self.top - self.span, self.top], [at[self.top - self.span], at[self.top]]
        )
        return self.count * (at[self.top - step] - float(line)), self.count * (at[self.top] - float(line))


class _Steps:
    """The smallest step whose widths cost hardly more than multiples of the largest."""

    def __init__(self, probes: list[_Probe], total: float) -> None:
        """Take the probes that decide, and the time of all layers."""
        self.probes, self.total = probes, total

    def __call__(self, known: Times) -> int:
        """Return the step, by times that are known."""
        for step in STEPS:
            costs = np.array([probe.cost(known, step) for probe in self.probes]).reshape(-1, 2)
            above, saving = costs.sum(0)
            if above <= max(LOST * saving, NEGLIGIBLE * self.total):
                return step
        return STEPS[-1]


def _probe(layers: Sequence[TimedLayer], known: Times) -> tuple[_Steps, list[LayerShape]]:
    """Return how to decide the step, and the shapes to time for it: those of the slowest layers."""
    probes: dict[frozenset[tuple[LayerShape, int]], _Probe] = {}
    spent: dict[frozenset[tuple[LayerShape, int]], float] = defaultdict(float)
    for layer in layers:
        full = layer.shapes(*layer.full) if layer.kind else {}
        if not full or not all(shape in known for shape in full):
            continue
        same = frozenset(full.items())
        spent[same] += _milliseconds(layer, known, *layer.full)
        axis = 1 if layer.narrows[1] else 0
        span = next((x for x in STEPS[::-1] if layer.narrows[axis] and layer.full[axis] >= 2 * x), 0)
        grouped = dict(layer.options).get("groups", 1) > 1 and min(layer.full) > 1
        if span > STEPS[0] and layer.kind != "recurrent" and not grouped:
            probes.setdefault(same, _Probe(layer, axis, span)).count += 1
    slowest = sorted(probes, key=lambda same: -spent[same])[:PROBED]
    chosen = [probes[same] for same in slowest]
    shapes = [shape for probe in chosen for width in probe.widths() for shape in probe.shapes(width)]
    return _Steps(chosen, sum(spent.values())), shapes


def _times_of(
    shapes: Iterable[LayerShape], device: torch.device, dtype: torch.dtype, threads: int
) -> dict[LayerShape, float]:
    """Return milliseconds from the disk, if they still hold, or measured and then stored."""
    wanted = list(dict.fromkeys(shapes))
    cache = TimeCache.of(describe_environment(device, dtype, threads))
    stored = cache.read()
    known = {shape: stored[shape.key()] for shape in wanted if shape.key() in stored}
    missing = [shape for shape in wanted if shape not in known]
    again = sorted(known, key=lambda shape: -known[shape])[:CHECKED]
    found = time_shapes([*missing, *again], device, dtype, threads)
    ratios = [found[shape] / known[shape] for shape in again if shape in found and known[shape] > 0]
    if ratios and not 1 / DRIFT < np.median(ratios) < DRIFT:
        found |= time_shapes([shape for shape in known if shape not in found], device, dtype, threads)
        stored, known = {}, {}
    fresh = {shape: ms for shape, ms in found.items() if shape not in known}
    if fresh:
        cache.write({**stored, **{shape.key(): ms for shape, ms in fresh.items()}})
    return {**known, **fresh}


def time_shapes(
    shapes: Sequence[LayerShape], device: torch.device, dtype: torch.dtype, threads: int
) -> dict[LayerShape, float]:
    """Measure layers in alternation: return the lower quartile of each one's milliseconds.

    Shapes that the device cannot run are left out.
    """
    draw = _drawn(device, dtype)
    runs = {}
    with using_threads(threads), torch.no_grad():
        for shape in sorted(shapes, key=lambda x: -np.prod(x.sizes, dtype=float) * max(x.inputs, x.outputs)):
            try:
                run = shape.runner(draw)
                run()
            except (RuntimeError, ValueError):
                continue
            runs[shape] = timed(run, device)
        times = time_in_turn(runs, ROUNDS, 1, LIMIT, random.Random(0), alike=False)
    return {shape: 1e3 * float(np.quantile(seconds, 0.25)) for shape, seconds in times.items()}


def _drawn(device: torch.device, dtype: torch.dtype):  # type: ignore[no-untyped-def]
    """Return a function that draws tensors of any sizes; all share their memory."""
    buffer = torch.empty(0, device=device, dtype=dtype)

    def draw(*sizes: int) -> Tensor:
        nonlocal buffer
        count = int(np.prod(sizes))
        if buffer.numel() < count:
            buffer = torch.randn(count, device=device, dtype=dtype)
        return buffer[:count].view(sizes)

    return draw
