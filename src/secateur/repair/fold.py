"""Repair: fold what the removed units contributed into the weights that read the kept ones.

A reader computes W x with x = (x_K, x_R).  Where x_R ~ C x_K + c on the data, W_K + W_R C in the place
of W_K, and b + W_R c in the place of b, keep its output.  C and c come in tiers: exact merges that the
plan states; features that are dead on the data (nothing to fold); features that are positive multiples
of a kept one on the data; and least squares with a small ridge for the rest, in float64 from streamed
Gram matrices.  The same for every criterion.  A fold that does worse than none on held-out batches is
undone.

Sources: Kim et al. 2020 (neuron merging), Chee et al. NeurIPS 2022 (interpolative decompositions).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.core import InputError, IntArray, Layer, Moments, Plan, PruningGraph, Statistics
from secateur.core.indices import kept_indices

__all__ = ["FARTHER", "as_matrix", "fold", "merge", "set_matrix"]

Kept = Mapping[str, Mapping[int, IntArray]]
RIDGE = 1e-6
FARTHER = "the whole model came out farther from the original"
TINY = 1e-300
PARALLEL = 1e-12  # 1 - cos^2 below which two features count as multiples of one another


@dataclass(frozen=True, eq=False)
class Fit:
    """How the removed features of one reader follow from its kept ones.

    Attributes:
        kept: Feature numbers [K].
        removed: Feature numbers [R].
        coefficients: float64 [R, K].
        offset: float64 [R]; 0 where the reader has no bias to take it.
        dead: Features that are 0 on the data.
        parallel: Features that are multiples of a kept one on the data.
    """

    kept: IntArray
    removed: IntArray
    coefficients: Tensor
    offset: Tensor
    dead: int = 0
    parallel: int = 0


@dataclass(frozen=True, eq=False)
class Reader:
    """A reading layer with its fits.

    Attributes:
        layer: The layer.
        matrix: Its original weight as [out, in, taps], float64.
        taps: Kernel positions that a feature number of the fits counts.
        fits: Output rows, and the fit that holds for them.
        note: What is reported; ``note["undone"]`` says that the fits are not applied.
    """

    layer: Layer
    matrix: Tensor
    taps: int
    fits: tuple[tuple[IntArray, Fit], ...]
    note: dict[str, Any]


def merge(model: nn.Module, small: nn.Module, plan: Plan) -> nn.Module:
    """Return a copy of the shrunk model with the plan's exact merges folded into the readers.

    Args:
        model: The model that the plan was made for.
        small: `shrink(model, plan)`.
        plan: A plan with merges.

    Raises:
        InputError: Merged units have a reader that cannot take them.
    """
    result = copy.deepcopy(small)
    graph, kept = plan.graph, kept_indices(plan.graph, plan.keep)
    for name, merged in plan.merges.items():
        group = graph.group(name)
        consumers = graph.consumers(group)
        if len(consumers) < len(group.slots_with("in")):
            read = {slot.tensor for _, slot in consumers}
            other = [slot.tensor for slot in group.slots_with("in") if slot.tensor not in read]
            raise InputError(
                f"{name!r} cannot be merged exactly: {other} read it in a way that takes no fold"
            )
        for layer, slot in consumers:
            coefficients = torch.from_numpy(merged.coefficients)
            offset = torch.from_numpy(merged.offset)
            whole = as_matrix(model.get_parameter(layer.weight), layer).double()
            for p in range(slot.index.shape[1]):
                fit = Fit(slot.index[merged.kept, p], slot.index[merged.removed, p], coefficients, offset)
                _apply(whole, result, layer, kept, fit, 1, np.arange(len(whole)))
    return result


def fold(
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    statistics: Statistics,
    guard: Statistics | None = None,
    judge: Callable[[nn.Module], float] | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Return a repaired copy of the shrunk model, and by reading weight what the repair did.

    Args:
        model: The model that the plan was made for.
        small: `shrink(model, plan)`.
        plan: What went.
        statistics: Gram matrices of the original model's readers on calibration batches.
        guard: The same on held-out batches: a fold whose output error there is no smaller than without
            it is undone, and the note says so.
        judge: Says how far a model is from the original on held-out batches (smaller is better).  The
            fits are made one by one against the original's activations; where together they bring the
            model no nearer, they are taken back, and tried again one after the other.

    Returns:
        The model, and notes: for each reader the relative output error without (`plain`) and with
        (`folded`) repair, how many features were dead and parallel, and whether it was undone, and why.

    Raises:
        InputError: The evidence has no Gram matrix for a reader.

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
    merged = merge(model, small, plan)
    kept, consumers = kept_indices(plan.graph, plan.keep), []
    for layer in plan.graph.layers:
        if layer.in_axis in kept.get(layer.weight, {}) and layer.weight not in plan.masks:
            moments = _moments(statistics, plan.graph, layer)
            check = _moments(guard, plan.graph, layer) if guard is not None else None
            consumers.append(_fit_reader(model, plan, layer, kept, moments, check))
    result = _with(merged, kept, consumers)
    if judge is not None and not judge(result) < judge(merged):
        result = _one_by_one(merged, kept, consumers, judge)
    return result, {reader.layer.weight: reader.note for reader in consumers}


def _with(merged: nn.Module, kept: Kept, consumers: Iterable[Reader]) -> nn.Module:
    """Return a copy of the model with the fits that stand applied."""
    result = copy.deepcopy(merged)
    for reader in consumers:
        for rows, fit in reader.fits if not reader.note["undone"] else ():
            _apply(reader.matrix, result, reader.layer, kept, fit, reader.taps, rows)
    return result


def _one_by_one(
    merged: nn.Module, kept: Kept, consumers: list[Reader], judge: Callable[[nn.Module], float]
) -> nn.Module:
    """Apply the fits in the order of execution, and undo each that the judge does not like."""
    best, accepted = judge(merged), list[Reader]()
    for reader in consumers:
        if reader.note["undone"]:
            continue
        found = judge(_with(merged, kept, [*accepted, reader]))
        reader.note["undone"] = not found < best
        if reader.note["undone"]:
            reader.note["why"] = FARTHER
        if found < best:
            best = found
            accepted.append(reader)
    return _with(merged, kept, accepted)


def _moments(statistics: Statistics, graph: PruningGraph, layer: Layer) -> Moments:
    moments = statistics.moments.get(graph.input_key(layer))
    if moments is None or moments.gram is None:
        raise InputError(
            f"a fold needs the Gram matrix of what reaches {layer.weight!r}; the evidence has "
            f"{sorted(k for k, m in statistics.moments.items() if m.gram is not None) or 'none'}: "
            "collect with 'gram' among the needs"
        )
    return moments


def _fit_reader(
    model: nn.Module, plan: Plan, layer: Layer, kept: Kept, moments: Moments, check: Moments | None
) -> Reader:
    """Fit one reader, group by group of a convolution, and note what that gives."""
    matrix = as_matrix(model.get_parameter(layer.weight), layer).double()
    alive = np.zeros(matrix.shape[1], dtype=bool)
    alive[kept[layer.weight][_axis(layer)]] = True
    skip = _merged_features(plan, layer)
    # A transposed convolution gives each output its own taps: a constant input is no constant output.
    centred = layer.bias is not None and layer.kind != "conv_transpose"
    fits, here, held = [], np.zeros(3), np.zeros(3)
    for rows, inside in _blocks(layer, matrix):
        fit = _fit(moments, inside, alive, skip, centred)
        fits.append((rows, fit))
        here += _errors(matrix[rows], moments, inside, fit)
        held += _errors(matrix[rows], check or moments, inside, fit)
    note: dict[str, Any] = {"plain": float(here[0] / max(here[2], TINY))}
    note["folded"] = float(here[1] / max(here[2], TINY))
    if check is not None:
        note["held_out"] = float(held[1] / max(held[2], TINY))
    note["dead"], note["parallel"] = sum(f.dead for _, f in fits), sum(f.parallel for _, f in fits)
    note["undone"] = bool(held[1] >= held[0] > 0)
    if note["undone"]:
        note["why"] = "no better on the batches kept apart"
    return Reader(layer, matrix, moments.taps, tuple(fits), note)


def _axis(layer: Layer) -> int:
    """Return the axis along which a layer's weight reads."""
    if layer.in_axis is None:
        raise InputError(f"{layer.weight!r} reads nothing")
    return layer.in_axis


def _blocks(layer: Layer, matrix: Tensor) -> Iterator[tuple[IntArray, IntArray]]:
    """Yield the output rows and the Gram features of every group of a convolution."""
    outs, width = matrix.shape[0] // layer.groups, matrix.shape[1]
    for block in range(layer.groups):
        yield block * outs + np.arange(outs), block * width + np.arange(width)


def _merged_features(plan: Plan, layer: Layer) -> IntArray:
    """Return the in-features of a layer that an exact merge has already taken care of."""
    found = [np.zeros(0, dtype=np.int64)]
    for name, merged in plan.merges.items():
        for slot in plan.graph.group(name).slots:
            if (slot.tensor, slot.axis) == (layer.weight, layer.in_axis):
                found.append(slot.index[merged.removed].ravel())
    return np.concatenate(found)


def _fit(moments: Moments, inside: IntArray, alive: Any, skip: IntArray, centred: bool) -> Fit:
    """Express the removed features (taps included) by the kept ones, from the Gram matrix."""
    removed = np.setdiff1d(np.flatnonzero(~alive), skip)
    K, R = (_spread(f, moments.taps) for f in (np.flatnonzero(alive), removed))
    gram, mean = _block(moments, inside)
    mean = mean if centred else torch.zeros_like(mean)
    covariance = gram - torch.outer(mean, mean)
    k, r = (torch.from_numpy(i).to(gram.device) for i in (K, R))
    SKK, SRK, SRR = covariance[k][:, k], covariance[r][:, k], covariance[r, r]
    C = torch.zeros_like(SRK)
    second = gram.diagonal()
    floor = 1e-24 * second.max().clamp_min(torch.finfo(second.dtype).tiny)
    dead = second[r] <= floor
    parallel = torch.zeros_like(dead)
    if len(K) and len(R):
        parallel = _parallel(gram, k, r, dead, C)
        rest = ~(dead | parallel)
        ridge = RIDGE * SKK.diagonal().mean().clamp_min(floor)
        A = SKK + ridge * torch.eye(len(K), dtype=SKK.dtype, device=SKK.device)
        C[rest] = torch.cholesky_solve(SRK[rest].T, torch.linalg.cholesky(A)).T
    offset = mean[r] - C @ mean[k]
    offset = (
        torch.where(dead | parallel, torch.zeros_like(offset), offset) if centred else torch.zeros_like(SRR)
    )
    return Fit(K, R, C, offset, int(dead.sum()), int(parallel.sum()))


def _parallel(gram: Tensor, k: Tensor, r: Tensor, dead: Tensor, C: Tensor) -> Tensor:
    """Set the coefficient of features that are a positive multiple of a kept one; return which."""
    inner, own, other = gram[r][:, k], gram[r, r], gram[k, k]
    cosine = inner.clamp_min(0).square() / (own[:, None] * other[None]).clamp_min(torch.finfo(own.dtype).tiny)
    best, partner = cosine.max(1)
    found = (1 - best <= PARALLEL) & ~dead
    rows = found.nonzero()[:, 0]
    C[rows, partner[rows]] = inner[rows, partner[rows]] / other[partner[rows]]
    return found


def _spread(features: IntArray, taps: int) -> IntArray:
    return (features[:, None] * taps + np.arange(taps)).ravel()


def _block(moments: Moments, inside: IntArray) -> tuple[Tensor, Tensor]:
    gram = moments.gram
    if gram is None:
        raise InputError("the moments hold no Gram matrix")
    mean = moments.gram_mean if moments.gram_mean is not None else moments.mean
    index = torch.from_numpy(_spread(inside, moments.taps)).to(gram.device)
    return gram[index][:, index], mean[index]


def _errors(matrix: Tensor, moments: Moments, inside: IntArray, fit: Fit) -> Any:
    """Return the mean squared output error without and with the fold, and the output's mean square."""
    gram, mean = _block(moments, inside)
    matrix = matrix.to(gram.device)
    W = matrix.flatten(1) if moments.taps > 1 else matrix.transpose(1, 2).flatten(0, 1)
    r, k = (torch.from_numpy(i).to(gram.device) for i in (fit.removed, fit.kept))
    WR = W[:, r]
    D = torch.zeros(len(W), W.shape[1], dtype=W.dtype, device=W.device)
    D[:, r] = WR
    D[:, k] -= WR @ fit.coefficients.to(gram.device)
    c = WR @ fit.offset.to(gram.device)
    plain = float((WR @ gram[r][:, r] * WR).sum())
    folded = float((D @ gram * D).sum() - 2 * (D @ mean * c).sum() + c.square().sum())
    return np.array([plain, folded, float((W @ gram * W).sum())])


def as_matrix(weight: Tensor, layer: Layer) -> Tensor:
    """View a weight as [out, in, taps]."""
    matrix = weight.detach().movedim((layer.out_axis or 0, _axis(layer)), (0, 1))
    return matrix.flatten(2) if matrix.ndim > 2 else matrix[..., None]


def set_matrix(weight: Tensor, layer: Layer, matrix: Tensor) -> None:
    """Write a matrix [out, in, taps] into a weight, in place: the inverse of `as_matrix`."""
    order = (layer.out_axis or 0, _axis(layer))
    kernel = [n for axis, n in enumerate(weight.shape) if axis not in order]
    with torch.no_grad():
        weight.copy_(matrix.reshape(*matrix.shape[:2], *kernel).movedim((0, 1), order))


def _apply(
    whole: Tensor, result: nn.Module, layer: Layer, kept: Kept, fit: Fit, taps: int, rows: IntArray
) -> None:
    """Add W_R C to the kept columns and W_R c to the bias of these rows of the shrunk layer.

    Args:
        whole: The original weight as [out, in, taps], float64.
        result: The shrunk model, changed in place.
        layer: The reader.
        kept: What stays of every tensor.
        fit: The coefficients.
        taps: Kernel positions that a feature number of the fit counts; 1 where all share the fit.
        rows: Output rows that it holds for.
    """
    made = kept[layer.weight].get(layer.out_axis or 0, np.arange(whole.shape[0]))
    read = kept[layer.weight].get(_axis(layer), np.arange(whole.shape[1]))
    mine = np.intersect1d(made, rows)
    if not len(mine):
        return  # a group of the convolution that went whole
    at = torch.from_numpy(np.searchsorted(made, mine))[:, None]
    columns = torch.from_numpy(np.searchsorted(read, fit.kept // taps))
    flat = whole[mine].flatten(1) if taps > 1 else whole[mine].transpose(1, 2)
    gain = flat[..., fit.removed] @ fit.coefficients.to(whole.device)
    shift = (flat[..., fit.removed] @ fit.offset.to(whole.device)).reshape(len(mine), -1).sum(1)
    target = result.get_parameter(layer.weight)
    view = as_matrix(target, layer).double()
    if taps > 1:
        view[at, columns, torch.from_numpy(fit.kept % taps)] += gain
    else:
        view[at, columns] += gain.transpose(1, 2)
    set_matrix(target, layer, view)
    if layer.bias is not None:
        with torch.no_grad():
            result.get_parameter(layer.bias)[at[:, 0]] += shift.to(target)
