"""Plans and scores of a criterion on three small models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from secateur.core import (
    Budget,
    Plan,
    PruningGraph,
    Units,
    Weights,
)
from secateur.methods import (
    Method,
)
from secateur.statistics.collect import collect_statistics
from secateur.tracing.trace import trace


def make(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, PruningGraph, list[Any]]:
    """A small model, its trace, and two batches."""
    torch.manual_seed(1)
    conv = [nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, groups=2), nn.ReLU()]
    dense = [nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4)]
    models = {
        "mlp": lambda: nn.Sequential(*dense),
        "cnn": lambda: nn.Sequential(*conv, nn.Flatten(), nn.Linear(8 * 16, 4)),
        "lstm": LastState,
    }
    shapes = {"mlp": (5,), "cnn": (1, 8, 8), "lstm": (6, 3)}
    model = models[name]().to(dtype).eval()
    batches = [(torch.randn(n, *shapes[name]).to(dtype), torch.randint(4, (n,))) for n in (7, 5)]
    return model, trace(model, batches[0][0]), batches


class LastState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.head = nn.LSTM(3, 10, 2, batch_first=True, bidirectional=True), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x)[0][:, -1])


def plan(method: Method, budget: Budget, name: str = "mlp", seed: int = 0) -> Plan:
    model, graph, batches = make(name)
    return method.plan(graph, collect_statistics(model, graph, batches, method.needs(budget), seed), budget)


def scores(method: Any, name: str = "mlp", weights: bool = False) -> dict[str, Tensor]:
    model, graph, batches = make(name)
    budget = Weights(0.5) if weights else Units(0.5)
    statistics = collect_statistics(model, graph, batches, method.needs(budget))
    return dict((method.weight_scores if weights else method.unit_scores)(graph, statistics))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b.detach().double(), rtol=1e-10, atol=1e-12)
