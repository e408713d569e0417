"""Gram matrices of a group's units as its consumers see them, and the choice of a basis among the units.

A unit can be many input features of a consumer (positions behind a flatten, taps of a kernel).  A removed
unit is expressed by kept units with the same coefficients at each of them, so they count as samples: Gram
matrices add up over them, and so do, divided by their number, the consumers' W^T W.  If several layers
consume a group, each counts relative to the size of its own output.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from secateur.core import Group, InputError, IntArray, Layer, PruningGraph, Slot, Statistics
from secateur.methods.unit_sums import moments_of, reading_features
from secateur.structures.matroid import (
    ActivationBasis,
    activation_basis,
    center_gram,
    exchange_units,
)

__all__ = ["Objective", "Reading", "basis_order", "choose_basis", "reading"]

Objective = Literal["units", "output"]
LARGE_GROUP = 2000  # units; smaller groups take a second or two


@dataclass(frozen=True, eq=False)
class Reading:
    """The inputs and the weights of a group's consumers, as matrices over its units.

    Attributes:
        gram: Covariance of the units, float64 [units, units].
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
    parts = [(layer, slot, _covariance(graph, statistics, layer)) for layer, slot in consumers]
    seen = [(layer, slot, *m) for layer, slot, m in parts if m is not None]
    if not seen:
        names = ", ".join(repr(layer.weight) for layer, _ in consumers) or "no weight"
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
    """Return the covariance of a layer's input, and its taps."""
    moments = moments_of(graph, statistics, layer)
    if moments is None or moments.gram is None:
        return None
    return center_gram(moments.gram, moments.gram_mean), moments.taps


def _part(
    graph: PruningGraph, statistics: Statistics, layer: Layer, slot: Slot, g: Tensor, taps: int
) -> tuple[Tensor, Tensor]:
    """Return covariance and W^T W of one consumer, summed over the input features of each unit."""
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


def basis_order(
    graph: PruningGraph, statistics: Statistics, group: Group, objective: Objective
) -> tuple[Reading, ActivationBasis]:
    """Return the matrices of the consumers, and the greedy order of the units."""
    matrices = reading(graph, statistics, group)
    consumer = matrices.consumer if objective == "output" else None
    return matrices, activation_basis(matrices.gram, consumer=consumer)


def choose_basis(
    graph: PruningGraph, statistics: Statistics, group: Group, count: int, objective: Objective, swaps: int
) -> tuple[IntArray, Mapping[str, Any]]:
    """Return the units that stay, and a note for the plan."""
    matrices = reading(graph, statistics, group)
    q = matrices.consumer if objective == "output" else None
    with _progress_bar(group, count) as show:
        basis = activation_basis(matrices.gram, consumer=q, count=count, on_step=show)
    kept, total = basis.order, float(basis.residuals[0])
    errors = basis.residuals[-1:].tolist()
    if swaps and 0 < count < group.size:
        kept, path = exchange_units(matrices.gram, kept, q, limit=swaps)
        errors = path.tolist()
    note = {
        "ground": "activations",
        "objective": objective,
        "rank": basis.rank,
        "residual": errors[-1] / total if total > 0 else 0.0,
        "swaps": len(errors) - 1,
        "residual before swaps": errors[0] / total if total > 0 else 0.0,
    }
    return np.sort(kept.cpu().numpy().astype(np.int64)), note


@contextmanager
def _progress_bar(group: Group, count: int) -> Iterator[Callable[[int], None] | None]:
    """Show the number of units taken, on a terminal, for a group so large that it takes seconds."""
    if group.size < LARGE_GROUP or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # slow to import
    from rich.errors import LiveError
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), transient=True)
    try:
        bar.start()
    except LiveError:  # another bar is shown already, and this rich allows only one
        yield None
        return
    task = bar.add_task(f"basis of {group.name}", total=count)
    try:
        yield lambda taken: bar.update(task, completed=taken)
    finally:
        bar.stop()
