"""Sums over what the units of a group own: from tensors and slots to one number a unit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from secateur.core import Group, InputError, Layer, Moments, PruningGraph, Slot, Statistics

__all__ = ["consumers", "moments_of", "power_sums", "producers", "reading_features", "unit_sums"]


def producers(graph: PruningGraph, group: Group) -> tuple[Slot, ...]:
    """Return the slots of the weights that make a group's units, without biases.

    Where no weighted layer makes them (bare parameters), every slot that does; where none does, all.
    """
    return tuple(slot for _, slot in graph.producers(group)) or group.producers() or group.slots


def consumers(graph: PruningGraph, group: Group) -> tuple[Slot, ...]:
    """Return the slots of the weights that read a group's units."""
    return tuple(slot for _, slot in graph.consumers(group)) or group.consumers()


def unit_sums(values: Mapping[str, Tensor], slots: Iterable[Slot], size: int) -> Tensor:
    """Sum tensors over everything that each unit owns.

    Args:
        values: A tensor for each tensor named in the slots.
        slots: Where the units sit.
        size: Number of units.

    Returns:
        float64 [size].
    """
    return _gathered(values, slots, size, lambda t, over: t.sum(over, dtype=torch.float64))


def power_sums(weights: Mapping[str, Tensor], slots: tuple[Slot, ...], size: int, p: int) -> Tensor:
    """Sum |w|^p over everything that each unit owns, float64 [size]."""

    def reduced(t: Tensor, over: list[int]) -> Tensor:
        # In float64: half precision would lose, and overflow.  The norm casts block by block, without a copy.
        return torch.linalg.vector_norm(t.detach(), p, over, dtype=torch.float64).pow(p)

    return _gathered(weights, slots, size, reduced)


def _gathered(
    values: Mapping[str, Tensor],
    slots: Iterable[Slot],
    size: int,
    reduced: Callable[[Tensor, list[int]], Tensor],
) -> Tensor:
    """Add up, for each unit, what lies at its indices of each slot's axis, the other axes reduced."""
    total: Tensor | None = None
    for slot in slots:
        tensor = values[slot.tensor].unsqueeze(-1)  # so that a vector, too, has an axis to reduce
        line = reduced(tensor, [d for d in range(tensor.ndim) if d != slot.axis % (tensor.ndim - 1)])
        part = line[torch.as_tensor(slot.index, device=line.device)].sum(1)
        total = part if total is None else total + part.to(total.device)
    return torch.zeros(size, dtype=torch.float64) if total is None else total


def moments_of(graph: PruningGraph, statistics: Statistics, layer: Layer) -> Moments | None:
    """Return the statistics of what reaches a layer, or None if they were not gathered."""
    return statistics.moments.get(graph.input_key(layer))


def reading_features(graph: PruningGraph, layer: Layer, slot: Slot) -> Tensor:
    """Return which input features of a layer each unit is: integers [units, features a unit].

    A grouped convolution's weight has one input axis for all its groups: index j is feature
    g * width + j of group g.  That of a transposed convolution has the channels of all groups.
    """
    if layer.in_axis is None or layer.in_axis != slot.axis:
        raise InputError(f"layer {layer.name!r} does not read along axis {slot.axis} of {slot.tensor!r}")
    width = graph.shapes[layer.weight][layer.in_axis]
    index = torch.as_tensor(slot.index)
    groups = layer.groups if layer.kind == "conv" else 1
    return torch.cat([index + g * width for g in range(groups)], dim=1)
