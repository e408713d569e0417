"""Zero units: give layers that have lost too many for a file format some removed units back, as zeros.

A unit whose tensors are all zero adds nothing to what reads it, so the outputs stay the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from secateur.apply.kept_tensors import state_without_places
from secateur.core import IntArray, PruningGraph
from secateur.core.indices import kept_indices

__all__ = ["pad_with_zeros", "widen", "widen_to_even"]

Keep = Mapping[str, IntArray]


def widen(graph: PruningGraph, keep: Keep, counts: Mapping[str, int]) -> dict[str, IntArray]:
    """Return `keep` with so many more units, the first removed ones, that groups have these counts."""
    wide = dict(keep)
    for name, count in counts.items():
        size = graph.group(name).size
        kept = np.asarray(keep.get(name, np.arange(size)))
        gone = np.setdiff1d(np.arange(size), kept)
        wide[name] = np.sort(np.concatenate([kept, gone[: count - len(kept)]]))
    return wide


def widen_to_even(graph: PruningGraph, keep: Keep) -> dict[str, IntArray]:
    """Return `keep` with every group as wide as the widest in the same place of repeated layers."""
    counts: dict[str, int] = {}
    for groups in graph.with_even_layers().counted_together():
        widest = max(len(keep.get(g.name, range(g.size))) for g in groups)
        counts |= {g.name: widest for g in groups if g.name in keep}
    return widen(graph, keep, counts)


def pad_with_zeros(model: nn.Module, graph: PruningGraph, keep: Keep, wide: Keep) -> dict[str, Tensor]:
    """Return the state dict of a pruned model, with zeros for the units of `wide` that are not in `keep`.

    Args:
        model: The pruned model.
        graph: The graph of the original.
        keep: The units that it has.
        wide: The units that it shall have.

    Returns:
        By name; tied tensors are the same tensor under each name.
    """
    have, want = kept_indices(graph, keep), kept_indices(graph, wide)
    padded: dict[str, Tensor] = {}
    state = state_without_places(model)
    for name, tensor in state.items():
        first = graph.aliases.get(name, name)
        if first in padded:
            state[name] = padded[first]
            continue
        value = tensor.detach()
        for axis, index in have.get(first, {}).items():
            positions = want.get(first, {}).get(axis, np.arange(graph.shapes[first][axis]))
            value = _spread(value, axis, np.searchsorted(positions, index), len(positions))
        state[name] = padded[first] = value
    return state


def _spread(tensor: Tensor, axis: int, positions: Iterable[int], length: int) -> Tensor:
    """Return a longer tensor with the slices of `tensor` at these positions, and zeros elsewhere."""
    index = torch.as_tensor(positions, device=tensor.device)
    if len(index) == length:
        return tensor
    shape = [*tensor.shape[:axis], length, *tensor.shape[axis + 1 :]]
    return torch.zeros(shape, dtype=tensor.dtype, device=tensor.device).index_copy_(axis, index, tensor)
