"""A perceptron with a norm and dropout, and batches with labels."""

from __future__ import annotations

import torch
from torch import nn


def batches(count: int = 4, rows: int = 8) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    xs = torch.randn(count, rows, 6, generator=generator)
    return [(x, (x[:, 0] > 0).long()) for x in xs]


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
