"""A small trained network for tests of `prune`, and what they compare."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import secateur as sc

Batches = list[tuple[Tensor, Tensor]]


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3))


def batches(count: int = 5, rows: int = 16, seed: int = 1) -> Batches:
    generator = torch.Generator().manual_seed(seed)
    xs = torch.randn(count, rows, 6, generator=generator)
    return [(x, x[:, :3].argmax(1)) for x in xs]


def trained_mlp() -> nn.Module:
    torch.manual_seed(0)
    return sc.finetune(mlp(), batches(20), epochs=15, lr=0.01, progress=False)[0]


def prune(
    model: nn.Module, method: Any, budget: Any = None, data: Any = None, repair: Any = None, **kwargs: Any
) -> sc.Result:
    kwargs = {"method": method, "repair": repair, "progress": False, **kwargs}
    return sc.prune(model, torch.zeros(2, 6), budget, data, **kwargs)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def same_state(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def fits(result: sc.Result, make: Callable[[], nn.Module] = mlp) -> bool:
    """Say whether replaying the plan on a fresh instance gives the shapes of the pruned model."""
    fresh = sc.shrink(make(), result.plan, check=False)
    return [p.shape for p in fresh.parameters()] == [p.shape for p in result.model.parameters()]
