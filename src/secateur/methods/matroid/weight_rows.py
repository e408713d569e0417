"""The augmented matrix [W | b] of a group whose units are rows of one linear layer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from secateur.core import Group, InputError, PruningGraph, Statistics

__all__ = ["augmented_rows", "eligible"]


def eligible(graph: PruningGraph, group: Group) -> str:
    """Return why a group has no matrix [W | b] with one row for each unit, or "" if it has one.

    It has one if one linear layer produces the units, one row each, and nothing acts on them in place.
    """
    producers = graph.producers(group)
    one_row = len(producers) == 1 and producers[0][1].index.shape[1] == 1
    if not one_row or producers[0][0].kind != "linear":
        return f"{group.name}: its units are not single rows of one linear layer"
    if any(slot.role == "scale" for slot in group.slots):
        return f"{group.name}: a normalisation acts on its units"
    return ""


def augmented_rows(graph: PruningGraph, statistics: Statistics, group: Group) -> NDArray[np.float64]:
    """Return [W | b] of a group, float64 [units, inputs + 1]; zeros if there is no bias.

    Raises:
        InputError: If the group has none (see `eligible`), or if its weights are not finite.
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
