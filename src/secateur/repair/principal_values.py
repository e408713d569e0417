"""Turn the values of attention so that positions within a head come in the order of what they do.

An attention mixes values v over tokens, and an output layer reads the result x = sum_t a_t v_t.  For any
invertible R, values R v and columns W R^-1 of the output layer give the same output.  With M = E[x x^T] =
L L^T and the columns W_j of the query heads j that share the value, take the eigenvectors U of
L^T (sum_j W_j^T W_j) L, largest eigenvalue first, and R = U^T L^-1.  Then the features R x are uncorrelated
with equal variance, and leaving out the last ones changes sum_j W_j x least: for one query head a group it is
the best approximation of the product of both matrices by one of lower rank on the data.

Source: type III of C.-H. Lin et al., "MoDeGPT: Modular Decomposition for Large Language Model Compression",
ICLR 2025, arXiv:2408.09632; here one R for all query heads of a key-value group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.core import Group, IntArray, Layer, PruningGraph
from secateur.execution import duplicate
from secateur.statistics.collect import collect_statistics
from secateur.views import view

__all__ = ["turn_values"]

WHOLE = ("heads", "key-value groups")
RIDGE = 1e-8  # of the mean variance, so that M has an inverse


@torch.no_grad()
def turn_values(
    model: nn.Module, graph: PruningGraph, batches: Sequence[Any] | None, seed: int = 0
) -> nn.Module:
    """Return a copy of a model that computes the same, with the values of each head in their principal axes.

    Args:
        model: The model.
        graph: Its trace; without groups of value positions the model itself is returned.
        batches: Calibration batches.
        seed: Seed of the pass over them.
    """
    turned = [(group, length) for group in graph.groups if (length := _head_length(graph, group)) is not None]
    if not turned or not batches:
        return model
    readers = {group.name: graph.consumers(group)[0][0] for group, _ in turned}
    keys = {name: graph.input_key(layer) for name, layer in readers.items()}
    statistics = collect_statistics(
        view(model, graph.interface), graph, batches, {"gram"}, seed, grams=keys.values()
    )
    result = duplicate(model)
    for group, length in turned:
        moments, layer = statistics.moments[keys[group.name]], readers[group.name]
        gram = moments.gram
        if gram is None:
            continue
        covariance = gram if layer.bias is None else gram - torch.outer(moments.mean, moments.mean)
        _turn(result, group, layer, length, covariance)
    return result


def _head_length(graph: PruningGraph, group: Group) -> int | None:
    """Return how many positions of a value share a key-value group; None where it is not known."""
    if group.kind != "value positions":
        return None
    read = group.slots_with("in")[0]
    if read.index.shape[1] > 1:  # the heads that share a value come one after the other
        return int(read.index[0, 1] - read.index[0, 0])
    jumps = np.flatnonzero(np.diff(group.slots_with("out")[0].index[:, 0]) != 1)
    if len(jumps):  # queries and keys lie between the values of two heads
        return int(jumps[0]) + 1
    heads = (s for g in graph.groups if g.kind in WHOLE for s in g.slots)
    return next((s.index.shape[1] for s in heads if (s.tensor, s.axis) == (read.tensor, read.axis)), None)


def _turn(model: nn.Module, group: Group, layer: Layer, length: int, covariance: Tensor) -> None:
    """Turn the values of one attention, in place."""
    axis = group.slots_with("in")[0].axis
    output = model.get_parameter(layer.weight).movedim(axis, 1)
    made = [model.get_parameter(s.tensor).movedim(s.axis, 0) for s in group.slots_with("out")]
    for rows, columns in _shared(group, length):
        C = torch.from_numpy(columns).to(output.device)
        W = output[:, C].double()  # [out, heads, positions]
        M = covariance[C[:, :, None], C[:, None]].sum(0).to(W)
        B = torch.einsum("ohp,ohq->pq", W, W)
        scale = M.diagonal().mean().clamp_min(torch.finfo(M.dtype).tiny)
        M.diagonal().add_(RIDGE * scale)
        L = torch.linalg.cholesky(M)
        U = torch.linalg.eigh(L.T @ B @ L).eigenvectors.flip(1)
        back = L @ U / scale.sqrt()  # values keep their size on the whole
        turn = torch.linalg.inv(back)
        output[:, C] = (W @ back).to(output.dtype)
        r = torch.from_numpy(rows).to(output.device)
        for tensor in made:
            tensor[r] = (turn @ tensor[r].double().to(turn.device)).to(tensor)


def _shared(group: Group, length: int) -> Iterator[tuple[IntArray, IntArray]]:
    """Yield, for each key-value group, the rows of its value and the columns [heads, positions]."""
    values, columns = group.slots_with("out")[0].index[:, 0], group.slots_with("in")[0].index
    for start in range(0, group.size, length):
        units = np.arange(start, start + length)
        yield values[units], columns[units].T
