"""Trials: what is written when, what runs again, what a bad trial or a broken file does."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from sampled import sampled

from secateur.bench import Trial, run_trials
from secateur.bench.results_file import ResultsFile
from secateur.bench.run import format_duration
from secateur.bench.trial import key_versions
from secateur.bench.worker import EngineError, Worker
from secateur.core import InputError, SecateurError, StoreError

HERE = str(Path(__file__).parent)
F = "bench_functions:"


@pytest.fixture(autouse=True)
def functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make bench_functions importable, here and in other processes."""
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")]))


def draws(*seeds: int) -> list[Trial]:
    return [Trial(f"{F}draw", {"seed": seed, "count": 2}) for seed in seeds]


def inline(trials: list[Trial], path: Path, **more):
    return run_trials(trials, path, engine="inline", **more)


def test_other_trials_go_on_whatever_a_trial_does(tmp_path: Path) -> None:
    path, lines = tmp_path / "deep" / "trials.jsonl", []
    bad = [
        Trial(f"{F}kill"),
        Trial(f"{F}fail", {"text": "no such luck"}),
        Trial(f"{F}spin", {"seconds": 1000.0}),
    ]
    results = run_trials([*bad, *draws(0, 1, 0)], path, limit=3.0, log=lines.append)
    kill, fail, late, first, second, again = results
    assert [r.status for r in results] == ["error"] * 2 + ["timeout"] + ["ok"] * 3
    assert "SIGKILL" in kill.error and "out of memory?" in kill.error
    assert fail.error.startswith("ValueError: no such luck (") and "bench_functions.py" in fail.error
    assert late.error == "stopped after 3 s" and late.wall >= 3
    assert first.rows == again.rows != second.rows and first.memory > 50
    lines_on_disk = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(line["key"] for line in lines_on_disk) == sorted({r.trial.key for r in results})
    assert lines[0] == "0 of 5 trials" and lines[-1] == "5 of 5 trials, 3 failed" and "left" in lines[-2]
    assert [r.rows for r in inline(draws(0, 1), tmp_path / "inline.jsonl")] == [first.rows, second.rows]


@pytest.mark.slow
def test_other_ends_of_a_process_are_named(tmp_path: Path) -> None:
    bad = [Trial(f"{F}leave", {"code": 0}), Trial(f"{F}segfault")]
    leave, segfault = run_trials(bad, tmp_path / "trials.jsonl")
    assert leave.status == segfault.status == "error"
    assert leave.error == "the process ended with EXIT(0)" and "SIGSEGV" in segfault.error


def test_a_worker_has_one_thread_and_no_input() -> None:
    with Worker() as worker:
        assert worker.run(Trial(f"{F}threads")).rows == [{"threads": 1, "omp": "1", "stdin": ""}]
    with pytest.raises(EngineError, match="closed"):
        worker.run(Trial(f"{F}threads"))


def test_a_second_run_does_only_what_is_left(tmp_path: Path) -> None:
    path, fails = tmp_path / "trials.jsonl", Trial(f"{F}fail", {"text": "again"})
    inline([*draws(0, 1), fails], path)
    before, lines = path.read_text(), []
    results = inline([*draws(2, 1, 0), fails], path, log=lines.append)
    assert lines[0].startswith("2 of 4 trials (2 from before)")
    added = path.read_text().removeprefix(before).splitlines()
    assert [json.loads(line)["function"] for line in added] == [f"{F}draw", f"{F}fail"]
    assert [r.rows[0]["seed"] for r in results[:3]] == [2, 1, 0]


def test_generators_are_restored(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    inline(draws(0), tmp_path / "trials.jsonl")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("cut", sampled([1, 20, -2], 20))
def test_an_unfinished_last_line_is_skipped_and_its_trial_runs_again(tmp_path: Path, cut: int) -> None:
    path, lines = tmp_path / "trials.jsonl", []
    inline(draws(0, 1), path)
    first, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + last[:cut])
    with pytest.warns(UserWarning, match="line 2 of .* is not a result and was skipped"):
        results = inline(draws(0, 1), path, log=lines.append)
    assert lines[0].startswith("1 of 2 trials (1 from before)")
    assert [r.rows[0]["seed"] for r in results] == [0, 1]
    with pytest.warns(UserWarning, match="line 2"):
        inline(draws(0, 1), path, log=lines.append)
    assert lines[-1] == "2 of 2 trials (2 from before)"


def test_a_last_line_without_its_end_counts(tmp_path: Path) -> None:
    path, lines = tmp_path / "trials.jsonl", []
    inline(draws(0), path)
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    inline(draws(0, 1), path, log=lines.append)
    assert lines[0].startswith("1 of 2 trials")
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 2


@pytest.mark.parametrize(
    "wrong",
    sampled([b"{", b'{"key": 1}', b"\xff\xfe", b"[]", b"my notes", b"[" * 50_000, b"\0" * 9], b'{"key": 1}'),
)
def test_a_line_that_is_not_a_result_is_skipped_and_stays(tmp_path: Path, wrong: bytes) -> None:
    path = tmp_path / "trials.jsonl"
    inline(draws(0, 1), path)
    first, second = path.read_bytes().splitlines()
    path.write_bytes(first + b"\n" + wrong + b"\n" + second + b"\n")
    before = path.read_bytes()
    with pytest.warns(UserWarning, match="line 2 of .* is not a result"):
        inline(draws(0, 1), path)
    assert path.read_bytes() == before


def test_results_of_other_versions_stay_and_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lines = tmp_path / "trials.jsonl", []
    older = {**key_versions(), "torch": "2.6.0"}
    with monkeypatch.context() as patch:
        patch.setattr("secateur.bench.trial.key_versions", lambda: older)
        inline(draws(0), path)
    before = path.read_text()
    inline(draws(0), path, log=lines.append)
    assert "1 results of other versions" in lines[0] and lines[1] == "0 of 1 trials"
    assert path.read_text().startswith(before) and len(path.read_text().splitlines()) == 2


def test_two_runs_cannot_write_one_file(tmp_path: Path) -> None:
    with ResultsFile(tmp_path / "trials.jsonl"), pytest.raises(StoreError, match="another run"):
        inline(draws(0), tmp_path / "trials.jsonl")


FULL_DISK = """
import resource, sys
from pathlib import Path
from secateur.bench import Trial, run_trials
from secateur.core import StoreError
path = Path(sys.argv[1])
trials = [Trial("bench_functions:draw", {"seed": seed, "count": 2}) for seed in range(3)]
run_trials(trials[:1], path, engine="inline")
size = path.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, resource.RLIM_INFINITY))
try:
    run_trials(trials, path, engine="inline")
except StoreError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
for _ in range(2):
    lines = []
    run_trials(trials, path, engine="inline", log=lines.append)
    print(lines[0])
"""


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FULL_DISK, str(tmp_path / "trials.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "The results written before are kept" in done.stdout
    assert "1 of 3 trials (1 from before)" in done.stdout and "3 of 3 trials (3 from before)" in done.stdout


INTERRUPTED = """
import sys
from pathlib import Path
from secateur.bench import Trial, run_trials
child = Trial("bench_functions:leave_a_child", {"file": sys.argv[2], "then": "wait"})
spin = lambda seconds: Trial("bench_functions:spin", {"seconds": seconds})
run_trials([spin(0.1), spin(1000.0), child], Path(sys.argv[1]))
"""


@pytest.mark.parametrize("stop", sampled([signal.SIGINT, signal.SIGKILL], signal.SIGINT))
def test_what_is_done_stays_and_every_process_ends(tmp_path: Path, stop: signal.Signals) -> None:
    path, child = tmp_path / "trials.jsonl", tmp_path / "child"
    command = [sys.executable, "-c", INTERRUPTED, str(path), str(child)]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text() and child.exists()) and time.monotonic() < deadline:
        time.sleep(0.05)
    processes = [*_children(run.pid), int(child.read_text())]
    assert len(processes) >= 3
    run.send_signal(stop)
    assert run.wait(20) != 0
    while any(map(_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_alive, processes))
    assert [json.loads(line)["params"] for line in path.read_text().splitlines()] == [{"seconds": 0.1}]


class Starting:
    """A pool that is interrupted before its process has started."""

    def __init__(self, *_: object, **__: object) -> None:
        self.stopped = False

    def submit(self, *_: object) -> None:
        raise KeyboardInterrupt

    def shutdown(self, kill_workers: bool) -> None:
        self.stopped = kill_workers


def test_an_interrupt_while_a_process_starts_leaves_our_own_process_group_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda group, _: killed.append(group))
    monkeypatch.setattr("secateur.bench.worker.ProcessPoolExecutor", Starting)
    with Worker() as worker:
        with pytest.raises(KeyboardInterrupt):
            worker.run(draws(0)[0])
        pool = worker._executor
        assert isinstance(pool, Starting) and not pool.stopped
    assert killed == [] and pool.stopped


def test_what_a_crashed_trial_started_ends(tmp_path: Path) -> None:
    with Worker() as worker:
        params = {"file": str(tmp_path / "child"), "then": "crash"}
        assert "EXIT(7)" in worker.run(Trial(f"{F}leave_a_child", params)).error
        until = time.monotonic() + 10
        while _alive(int((tmp_path / "child").read_text())) and time.monotonic() < until:
            time.sleep(0.05)
        assert not _alive(int((tmp_path / "child").read_text()))


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_the_key_is_of_function_parameters_and_versions() -> None:
    a, b = Trial("a.b:c", {"x": 1, "y": [1, None]}), Trial("a.b:c", {"y": [1, None], "x": 1})
    assert a.key == b.key and a == b
    others = [
        Trial("a.b:c", {"x": 2, "y": [1, None]}),
        Trial("a.b:d", a.params),
        Trial("a.b:c", a.params, {}, {"k": 1}),
    ]
    assert len({a.key, *(other.key for other in others)}) == 4


def test_paths_do_not_enter_the_key(tmp_path: Path) -> None:
    here, there = (Trial(f"{F}spin", {"seconds": 0.0}, {"folder": name}) for name in ("here", "there"))
    assert here == there and here.key == there.key
    assert here.arguments == {"seconds": 0.0, "folder": "here"}
    with pytest.raises(InputError, match=r"\['rows'\] cannot be both a parameter and a path"):
        Trial("a.b:c", {"rows": []}, {"rows": "x"})
    first, lines = inline([here], tmp_path / "trials.jsonl"), []
    assert inline([there], tmp_path / "trials.jsonl", log=lines.append) == first
    assert "1 from before" in lines[0] and first[0].rows[0]["folder"] == "here"


@pytest.mark.parametrize(
    ("function", "params", "message"),
    [
        ("no_colon", {}, "package.module:function"),
        ("a:b", {"x": (1, 2)}, "change in JSON"),
        ("a:b", {"x": {1: 2}}, "change in JSON"),
        ("a:b", {"x": math.nan}, "not JSON"),
        ("a:b", {"x": torch.zeros(1)}, "not JSON"),
    ],
)
def test_invalid_trials(function: str, params: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Trial(function, params)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"engine": "locl"}, "did you mean 'local'"),
        ({"jobs": 0}, "at least 1"),
        ({"limit": 0.0}, "positive"),
        ({"limit": math.nan}, "positive and finite"),
        ({"limit": math.inf}, "positive and finite"),
        ({"address": "here:1"}, "Ray cluster"),
        ({"engine": "inline", "limit": 1.0}, "cannot stop"),
    ],
)
def test_invalid_arguments(tmp_path: Path, more: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_trials(draws(0), tmp_path / "trials.jsonl", **more)
    assert not (tmp_path / "trials.jsonl").exists()


def test_an_unwritable_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        inline(draws(0), tmp_path / "file" / "trials.jsonl")
    assert issubclass(StoreError, SecateurError)


def test_functions_that_do_not_exist_or_return_no_rows(tmp_path: Path) -> None:
    trials = [Trial(f"{F}drow", {}), Trial("no.such:function"), Trial(f"{F}echo", {"rows": 3})]
    errors = [result.error for result in inline(trials, tmp_path / "trials.jsonl")]
    assert "did you mean 'draw'" in errors[0]
    assert "importing no.such failed: ModuleNotFoundError" in errors[1]
    assert "must return a list of rows" in errors[2]


def test_durations() -> None:
    texts = ["0 s", "89 s", "2 min", "1 h 0 min", "1 h 0 min", "1 h 30 min"]
    assert [format_duration(x) for x in (0.4, 89, 90, 3599, 3600, 5400)] == texts
