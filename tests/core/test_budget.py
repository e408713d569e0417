"""Budgets: shares, limits, and several at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import secateur as sc
from secateur.core import Budgets, InputError
from secateur.core.budget import as_budget


def test_a_limit_becomes_a_share() -> None:
    budget = sc.Bytes(megabytes=3, scope="erk", floor=2)
    assert budget.as_share(12e6) == sc.Bytes(0.25, scope="erk", floor=2)
    assert budget.as_share(2e6).keep == 1
    assert sc.Bytes(0.5).as_share(12e6) == sc.Bytes(0.5)


def test_a_list_of_budgets_is_one() -> None:
    both = as_budget([sc.Macs(0.5, floor=2, round_to=4), sc.Bytes(0.7, scope="erk", round_to=6)])
    assert isinstance(both, Budgets)
    assert (both.scope, both.floor, both.round_to) == ("erk", 2, 12)
    assert repr(both) == "[Macs(0.5, floor=2, round_to=4), Bytes(0.7, scope='erk', round_to=6)]"
    assert [part.scope for part in both.with_scope("loss").parts] == ["loss", "loss"]
    assert [part.keep for part in both.after(0.5).parts] == [0.5**0.5, 0.7**0.5]
    assert [part.keep for part in both.at_least(0.6).parts] == [0.6, 0.7]
    assert both.at_least(0.4) == both
    assert as_budget([sc.Macs(0.5)]) == sc.Macs(0.5)


def test_steps_and_tolerances_take_several_budgets() -> None:
    both = as_budget([sc.Macs(0.25), sc.Params(0.81)])
    assert [repr(goal) for goal in sc.Steps(2).goals(both)] == ["[Macs(0.5), Params(0.9)]", repr(both)]
    batches = [([[0.0]], [0])]
    goals = [repr(goal) for goal in sc.Tolerance(0.1, batches, step=0.4).goals(both)]
    assert goals == ["[Macs(0.6), Params(0.81)]", repr(both)]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sc.Bytes(), r"either a share or megabytes: Bytes\(0.5\)"),
        (lambda: sc.Bytes(0.5, megabytes=2), "either a share or megabytes"),
        (lambda: sc.Bytes(megabytes=-1), "positive number; got -1"),
        (lambda: sc.Bytes(megabytes=float("nan")), "positive number; got nan"),
        (lambda: sc.Bytes(1.5), r"Bytes.keep must be a number in \(0, 1\]"),
        (lambda: as_budget([]), r"must say what it counts.*got \[\]"),
        (lambda: as_budget([sc.Macs(0.5), 0.5]), "must say what it counts"),
        (lambda: as_budget([sc.Macs(0.5), sc.Macs(0.6, floor=2)]), r"same amount: give the smaller"),
        (lambda: as_budget([sc.Bytes(0.5), sc.Bytes(megabytes=2)]), r"same amount: give the smaller"),
        (lambda: sc.Macs(0.5, np.ones(2)), "no scope"),
        (lambda: sc.Weights(0.5, np.ones(2)), "no scope"),
        (lambda: sc.Params(0.5, of=np.ones(2)), "no choice of parameters"),
        (lambda: as_budget([sc.Macs(0.5, "erk"), sc.Bytes(0.5, "layer")]), "one scope; got erk, layer"),
        (lambda: as_budget([sc.Macs(0.5), sc.Weights(0.5)]), r"Weights\(0.5\) does not"),
        (lambda: as_budget([sc.Macs(0.5), sc.Units({"a": 0.5})]), "of the whole network"),
    ],
)
def test_budgets_that_are_wrong(make: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()
