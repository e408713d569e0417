"""Statistics of the same network with permuted units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from secateur.core import Group, InputError, IntArray, Moments, PruningGraph, Statistics
from secateur.structures.relu_mip import Affine, Chain, ReLU
from secateur.structures.relu_mip.chain import Step

__all__ = ["permuted_chain", "permuted_statistics"]


def permuted_statistics(
    graph: PruningGraph, statistics: Statistics, orders: Mapping[str, IntArray]
) -> Statistics:
    """Return the statistics with permuted units: unit u of a group is unit orders[group][u] of the original.

    Raises:
        InputError: If the statistics have a flow, which is a function of the original network.
    """
    if statistics.flow is not None:
        raise InputError("a synaptic flow is a function of the original network and cannot be permuted")
    weights, gradients = dict(statistics.weights), dict(statistics.gradients)
    moments = dict(statistics.moments)
    rows: dict[str, IntArray] = {}
    for name, order in orders.items():
        group = graph.group(name)
        for slot in group.slots:
            size = weights[slot.tensor].shape[slot.axis]
            axis = _axis_permutation(slot.index, order, size)
            for tensors in (weights, gradients):
                if slot.tensor in tensors:
                    tensors[slot.tensor] = _permute(tensors[slot.tensor], slot.axis, axis)
            if slot.role == "out":
                rows[slot.tensor] = rows.get(slot.tensor, np.arange(size))[axis]
        for weight, index in _features(graph, group).items():
            if weight in moments:
                moments[weight] = _permuted_moments(moments[weight], index, order)
    return replace(
        statistics,
        weights=weights,
        gradients=gradients,
        moments=moments,
        taylor=_permute_last_axes(statistics.taylor, orders),
        activations=_permute_last_axes(statistics.activations, orders),
        chain=None if statistics.chain is None else permuted_chain(statistics.chain, rows),
    )


def permuted_chain(chain: Chain, rows: Mapping[str, IntArray]) -> Chain:
    """Return the same function with the units of its ReLUs permuted.

    Args:
        chain: An affine-ReLU chain.
        rows: Name of a ReLU -> order: its unit u is unit rows[name][u] of the original.

    Example:
        >>> W1, W2 = np.array([[1.0], [-1.0]]), np.array([[1.0, 3.0]])
        >>> chain = Chain.dense([W1, W2], [np.zeros(2), np.zeros(1)])
        >>> other = permuted_chain(chain, {"layer1": np.array([1, 0])})
        >>> other.steps[0].W.toarray().ravel().tolist(), other.logits(np.array([[2.0], [-2.0]])).tolist()
        ([-1.0, 1.0], [[2.0], [6.0]])
    """
    steps: list[Step] = []
    came = np.arange(chain.inputs)  # original index of each incoming coordinate
    for i, step in enumerate(chain.steps):
        if isinstance(step, ReLU):
            places = np.argsort(rows[step.name]) if step.name in rows else np.arange(step.size)
            steps.append(replace(step, units=places[step.units[came]]))
        elif isinstance(step, Affine):
            leaves = _leaving(chain.steps[i + 1] if i + 1 < len(chain.steps) else None, rows, step.width)
            steps.append(Affine(step.W[:, came][leaves], step.b[leaves]))
            came = leaves
        else:
            now = np.append(np.argsort(came), -1)  # so that window entries of -1 (padding) stay -1
            steps.append(replace(step, windows=now[step.windows]))
            came = np.arange(step.width)
    return Chain(tuple(steps), chain.inputs)


def _leaving(following: Step | None, rows: Mapping[str, IntArray], width: int) -> IntArray:
    """Return the order of the coordinates for a ReLU with permuted units."""
    if not isinstance(following, ReLU) or following.name not in rows:
        return np.arange(width)
    return np.argsort(np.argsort(rows[following.name])[following.units], kind="stable")


def _permute(tensor: Tensor, axis: int, order: IntArray) -> Tensor:
    return tensor.index_select(axis, torch.from_numpy(order).to(tensor.device))


def _permute_last_axes(values: Mapping[str, Tensor], orders: Mapping[str, IntArray]) -> dict[str, Tensor]:
    return {
        name: _permute(x, x.ndim - 1, orders[name]) if name in orders else x for name, x in values.items()
    }


def _features(graph: PruningGraph, group: Group) -> dict[str, IntArray]:
    features = {}
    for layer, slot in graph.consumers(group):
        width = graph.shapes[layer.weight][slot.axis]
        features[layer.weight] = np.concatenate([slot.index + g * width for g in range(layer.groups)], axis=1)
    return features


def _axis_permutation(index: IntArray, order: IntArray, size: int) -> IntArray:
    """Return the permutation of an axis that moves unit order[u] to the indices of unit u."""
    axis = np.arange(size)
    axis[index.ravel()] = index[order].ravel()
    return axis


def _permuted_moments(m: Moments, index: IntArray, order: IntArray) -> Moments:
    axis = torch.from_numpy(_axis_permutation(index, order, len(m.mean))).to(m.mean.device)
    wide = (axis[:, None] * m.taps + torch.arange(m.taps, device=axis.device)).flatten()
    return replace(
        m,
        mean=m.mean[axis],
        absolute=m.absolute[axis],
        second=m.second[axis],
        gram=None if m.gram is None else m.gram[wide][:, wide],
        gram_mean=None if m.gram_mean is None else m.gram_mean[wide],
    )
