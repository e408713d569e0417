"""A plan that was made before, as a method."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from secateur import Units, prune
from secateur.core import InputError
from secateur.methods.decided import Decided


def mlp(width: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 6), nn.ReLU(), nn.Linear(6, 3))


def test_the_same_units_go_and_a_repair_follows() -> None:
    model, x = mlp(), torch.randn(64, 4)
    bare = prune(model, x, Units(0.5), [x], method="activation", repair=None)
    folded = prune(model, x, Units(0.5), [x], method=Decided(bare.plan), repair="fold")
    assert folded.report.method == "activation"
    assert {name: kept.tolist() for name, kept in folded.plan.keep.items()} == {
        name: kept.tolist() for name, kept in bare.plan.keep.items()
    }
    with torch.inference_mode():
        target = model(x)
        errors = [float((r.model(x) - target).square().mean()) for r in (bare, folded)]
    assert errors[1] < errors[0]


def test_masks_are_taken_over() -> None:
    from secateur import Weights

    model, x = mlp(), torch.randn(16, 4)
    made = prune(model, x, Weights(0.3), method="magnitude").plan
    again = prune(model, x, Weights(0.3), method=Decided(made), repair=None).plan
    assert all(np.array_equal(again.masks[name], mask) for name, mask in made.masks.items())


def test_a_plan_of_another_model_is_refused() -> None:
    x = torch.randn(16, 4)
    made = prune(mlp(), x, Units(0.5), method="magnitude").plan
    with pytest.raises(InputError, match="model with other tensors"):
        prune(mlp(10), x, Units(0.5), method=Decided(made))


def test_frozen_groups_stay_whole() -> None:
    x = torch.randn(16, 4)
    made = prune(mlp(), x, Units(0.5), method="magnitude").plan
    part = prune(mlp(), x, Units(0.5), method=Decided(made), ignored_layers=["0"])
    assert list(part.plan.keep) == ["2"]
