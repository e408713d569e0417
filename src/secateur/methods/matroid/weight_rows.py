"""The augmented matrix [W | b] of a group, where there is one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from secateur.core import Group, InputError, PruningGraph, Statistics

__all__ = ["augmented_rows", "eligible"]


def eligible(graph: PruningGraph, group: Group) -> str:
    """Say why a group has no matrix [W | b] of one row a unit, or nothing if it has.

    A linear layer makes its units, one row each, and nothing acts on them in place.
    """
    made = graph.producers(group)
    if len(made) != 1 or made[0][0].kind != "linear" or made[0][1].index.shape[1] != 1:
        return f"{group.name}: its units are no single rows of one linear layer"
    if any(slot.role == "scale" for slot in group.slots):
        return f"{group.name}: a normalisation acts on its units"
    return ""


def augmented_rows(graph: PruningGraph, statistics: Statistics, group: Group) -> NDArray[np.float64]:
    """Return [W | b] of a group, float64 [units, inputs + 1]; zeros where there is no bias.

    Raises:
        InputError: The group has none (see `eligible`), or its weights are not finite.
    """
    reason = eligible(graph, group)
    if reason:
        raise InputError(f"[W | b] is not defined: {reason}")
    layer, slot = graph.producers(group)[0]
    rows = slot.index[:, 0]
    w = statistics.weights[layer.weight].detach().double().cpu().movedim(slot.axis, 0).numpy()[rows]
    b = np.zeros(len(rows))
    if layer.bias is not None:
        b = statistics.weights[layer.bias].detach().double().cpu().numpy()[rows]
    matrix = np.column_stack([w, b])
    if not np.isfinite(matrix).all():
        raise InputError(f"{layer.weight!r} or its bias holds NaN or infinities, which have no rank")
    return matrix
