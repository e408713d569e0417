"""The choice of a basis among the units of a group, from the matrices of its consumers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from torch import Tensor

from secateur.core import Group, IntArray, PruningGraph, Statistics
from secateur.methods.unit_grams import Reading, reading
from secateur.progress import progress_bar
from secateur.structures.matroid import ActivationBasis, activation_basis, exchange_units

__all__ = ["Objective", "basis_order", "choose_basis"]

Objective = Literal["weighted", "output", "units"]
LARGE_GROUP = 2000  # units; smaller groups take a second or two


def basis_order(
    graph: PruningGraph, statistics: Statistics, group: Group, objective: Objective
) -> tuple[Reading, ActivationBasis]:
    """Return the matrices of the consumers, and the greedy order of the units."""
    matrices = reading(graph, statistics, group)
    gram, consumer = _choose_matrices(matrices, objective)
    return matrices, activation_basis(gram, consumer=consumer)


def _choose_matrices(matrices: Reading, objective: Objective) -> tuple[Tensor, Tensor | None]:
    """Return G and Q of the error tr(Q S) that is to be small; None stands for Q = I, and pivoted Cholesky.

    If the unexplained part of unit u weighs |w_u|, the norm of the weights that read it, the error is
    tr(D S) with D_uu = |w_u|: that of units which are sqrt(|w_u|) times as large.
    """
    if objective == "output":
        return matrices.gram, matrices.consumer
    if objective == "units":
        return matrices.gram, None
    scale = matrices.consumer.diagonal().clamp(min=0) ** 0.25
    return scale[:, None] * matrices.gram * scale, None


def choose_basis(
    graph: PruningGraph, statistics: Statistics, group: Group, count: int, objective: Objective, swaps: int
) -> tuple[IntArray, Mapping[str, Any]]:
    """Return the units that stay, and a note for the plan."""
    gram, q = _choose_matrices(reading(graph, statistics, group), objective)
    with progress_bar(f"basis of {group.name}", count, group.size >= LARGE_GROUP) as show:
        basis = activation_basis(gram, consumer=q, count=count, on_step=show)
    kept, total = basis.order, float(basis.residuals[0])
    errors = basis.residuals[-1:].tolist()
    if swaps and 0 < count < group.size:
        kept, path = exchange_units(gram, kept, q, limit=swaps)
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
