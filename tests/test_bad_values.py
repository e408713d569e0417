"""Values of every wrong type for every argument of public functions: an answer, or an error of our own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sc
from secateur.core import Budget, Plan, SecateurError
from secateur.report import Report
from secateur.statistics.collect import collect_statistics

VALUES = [
    3,
    -1.5,
    float("nan"),
    10**400,
    "x",
    "\ud800",
    b"x",
    [None],
    {1: 2},
    object(),
    torch.tensor(float("nan")),
    torch.ones(2),
    torch.empty(2, 6, device="meta"),
    np.array(0.5),
    np.array([object()], dtype=object),
    Path("/dev/null"),
    nn.Linear,
]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


MODEL, X = net(), torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
GRAPH = sc.trace(MODEL, X[:2])
PLAN = Plan(GRAPH, "half", {"0": np.arange(4)})
GOOD: dict[str, Any] = {
    "model": MODEL,
    "small": sc.shrink(MODEL, PLAN),
    "plan": PLAN,
    "graph": GRAPH,
    "method": "half",
    "keep": {"0": np.arange(4)},
    "example_inputs": X[:2],
    "fitting": [(X, None)],
    "batches": [(X, torch.arange(12) % 3)],
    "statistics": collect_statistics(MODEL, GRAPH, [(X, None)], {"gram"}),
    "steps": 1,
}
# What trains or sleeps for as long as it is told, and what is called as it is.
LEFT_OUT = {"minutes", "epochs", "judge", "after_step", "after_epoch", "optimizer", "loss"}
FUNCTIONS: list[Callable[..., Any]] = [sc.trace, sc.shrink, sc.mask, sc.fold, sc.refit, sc.finetune, Plan]
FUNCTIONS += [sc.Units, sc.Params, sc.Macs, sc.Bytes, sc.Latency, sc.Weights, sc.Steps, Report.from_dict]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_values_of_a_wrong_type_end_in_an_error_of_our_own(
    function: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # "x" is a good name for a checkpoint
    parameters = inspect.signature(function).parameters
    budget = isinstance(function, type) and issubclass(function, Budget)
    needed = {"keep": 0.5} if budget else {name: GOOD[name] for name in parameters if name in GOOD}
    tried = 0
    for name in parameters:
        for value in VALUES if name not in LEFT_OUT else ():
            tried += 1
            try:
                repr(function(**{**needed, name: value}))
            except SecateurError as error:
                assert str(error)
            except Exception as error:
                raise AssertionError(f"{function.__name__}({name}={value!r}): {error!r}") from error
    assert tried
