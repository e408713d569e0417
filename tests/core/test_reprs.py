"""Values print as short summaries, whatever their size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secateur.allocation import prunable
from secateur.core import Frozen, Group, Moments, NothingToPrune, Plan, PruningGraph, Slot, Statistics

ROWS = np.arange(64)[:, None]
GROUPS = tuple(
    Group(f"layers.{i}", 64, tuple(Slot(f"layers.{j}.weight", 0, ROWS, "out") for j in range(i + 1)))
    for i in range(40)
)
SHAPES = {f"layers.{i}.weight": (64, 64) for i in range(40)}
FROZEN = tuple(Frozen(f"w{i}", 0, "an output of the model") for i in range(300))
LARGE = PruningGraph(GROUPS, FROZEN, (), SHAPES, tuple(SHAPES))


@pytest.mark.parametrize(
    "value",
    [
        LARGE,
        LARGE.groups[-1],
        LARGE.groups[0].slots[0],
        Plan(LARGE, "magnitude", {g.name: np.arange(32) for g in GROUPS}, budget="Units(keep=0.5)"),
        Plan(LARGE, "snip", {}, {name: np.ones((64, 64), bool) for name in SHAPES}),
        Statistics(dict.fromkeys(SHAPES, torch.ones(64, 64)), gradients=dict.fromkeys(SHAPES, torch.ones(1))),
        Moments(3, torch.ones(64), torch.ones(64), torch.ones(64), torch.eye(64)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_reprs_are_short(value: object) -> None:
    lines = repr(value).splitlines()
    assert len(lines) <= 15 and all(len(line) < 160 for line in lines)
    assert str(value) == repr(value)


def test_a_graph_says_how_much_it_leaves_out() -> None:
    assert "40 groups, 2560 units, 0 layers, 300 frozen axes" in repr(LARGE)
    assert "and 32 more groups" in repr(LARGE)
    assert len(LARGE.summary().splitlines()) == 342


def test_messages_list_twenty_frozen_axes() -> None:
    with pytest.raises(NothingToPrune) as caught:
        prunable(PruningGraph((), FROZEN, (), {}, ()))
    assert str(caught.value).count("an output of the model") == 20
    assert "and 280 more: `graph.frozen` and `secateur inspect --all`" in str(caught.value)
