"""Budgets with a share for each layer."""

from __future__ import annotations

import numpy as np
import pytest
from plain_graphs import mlp

from secateur.allocation import (
    allocate,
)
from secateur.allocation.schedule import remaining_budget
from secateur.apply.compose import restrict
from secateur.core import (
    InputError,
    Units,
)


def test_a_budget_can_give_each_layer_its_share() -> None:
    graph = mlp([3, 10, 20, 30, 2])
    found = allocate(graph, Units({"h1": 0.5, "h?": 0.2, "h3": 1.0}))
    assert found.counts == {"h1": 5, "h2": 4, "h3": 30}
    assert found.reached == found.target == 39 / 60
    assert allocate(graph, Units({"h2": 0.21}, round_to=8)).counts == {"h1": 10, "h2": 8, "h3": 30}
    assert allocate(graph, Units({"0": 0.5})).counts == {"h1": 5, "h2": 20, "h3": 30}  # a module's name


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"h4": 0.5}, "no group or module 'h4'; did you mean"),
        ({"x*": 0.5}, r"no group or module matches the pattern 'x\*'"),
        ({"h*": 0.5, "h[12]": 0.2}, "group 'h1' has several shares"),
        ({"h1": 0.5, "floor": 1.0}, "no group or module 'floor'"),
    ],
)
def test_shares_for_layers_that_do_not_exist(keep: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        allocate(mlp([3, 4, 5, 2]), Units(keep))


def test_steps_of_a_budget_by_layer_end_in_its_counts() -> None:
    graph, budget = mlp([3, 10, 20, 30, 2]), Units({"h1": 0.3, "h2": 0.55})
    left = graph
    for step in (1, 2, 3):
        counts = allocate(left, remaining_budget(graph, left, budget.after(step / 3))).counts
        left = restrict(left, {name: np.arange(n) for name, n in counts.items()})
    assert [g.size for g in left.groups] == list(allocate(graph, budget).counts.values()) == [3, 11, 30]
