"""Tables, figures and sentences of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from report_runs import several_seeds

from secateur.bench.compare import Comparison, compare_methods
from secateur.bench.output import write_comparison
from secateur.cli.bench import print_comparison


def rows_of(methods: tuple[str, ...] = ("taylor", "random"), seeds: int = 3) -> list[dict[str, Any]]:
    """Runs as those of a comparison: methods in that order, at two ratios."""
    runs = [
        {**run, "ratio": float(run["budget"][6:-1]), "repair": "none", "status": "ok"}
        for run in several_seeds(seeds)
    ]
    return [run for method in methods for run in runs if run["method"] == method]


def failed() -> dict[str, Any]:
    return {**rows_of()[0], "status": "no ReLU", "method": "mip"}


def test_tables_of_an_earlier_run_go(tmp_path: Path) -> None:
    write_comparison(compare_methods([*rows_of(), failed()]), tmp_path, "One")
    assert (tmp_path / "failures.csv").exists() and (tmp_path / "failures.json").exists()
    write_comparison(compare_methods(rows_of()), tmp_path, "Two")
    assert not list(tmp_path.glob("failures.*")) and (tmp_path / "means.csv").exists()


def said_of(found: Comparison, capsys: pytest.CaptureFixture[str]) -> str:
    print_comparison(found)
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_one_method_wins_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    found = compare_methods(rows_of(("taylor",)))
    assert {(row["best"], row["verdict"]) for row in found.rankings} == {(None, "alone")}
    assert {row["verdict"] for row in found.means} == {"alone"} and found.differences == []
    text = said_of(found, capsys)
    assert "0.5: one method only" in text and "*" not in text.replace("* wins", "")


def test_sentences_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    text = said_of(compare_methods([*rows_of(seeds=1), failed()]), capsys)
    assert "taylor is first, with too few seeds to tell it from random" in text or "random is first" in text
    assert "(1 run)" in text
    twin = [{**row, "method": "twin"} for row in rows_of(("taylor",))]
    assert "taylor ties with twin" in said_of(compare_methods([*rows_of(("taylor",)), *twin]), capsys)


def test_columns_say_what_they_hold() -> None:
    found = compare_methods(rows_of())
    assert found.rankings[0]["methods compared"] == 2 and "of" not in found.rankings[0]
    assert found.curves[0]["times smaller"] >= 1
