"""In-place writes through views: what is removed is right, whoever reads the memory afterwards."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.apply.shrink import shrink
from secateur.core import Plan
from secateur.tracing.trace import trace


class Written(nn.Module):
    """Something done in place between three linear layers."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.act = act
        self.first, self.second, self.last = nn.Linear(7, 16), nn.Linear(16, 18), nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.second(self.act(torch.relu(self.first(x))))))


def rotary(h: Tensor) -> Tensor:
    out = torch.empty_like(h)
    out[..., 0::2], out[..., 1::2] = h[..., 0::2] * 0.5, h[..., 1::2] * 0.7
    return out.flatten(2).expand_as(h)


def into_view(h: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    out[:, 1:] = h[:, 1:]
    return out


def view_before(h: Tensor) -> Tensor:
    turned = h.transpose(1, 2)
    h.mul_(2)
    return turned.transpose(1, 2)


def into_piece(h: Tensor) -> Tensor:
    h[:, :3].mul_(3)
    return summed(h)


def shift_piece(h: Tensor) -> Tensor:
    h[:, :3].add_(1)
    return summed(h)


def shift_behind_view(h: Tensor) -> Tensor:
    turned = h.transpose(1, 2)
    h.add_(1)
    return summed(turned.transpose(1, 2))


def shift_behind_dropout(h: Tensor) -> Tensor:
    F.dropout(h, 0.5, training=False).add_(1)
    return summed(h)


def summed(h: Tensor) -> Tensor:
    """Multiply by sums over the units, which are right only where dead values are 0."""
    return h * h.sum(-1, keepdim=True)


CASES: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "into every second entry": (rotary, 8 + 18),
    "into a view": (into_view, 16 + 18),
    "into the base of a view": (view_before, 16 + 18),
    "into a piece": (into_piece, 16 + 18),
    "not 0 where dead, in a piece": (shift_piece, 18),
    "not 0 where dead, in a base": (shift_behind_view, 18),
    "not 0 where dead, behind dropout": (shift_behind_dropout, 18),
}


@pytest.mark.parametrize("name", CASES)
def test_a_write_through_a_view_is_seen_by_all_who_share_the_memory(name: str) -> None:
    act, units = CASES[name]
    torch.manual_seed(0)
    model = Written(act).double().eval()
    graph = trace(model, torch.randn(2, 6, 7).double())
    assert sum(g.size for g in graph.groups) == units
    shrink(model, Plan(graph, "test", {g.name: np.arange(g.size)[::2] for g in graph.groups}))
