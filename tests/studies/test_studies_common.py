"""What the studies share: verdicts, and findings written as pages, tables and a report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from secateur.bench import Trial, TrialResult
from secateur.core import InputError
from secateur.core.markdown import markdown_table
from secateur_studies.common import (
    Figure,
    Findings,
    Table,
    failures,
    marked,
    page,
    rows_of,
    verdict,
    write_findings,
)
from secateur_studies.weights import remembered

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
        "It was **0.1235**.",
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
    said = ["# A study", "arXiv:0000.00000", "It was **0.1235**.", "A note.", "One bar"]
    said += ["99 rows are in `bars.csv`", "| c |  | 0.5 | cannot be run here |"]
    said += ["| a\\|b | 0.1235 | 0.12 | reproduced |"]
    assert [part for part in said if part not in text] == []
    html = (tmp_path / "report.html").read_text()
    assert "One bar as high as 1." in html and "A study" in html


def test_names_are_file_names_and_differ() -> None:
    with pytest.raises(InputError, match="different names"):
        Findings("s", "t", tables=[Table("a", "A", ROWS), Table("a", "B", ROWS)])
    with pytest.raises(InputError, match="letters, digits"):
        Findings("s", "t", tables=[Table("../a", "A", ROWS)])


def test_rows_and_failures_come_from_records() -> None:
    ok = TrialResult(Trial("a.b:first", {"seed": 0}), "ok", [{"x": 1}, {"x": 2}])
    other = TrialResult(Trial("a.b:second", {"seed": 0}), "ok", [{"x": 3}])
    bad = TrialResult(Trial("a.b:second", {"seed": 1, "deep": {}}), "timeout", error="stopped after 3 s")
    assert rows_of([ok, bad, other]) == [{"x": 1}, {"x": 2}, {"x": 3}]
    assert rows_of([ok, bad, other], "second") == [{"x": 3}]
    assert failures([ok, other]) is None
    table = failures([ok, bad, other])
    assert table.rows == [{"job": "second", "seed": 1, "status": "timeout", "why": "stopped after 3 s"}]
    assert "1 of 3" in table.title


def test_tables_align_numbers_and_keep_missing_cells_empty() -> None:
    text = markdown_table([{"a": "x", "b": 1.0}, {"a": "y", "c": [1, 2], "b": 2}])
    assert text.splitlines()[1:] == ["|---|---:|---|", "| x | 1 |  |", "| y | 2 | 1, 2 |"]


def test_weights_are_trained_once_and_again_if_their_file_was_cut_short(tmp_path: Path) -> None:
    path, made = tmp_path / "deep" / "net.safetensors", []

    def train() -> nn.Module:
        made.append(nn.Linear(3, 2))
        return made[-1]

    first = remembered(path, nn.Linear(3, 2), train)
    again = remembered(path, nn.Linear(3, 2), train)
    assert len(made) == 1 and torch.equal(again.weight, first.weight) and not again.training
    path.write_bytes(path.read_bytes()[:40])
    assert torch.equal(remembered(path, nn.Linear(3, 2), train).weight, made[1].weight)
    assert [file.name for file in path.parent.iterdir()] == ["net.safetensors"]


def test_what_lies_in_a_folder_marks_a_cell(tmp_path: Path) -> None:
    cells = [Trial("a.b:c", {"seed": 0})]
    assert marked(cells, {}) == cells
    with pytest.raises(InputError, match="there is no folder"):
        marked(cells, {"fashion": str(tmp_path / "none")})
    (tmp_path / "images").write_bytes(b"one")
    before = marked(cells, {"fashion": str(tmp_path)})[0]
    (tmp_path / "images").write_bytes(b"two")
    after = marked(cells, {"fashion": str(tmp_path)})[0]
    assert len({cells[0].key, before.key, after.key}) == 3 and after.arguments == {"seed": 0}
