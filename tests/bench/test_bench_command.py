"""The command `secateur bench`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from planted_comparison import plant
from typer.testing import CliRunner

from secateur.bench.benchmark import parse_methods, parse_numbers
from secateur.bench.compare import settings
from secateur.cli import main as cli
from secateur.core import InputError


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh working directory with planted.py in it."""
    return plant(tmp_path, monkeypatch)


def test_lists_on_the_command_line() -> None:
    assert parse_methods("all")[0] == "matroid"
    assert parse_methods("m.py:A:x=1,y=2,random") == ["m.py:A:x=1,y=2", "random"]
    with pytest.raises(InputError, match="whole numbers"):
        parse_numbers("0,1.5", int, "seeds")
    with pytest.raises(InputError, match="ratios are numbers"):
        parse_numbers("0.5;0.3", float, "ratios")


def test_the_command_leaves_a_report_and_all_numbers(place: Path) -> None:
    arguments = [
        "bench",
        "planted.py:make",
        "--data",
        "planted.py:fit",
        "--holdout",
        "planted.py:held",
        "--methods",
        "planted.py:Truth,magnitude:p=2,over=both",
        "--ratios",
        "0.5,0.25",
        "--seeds",
        "0,1",
        "--repair",
        "none",
        "--engine",
        "inline",
        "--draws",
        "1",
        "--out",
        "out",
        "--no-latency",
    ]
    done = CliRunner().invoke(cli.app, [*arguments, "--limit", "0"])
    assert done.exit_code == 2 and "limit" in done.stderr
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    assert "repair none, 0.25: planted.py:Truth" in done.stdout
    runs = json.loads((place / "out" / "runs.json").read_text())
    assert len(runs) == 2 * 3 * 2 and all(run["status"] == "ok" for run in runs)
    names = {"trials.jsonl", "runs.json", "runs.csv", "table.md", "report.html"}
    names |= {f"{t}.{e}" for t in ("rankings", "curves", "means", "differences") for e in ("csv", "json")}
    assert {path.name for path in (place / "out").iterdir()} == names
    assert "Who wins where" in (place / "out" / "report.html").read_text()
    assert CliRunner().invoke(cli.app, ["report", "out"]).exit_code == 0
    assert [(s.repair, s.ratio) for s in settings(runs)] == [("none", 0.5), ("none", 0.25)]


def test_the_command_refuses_engines_and_addresses_that_are_not_there(place: Path) -> None:
    common = [
        "bench",
        "planted.py:single",
        "--data",
        "planted.py:fit",
        "--holdout",
        "planted.py:held",
        "--methods",
        "magnitude",
        "--seeds",
        "0",
    ]
    done = CliRunner().invoke(cli.app, [*common, "--engine", "rey"])
    assert done.exit_code == 2 and "did you mean 'ray'" in done.stderr
    done = CliRunner().invoke(cli.app, [*common, "--address", "somewhere:1"])
    assert done.exit_code == 2 and "use engine 'ray'" in done.stderr
