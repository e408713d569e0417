"""Gram matrices of a group's units as its consumers see them.

A unit can be many input features of a consumer (positions behind a flatten, taps of a kernel).  A removed
unit is expressed by kept units with the same coefficients at each of them, so they count as samples: Gram
matrices add up over them, and so do, divided by their number, the consumers' W^T W.  If several layers
consume a group, each counts relative to the size of its own output.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.core import Group, InputError, Layer, PruningGraph, Slot, Statistics
from secateur.methods.unit_sums import moments_of, reading_features
from secateur.structures.matroid import center_gram

__all__ = ["Reading", "reading"]


@dataclass(frozen=True, eq=False)
class Reading:
    """The inputs and the weights of a group's consumers, as matrices over its units.

    Attributes:
        gram: Mean of x x^T over the data, float64 [units, units], less the outer product of the means where
            the consumer has a bias to take what is constant.
        consumer: Q, float64 [units, units]: tr(Q S) is the error of the consumers' outputs, relative to
            their size.
    """

    gram: Tensor
    consumer: Tensor


def reading(graph: PruningGraph, statistics: Statistics, group: Group) -> Reading:
    """Combine the consumers of a group.

    Raises:
        InputError: If no layer consumes the group, or if the statistics have no Gram matrix of any that does.
    """
    consumers = graph.consumers(group)
    parts = [(layer, slot, _unit_moments(graph, statistics, layer)) for layer, slot in consumers]
    seen = [(layer, slot, *m) for layer, slot, m in parts if m is not None]
    if not seen:
        names = ", ".join(repr(layer.weight) for layer, _ in consumers) or "no weight"
        raise InputError(
            f"there is no Gram matrix of what reads {group.name!r} ({names}): collect it with "
            f"needs={{'gram'}} on data that reaches it, or choose a criterion on weights alone"
        )
    shares = [_scaled(*_part(graph, statistics, *part)) for part in seen]
    gram, consumer = shares[0]
    for g, q in shares[1:]:
        gram, consumer = gram + g.to(gram), consumer + q.to(consumer)
    return Reading(gram / len(seen), consumer / len(seen))


def _scaled(g: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Scale to tr G = 1 and tr(Q G) = 1, where they are not zero."""
    size, output = float(g.diagonal().sum()), float((g * q).sum())
    return g / (size or 1.0), q * (size / output if output > 0 else 0.0)


def _unit_moments(graph: PruningGraph, statistics: Statistics, layer: Layer) -> tuple[Tensor, int] | None:
    """Return second moments of a layer's input, and its taps.

    A fold moves what is constant into the bias, so only the variation counts there.  Without a bias the
    constant part of a removed unit must come from the kept ones.  A transposed convolution gives each output
    its own taps, so a constant input does not give a constant output.
    """
    moments = moments_of(graph, statistics, layer)
    if moments is None or moments.gram is None:
        return None
    centred = layer.bias is not None and layer.kind != "conv_transpose"
    return center_gram(moments.gram, moments.gram_mean if centred else None), moments.taps


def _part(
    graph: PruningGraph, statistics: Statistics, layer: Layer, slot: Slot, g: Tensor, taps: int
) -> tuple[Tensor, Tensor]:
    """Return second moments and W^T W of one consumer, summed over the input features of each unit."""
    units = reading_features(graph, layer, slot).to(g.device)
    w = _weight_matrix(statistics.weights[layer.weight], layer).to(g)
    if taps > 1:
        units = (units[:, :, None] * taps + torch.arange(taps, device=g.device)).flatten(1)
    spread = w.shape[1] // g.shape[0]
    q = w.new_zeros(len(units), len(units))
    gram = torch.zeros_like(q)
    for feature in units.T:  # the k-th feature of every unit at once
        gram += g[feature][:, feature]
        for tap in range(spread):
            columns = w[:, feature * spread + tap]
            q += columns.T @ columns
    return gram, q / units.shape[1]


def _weight_matrix(weight: Tensor, layer: Layer) -> Tensor:
    """Return a consuming weight as a float64 matrix [out, features * taps], tap fastest.

    The weight of a grouped convolution becomes block-diagonal: its groups read different features.
    """
    if layer.out_axis is None or layer.in_axis is None:
        raise InputError(f"layer {layer.name!r} ({layer.kind}) mixes no features and cannot weigh them")
    w = weight.detach().double().movedim((layer.out_axis, layer.in_axis), (0, 1)).flatten(1)
    return w if layer.groups == 1 else torch.block_diag(*w.chunk(layer.groups))
