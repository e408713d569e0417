"""Unit-level Gram matrices of what readers see, and the choice of a basis among the units.

A unit can be many features of a reader (positions behind a flatten, taps of a kernel).  A removed unit is
expressed by kept units with the same coefficients at each of its places, so places count as samples: Gram
matrices add up over them, and so do, divided by their number, the readers' W^T W.  Where several layers read
a group, each weighs in relative to the size of its own output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from secateur.core import Group, InputError, IntArray, Layer, PruningGraph, Slot, Statistics
from secateur.methods.unit_sums import moments_of, reading_features
from secateur.structures.matroid import ActivationBasis, activation_basis, centered, output_error, swapped

__all__ = ["Objective", "Reading", "basis_order", "choose_basis", "reading"]

Objective = Literal["units", "output"]


@dataclass(frozen=True, eq=False)
class Reading:
    """What the readers of a group see and weigh.

    Attributes:
        gram: Covariance of the units, float64 [units, units].
        consumer: Q, float64 [units, units]: tr(Q S) is the error of the readers' outputs, relative to
            their size.
    """

    gram: Tensor
    consumer: Tensor


def reading(graph: PruningGraph, statistics: Statistics, group: Group) -> Reading:
    """Combine the readers of a group.

    Raises:
        InputError: No layer reads the group, or no Gram matrix was collected for any that does.
    """
    found = graph.consumers(group)
    parts = [(layer, slot, _covariance(graph, statistics, layer)) for layer, slot in found]
    seen = [(layer, slot, *m) for layer, slot, m in parts if m is not None]
    if not seen:
        names = ", ".join(repr(layer.weight) for layer, _ in found) or "no weight"
        raise InputError(
            f"ground='activations' needs the Gram matrix of what reads {group.name!r} ({names}): "
            f"collect it with needs={{'gram'}}, or choose ground='windows' or 'rows'"
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


def _covariance(graph: PruningGraph, statistics: Statistics, layer: Layer) -> tuple[Tensor, int] | None:
    """Return the covariance of what reaches a layer, and its taps."""
    moments = moments_of(graph, statistics, layer)
    if moments is None or moments.gram is None:
        return None
    return centered(moments.gram, moments.gram_mean), moments.taps


def _part(
    graph: PruningGraph, statistics: Statistics, layer: Layer, slot: Slot, g: Tensor, taps: int
) -> tuple[Tensor, Tensor]:
    """Return covariance and W^T W of one reader, summed over the places of each unit."""
    units = reading_features(graph, layer, slot).to(g.device)
    w = _reader(statistics.weights[layer.weight], layer).to(g)
    if taps > 1:
        units = (units[:, :, None] * taps + torch.arange(taps, device=g.device)).flatten(1)
    spread = w.shape[1] // g.shape[0]
    q = w.new_zeros(len(units), len(units))
    gram = torch.zeros_like(q)
    for place in units.T:
        gram += g[place][:, place]
        for tap in range(spread):
            columns = w[:, place * spread + tap]
            q += columns.T @ columns
    return gram, q / units.shape[1]


def _reader(weight: Tensor, layer: Layer) -> Tensor:
    """Return a reading weight as a float64 matrix [out, features * taps], tap fastest.

    The weight of a grouped convolution becomes block-diagonal: its groups read different features.
    """
    if layer.out_axis is None or layer.in_axis is None:
        raise InputError(f"layer {layer.name!r} ({layer.kind}) mixes no features and cannot weigh them")
    w = weight.detach().double().movedim((layer.out_axis, layer.in_axis), (0, 1)).flatten(1)
    return w if layer.groups == 1 else torch.block_diag(*w.chunk(layer.groups))


def basis_order(
    graph: PruningGraph, statistics: Statistics, group: Group, objective: Objective
) -> tuple[Reading, ActivationBasis]:
    """Return what the readers see, and the greedy order of the units."""
    seen = reading(graph, statistics, group)
    return seen, activation_basis(seen.gram, consumer=seen.consumer if objective == "output" else None)


def choose_basis(
    graph: PruningGraph, statistics: Statistics, group: Group, count: int, objective: Objective, swaps: int
) -> tuple[IntArray, Mapping[str, Any]]:
    """Return the units that stay, and what the plan should say of them."""
    seen, basis = basis_order(graph, statistics, group, objective)
    q = seen.consumer if objective == "output" else None
    kept = basis.order[:count]
    total = output_error(seen.gram, [], q)
    errors = [output_error(seen.gram, kept, q)]
    if swaps and 0 < count < group.size:
        kept, found = swapped(seen.gram, kept, q, limit=swaps)
        errors = found.tolist()
    note = {
        "ground": "activations",
        "objective": objective,
        "rank": basis.rank,
        "residual": errors[-1] / total if total > 0 else 0.0,
        "swaps": len(errors) - 1,
        "residual before swaps": errors[0] / total if total > 0 else 0.0,
    }
    return np.sort(kept.cpu().numpy().astype(np.int64)), note
