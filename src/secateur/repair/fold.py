"""Fold: add what the removed units contributed to the weights that read the kept ones.

A layer that reads a group, a consumer, computes W x with features x = (x_K, x_R), kept and removed.  If
x_R = C x_K + c on the data, then (W_K + W_R C) x_K + (b + W_R c) gives the same output.  C and c come from

1. exact merges, which the plan states;
2. features that are zero on the data: nothing to fold;
3. features that are a positive multiple of a kept one on the data;
4. least squares with a ridge for the rest, in float64 from Gram matrices.

The fold is the same for every pruning method.  Held-out batches choose each ridge.  A fold that is no better
than none there is undone, and so are all together if they bring the model no nearer to the original.

Letters: K and R are the numbers of the kept and the removed features, m their means, S their covariance
E[(x - m)(x - m)^T] (without a bias, m = 0).  Least squares gives C = S_RK (S_KK + ridge)^-1 and
c = m_R - C m_K.

Sources: Kim et al. 2020 (neuron merging), Chee et al. NeurIPS 2022 (interpolative decompositions).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.apply.copying import check_tensors
from secateur.core import InputError, IntArray, Layer, Moments, Plan, PruningGraph, Statistics
from secateur.core.indices import kept_indices
from secateur.execution import check_calls, check_module
from secateur.repair.regression import Fit, OutputError, Regression, SecondMoments
from secateur.repair.weight_matrix import as_matrix, in_axis_of, set_matrix

__all__ = ["FARTHER", "NO_BETTER", "fold", "fold_masked", "merge"]

Kept = Mapping[str, Mapping[int, IntArray]]
Fits = tuple[tuple[IntArray, Fit], ...]  # output rows, and the fit that holds for them
Judge = Callable[[nn.Module], float]
RIDGES = (1e-6, 1e-4, 1e-2, 1e-1, 1.0)  # relative to the mean variance of the kept features
FARTHER = "the whole model came out farther from the original"
TIED = "the same weight also produces these units (tied)"
NO_BETTER = "no better on the batches kept apart"
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


def merge(model: nn.Module, small: nn.Module, plan: Plan) -> nn.Module:
    """Return a copy of the shrunk model with the plan's exact merges folded into the consumers.

    Args:
        model: The model that the plan was made for.
        small: `shrink(model, plan)`.
        plan: A plan with merges.

    Raises:
        InputError: If a layer reads merged units in a way that takes no fold.
    """
    result = copy.deepcopy(small)
    graph, kept = plan.graph, kept_indices(plan.graph, plan.keep)
    for name, merged in plan.merges.items():
        group = graph.group(name)
        consumers = graph.consumers(group)
        if len(consumers) < len(group.slots_with("in")):
            foldable = {slot.tensor for _, slot in consumers}
            other = [slot.tensor for slot in group.slots_with("in") if slot.tensor not in foldable]
            raise InputError(
                f"{name!r} cannot be merged exactly: {other} read it in a way that takes no fold"
            )
        coefficients, offset = torch.from_numpy(merged.coefficients), torch.from_numpy(merged.offset)
        for layer, slot in consumers:
            matrix = as_matrix(model.get_parameter(layer.weight), layer).double()
            for position in range(slot.index.shape[1]):
                indices = slot.index[:, position]
                fit = Fit(indices[merged.kept], indices[merged.removed], coefficients, offset)
                _add_fit(matrix, result, layer, kept, fit, 1, np.arange(len(matrix)))
    return result


def fold(
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    statistics: Statistics,
    guard: Statistics | None = None,
    judge: Judge | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Return a repaired copy of the shrunk model, and what the repair did.

    Args:
        model: The model that the plan was made for.
        small: `shrink(model, plan)`.
        plan: What went.
        statistics: Gram matrices of the original model's consumers on calibration batches.
        guard: The same, or roots of them, on held-out batches.  They choose the ridge of each consumer;
            without them it is 1e-6.  A fold whose output error there is no smaller than without it is undone.
        judge: Measures how far a model is from the original on held-out batches; smaller is better.  The fits
            are made one by one against the original's activations.  If together they bring the model no
            nearer, all are undone.

    Returns:
        The model, and by weight of each consumer: the relative output error without (`plain`) and with
        (`folded`) the fold, the `ridge`, the number of `dead` and `parallel` features, and whether it was
        `undone`, and `why`.

    Raises:
        InputError: If the statistics have no Gram matrix for a consumer.

    Example:
        >>> from secateur.core import Plan
        >>> from secateur.statistics.collect import collect_statistics
        >>> from secateur.apply.shrink import shrink
        >>> from secateur.tracing.trace import trace
        >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
        >>> x = torch.randn(64, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> graph = trace(mlp, x[:2])
        >>> plan = Plan(graph, "first six", keep={"0": np.arange(6)})
        >>> statistics = collect_statistics(mlp, graph, [(x, None)], {"gram"})
        >>> repaired, notes = fold(mlp, shrink(mlp, plan), plan, statistics)
        >>> notes["2.weight"]["folded"] < notes["2.weight"]["plain"]
        True
    """
    for name, given in {"statistics": statistics, "guard": statistics if guard is None else guard}.items():
        if not isinstance(given, Statistics):
            raise InputError(f"{name} must be what collect_statistics returned; got {type(given).__name__}")
    check_tensors(model, plan)
    check_module(small, "small")
    check_calls(judge=judge)
    merged = merge(model, small, plan) if plan.merges else small
    kept = kept_indices(plan.graph, plan.keep)
    consumers, tied = _fit_consumers(model, plan, kept, statistics, guard)
    undone = {x.layer.weight: NO_BETTER for x in consumers if not x.better}
    accepted = [x for x in consumers if x.better]
    result = _add_fits(merged, kept, accepted)
    if accepted and judge is not None and not judge(result) < judge(merged):
        undone |= {x.layer.weight: FARTHER for x in accepted}
        result = merged
    notes = {x.layer.weight: _note(x, undone.get(x.layer.weight)) for x in consumers}
    return result, {**{name: {"skipped": TIED} for name in tied}, **notes}


def fold_masked(
    model: nn.Module,
    masked: nn.Module,
    plan: Plan,
    statistics: Statistics,
    guard: Statistics | None = None,
    ridges: Sequence[float] = RIDGES,
) -> None:
    """Fold in place into a masked copy, which keeps the shapes of the model; see `fold`.

    Args:
        model: The model that the plan was made for.
        masked: `mask(model, plan)`; it is changed.
        plan: What went.
        statistics: Gram matrices of the original model's consumers.
        guard: The same on held-out batches; without them every fold is kept.
        ridges: The ridges to choose from there; without held-out batches the first one is taken.
    """
    kept = kept_indices(plan.graph, plan.keep)
    consumers, _ = _fit_consumers(model, plan, kept, statistics, guard, ridges, noted=False)
    for consumer in consumers:
        for rows, fit in consumer.fits if consumer.better else ():
            _add_fit(
                consumer.matrix, masked, consumer.layer, {consumer.layer.weight: {}}, fit, consumer.taps, rows
            )


def _fit_consumers(
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


def _note(consumer: Consumer, why: str | None) -> dict[str, Any]:
    return {**consumer.note, "undone": why is not None} | ({} if why is None else {"why": why})


def _add_fits(merged: nn.Module, kept: Kept, consumers: Iterable[Consumer]) -> nn.Module:
    """Return a copy of the model with the fits of these consumers added."""
    result = copy.deepcopy(merged)
    for consumer in consumers:
        for rows, fit in consumer.fits:
            _add_fit(consumer.matrix, result, consumer.layer, kept, fit, consumer.taps, rows)
    return result


def _moments(statistics: Statistics, graph: PruningGraph, layer: Layer) -> Moments:
    moments = statistics.moments.get(graph.input_key(layer))
    if moments is None or (moments.gram is None and moments.root is None):
        raise InputError(
            f"a fold needs the Gram matrix of what reaches {layer.weight!r}; the statistics have "
            f"{sorted(k for k, m in statistics.moments.items() if m.gram is not None) or 'none'}: "
            "collect with 'gram' among the needs"
        )
    return moments


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
    # A transposed convolution gives each output its own taps: a constant input is no constant output.
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


def _with_taps(features: IntArray, taps: int) -> IntArray:
    """Return the numbers of all taps of these features."""
    return (features[:, None] * taps + np.arange(taps)).ravel()


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


def _outputs_by_input(matrix: Tensor, moments: Moments) -> Tensor:
    """Return the weight of some output rows as [outputs, features], as the Gram matrix numbers features."""
    W = matrix.flatten(1) if moments.taps > 1 else matrix.transpose(1, 2).flatten(0, 1)
    return W.to(moments.mean.device)


def _output_error(
    matrix: Tensor, moments: Moments, features: IntArray, regression: Regression
) -> OutputError:
    """Return the error of some output rows on the data of some moments."""
    second, mean = _second_moments(moments, features)
    return OutputError(_outputs_by_input(matrix, moments), second, mean, regression.kept, regression.removed)


def _add_fit(
    matrix: Tensor, result: nn.Module, layer: Layer, kept: Kept, fit: Fit, taps: int, rows: IntArray
) -> None:
    """Add W_R C to the kept columns, and W_R c to the bias, of some rows of the shrunk layer.

    Args:
        matrix: The original weight as [out, in, taps], float64.
        result: The shrunk model, changed in place.
        layer: The consumer.
        kept: The indices of every tensor that stay.
        fit: The coefficients.
        taps: Kernel positions that a feature number of the fit counts; 1 if all share the fit.
        rows: Output rows, before shrinking, that the fit holds for.
    """
    outputs = kept[layer.weight].get(layer.out_axis or 0, np.arange(matrix.shape[0]))
    inputs = kept[layer.weight].get(in_axis_of(layer), np.arange(matrix.shape[1]))
    rows = np.intersect1d(outputs, rows)
    if not len(rows):
        return  # the whole group of the convolution is gone
    at = torch.from_numpy(np.searchsorted(outputs, rows))[:, None]
    columns = torch.from_numpy(np.searchsorted(inputs, fit.kept // taps))
    flat = matrix[rows].flatten(1) if taps > 1 else matrix[rows].transpose(1, 2)
    gain = flat[..., fit.removed] @ fit.coefficients.to(matrix.device)
    shift = (flat[..., fit.removed] @ fit.offset.to(matrix.device)).reshape(len(rows), -1).sum(1)
    weight = result.get_parameter(layer.weight)
    values = as_matrix(weight, layer).double()
    if taps > 1:
        values[at, columns, torch.from_numpy(fit.kept % taps)] += gain
    else:
        values[at, columns] += gain.transpose(1, 2)
    set_matrix(weight, layer, values)
    if layer.bias is not None:
        with torch.no_grad():
            result.get_parameter(layer.bias)[at[:, 0]] += shift.to(weight)
