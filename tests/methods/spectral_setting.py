"""A traced model with statistics for the spectral method."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateur.core import Plan, PruningGraph
from secateur.statistics.collect import collect_statistics
from secateur.tracing.trace import trace


def setting(
    model: nn.Module, *shape: int, needs: set[str] | None = None, seed: int = 0
) -> tuple[PruningGraph, Any]:
    x = torch.randn(32, *shape, generator=torch.Generator().manual_seed(1))
    model.eval()
    graph = trace(model, x[:2])
    return graph, collect_statistics(model, graph, [(x, torch.arange(32) % 3)], needs or set(), seed)


def kept(plan: Plan) -> dict[str, int]:
    return {name: int(m.sum()) for name, m in plan.masks.items()}
