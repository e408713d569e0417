"""Grids: what is written when, what runs again, what a broken file or a bad cell does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from secateur.bench import Trial, run_trials
from secateur.bench.results_file import ResultsFile
from secateur.bench.run import duration
from secateur.bench.trial import key_versions
from secateur.core import InputError, SecateurError, StoreError

JOBS = "secateur.bench.checks:"


def draws(*seeds: int) -> list[Trial]:
    return [Trial(f"{JOBS}draw", {"seed": seed, "count": 2}) for seed in seeds]


def inline(cells: list[Trial], path: Path, **more):
    return run_trials(cells, path, engine="inline", **more)


def test_a_grid_in_processes_keeps_going_whatever_cells_do(tmp_path: Path) -> None:
    path, said = tmp_path / "deep" / "cells.jsonl", []
    spin = Trial(f"{JOBS}spin", {"seconds": 1000.0})
    bad = [Trial(f"{JOBS}crash"), Trial(f"{JOBS}fail", {"text": "no such luck"}), spin]
    records = run_trials([*bad, *draws(0, 1, 0)], path, limit=2.0, log=said.append)
    assert [r.status for r in records] == ["error", "error", "timeout", "ok", "ok", "ok"]
    crash, fail, late, first, second, again = records
    assert "SIGKILL" in crash.error
    assert fail.error.startswith("ValueError: no such luck (") and "checks.py" in fail.error
    assert late.error == "stopped after 2 s" and late.wall >= 2
    assert first.rows == again.rows != second.rows
    assert [row["value"] for row in first.rows] == pytest.approx(
        torch.randn(2, generator=torch.Generator().manual_seed(0)).tolist()
    )
    assert first.memory > 50 and crash.trial.function.endswith("crash")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(line["key"] for line in lines) == sorted({r.trial.key for r in records})
    assert said[0] == "0 of 5 cells" and said[-1] == "5 of 5 cells, 3 failed" and "left" in said[-2]
    inlined = inline(draws(0, 1), tmp_path / "inline.jsonl")
    assert [r.rows for r in inlined] == [first.rows, second.rows]


def test_a_second_run_does_only_what_is_left(tmp_path: Path) -> None:
    path, fails = tmp_path / "cells.jsonl", Trial(f"{JOBS}fail", {"text": "again"})
    inline([*draws(0, 1), fails], path)
    before, said = path.read_text(), []
    records = inline([*draws(2, 1, 0), fails], path, log=said.append)
    assert said[0].startswith("2 of 4 cells (2 from before)")
    added = path.read_text().removeprefix(before).splitlines()
    assert [json.loads(line)["function"][len(JOBS) :] for line in added] == ["draw", "fail"]
    assert [r.rows[0]["seed"] for r in records[:3]] == [2, 1, 0]


def test_jobs_start_alike_whatever_ran_before(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    inline(draws(0), tmp_path / "cells.jsonl")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("cut", [1, 20, -2])
def test_a_last_line_that_was_cut_short_is_taken_off_and_said(tmp_path: Path, cut: int) -> None:
    path, said = tmp_path / "cells.jsonl", []
    inline(draws(0, 1), path)
    whole = path.read_bytes()
    first, last = whole.splitlines(keepends=True)
    path.write_bytes(first + last[:cut])
    records = inline(draws(0, 1), path, log=said.append)
    assert "was cut short" in said[0] and said[1].startswith("1 of 2 cells (1 from before)")
    assert [r.rows[0]["seed"] for r in records] == [0, 1]
    assert path.read_bytes().startswith(first) and len(path.read_bytes().splitlines()) == 2


def test_a_last_line_without_its_end_counts(tmp_path: Path) -> None:
    path, said = tmp_path / "cells.jsonl", []
    inline(draws(0), path)
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    inline(draws(0, 1), path, log=said.append)
    assert said[0].startswith("1 of 2 cells")
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 2


def test_a_line_in_the_middle_that_is_no_record_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    inline(draws(0, 1), path)
    first, second = path.read_text().splitlines()
    for wrong in ("{", '{"key": 1}', "[]", first.replace('"secateur.bench.checks:draw"', "3")):
        path.write_text(f"{first}\n{wrong}\n{second}\n")
        with pytest.raises(StoreError, match=r"line 2 of .* is no record"):
            inline(draws(0), path)


def test_lines_of_other_versions_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, said = tmp_path / "cells.jsonl", []
    older = {**key_versions(), "torch": "2.6.0"}
    with monkeypatch.context() as patch:
        patch.setattr("secateur.bench.trial.key_versions", lambda: older)
        inline(draws(0), path)
    before = path.read_text()
    inline(draws(0), path, log=said.append)
    assert "1 results of other versions" in said[0] and said[1] == "0 of 1 cells"
    assert path.read_text().startswith(before) and len(path.read_text().splitlines()) == 2


def test_two_runs_cannot_write_one_file(tmp_path: Path) -> None:
    with ResultsFile(tmp_path / "cells.jsonl"), pytest.raises(StoreError, match="another run"):
        inline(draws(0), tmp_path / "cells.jsonl")


FULL_DISK = """
import resource, sys
from pathlib import Path
from secateur.bench import Trial, run_trials
from secateur.core import StoreError
path = Path(sys.argv[1])
cells = [Trial("secateur.bench.checks:draw", {"seed": seed, "count": 2}) for seed in range(3)]
run_trials(cells[:1], path, engine="inline")
size = path.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, resource.RLIM_INFINITY))
try:
    run_trials(cells, path, engine="inline")
except StoreError as error:
    print(error)
assert path.stat().st_size == size
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
said = []
run_trials(cells, path, engine="inline", log=said.append)
print(said[0])
"""


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "cells.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "The cells written before are kept" in done.stdout
    assert "1 of 3 cells (1 from before)" in done.stdout


INTERRUPTED = """
import sys
from pathlib import Path
from secateur.bench import Trial, run_trials
spin = lambda seconds, at: Trial("secateur.bench.checks:spin", {"seconds": seconds, "at": at})
run_trials([spin(0.1, 0), spin(1000.0, 1), spin(1000.0, 2)], Path(sys.argv[1]))
"""


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_what_is_done_stays_and_nothing_runs_on(tmp_path: Path, stop: signal.Signals) -> None:
    path = tmp_path / "cells.jsonl"
    runs = subprocess.Popen([sys.executable, "-c", INTERRUPTED, str(path)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    children = _children(runs.pid)
    assert len(children) == 2
    runs.send_signal(stop)
    assert runs.wait(20) != 0
    while any(map(_alive, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_alive, children))
    assert [json.loads(line)["params"]["at"] for line in path.read_text().splitlines()] == [0]


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_cells_are_their_job_parameters_and_versions() -> None:
    a, b = Trial("a.b:c", {"x": 1, "y": [1, None]}), Trial("a.b:c", {"y": [1, None], "x": 1})
    assert a.key == b.key and a == b and hash(a) == hash(b)
    assert len({a.key, Trial("a.b:c", {"x": 2, "y": [1, None]}).key, Trial("a.b:d", dict(a.params)).key}) == 3


def test_where_files_lie_is_no_part_of_a_cell(tmp_path: Path) -> None:
    here, there = (Trial("a.b:c", {"rows": [{"a": 1}]}, {"folder": name}) for name in ("here", "there"))
    assert here == there and here.key == there.key and hash(here) == hash(there)
    assert here.arguments == {"rows": [{"a": 1}], "folder": "here"}
    with pytest.raises(InputError, match=r"\['rows'\] cannot be a parameter and a path"):
        Trial("a.b:c", {"rows": []}, {"rows": "x"})
    spins = [Trial("secateur.bench.checks:spin", {"seconds": 0.0}, {"folder": name}) for name in "ab"]
    first = run_trials(spins[:1], tmp_path / "cells.jsonl", engine="inline")
    said: list[str] = []
    assert run_trials(spins[1:], tmp_path / "cells.jsonl", engine="inline", log=said.append) == first
    assert "1 from before" in said[0] and first[0].rows[0]["folder"] == "a"


@pytest.mark.parametrize(
    ("job", "params", "words"),
    [
        ("no_colon", {}, "package.module:function"),
        ("a:b", {"x": (1, 2)}, "change in JSON"),
        ("a:b", {"x": {1: 2}}, "change in JSON"),
        ("a:b", {"x": float("nan")}, "not JSON"),
        ("a:b", {"x": torch.zeros(1)}, "not JSON"),
    ],
)
def test_cells_that_cannot_be_written_down(job: str, params: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Trial(job, params)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"engine": "locl"}, "did you mean 'local'"),
        ({"jobs": 0}, "at least 1"),
        ({"limit": 0.0}, "positive"),
        ({"address": "here:1"}, "Ray cluster"),
        ({"engine": "inline", "limit": 1.0}, "cannot stop"),
    ],
)
def test_arguments_that_cannot_be(tmp_path: Path, more: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        run_trials(draws(0), tmp_path / "cells.jsonl", **more)
    assert not (tmp_path / "cells.jsonl").exists()


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        inline(draws(0), tmp_path / "file" / "cells.jsonl")
    assert issubclass(StoreError, SecateurError)


def test_jobs_that_are_not_there_or_return_no_rows(tmp_path: Path) -> None:
    cells = [Trial(f"{JOBS}drow", {}), Trial("no.such:job"), Trial(f"{JOBS}echo", {"rows": 3})]
    errors = [record.error for record in inline(cells, tmp_path / "cells.jsonl")]
    assert "did you mean 'draw'" in errors[0]
    assert "cannot import no.such" in errors[1]
    assert "must return a list of rows" in errors[2]


def test_durations_are_worded() -> None:
    assert [duration(x) for x in (0.4, 89, 90, 3599, 3600, 5400)] == [
        "0 s",
        "89 s",
        "2 min",
        "1 h 0 min",
        "1 h 0 min",
        "1 h 30 min",
    ]
