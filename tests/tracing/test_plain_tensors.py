"""Tensors that a module holds as plain attributes: they lose units like buffers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.core import PlanError, Units


class Positions(nn.Module):
    """A residual stream to which fixed positions are added, and a tensor that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up, self.down, self.last = (
            nn.Linear(*sizes) for sizes in ((7, 24), (24, 30), (30, 24), (24, 3))
        )
        self.norm = nn.LayerNorm(24)
        self.positions = torch.linspace(-1, 1, 9 * 24).reshape(1, 9, 24)
        self.unread = torch.ones(24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) + self.positions.to(x.dtype)
        return self.last(self.norm(x + self.down(torch.relu(self.up(x)))))


def test_a_plain_tensor_goes_with_the_units_that_it_is_added_to(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Positions(), torch.randn(2, 9, 7)
    result = sc.prune(model, x, Units(0.5), method="magnitude", repair=None, progress=False)
    assert result.model.positions.shape == (1, 9, 12)
    assert model.positions.shape == (1, 9, 24) and result.model.unread.shape == (24,)
    assert {g.name: g.size for g in result.graph.groups} == {"first": 24, "up": 30}
    assert "unread" not in result.graph.shapes
    result.save(tmp_path / "run")
    loaded = sc.load(tmp_path / "run", Positions)
    assert torch.equal(loaded.positions, result.model.positions)
    assert torch.equal(loaded(x), result.model(x))


def test_an_instance_without_the_plain_tensor_does_not_fit_the_plan() -> None:
    model = Positions()
    result = sc.prune(
        model, torch.randn(2, 9, 7), Units(0.5), method="magnitude", repair=None, progress=False
    )
    other = Positions()
    del other.positions
    with pytest.raises(PlanError, match="'positions', which Positions does not have"):
        sc.shrink(other, result.plan)
