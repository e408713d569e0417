"""The bench against what users give it: names of two meanings, code that hangs or leaves, edited files."""

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
from torch import nn

from secateur.bench.models import method_hash, model_hash, subject, takes_seed
from secateur.bench.results_file import ResultsFile
from secateur.bench.run import run_trials
from secateur.bench.setting import Bench, make_grid, run_bench
from secateur.bench.trial import Trial, TrialResult
from secateur.bench.worker import Worker
from secateur.cli.specs import make_data, make_method, make_model
from secateur.core import InputError, StoreError

USER = """
import sys
import time

import torch
from torch import nn

from secateur.methods import Magnitude


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def batches(seed, count):
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return [(x, (x[:, 0] > 0).long())]


def fit():
    return batches(1, 50)


def held():
    return batches(2, 50)


def mk():
    return Magnitude(p=2)


def hangs():
    time.sleep(600)


def leaves(seed=0):
    sys.exit(0)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh working directory with user.py in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "user.py").write_text(USER)
    return tmp_path


def bench(**more) -> Bench:
    given = {
        "model": "user.py:make",
        "data": "user.py:fit",
        "holdout": "user.py:held",
        "seeds": [0],
        "methods": ["magnitude"],
        "ratios": [0.5],
        "repairs": ["none"],
        "draws": 1,
        "latency": False,
    }
    return Bench(**{**given, **more})


class Scaled(nn.Linear):
    """Multiplies by a buffer that its state does not hold."""

    def __init__(self, scale: float) -> None:
        torch.manual_seed(0)
        super().__init__(2, 2)
        self.register_buffer("scale", torch.tensor(scale), persistent=False)


def test_buffers_that_no_state_holds_tell_models_apart() -> None:
    assert model_hash(Scaled(1.0)) == model_hash(Scaled(1.0)) != model_hash(Scaled(2.0))


def test_an_edited_function_that_makes_a_method_of_ours_tells_methods_apart(place: Path) -> None:
    before = method_hash("user.py:mk")
    assert before not in (None, method_hash("secateur.methods:Magnitude"))
    (place / "user.py").write_text(USER.replace("p=2", "p=1"))
    assert method_hash("user.py:mk") != before
    assert method_hash("magnitude:p=2") is None


def test_folders_called_like_a_method_or_data_change_nothing(place: Path) -> None:
    one = bench(
        methods=["magnitude", "magnitude:p=1", "user.py:mk"],
        data="digits",
        holdout=None,
        model="secateur.zoo:lenet5",
        shape="2,1,8,8",
    )
    before = make_grid(bench(), inline=True)
    for name in ("random", "magnitude", "digits", "p=1", "magnitude:p=1", "secateur.zoo"):
        (place / name).mkdir()
    assert [cell.key for cell in make_grid(bench(), inline=True).cells] == [c.key for c in before.cells]
    from secateur.bench.setting import _Absolute

    found = _Absolute(one)
    assert (found.paths["model"], found.paths["data"]) == ("secateur.zoo:lenet5", "digits")
    assert [method.at for method in found.methods] == [
        "magnitude",
        "magnitude:p=1",
        f"{place}/user.py:mk",
        "random",
    ]


def test_known_data_keep_their_folder_and_models_theirs(place: Path) -> None:
    from secateur.bench.setting import _Absolute

    (place / "saved").mkdir()
    found = _Absolute(bench(data="mnist:files", model="saved"))
    assert (found.paths["data"], found.paths["model"]) == (f"mnist:{place}/files", f"{place}/saved")
    assert _Absolute(bench(data="digits:", model="")).paths["data"] == "digits:"
    assert _Absolute(bench(model="")).paths["model"] == "" and not takes_seed("", "w")
    with pytest.raises(InputError, match="wrong form"):
        make_model("")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"metric": "acuracy"}, "did you mean 'accuracy'"),
        ({"lr": math.nan}, "positive and finite.*got nan"),
        ({"lr": math.inf}, "got inf"),
        ({"lr": 0.0}, "got 0.0"),
        ({"lr": -1e-3}, "got -0.001"),
        ({"seeds": [3, 2**63]}, f"at most .*got {2**63}"),
        ({"seeds": [2**63 - 1]}, f"below 2.*63; got {2**63 - 1}"),
        ({"seeds": [-1]}, "not negative .*got -1"),
        ({"draws": 0}, "draws must be positive.*got 0"),
        ({"epochs": -2}, "epochs must be positive.*got -2"),
        ({"count": 0}, "count must be positive.*got 0"),
    ],
)
def test_numbers_that_cannot_be_are_named(more: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        bench(**more)


@pytest.mark.parametrize("limit", [math.nan, math.inf, -1.0])
def test_limits_are_numbers_of_seconds(place: Path, limit: float) -> None:
    with pytest.raises(InputError, match="positive and finite"):
        run_trials([Trial("secateur.bench.checks:draw", {"seed": 0})], place / "cells.jsonl", limit=limit)


def test_a_model_that_hangs_is_stopped_at_the_first_look() -> None:
    with pytest.raises(InputError, match=r"user\.py:hangs.* longer than 0.5 s.*raise the limit"):
        make_grid(bench(model="user.py:hangs"), limit=0.5)


def test_code_that_leaves_the_program_is_a_failure(place: Path) -> None:
    (place / "gone.py").write_text("raise SystemExit(3)")
    for call in (
        lambda: make_model("user.py:leaves"),
        lambda: make_data("user.py:leaves"),
        lambda: make_method("user.py:leaves"),
        lambda: make_model("gone.py:make"),
        lambda: subject("user.py:leaves", None, 0),
        lambda: make_grid(bench(model="user.py:leaves"), inline=True),
    ):
        with pytest.raises(InputError, match=r"(user|gone)\.py.* failed: SystemExit: [03] \("):
            call()


@pytest.mark.parametrize(
    "foreign", [b"my precious notes", b'{"a": 1}', b"[" * 50_000, b"\xff\xfe", b"precious\nnotes", b"x\n\0\0"]
)
def test_a_file_of_somebody_else_is_left_as_it_is(place: Path, foreign: bytes) -> None:
    (place / "notes").write_bytes(foreign)
    with pytest.raises(StoreError, match=r"notes is no file with results|line 1 of .*notes is no record"):
        ResultsFile(place / "notes")
    assert (place / "notes").read_bytes() == foreign


@pytest.mark.parametrize("tail", [b'{"key": "0', b"{", b"\0" * 9])
def test_what_a_crash_leaves_is_cut(place: Path, tail: bytes) -> None:
    (place / "cells.jsonl").write_bytes(tail)
    with ResultsFile(place / "cells.jsonl") as ledger:
        assert "was cut short" in ledger.said and not ledger.records
    assert (place / "cells.jsonl").read_bytes() == b""


@pytest.mark.parametrize("tail", [b"\0" * 9, b"\xff", b"[" * 50_000])
def test_what_follows_a_record_is_cut(place: Path, tail: bytes) -> None:
    with ResultsFile(place / "cells.jsonl") as ledger:
        ledger.append(TrialResult(Trial("a.b:c"), "ok"))
    whole = (place / "cells.jsonl").read_bytes()
    (place / "cells.jsonl").write_bytes(whole + tail)
    with ResultsFile(place / "cells.jsonl") as ledger:
        assert "was cut short" in ledger.said and len(ledger.records) == 1
    assert (place / "cells.jsonl").read_bytes() == whole


DEEP = "deep"


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("rows", 5, "'rows' must be a list of mappings.*got 5"),
        ("rows", [5], "'rows' must be"),
        ("rows", [{"a": "\ud800"}], "'rows' must be .*Unicode"),
        ("error", "\ud800", "'error' must be a text"),
        ("wall", "x", "'wall' must be a number; got 'x'"),
        ("wall", None, "'wall' must be"),
        ("wall", True, "'wall' must be"),
        ("memory", 10**400, "'memory' must be"),
        ("seconds", math.nan, "NaN is no number"),
        ("status", "fine", "'status' must be one of ok, error, timeout"),
        ("params", [], "'params' must be a mapping"),
        ("extra_key", None, "'extra_key' must be a mapping"),
        ("place", None, "'place' must be"),
        ("function", 5, "'function' must be"),
        ("rows", DEEP, "RecursionError"),
    ],
)
def test_edited_lines_are_named(place: Path, field: str, value: object, words: str) -> None:
    line = {**TrialResult(Trial("a.b:c"), "ok").to_dict(), field: value}
    text = json.dumps(line).replace(f'"{DEEP}"', "[" * 50_000 + "]" * 50_000)
    (place / "cells.jsonl").write_text(f"\n{text}\n")
    with pytest.raises(StoreError, match=f"line 2 of .*{words}"):
        ResultsFile(place / "cells.jsonl")


def test_texts_that_cannot_be_written_do_not_spoil_the_file(place: Path) -> None:
    cells = [
        Trial("secateur.bench.checks:echo", {"rows": [{"name": "a\udcff"}]}),
        Trial("secateur.bench.checks:fail", {"text": "b\udcff"}),
    ]
    for _ in range(2):
        one, two = run_trials(cells, place / "cells.jsonl", engine="inline")
        assert one.rows == [{"name": r"a\udcff"}] and r"b\udcff" in two.error


ORPHANS = """
import os
import subprocess
import sys
import time


def asks():
    return [{"said": sys.stdin.read(), "raw": os.read(0, 9).decode()}]


def child():
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    with open("child", "w") as file:
        file.write(str(pid))


def dies_with_a_child():
    child()
    os._exit(7)


def waits_with_a_child():
    child()
    os.rename("child", "child.there")
    time.sleep(60)


def leaves():
    sys.exit(0)


def closes():
    os.closerange(3, 100)
    time.sleep(60)
"""
PARENT = """
from secateur.bench.worker import Worker
Worker().run("orphans:waits_with_a_child", {}, None)
"""


def gone(pid: int, within: float = 10.0) -> bool:
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_what_cells_leave_behind_ends_and_holds_nobody_up(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "orphans.py").write_text(ORPHANS)
    monkeypatch.syspath_prepend(place)
    with Worker() as worker:
        asked = worker.run("orphans:asks", {}, 20.0)
        assert asked["rows"] == [{"said": "", "raw": ""}]
        left = worker.run("orphans:leaves", {}, 20.0)
        assert left["status"] == "error" and left["error"].startswith("SystemExit: 0 (")
        start = time.monotonic()
        died = worker.run("orphans:dies_with_a_child", {}, 20.0)
        assert died["status"] == "error" and died["error"].startswith("the process ended with exit code 7")
        assert time.monotonic() - start < 10 and gone(int((place / "child").read_text()))


@pytest.mark.slow
def test_a_process_that_answers_no_more_is_ended(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "orphans.py").write_text(ORPHANS)
    monkeypatch.syspath_prepend(place)
    with Worker() as worker:
        mute = worker.run("orphans:closes", {}, 30.0)
    assert mute["status"] == "error" and "SIGKILL" in mute["error"]


@pytest.mark.parametrize("stop", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_what_cells_started_ends_with_the_run(place: Path, stop: signal.Signals) -> None:
    (place / "orphans.py").write_text(ORPHANS)
    path = os.pathsep.join([str(place), *filter(None, sys.path)])
    parent = subprocess.Popen([sys.executable, "-c", PARENT], env={**os.environ, "PYTHONPATH": path})
    until = time.monotonic() + 60
    while not (place / "child.there").exists() and time.monotonic() < until:
        time.sleep(0.05)
    child = int((place / "child.there").read_text())
    assert not gone(child, 0.2)
    parent.send_signal(stop)
    assert parent.wait(20) != 0 and gone(child)


def test_edited_rows_of_a_comparison_are_named(place: Path) -> None:
    run_bench(bench(), place / "out", engine="inline")
    path = place / "out" / "cells.jsonl"
    first, *others = path.read_text().splitlines()
    line = json.loads(first)
    (row,) = line["rows"]
    after = row["after"]
    for rows, words in (
        ([], "one row, not 0"),
        ([{}], "'repair' should be None|'seed' should be"),
        ([{**row, "seed": "x"}], "'seed' should be 0, not 'x'"),
        ([{**row, "status": 5}], "'status' should be words, not 5"),
        ([{**row, "after": "x"}], "no report of a pruning"),
        ([{**row, "after": {**after, "metric": "0.5"}}], "the metric after should be a number, not '0.5'"),
        ([{**row, "after": {**after, "cost": {**after["cost"], "macs": 10**400}}}], "macs after should be"),
        ([{**row, "groups": None}], "'groups' should be a mapping, not None"),
        ([{**row, "seconds": {"plan": None}}], "the time to plan should be a number"),
    ):
        path.write_text("\n".join([json.dumps({**line, "rows": rows}), *others]) + "\n")
        with pytest.raises(StoreError, match=f"with the key {line['key']} is not what .*{words}"):
            run_bench(bench(), place / "out", engine="inline")
    infinite = {**row, "after": {**after, "metric": "-Infinity"}}
    path.write_text("\n".join([json.dumps({**line, "rows": [infinite]}), *others]) + "\n")
    assert run_bench(bench(), place / "out", engine="inline")[0][0]["after"]["metric"] == "-Infinity"
