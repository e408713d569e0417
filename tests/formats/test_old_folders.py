"""Folders that earlier versions saved load and compute the same."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

import secateur as sc
from secateur.formats.store import load_plan
from secateur.result import load_report

DATA = Path(__file__).parent / "data"


def net() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 6),
        nn.LayerNorm(6),
        nn.ReLU(),
        nn.Linear(6, 5),
        nn.BatchNorm1d(5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )


def test_a_folder_of_version_0_1_loads() -> None:
    expected = load_file(DATA / "saved_by_0.1.expected.safetensors")
    small = sc.load(DATA / "saved_by_0.1", net).eval()
    assert torch.equal(small(expected["inputs"]), expected["outputs"])
    plan = load_plan(DATA / "saved_by_0.1")
    assert {name: len(kept) for name, kept in plan.keep.items()} == {"0": 3, "3": 3}
    assert plan.graph.group("0").size == 6
    report = load_report(DATA / "saved_by_0.1")
    assert report.after.cost.parameters < report.before.cost.parameters
