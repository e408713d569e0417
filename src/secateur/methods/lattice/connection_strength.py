"""How strongly units influence one another, read off a network's own weights.

The strength of unit j on unit i is the Euclidean norm of all weights that lead from j to i: over the gates of
a recurrent layer, the taps of a convolution, the features that a unit consists of.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur.core import Group, IntArray, Layer, PruningGraph, Statistics

__all__ = ["across", "entering", "onto_readers", "within"]

FloatArray = NDArray[np.float64]


def within(graph: PruningGraph, statistics: Statistics, group: Group) -> FloatArray | None:
    """Return the strengths among the units of one group [from, to], or None if no weight joins them."""
    return _between(graph, statistics, group, group)


def across(graph: PruningGraph, statistics: Statistics, groups: Sequence[Group]) -> FloatArray:
    """Return the strengths among the units of all groups, one group after the other [from, to]."""

    def block(source: Group, target: Group) -> FloatArray:
        found = _between(graph, statistics, source, target)
        return np.zeros((source.size, target.size)) if found is None else found

    return np.block([[block(source, target) for target in groups] for source in groups])


def entering(graph: PruningGraph, statistics: Statistics, group: Group) -> FloatArray:
    """Return for each unit the summed strengths of the connections that enter it [units]."""
    total = np.zeros(group.size)
    for layer, slot in graph.producers(group):
        total += _sum_owned(_squares(statistics, layer), 0, slot.index).sqrt().sum(1).cpu().numpy()
    return total


def onto_readers(graph: PruningGraph, statistics: Statistics, group: Group) -> FloatArray:
    """Return the strengths of the units on all that reads them [units, readers].

    The gates of a recurrent layer are one reader: what reads is its hidden unit.
    """
    parts = []
    for layer, slot in graph.consumers(group):
        onto = _sum_owned(_squares(statistics, layer), 1, slot.index)
        parts.append(onto.reshape(layer.gates, -1, group.size).sum(0).sqrt().T.cpu().numpy())
    return np.concatenate(parts, 1) if parts else np.zeros((group.size, 0))


def _between(graph: PruningGraph, statistics: Statistics, source: Group, target: Group) -> FloatArray | None:
    made = [(id(layer), slot) for layer, slot in graph.producers(target)]
    total: Tensor | None = None
    for layer, read in graph.consumers(source):
        for _, slot in (pair for pair in made if pair[0] == id(layer)):
            block = _sum_owned(_sum_owned(_squares(statistics, layer), 0, slot.index), 1, read.index)
            total = block if total is None else total + block.to(total.device)
    return None if total is None else total.sqrt().T.cpu().numpy()


def _squares(statistics: Statistics, layer: Layer) -> Tensor:
    """Return the summed squares of a weight as [out, in]; the rows of an embedding are its inputs."""
    weight = statistics.weights[layer.weight].detach().double().square()
    if layer.in_axis is None:
        return weight.movedim(layer.out_axis or 0, 0).reshape(weight.shape[layer.out_axis or 0], -1)
    both = (layer.out_axis or 0, layer.in_axis)
    rest = [d for d in range(weight.ndim) if d not in both]
    flat = weight.sum(rest) if rest else weight
    return flat if both[0] < both[1] else flat.T


def _sum_owned(squares: Tensor, axis: int, index: IntArray) -> Tensor:
    """Add up what each unit owns along one axis of [out, in]; that axis becomes the units."""
    own = torch.as_tensor(index, device=squares.device)
    picked = squares.index_select(axis, own.reshape(-1))
    shape = (*picked.shape[:axis], *own.shape, *picked.shape[axis + 1 :])
    return picked.reshape(shape).sum(axis + 1)
