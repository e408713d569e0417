"""The parts that all studies share: verdicts, rows, comparisons, findings and their files, weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from secateur.bench import Trial, TrialResult
from secateur.core import InputError
from secateur_studies.findings import Figure, Findings, Table, count_verdicts, page, verdict, write_findings
from secateur_studies.models import load_or_train
from secateur_studies.registry import STUDIES, folders_of
from secateur_studies.rows import across, pivot
from secateur_studies.runner import Study, list_failures, mark_trials, run_study
from secateur_studies.statistics import compare, correct, paired_differences

ROWS = [
    {"method": "a|b", "ours": 0.123456, "published": 0.12, "verdict": "reproduced"},
    {"method": "c", "ours": None, "published": 0.5, "verdict": "cannot be run here"},
]


def findings(**more) -> Findings:
    plot = {"data": [{"type": "bar", "x": ["c"], "y": [1]}], "layout": {"title": {"text": "bars"}}}
    figure = Figure("bars", "Bars", plot, "One bar as high as 1.", [{"x": at, "y": at} for at in range(99)])
    return Findings(
        "demo",
        "A study",
        "arXiv:0000.00000",
        [Table("one", "First", ROWS, "A note.")],
        [figure],
        "It was reproduced.",
        **more,
    )


@pytest.mark.parametrize(
    ("ours", "published", "tolerance", "word"),
    [
        (1.0, 1.1, 0.11, "reproduced"),
        (1.0, 1.1, 0.09, "differs"),
        (None, 1.1, 0.09, "cannot be run here"),
        (float("nan"), 1.0, 1.0, "differs"),
        (float("inf"), float("inf"), 1.0, "differs"),
        (1.0, None, 0.1, ""),
    ],
)
def test_verdicts(ours: float | None, published: float | None, tolerance: float, word: str) -> None:
    assert verdict(ours, published, tolerance) == word


def test_a_negative_tolerance_is_refused() -> None:
    with pytest.raises(InputError, match="0 or more"):
        verdict(1.0, 1.0, -0.1)


def test_everything_is_written_from_the_findings(tmp_path: Path) -> None:
    write_findings(findings(), tmp_path)
    names = {"one.csv", "one.json", "bars.csv", "bars.json", "tables.md", "findings.md", "report.html"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert json.loads((tmp_path / "one.json").read_text()) == ROWS
    text = (tmp_path / "findings.md").read_text()
    assert text == page(findings())
    expected = ["# A study", "arXiv:0000.00000", "It was reproduced.", "A note.", "One bar"]
    expected += ["99 rows are in `bars.csv`", "| c |  | 0.5 | cannot be run here |", "| First | 1 | 0 | 1 |"]
    expected += ["| a\\|b | 0.1235 | 0.12 | reproduced |"]
    assert [part for part in expected if part not in text] == []
    html = (tmp_path / "report.html").read_text()
    assert "One bar as high as 1." in html and "A study" in html


def test_names_are_file_names_and_differ() -> None:
    with pytest.raises(InputError, match="different names"):
        Findings("s", "t", tables=[Table("a", "A", ROWS), Table("a", "B", ROWS)])
    with pytest.raises(InputError, match="letters, digits"):
        Findings("s", "t", tables=[Table("../a", "A", ROWS)])


def trials(*, full: bool, seed: int, folders: dict, cache: str, count: int = 2) -> list[Trial]:
    return [Trial("json:loads", {"s": json.dumps([{"seed": s}])}) for s in range(seed, seed + count)]


def draws(rows) -> Findings:
    return Findings("draws", "Draws", tables=[Table("draws", "Draws", rows)], paragraph="They differ.")


def test_a_study_is_a_value_that_the_runner_runs_once(tmp_path: Path) -> None:
    messages: list[str] = []
    study = Study("draws", ("fashion",), trials, draws)
    result = run_study(study, tmp_path / "out", tmp_path / "docs", seed=3, jobs=1, log=messages.append)
    assert [row["seed"] for row in result.tables[0].rows] == [3, 4]
    assert (tmp_path / "docs" / "draws.md").read_text() == (tmp_path / "out" / "findings.md").read_text()
    before = (tmp_path / "out" / "trials.jsonl").read_bytes()
    assert run_study(study, tmp_path / "out", seed=3, jobs=1) == result
    assert (tmp_path / "out" / "trials.jsonl").read_bytes() == before and len(messages) == 3
    with pytest.raises(InputError, match="fashion"):
        run_study(study, tmp_path, folders={"fashoin": "."})


def test_studies_are_registered_with_their_folders() -> None:
    assert list(STUDIES) == ["matroid", "spectral", "mip", "lattice", "joint"]
    assert all(study.name == name for name, study in STUDIES.items())
    assert set(folders_of("all")) == {"fashion", "mnist", "cifar10", "cifar100", "tinyimagenet"}
    with pytest.raises(InputError, match="did you mean 'lattice'"):
        folders_of("latice")


def test_failures_come_from_results() -> None:
    ok = TrialResult(Trial("a.b:first", {"seed": 0}), "ok", [{"x": 1}, {"x": 2}])
    bad = TrialResult(Trial("a.b:second", {"seed": 1, "deep": {}}), "timeout", error="stopped after 3 s")
    assert list_failures([ok]) is None
    table = list_failures([ok, bad, ok])
    assert table.rows == [{"job": "second", "seed": 1, "status": "timeout", "why": "stopped after 3 s"}]
    assert "1 of 3" in table.title


def test_verdicts_are_counted() -> None:
    assert count_verdicts([Table("one", "First", ROWS), Table("two", "Second", [{"x": 1}])]) == {
        "reproduced": 1,
        "differs": 0,
        "cannot be run here": 1,
    }


def test_pivots_have_a_column_for_each_share() -> None:
    rows = [
        {"m": m, "cut": cut, "x": x} for m, cut, x in (("a", 0.5, 1.0), ("a", 0.5, 3.0), ("b", 0.25, 2.0))
    ]
    assert pivot(rows, {"m": "method"}, across(rows, "cut", "x")) == [
        {"method": "a", "25%": None, "50%": 2.0},
        {"method": "b", "25%": 2.0, "50%": None},
    ]


def test_comparisons_follow_the_interval_and_then_the_corrected_p() -> None:
    sure, maybe = compare([1.0, 1.1, 0.9, 1.0]), compare([0.1, 2.0, 0.2])
    assert (sure.outcome, maybe.outcome) == ("ahead", "ahead")
    assert [c.outcome for c in correct([sure, maybe])] == ["ahead", "tie"]
    assert compare([-1.0, -2.0, -1.5]).outcome == "behind" and compare([1.0, -1.0]).outcome == "tie"
    rows = [{"net": n, "seed": s, "x": s} for n in "ab" for s in (1.0, 2.0)]
    other = [{**row, "x": 0.0} for row in rows]
    assert paired_differences(rows, other, "x", ["net", "seed"], "net") == [1.5, 1.5]


def test_weights_are_trained_once_and_again_if_their_file_was_cut_short(tmp_path: Path) -> None:
    path, made = tmp_path / "deep" / "net.safetensors", []

    def train() -> nn.Module:
        made.append(nn.Linear(3, 2))
        return made[-1]

    first = load_or_train(path, nn.Linear(3, 2), train)
    again = load_or_train(path, nn.Linear(3, 2), train)
    assert len(made) == 1 and torch.equal(again.weight, first.weight) and not again.training
    path.write_bytes(path.read_bytes()[:40])
    assert torch.equal(load_or_train(path, nn.Linear(3, 2), train).weight, made[1].weight)
    assert [file.name for file in path.parent.iterdir()] == ["net.safetensors"]


def test_the_contents_of_a_folder_mark_a_trial(tmp_path: Path) -> None:
    listed = [Trial("a.b:c", {"seed": 0})]
    assert mark_trials(listed, {}) == listed
    with pytest.raises(InputError, match="there is no folder"):
        mark_trials(listed, {"fashion": str(tmp_path / "none")})
    (tmp_path / "images").write_bytes(b"one")
    before = mark_trials(listed, {"fashion": str(tmp_path)})[0]
    (tmp_path / "images").write_bytes(b"two")
    after = mark_trials(listed, {"fashion": str(tmp_path)})[0]
    assert len({listed[0].key, before.key, after.key}) == 3 and after.arguments == {"seed": 0}
