"""``secateur demo``: a table and a report, and the reason where a method cannot run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import run

from secateur.cli.demo import demonstrate, demonstration_table, pivot
from secateur.core import InputError
from secateur.methods import METHODS


def test_demo_leaves_table_and_report(place: Path) -> None:
    done = run("demo", "--quick", "--out", "shown", "--keep", "0.5")
    assert done.exit_code == 0, done.output
    runs = json.loads((place / "shown" / "runs.json").read_text())
    assert [(r["method"], r["repair"]) for r in runs] == [(m, r) for m in METHODS for r in (None, "fold")]
    table = (place / "shown" / "table.md").read_text()
    for one in runs:
        assert one["status"] == "ok" and one["data"] == "digits"
        assert one["groups"]["1"] == {"units": 128, "kept": 64} and one["before"]["metric"] > 0.95
        metric = f"{one['after']['metric']:.3f}"
        assert one["method"] in done.stdout and metric in done.stdout and metric in table
    folded = [one["after"]["metric"] for one in runs if one["repair"] == "fold"]
    assert min(folded) > 0.9
    assert {path.name for path in (place / "shown").iterdir()} == {"report.html", "runs.json", "table.md"}


def test_a_refusal_is_a_row_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise InputError("the network\n is unsuitable")

    monkeypatch.setattr("secateur.cli.demo.prune", refuse)
    runs = demonstrate(0.25, methods=["random", "mip"], quick=True)
    assert {run["status"] for run in runs} == {"the network is unsuitable"} and len(runs) == 4
    assert {run["budget"] for run in runs} == {"Units(0.25)"}
    (first, _) = pivot(runs)
    assert first.pop("status") == "the network is unsuitable"
    assert first == {"data": "digits", "model": "MLP 64-128-64-10", "method": "random"}
    table, reasons = demonstration_table(runs)
    assert table == []
    assert reasons[0] == "digits, MLP 64-128-64-10, random: the network is unsuitable"


def test_demo_repeats_itself() -> None:
    first, second = (demonstrate(0.5, methods=["random", "matroid"], quick=True, seed=1) for _ in range(2))
    drop = {"seconds", "finetune", "peak_memory"}
    assert [{k: v for k, v in run.items() if k not in drop} for run in first] == [
        {k: v for k, v in run.items() if k not in drop} for run in second
    ]
