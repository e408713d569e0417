"""Sums over what the units of a group own: from tensors and slots to one number for each unit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from secateur.core import Group, InputError, Layer, Moments, PruningGraph, Slot, Statistics

__all__ = [
    "consumer_slots",
    "input_factors",
    "moments_of",
    "power_sums",
    "producer_slots",
    "reading_features",
    "unit_sums",
]


def producer_slots(graph: PruningGraph, group: Group) -> tuple[Slot, ...]:
    """Return the slots of the weights that produce a group's units, without biases.

    If no layer produces them, return the slots of the bare parameters that do; failing that, all slots.
    """
    return tuple(slot for _, slot in graph.producers(group)) or group.slots_with("out") or group.slots


def consumer_slots(graph: PruningGraph, group: Group) -> tuple[Slot, ...]:
    """Return the slots of the weights that consume a group's units."""
    return tuple(slot for _, slot in graph.consumers(group)) or group.slots_with("in")


def unit_sums(values: Mapping[str, Tensor], slots: Iterable[Slot], size: int) -> Tensor:
    """Sum tensors over everything that each unit owns.

    Args:
        values: By name, a tensor for each tensor of the slots.
        slots: The indices that the units own.
        size: Number of units.

    Returns:
        float64 [size].
    """
    return _gathered(values, slots, size, lambda t, over: t.sum(over, dtype=torch.float64))


def power_sums(weights: Mapping[str, Tensor], slots: tuple[Slot, ...], size: int, p: int) -> Tensor:
    """Sum |w|^p over everything that each unit owns, float64 [size]."""

    def reduced(t: Tensor, over: list[int]) -> Tensor:
        # Half precision would overflow.  The norm casts to float64 block by block, without a copy.
        return torch.linalg.vector_norm(t.detach(), p, over, dtype=torch.float64).pow(p)

    return _gathered(weights, slots, size, reduced)


def _gathered(
    values: Mapping[str, Tensor],
    slots: Iterable[Slot],
    size: int,
    reduced: Callable[[Tensor, list[int]], Tensor],
) -> Tensor:
    """Reduce all axes but the slot's, then sum over each unit's indices, then over the slots."""
    total: Tensor | None = None
    for slot in slots:
        tensor = values[slot.tensor].unsqueeze(-1)  # so that a vector has an axis to reduce
        line = reduced(tensor, [d for d in range(tensor.ndim) if d != slot.axis % (tensor.ndim - 1)])
        part = line[torch.as_tensor(slot.index, device=line.device)].sum(1)
        total = part if total is None else total + part.to(total.device)
    return torch.zeros(size, dtype=torch.float64) if total is None else total


def moments_of(graph: PruningGraph, statistics: Statistics, layer: Layer) -> Moments | None:
    """Return the moments of a layer's input, or None if they were not collected."""
    return statistics.moments.get(graph.input_key(layer))


def reading_features(graph: PruningGraph, layer: Layer, slot: Slot) -> Tensor:
    """Return the input features of a layer that each unit is: integers [units, features of each].

    The weight of a grouped convolution has one input axis for all its groups: index j is feature
    g * width + j of group g.  A transposed convolution's weight has the channels of all groups.
    """
    if layer.in_axis is None or layer.in_axis != slot.axis:
        raise InputError(f"layer {layer.name!r} does not read along axis {slot.axis} of {slot.tensor!r}")
    width = graph.shapes[layer.weight][layer.in_axis]
    index = torch.as_tensor(slot.index)
    groups = layer.groups if layer.kind == "conv" else 1
    return torch.cat([index + g * width for g in range(groups)], dim=1)


def input_factors(layer: Layer, values: Tensor, shape: Sequence[int]) -> Tensor:
    """Return one number for each input feature of a layer, in a shape that multiplies its weight.

    Args:
        layer: A layer with an input.
        values: A number for each input feature [features]; of a grouped convolution, those of all groups.
        shape: The shape of the weight.

    Example:
        >>> conv = Layer("conv", "conv", "conv.weight", groups=2)  # reads 4 channels, two in each group
        >>> input_factors(conv, torch.tensor([1.0, 2.0, 3.0, 4.0]), (2, 2, 1)).flatten(1)
        tensor([[1., 2.],
                [3., 4.]])
    """
    axis = layer.in_axis or 0
    if layer.kind == "conv" and layer.groups > 1:
        rows = values.view(layer.groups, shape[1]).repeat_interleave(shape[0] // layer.groups, 0)
        return rows.view(shape[0], shape[1], *[1] * (len(shape) - 2))
    return values.view([-1 if i == axis else 1 for i in range(len(shape))])
