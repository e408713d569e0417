"""The augmented matrix [W | b] of a group: one row for each unit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from secateur.core import Group, InputError, Layer, PruningGraph, Slot, Statistics

__all__ = ["augmented_rows", "eligible"]

Floats = NDArray[np.float64]


def eligible(graph: PruningGraph, group: Group) -> str:
    """Return why a group has no matrix [W | b] with one row for each unit, or "" if it has one.

    It has one if nothing acts on the units in place, and one layer without groups produces them, a row of a
    matrix or a kernel each; or if they are the units of one recurrent layer.
    """
    producers = graph.producers(group)
    if any(slot.role == "scale" for slot in group.slots):
        return f"{group.name}: a normalisation acts on its units"
    if _recurrent(producers):
        return ""
    one_row = len(producers) == 1 and producers[0][1].index.shape[1] == 1
    kinds = {layer.kind for layer, _ in producers if layer.groups == 1}
    if one_row and kinds & {"linear", "conv", "conv_transpose"}:
        return ""
    return f"{group.name}: its units are not single rows of one linear, convolutional or recurrent layer"


def augmented_rows(graph: PruningGraph, statistics: Statistics, group: Group) -> Floats:
    """Return [W | b] of a group, float64 [units, inputs + 1]; zeros if there is no bias.

    Kernels are flattened.  Units of a recurrent layer have [W_ih | W_hh | b], b = b_ih + b_hh; with gates,
    the rows of all gates side by side.

    Raises:
        InputError: If the group has none (see `eligible`), or if its weights are not finite.
    """
    reason = eligible(graph, group)
    if reason:
        raise InputError(f"[W | b] is not defined: {reason}")
    producers = graph.producers(group)
    weights = [_unit_rows(statistics, layer.weight, slot.axis, slot) for layer, slot in producers]
    biases = [_unit_rows(statistics, layer.bias, 0, slot) for layer, slot in producers if layer.bias]
    b = sum(biases) if biases else np.zeros(producers[0][1].index.shape)
    matrix = np.column_stack([*weights, b])
    if not np.isfinite(matrix).all():
        names = " or ".join(repr(layer.weight) for layer, _ in producers)
        raise InputError(f"{names} or its bias holds NaN or infinities, which have no rank")
    return matrix


def _recurrent(producers: tuple[tuple[Layer, Slot], ...]) -> bool:
    """Return whether the producers are the matrices of one recurrent layer."""
    layers = [layer for layer, _ in producers]
    shapes = {slot.index.shape for _, slot in producers}
    return {(layer.kind, layer.name) for layer in layers} == {("recurrent", layers[0].name)} and len(
        shapes
    ) == 1


def _unit_rows(statistics: Statistics, name: str, axis: int, slot: Slot) -> Floats:
    """Return what each unit owns of a tensor along an axis, flattened, [units, numbers]."""
    tensor = statistics.weights[name].detach().double().cpu().movedim(axis, 0).numpy()
    return tensor[slot.index].reshape(len(slot.index), -1)
