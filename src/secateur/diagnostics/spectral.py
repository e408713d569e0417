"""A portrait along the spectrum: connectivity of each layer before and after, leverages of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.apply.mask import mask
from secateur.core import BoolArray, Plan, PruningGraph
from secateur.core.indices import kept_axes
from secateur.diagnostics.context import Look, short
from secateur.methods.spectral.connectivity import layer_connectivity

SIDE = 2048
FEWEST, MOST = 8, 40


def spectral_portrait(look: Look) -> dict[str, Any]:
    """Return the portrait.

    Returns:
        ``"structure"``, ``"layers"`` (by weight, connectivity ``"before"`` and ``"after"``), ``"leverages"``
        (by weight, a histogram of what stays and what goes), ``"skipped"`` (by weight, why it has none).
    """
    graph, skipped = _feasible(look.plan.graph)
    before = layer_connectivity(graph, _tensors(look.model))
    after = layer_connectivity(graph, _tensors(mask(look.model, look.plan)))
    layers = {name: {"before": _plain(before[name]), "after": _plain(after[name])} for name in before}
    statistics = look.statistics(look.needs())
    found = look.method.leverages(look.plan.graph, statistics).values
    leverages = {name: _histogram(found[name], alive(look.plan, name)) for name in layers if name in found}
    return {"structure": "spectral", "layers": layers, "leverages": leverages, "skipped": skipped}


def _feasible(graph: PruningGraph) -> tuple[PruningGraph, dict[str, str]]:
    """Leave out layers whose eigenproblem is large."""
    sides = {x.weight: min(graph.shapes[x.weight][:2]) for x in graph.prunable_weights()}
    skipped = {
        w: f"{side:,} nodes on its smaller side are more than {SIDE:,}"
        for w, side in sides.items()
        if side > SIDE
    }
    return replace(graph, layers=tuple(x for x in graph.layers if x.weight not in skipped)), skipped


def _tensors(model: torch.nn.Module) -> Mapping[str, Tensor]:
    return {name: x.detach() for name, x in model.named_parameters(remove_duplicate=False)}


def _plain(found: Any) -> dict[str, Any]:
    return {key: short(value) for key, value in asdict(found).items()}


def alive(plan: Plan, weight: str) -> BoolArray:
    """Return which entries of a weight stay, of its shape: neither masked nor of a unit that goes."""
    stays = np.ones(plan.graph.shapes[weight], bool)
    for (tensor, axis), kept in kept_axes(plan.graph, plan.keep).items():
        if tensor == weight:
            stays &= np.expand_dims(kept, [i for i in range(stays.ndim) if i != axis])
    return stays & plan.masks.get(weight, True)


def _histogram(leverage: Tensor, stays: BoolArray) -> dict[str, Any]:
    """Count leverages in bins of equal ratio; weights of score 0 have none and are left out."""
    values, kept = leverage.detach().double().cpu().numpy().ravel(), stays.ravel()
    edge = values > 0
    low, high = values[edge].min(), values[edge].max()
    bins = int(np.clip(np.sqrt(edge.sum()), FEWEST, MOST))
    edges = np.geomspace(low * (1 - 1e-9), max(high, low * 1.01) * (1 + 1e-9), bins + 1)
    counts = {
        name: np.histogram(values[edge & chosen], edges)[0].tolist()
        for name, chosen in (("stays", kept), ("goes", ~kept))
    }
    means = {f"mean {name}": _mean(values[chosen]) for name, chosen in (("stays", kept), ("goes", ~kept))}
    return {"edges": short(edges), **counts, **means}


def _mean(values: np.ndarray) -> Any:
    return short(float(values.mean())) if len(values) else "none"


__all__ = ["alive", "spectral_portrait"]
