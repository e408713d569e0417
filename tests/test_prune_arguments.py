"""Invalid arguments of `prune` and `measure`, and methods that return something else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pruning_mlp import batches, mlp, prune
from torch import nn

import secateur as sc
from secateur import core
from secateur.core import InputError, NothingToPrune, Plan


class Nameless:
    """Has a plan, but no name and no needs."""

    def plan(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"method": "magnitud"}, InputError, "did you mean 'magnitude'"),
        ({"method": Nameless}, InputError, "method must be a name in METHODS"),
        ({"method": "activation"}, InputError, r"'activation'.*\(moments\): pass data="),
        ({"repair": "fold"}, InputError, "fold.*: pass data="),
        ({"repair": "finetune"}, InputError, "pass data="),
        ({"repair": "fine-tune"}, InputError, "did you mean 'finetune'"),
        ({"schedule": 3}, InputError, "schedule"),
        ({"schedule": sc.Steps}, InputError, "schedule"),
        ({"budget": None}, InputError, "Units, Params"),
        ({"budget": 0.5}, InputError, r"Units\(0.5\); got 0.5"),
        ({"budget": sc.Tolerance(0.1, batches())}, InputError, "a schedule: prune"),
        ({"data": torch.zeros(3)}, InputError, "iterable of batches"),
        ({"ignored_layers": ["2", "9"]}, InputError, "no layer '9'"),
        ({"callback": lambda step: 3}, InputError, "callback must return a torch.nn.Module"),
        ({"callback": lambda step: mlp()}, core.PlanError, "callback's model does not fit"),
        ({"budget": sc.Units(1.0)}, NothingToPrune, "removes nothing.*"),
        ({"example_inputs": torch.zeros(2, 5)}, (core.CaptureError, InputError), r"\b5\b"),
    ],
)
def test_bad_input(change: dict[str, Any], error: Any, words: str) -> None:
    arguments = {"example_inputs": torch.zeros(2, 6), "method": "magnitude", "budget": sc.Units(0.5)}
    with pytest.raises(error, match=words):
        sc.prune(mlp(), **{**arguments, **change}, progress=False)


def test_measuring_checks_its_arguments() -> None:
    result = prune(mlp(), "magnitude", sc.Units(0.5))
    with pytest.raises(InputError, match="no metric 'f1'"):
        result.measure(batches(), "f1")
    with pytest.raises(InputError, match="empty"):
        result.measure(batches()[:0], "accuracy")
    with pytest.raises(InputError, match="'accuracy' needs batches"):
        result.measure(metric="accuracy")
    with pytest.raises(InputError, match="'test' names batches, and there are none"):
        result.measure(name="test")


@pytest.mark.parametrize("method", ["", [], {}])
def test_an_empty_method_is_not_the_default(method) -> None:
    with pytest.raises(InputError, match="method"):
        sc.prune(mlp(), torch.ones(2, 6), sc.Units(0.5), method=method)


def test_a_method_must_return_a_plan() -> None:
    class Nothing:
        name = "nothing"

        def needs(self, budget: Any) -> frozenset[str]:
            return frozenset()

        def plan(self, graph: Any, statistics: Any, budget: Any) -> None:
            return None

    with pytest.raises(InputError, match="'nothing' must return a Plan; got NoneType"):
        sc.prune(mlp(), torch.ones(2, 6), sc.Units(0.5), method=Nothing)


class Handmade:
    """A method that returns what a test wants."""

    name = "handmade"

    def __init__(self, keep=None, masks=None, needs=frozenset()) -> None:
        self.plans, self.asks = (keep or {}, masks or {}), needs

    def needs(self, budget):
        return self.asks

    def plan(self, graph, statistics, budget):
        return Plan(graph, self.name, *self.plans)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep": {"0": []}}, "keeps no unit of '0'"),
        ({"keep": {"0": [0]}, "needs": None}, "must return a set of names.*got None"),
        ({"keep": {"0": [0]}, "needs": "gram"}, "must return a set of names.*got 'gram'"),
        ({"masks": {"0.weight": np.ones((6, 4))}}, r"boolean numpy array of shape \(6, 4\).*float64"),
        ({"masks": {"0.weight": np.ones((4, 6), bool)}}, r"got bool of shape \(4, 6\)"),
        ({"masks": {"0.weight": None}}, "got NoneType"),
        ({"masks": {"0.wait": np.ones((6, 4), bool)}}, "did you mean '0.weight'"),
    ],
)
def test_what_a_method_of_ones_own_returns_is_checked(options, words: str) -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with pytest.raises((InputError, core.PlanError), match=words):
        sc.prune(net, torch.randn(2, 4), sc.Units(0.5), method=Handmade(**options), repair=None)


@pytest.mark.parametrize(
    "loader", [list, lambda batches: torch.utils.data.DataLoader(batches, batch_size=None)]
)
def test_a_bad_batch_that_is_kept_apart_has_its_own_number(loader) -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    batches = [torch.randn(5, 4) for _ in range(5)]
    batches[4][0] = float("nan")
    with pytest.raises(InputError, match="batch 4"):
        sc.prune(net, torch.randn(2, 4), sc.Units(0.5), loader(batches), method="matroid", repair="fold")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"check": torch.ones(2)}, "check must be True or False"),
        ({"progress": "no"}, "progress must be True or False"),
        ({"data": np.ones(2)}, "got one batch, a ndarray"),
        ({"blocks": np.ones(2)}, "blocks must be a number of blocks"),
        ({"check_device": 10**30}, "check_device 10+ cannot be used"),
    ],
)
def test_arguments_of_a_wrong_type(more: dict, words: str) -> None:
    given = {"data": [torch.randn(8, 4)], "method": "activation", **more}
    mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(InputError, match=words):
        sc.prune(mlp, torch.randn(2, 4), sc.Units(0.5), **given)
