"""Connection strengths between units, from the weights.

The strength of unit j on unit i is the Euclidean norm of all weights that lead from j to i: over the gates of
a recurrent layer, the taps of a convolution, all features of a unit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur.core import Group, IntArray, Layer, PruningGraph, Statistics

__all__ = ["across", "entering", "onto_consumers", "within"]

FloatArray = NDArray[np.float64]


def within(graph: PruningGraph, statistics: Statistics, group: Group) -> FloatArray | None:
    """Return the strengths between the units of one group [from, to], or None if no weight connects them."""
    return _between(graph, statistics, group, group)


def across(graph: PruningGraph, statistics: Statistics, groups: Sequence[Group]) -> FloatArray:
    """Return the strengths between the units of all groups, one group after the other [from, to]."""

    def block(source: Group, target: Group) -> FloatArray:
        strengths = _between(graph, statistics, source, target)
        return np.zeros((source.size, target.size)) if strengths is None else strengths

    return np.block([[block(source, target) for target in groups] for source in groups])


def entering(graph: PruningGraph, statistics: Statistics, group: Group) -> FloatArray:
    """Return the summed strengths of the connections into each unit [units]."""
    total = np.zeros(group.size)
    for layer, slot in graph.producers(group):
        total += _sum_owned(_squares(statistics, layer), 0, slot.index).sqrt().sum(1).cpu().numpy()
    return total


def onto_consumers(graph: PruningGraph, statistics: Statistics, group: Group) -> FloatArray:
    """Return the strengths from the units to their consumers [units, consumers].

    The gates of a recurrent layer are one consumer: its hidden unit.
    """
    parts = []
    for layer, slot in graph.consumers(group):
        onto = _sum_owned(_squares(statistics, layer), 1, slot.index)
        parts.append(onto.reshape(layer.gates, -1, group.size).sum(0).sqrt().T.cpu().numpy())
    return np.concatenate(parts, 1) if parts else np.zeros((group.size, 0))


def _between(graph: PruningGraph, statistics: Statistics, source: Group, target: Group) -> FloatArray | None:
    producers = [(id(layer), slot) for layer, slot in graph.producers(target)]
    total: Tensor | None = None
    for layer, read in graph.consumers(source):
        for _, slot in (pair for pair in producers if pair[0] == id(layer)):
            block = _sum_owned(_sum_owned(_squares(statistics, layer), 0, slot.index), 1, read.index)
            total = block if total is None else total + block.to(total.device)
    return None if total is None else total.sqrt().T.cpu().numpy()


def _squares(statistics: Statistics, layer: Layer) -> Tensor:
    """Return the squares of a weight, summed over taps, as [out, in]; an embedding's rows are its inputs."""
    weight = statistics.weights[layer.weight].detach().double().square()
    if layer.in_axis is None:
        return weight.movedim(layer.out_axis or 0, 0).reshape(weight.shape[layer.out_axis or 0], -1)
    both = (layer.out_axis or 0, layer.in_axis)
    rest = [d for d in range(weight.ndim) if d not in both]
    flat = weight.sum(rest) if rest else weight
    return flat if both[0] < both[1] else flat.T


def _sum_owned(squares: Tensor, axis: int, index: IntArray) -> Tensor:
    """Sum each unit's indices along one axis of [out, in]; that axis becomes the units."""
    owned = torch.as_tensor(index, device=squares.device)
    picked = squares.index_select(axis, owned.reshape(-1))
    shape = (*picked.shape[:axis], *owned.shape, *picked.shape[axis + 1 :])
    return picked.reshape(shape).sum(axis + 1)
