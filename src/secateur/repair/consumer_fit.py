"""Fit the removed features of every consumer, on its Gram matrix; held-out batches choose the ridge.

Letters as in `fold`.  Each group of a convolution has its own fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.core import InputError, IntArray, Layer, Moments, Plan, PruningGraph, Statistics
from secateur.repair.regression import Fit, OutputError, Regression, SecondMoments
from secateur.repair.weight_matrix import as_matrix, in_axis_of

__all__ = ["RIDGES", "Consumer", "Kept", "fit_consumers"]

Kept = Mapping[str, Mapping[int, IntArray]]
Fits = tuple[tuple[IntArray, Fit], ...]  # output rows, and the fit that holds for them
RIDGES = (1e-6, 1e-4, 1e-2, 1e-1, 1.0)  # relative to the mean variance of the kept features
TINY = 1e-300


@dataclass(frozen=True, eq=False)
class Consumer:
    """A layer that reads removed units, with its fits.

    Attributes:
        layer: The layer.
        matrix: Its original weight as [out, in, taps], float64.
        taps: Kernel positions that the feature numbers of the fits count; 1 if all positions share a fit.
        fits: One pair for each group of a convolution.
        note: What the report says about it.
        better: Whether the fold is better than none on the held-out batches.
    """

    layer: Layer
    matrix: Tensor
    taps: int
    fits: Fits
    note: Mapping[str, Any]
    better: bool


def fit_consumers(
    model: nn.Module,
    plan: Plan,
    kept: Kept,
    statistics: Statistics,
    guard: Statistics | None,
    ridges: Sequence[float] = RIDGES,
    noted: bool = True,
) -> tuple[list[Consumer], list[str]]:
    """Return the layers that read removed units with their fits, and the tied weights that take none."""
    consumers, tied = list[Consumer](), list[str]()
    read = {(slot.tensor, slot.axis) for group in plan.graph.groups for slot in group.slots_with("in")}
    for layer in plan.graph.layers:
        if layer.in_axis in kept.get(layer.weight, {}) and layer.weight not in plan.masks:
            if (layer.weight, layer.in_axis) not in read:
                tied.append(layer.weight)  # a fold into the reading use would change the producing one
                continue
            moments = _moments(statistics, plan.graph, layer)
            check = _moments(guard, plan.graph, layer) if guard is not None else None
            consumers.append(_fit_consumer(model, plan, layer, kept, moments, check, ridges, noted))
    return consumers, tied


def _fit_consumer(
    model: nn.Module,
    plan: Plan,
    layer: Layer,
    kept: Kept,
    moments: Moments,
    check: Moments | None,
    ridges: Sequence[float],
    noted: bool,
) -> Consumer:
    """Fit a consumer, group by group of a convolution, and measure its errors where they are needed."""
    matrix = as_matrix(model.get_parameter(layer.weight), layer).double()
    alive = np.zeros(matrix.shape[1], dtype=bool)
    alive[kept[layer.weight][in_axis_of(layer)]] = True
    merged = _merged_features(plan, layer)
    # A transposed convolution gives each output its own taps: a constant input gives no constant output.
    centred = layer.bias is not None and layer.kind != "conv_transpose"
    blocks = list(_blocks(layer, matrix))
    regressions = [_regression(moments, features, alive, merged, centred) for _, features in blocks]

    def fits(ridge: float) -> Fits:
        return tuple((rows, x.fit(ridge)) for (rows, _), x in zip(blocks, regressions, strict=True))

    def errors(where: Moments) -> _OutputErrors:
        pairs = zip(blocks, regressions, strict=True)
        return _OutputErrors([_output_error(matrix[rows], where, x, r) for (rows, x), r in pairs])

    if check is None and not noted:  # least squares gain on their own data
        return Consumer(layer, matrix, moments.taps, fits(ridges[0]), {}, True)
    judge = errors(check or moments)
    ridge, least, best = _least(fits, judge, ridges if check is not None else ridges[:1])
    better = not least >= judge.plain() > 0
    note: dict[str, Any] = {}
    if noted:
        fitted = judge if check is None else errors(moments)
        total = max(fitted.total(), TINY)
        note |= {"plain": fitted.plain() / total, "folded": fitted.folded(best) / total, "ridge": ridge}
        note |= {} if check is None else {"held_out": least / max(judge.total(), TINY)}
        note |= {"dead": sum(fit.dead for _, fit in best), "parallel": sum(fit.parallel for _, fit in best)}
    return Consumer(layer, matrix, moments.taps, best, note, better)


@dataclass(frozen=True)
class _OutputErrors:
    """The output errors of all groups of a convolution."""

    parts: Sequence[OutputError]

    def plain(self) -> float:
        return sum(part.plain for part in self.parts)

    def total(self) -> float:
        return sum(part.total() for part in self.parts)

    def folded(self, fits: Fits) -> float:
        return sum(part.folded(fit) for part, (_, fit) in zip(self.parts, fits, strict=True))


def _least(
    fits: Callable[[float], Fits], judge: _OutputErrors, ridges: Sequence[float]
) -> tuple[float, float, Fits]:
    """Return the ridge of the least error, the error and the fits.

    The error falls with the ridge up to the best one, and rises from there on: search from the middle.
    """
    at = middle = len(ridges) // 2
    best = fits(ridges[at])
    least = judge.folded(best)
    for step in (1, -1):
        while 0 <= at + step < len(ridges):
            trial = fits(ridges[at + step])
            error = judge.folded(trial)
            if not error < least:
                del trial  # before the next one is made: that of a wide layer is large
                break
            at, best, least = at + step, trial, error
        if at > middle:
            break
    return ridges[at], least, best


def _moments(statistics: Statistics, graph: PruningGraph, layer: Layer) -> Moments:
    moments = statistics.moments.get(graph.input_key(layer))
    if moments is None or (moments.gram is None and moments.root is None):
        raise InputError(
            f"a fold needs the Gram matrix of what reaches {layer.weight!r}; the statistics have "
            f"{sorted(k for k, m in statistics.moments.items() if m.gram is not None) or 'none'}: "
            "collect with 'gram' among the needs"
        )
    return moments


def _blocks(layer: Layer, matrix: Tensor) -> Iterator[tuple[IntArray, IntArray]]:
    """Yield the output rows and the Gram features of every group of a convolution."""
    outs, width = matrix.shape[0] // layer.groups, matrix.shape[1]
    for block in range(layer.groups):
        yield block * outs + np.arange(outs), block * width + np.arange(width)


def _merged_features(plan: Plan, layer: Layer) -> IntArray:
    """Return the in-features of a layer that an exact merge has already folded."""
    features = [np.zeros(0, dtype=np.int64)]
    for name, merged in plan.merges.items():
        for slot in plan.graph.group(name).slots:
            if (slot.tensor, slot.axis) == (layer.weight, layer.in_axis):
                features.append(slot.index[merged.removed].ravel())
    return np.concatenate(features)


def _regression(
    moments: Moments, features: IntArray, alive: Any, merged: IntArray, centred: bool
) -> Regression:
    """Express the removed features, taps included, by the kept ones, from the Gram matrix.

    Args:
        moments: Of all features of the layer.
        features: Those that this group of a convolution reads.
        alive: Boolean, which of them stay.
        merged: Removed features that are folded already.
        centred: Whether the layer has a bias to take a constant.
    """
    removed = np.setdiff1d(np.flatnonzero(~alive), merged)
    kept, removed = (_with_taps(f, moments.taps) for f in (np.flatnonzero(alive), removed))
    second, mean = _second_moments(moments, features)
    gram = second.matrix.T @ second.matrix if second.root else second.matrix
    return Regression(gram, mean if centred else torch.zeros_like(mean), kept, removed)


def _output_error(
    matrix: Tensor, moments: Moments, features: IntArray, regression: Regression
) -> OutputError:
    """Return the error of some output rows on the data of some moments."""
    second, mean = _second_moments(moments, features)
    return OutputError(_outputs_by_input(matrix, moments), second, mean, regression.kept, regression.removed)


def _outputs_by_input(matrix: Tensor, moments: Moments) -> Tensor:
    """Return the weight of some output rows as [outputs, features], as the Gram matrix numbers features."""
    W = matrix.flatten(1) if moments.taps > 1 else matrix.transpose(1, 2).flatten(0, 1)
    return W.to(moments.mean.device)


def _second_moments(moments: Moments, features: IntArray) -> tuple[SecondMoments, Tensor]:
    """Return the second moments and the mean of some features, taps included."""
    matrix = moments.root if moments.gram is None else moments.gram
    if matrix is None:
        raise InputError("the moments have no Gram matrix")
    mean = moments.gram_mean if moments.gram_mean is not None else moments.mean
    index = torch.from_numpy(_with_taps(features, moments.taps)).to(matrix.device)
    if len(index) < len(mean):
        mean, matrix = mean[index], matrix[:, index]
        matrix = matrix if moments.gram is None else matrix[index]
    return SecondMoments(matrix, moments.gram is None), mean


def _with_taps(features: IntArray, taps: int) -> IntArray:
    """Return the numbers of all taps of these features."""
    return (features[:, None] * taps + np.arange(taps)).ravel()
