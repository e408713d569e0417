"""A comparison of methods in which it is known who must win."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from secateur.bench.benchmark import Bench

PLANTED = '''
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from secateur.allocation import prunable
from secateur.methods import ScoreMethod


def make(seed=0):
    """Four units that decide the class, twelve loud ones that do not, in an order that the seed decides."""
    g = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    order = torch.randperm(16, generator=g)
    with torch.no_grad():
        model[0].weight.copy_(3 * torch.randn(16, 8, generator=g))
        model[0].bias.copy_(torch.randn(16, generator=g))
        model[2].weight.copy_(0.01 * torch.randn(4, 16, generator=g))
        model[2].bias.zero_()
        for at in range(4):
            model[0].weight[at] = 0.0
            model[0].weight[at, at // 2] = 1.0 if at % 2 == 0 else -1.0
            model[0].bias[at] = 0.0
        signs = torch.tensor([[1.0, -1, 1, -1], [1, -1, -1, 1], [-1, 1, 1, -1], [-1, 1, -1, 1]])
        model[2].weight[:, :4] = signs
        model[0].weight.copy_(model[0].weight[order])
        model[0].bias.copy_(model[0].bias[order])
        model[2].weight.copy_(model[2].weight[:, order])
    return model


def single():
    return make(0)


def examples(seed, count):
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    y = 2 * (x[:, 0] < 0).long() + (x[:, 1] < 0).long()
    return list(zip(x.split(50), y.split(50), strict=True))


def fit():
    return examples(1, 200)


def held():
    return examples(2, 400)


def half_known():
    return [*fit()[:3], *held()[:1]]


def branching():
    class Branching(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x
    return Branching(8, 4)


@dataclass(frozen=True, kw_only=True)
class Truth(ScoreMethod):
    """Told which units decide."""

    name: ClassVar[str] = "truth"

    def needs(self, budget):
        return frozenset()

    def unit_scores(self, network, evidence):
        return {group.name: evidence.weights["2.weight"].abs().amax(0) for group in prunable(network)}


@dataclass(frozen=True, kw_only=True)
class Twin(Truth):
    """The same, under another name."""

    name: ClassVar[str] = "twin"


@dataclass(frozen=True, kw_only=True)
class Refuses(Truth):
    """Refuses."""

    name: ClassVar[str] = "refuses"

    def unit_scores(self, network, evidence):
        from secateur.core import PlanError
        raise PlanError("not for this network")


@dataclass(frozen=True, kw_only=True)
class Broken(Truth):
    """Has a mistake."""

    name: ClassVar[str] = "broken"

    def unit_scores(self, network, evidence):
        return 1 / 0
'''


def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder with planted.py the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "160")
    (tmp_path / "planted.py").write_text(PLANTED)
    return tmp_path


def bench(model: str = "make", **more) -> Bench:
    given = {
        "methods": ["planted.py:Truth", "planted.py:Twin", "magnitude"],
        "ratios": [0.25],
        "seeds": [0, 1, 2, 3, 4],
        "repairs": ["none"],
        "draws": 1,
        "latency": False,
    }
    return Bench(f"planted.py:{model}", "planted.py:fit", "planted.py:held", **{**given, **more})
