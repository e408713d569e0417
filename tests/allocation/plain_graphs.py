"""Graphs of perceptrons without a model, and scores of their units."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from secateur.core import (
    Frozen,
    Group,
    Layer,
    PruningGraph,
    Slot,
)


def rows(count: int, per: int = 1) -> np.ndarray:
    return np.arange(count * per).reshape(count, per)


def mlp(widths: list[int], positions: tuple[float, ...] = ()) -> PruningGraph:
    """Describe an MLP with biases, hidden widths as groups."""
    shapes, layers, slots = {}, [], {i: [] for i in range(1, len(widths) - 1)}
    for i, (n_in, n_out) in enumerate(pairwise(widths)):
        shapes |= {f"{i}.weight": (n_out, n_in), f"{i}.bias": (n_out,)}
        layers.append(
            Layer(str(i), "linear", f"{i}.weight", f"{i}.bias", positions=positions[i] if positions else 1.0)
        )
        if i + 1 in slots:
            slots[i + 1] += [Slot(f"{i}.{tensor}", 0, rows(n_out), "out") for tensor in ("weight", "bias")]
        if i in slots:
            slots[i] += [Slot(f"{i}.weight", 1, rows(n_in), "in")]
    groups = tuple(Group(f"h{i}", widths[i], tuple(s)) for i, s in slots.items())
    return PruningGraph(groups, (Frozen("0.weight", 1, "input"),), tuple(layers), shapes, tuple(shapes))


def vectors(graph: PruningGraph, seed: int, levels: int = 0) -> dict[str, torch.Tensor]:
    """Scores of each group; with few levels there are many ties."""
    generator = torch.Generator().manual_seed(seed)
    if levels:
        draw = {g.name: torch.randint(levels, (g.size,), generator=generator) for g in graph.groups}
        return {k: v.double() for k, v in draw.items()}
    return {g.name: torch.rand(g.size, generator=generator, dtype=torch.float64) for g in graph.groups}
