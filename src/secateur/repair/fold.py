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
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.apply.copying import check_tensors
from secateur.core import InputError, IntArray, Layer, Plan, Statistics, shorten
from secateur.core.indices import kept_indices
from secateur.execution import check_calls, check_module
from secateur.repair.consumer_fit import RIDGES, Consumer, Kept, fit_consumers
from secateur.repair.regression import Fit
from secateur.repair.weight_matrix import as_matrix, in_axis_of, set_matrix

__all__ = ["FARTHER", "NO_BETTER", "fold", "fold_masked", "merge"]

Judge = Callable[[nn.Module], float]
FARTHER = "the whole model came out farther from the original"
TIED = "the same weight also produces these units (tied)"
NO_BETTER = "no better on the batches kept apart"


def merge(model: nn.Module, small: nn.Module, plan: Plan) -> nn.Module:
    """Return a copy of the shrunk model with the plan's exact merges folded into the consumers.

    Args:
        model: The model that the plan was made for.
        small: `shrink(model, plan)`.
        plan: A plan with merges.

    Raises:
        InputError: If no fold can change how a layer reads merged units.
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
                f"cannot merge units of {name!r} exactly: no fold can change how {shorten(other)} read them"
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
    consumers, tied = fit_consumers(model, plan, kept, statistics, guard)
    undone = {x.layer.weight: NO_BETTER for x in consumers if not x.better}
    accepted = [x for x in consumers if x.better]
    result = copy.deepcopy(merged)
    _add_fits(result, kept, accepted)
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
    consumers, _ = fit_consumers(model, plan, kept, statistics, guard, ridges, noted=False)
    whole: Kept = {x.layer.weight: {} for x in consumers}
    _add_fits(masked, whole, [x for x in consumers if x.better])


def _note(consumer: Consumer, why: str | None) -> dict[str, Any]:
    return {**consumer.note, "undone": why is not None} | ({} if why is None else {"why": why})


def _add_fits(result: nn.Module, kept: Kept, consumers: Iterable[Consumer]) -> None:
    """Add the fits of these consumers to the model, in place."""
    for consumer in consumers:
        for rows, fit in consumer.fits:
            _add_fit(consumer.matrix, result, consumer.layer, kept, fit, consumer.taps, rows)


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
