"""Runs for the tests of the report: made up, but of the form that pruning gives."""

from __future__ import annotations

import itertools
import warnings

import torch
from torch import nn

import secateur as sc
from secateur.diagnostics import DIAGNOSTICS
from secateur.measure.cost import ModelCost
from secateur.measure.latency import Timing
from secateur.measure.metrics import Agreement
from secateur.report import Measurement, Report

MODELS, METHODS, REPAIRS, KEEPS = (
    ("Net", "Cell"),
    ("magnitude", "random", "taylor"),
    (None, "fold"),
    (0.5, 0.25),
)


def measurement(scale: float, quality: float) -> Measurement:
    count = int(40_000 * scale)
    times = tuple(Timing(b, 1e-4 * b * scale, 9e-5 * b, 2e-4 * b, 30, 1, "a machine") for b in (1, 64))
    return Measurement(ModelCost(count, count - 3, 4 * count, 10 * count), quality, times)


def make_report(model: str, method: str, repair: str | None, keep: float) -> Report:
    drop = 0.01 * (1 + METHODS.index(method)) / keep * (0.3 if repair else 1)
    return Report(
        model=model,
        method=method,
        budget=f"Units({keep})",
        repair=repair,
        seed=0,
        metric="accuracy",
        before=measurement(1, 0.97),
        after=measurement(keep, 0.97 - drop),
        agreement=Agreement(0.9, 0.5, 0.1, 64),
        groups={name: {"units": 64, "kept": int(64 * keep)} for name in ("fc1", "fc2")},
        frozen=[{"tensor": "fc3.weight", "axis": 0, "reason": "an output of the model", "source": "n.py:12"}],
        notes={"fc1": {"why": "</script><b>small</b>"}},
        folds={"fc2.weight": {"residual": 0.125}},
        seconds={"trace": 0.5, "plan": 0.25},
    )


def two_networks() -> list[dict]:
    """24 runs of two models on two data sets, and two that could not run."""
    cells = itertools.product(MODELS, METHODS, REPAIRS, KEEPS)
    reports = [
        {**make_report(*cell).to_dict(), "data": "digits" if cell[0] == "Net" else "rows"} for cell in cells
    ]
    failed = {"data": "rows", "model": "Cell", "repair": "none", "budget": "Units(0.5)"}
    reasons = {
        "mip": "the <layers> are no ReLU chain",
        "lattice": "no recurrent layer, nothing to order here",
    }
    return reports + [{**failed, "method": name, "status": reason} for name, reason in reasons.items()]


def several_seeds(count: int = 4) -> list[dict]:
    """Runs of one network that differ in method, budget and seed; the seeds move the quality."""
    runs = []
    for method, keep, seed in itertools.product(METHODS, KEEPS, range(count)):
        run = make_report("Net", method, None, keep).to_dict()
        run["after"]["metric"] += 0.01 * (seed - (count - 1) / 2)
        runs.append({**run, "data": "digits", "seed": seed})
    return runs


def labelled(*shape: int, classes: int = 3, batches: int = 2, seed: int = 0) -> list:
    """Batches of normal inputs with labels."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(24, *shape, generator=generator) for _ in range(batches)]
    return [(x, torch.randint(classes, (24,), generator=generator)) for x in inputs]


class Reader(nn.Module):
    """A small LSTM that reads rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(4, 10, batch_first=True), nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def perceptron() -> nn.Module:
    """A small affine-ReLU chain."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


def diagnosed_runs() -> list[dict]:
    """Runs of two small networks, each pruned along the structures that fit it, with their portraits."""
    torch.manual_seed(0)
    pairs = [(perceptron(), labelled(6)), (Reader(), labelled(5, 4))]
    runs = []
    for model, batches in pairs:
        for method in DIAGNOSTICS:
            if method == "mip" and isinstance(model, Reader):
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # on untrained networks, methods say that they know little
                result = sc.prune(
                    model, batches[0][0][:2], sc.Units(0.5), batches, method=method, repair=None
                )
                result = sc.diagnose(result, model, batches)
            runs.append({**result.report.to_dict(), "data": "noise", "status": "ok"})
    return runs
