"""The command line: what it prints, writes and refuses, with which exit code."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_model
from torch import nn
from typer.testing import CliRunner

import secateur
from secateur.cli import main as cli
from secateur.cli import printing as terminal
from secateur.cli.demo import demonstrate, markdown, pivot
from secateur.core import InputError, StoreError
from secateur.methods import METHODS
from secateur.specs import find_function
from secateur_studies.findings import Findings, Table
from secateur_studies.registry import STUDIES
from secateur_studies.runner import Study

NET = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 3))

def ready():
    return make()

ready.example_inputs = (torch.zeros(2, 8),)

class Lost:
    pass

def broken():
    raise RuntimeError("no disk left")

def number():
    return 3

def batches():
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(64, 8, generator=generator) for _ in range(6)]
    return [(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()) for x in inputs]

def none():
    return []

def unlabelled():
    return [torch.zeros(4, 8)]

class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else x

branching = Branching

def spoiled():
    model = make()
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    return model

constant = 7
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh working directory with net.py in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def run(*arguments: str):
    return CliRunner().invoke(cli.app, list(arguments))


def prune(*arguments: str):
    return run("prune", "net.py:ready", *arguments)


def test_version_and_help() -> None:
    assert run("--version").stdout.count(secateur.__version__) == 1
    listed = run("--help").stdout
    assert all(command in listed for command in ("demo", "methods", "inspect", "prune", "report", "study"))
    assert "units=0.5" in run("prune", "--help").stdout


def test_methods_lists_each_with_its_options() -> None:
    shown = run("methods").stdout
    assert all(name in shown for name in METHODS)
    assert "over='producers'" in shown


def test_inspect_shows_groups_and_frozen_axes() -> None:
    done = run("inspect", "net.py:make", "--example-shape", "2,8", "--ignore", "2")
    assert done.exit_code == 0
    assert re.search(r"0 +│ 32 +│ 0\.weight\[0\], 0\.bias\[0\], 2\.weight\[1\]", done.stdout)
    assert re.search(r"4\.weight\[0\] +│ an output of the model", done.stdout)
    assert re.search(r"2\.weight\[0\] +│ ignored_layers", done.stdout)


def test_prune_leaves_what_load_reads(place: Path) -> None:
    done = prune(
        "--data",
        "net.py:batches",
        "--holdout",
        "net.py:batches",
        "--method",
        "magnitude:p=2",
        "--budget",
        "units=0.25",
        "--repair",
        "fold",
        "--out",
        "small",
        "--explain",
        "--seed",
        "3",
    )
    assert done.exit_code == 0, done.stderr
    assert "keeps 8 of 32 units" in done.stdout and "accuracy" in done.stdout
    sys.path.insert(0, str(place))
    model = secateur.load("small", find_function("net.py:make"))
    assert [layer.out_features for layer in model if isinstance(layer, nn.Linear)] == [8, 6, 3]
    report = secateur.load_report("small")
    assert (report.seed, report.repair, report.method) == (3, "fold", "magnitude")
    assert report.metric == "accuracy" and report.after.cost.parameters == 8 * 9 + 6 * 9 + 3 * 7
    assert (place / "small" / "report.html").stat().st_size > 1e6


def test_prune_without_a_folder_saves_nothing(place: Path) -> None:
    done = prune("--budget", "params=0.5", "--scope", "global")
    assert done.exit_code == 0 and "nothing was saved" in done.stderr
    assert [path.name for path in place.iterdir() if path.name != "__pycache__"] == ["net.py"]


def test_prune_with_the_users_weights(place: Path) -> None:
    torch.manual_seed(7)
    trained = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 3))
    save_model(trained, "weights.safetensors")
    done = prune("--weights", "weights.safetensors", "--budget", "units=1.0", "--scope", "layer")
    assert done.exit_code == 2 and "removes nothing" in done.stderr
    done = prune("--weights", "weights.safetensors", "--out", "small")
    assert done.exit_code == 0, done.stderr
    model = secateur.load("small", find_function("net.py:make"))
    rows = {tuple(row.tolist()) for row in trained[0].weight.data}
    assert all(tuple(row.tolist()) in rows for row in model[0].weight.data)


@pytest.mark.parametrize(("budget", "layers"), [("weights=0.25", [32, 24, 3]), ("macs=0.5", None)])
def test_budgets(budget: str, layers: list[int] | None) -> None:
    done = prune(
        "--budget", budget, "--data", "net.py:batches", "--holdout", "net.py:batches", "--out", "small"
    )
    assert done.exit_code == 0, done.stderr
    report = secateur.load_report("small")
    if layers:
        assert 0.2 < report.after.cost.nonzero / report.before.cost.nonzero < 0.4
    else:
        assert report.after.cost.macs < report.before.cost.macs


def test_onnx_is_written_on_request(place: Path) -> None:
    pytest.importorskip("onnxruntime")
    done = prune("--out", "small", "--onnx")
    assert done.exit_code == 0 and "takes any batch size" in done.stdout
    assert (place / "small" / "model.onnx").stat().st_size > 500
    assert "--out" in prune("--onnx").stderr


def test_report_gathers_saved_runs(place: Path) -> None:
    for method in ("magnitude", "random"):
        assert prune("--method", method, "--out", f"runs/{method}").exit_code == 0
    done = run("report", "runs", "--out", "page.html")
    assert done.exit_code == 0 and "2 runs" in done.stdout
    page = (place / "page.html").read_text()
    assert "2 runs, 2 methods" in page


def test_named_data_set_is_used_in_its_parts() -> None:
    done = run("prune", "secateur.zoo:small_cnn", "--data", "digits", "--out", "small", "--method", "taylor")
    assert done.exit_code == 0, done.stderr
    report = secateur.load_report("small")
    assert report.agreement.examples == 539 and report.metric == "accuracy"


WRONG = {
    "net.py:make": "what is the model called with",
    "net.py:mak": "did you mean 'make'",
    "net.py:constant": "is a int, not a function",
    "net.py:Lost": "returned a Lost, not a torch.nn.Module",
    "net.py:broken": r"no disk left \(.*net\.py:1\d\)",
    "net.py:number": "returned a int, not a torch.nn.Module",
    "none.py:make": "there is no file none.py",
    "no_such_package.module:make": "No module named 'no_such_package'",
    "net": "has the wrong form",
    "net.py:branching --example-shape 2,8": "data-dependent",
    "net.py:spoiled --example-shape 2,8": "NaN",
    "net.py:make --example-shape 2,9": r"calling Sequential on example inputs \(2, 9\) failed",
    "net.py:make --example-shape two": "a shape is numbers with commas",
    "net.py:make --example-shape 0,8": "positive",
    "net.py:ready --budget units=0": r"\(0, 1\]",
    "net.py:ready --budget units=1.5": r"\(0, 1\]",
    "net.py:ready --budget units=half": "units=NUMBER",
    "net.py:ready --budget unit=0.5": "did you mean 'units'",
    "net.py:ready --budget weights=0.5 --round-to 8": "round-to",
    "net.py:ready --scope globl": "did you mean 'global'",
    "net.py:ready --floor 0": "at least 1",
    "net.py:ready --steps 0": "at least 1",
    "net.py:ready --method magnitud": "did you mean 'magnitude'",
    "net.py:ready --method magnitude:ovr=both": "did you mean 'over'",
    "net.py:ready --method magnitude:p=3": "p is 1 or 2",
    "net.py:ready --method magnitude:p": "name=value",
    "net.py:ready --method taylor": "pass data=",
    "net.py:ready --method taylor --data net.py:unlabelled": r"pair \(inputs, targets\)",
    "net.py:ready --data net.py:none": "no batches",
    "net.py:ready --data net.py:number": "returned a int, not batches",
    "net.py:ready --data digit": "did you mean 'digits'",
    "net.py:ready --data mnist": "mnist has no default folder",
    "net.py:ready --data fashion:nowhere": "no train-images-idx3-ubyte.gz",
    "net.py:ready --repair glue": "'fold'",
    "net.py:ready --repair fold": "pass data=",
    "net.py:ready --metric f1 --data net.py:batches --holdout net.py:batches": "no metric 'f1'",
    "net.py:ready --tolerance 0.1": "holdout",
    "net.py:ready --ignore 22": "no layer '22'",
    "net.py:ready --weights none.safetensors": "does not exist",
    "net.py:ready --weights net.py": "neither a safetensors file",
    "net.py:ready --device abacus": "cannot compute on 'abacus'",
    "net.py:ready --out net.py/small": "cannot write into",
    "net.py:ready --out /proc/small": "cannot write into",
    f"net.py:ready --out {300 * 'a'}": "cannot write into",
    "net.py:make --example-shape 9999999999999": "making example inputs of shape 9999999999999 failed",
}


@pytest.mark.parametrize("arguments", WRONG, ids=lambda words: words.removeprefix("net.py:"))
def test_mistakes_end_in_one_message(arguments: str, place: Path) -> None:
    done = run("prune", *arguments.split(), *([] if "--out" in arguments else ["--out", "small/deep"]))
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("error: ") and re.search(WRONG[arguments], done.stderr), done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert {path.name for path in place.iterdir()} <= {"net.py", "__pycache__"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("inspect net.py:ready --ignore nothing", "no layer 'nothing'"),
        ("report nowhere", "there is no folder nowhere"),
        ("report .", "in . or below"),
        ("demo --keep 0 --quick", r"\(0, 1\]"),
        ("demo --quick --out net.py", "cannot write into net.py"),
        ("study matriod", "did you mean 'matroid'"),
    ],
)
def test_mistakes_of_other_commands(arguments: str, message: str, place: Path) -> None:
    done = run(*arguments.split())
    assert done.exit_code == 2 and re.search(message, done.stderr), done.output
    assert {path.name for path in place.iterdir()} <= {"net.py", "__pycache__"}


def test_damaged_result_is_named(place: Path) -> None:
    assert prune("--out", "small").exit_code == 0
    document = place / "small" / "plan.json"
    document.write_text(document.read_text()[:-100])
    done = run("report", "small")
    assert done.exit_code == 2 and "plan.json" in done.stderr


def test_unknown_options_are_refused_with_exit_code_2() -> None:
    assert prune("--methd", "random").exit_code == 2
    assert run("prun").exit_code == 2


def test_out_that_exists_keeps_its_other_files(place: Path) -> None:
    (place / "small").mkdir()
    (place / "small" / "mine.txt").write_text("mine")
    assert prune("--out", "small").exit_code == 0
    assert prune("--out", "small", "--method", "random").exit_code == 0
    assert (place / "small" / "mine.txt").read_text() == "mine"
    assert secateur.load_report("small").method == "random"


def test_check_writable_leaves_no_trace(place: Path) -> None:
    cli.check_writable(place / "a" / "b")
    assert not (place / "a").exists()
    (place / "kept").mkdir()
    cli.check_writable(place / "kept")
    assert (place / "kept").is_dir()
    with pytest.raises(StoreError):
        cli.check_writable(place / "net.py" / "a")


def test_interruption_exits_with_130_and_writes_nothing(place: Path) -> None:
    slow = "import time\ndef never():\n    open('started', 'w').close()\n    time.sleep(60)\n"
    (place / "slow.py").write_text(slow)
    command = [sys.executable, "-m", "secateur", "prune", "slow.py:never", "--out", "small"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not (place / "started").exists() and time.monotonic() < until:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "Traceback" not in said and not (place / "small").exists()


def test_transformers_folder(place: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained("gpt2")
    done = run("prune", "gpt2", "--out", "small")
    assert done.exit_code == 0, done.stderr
    report = secateur.load_report("small")
    assert report.model == "GPT2LMHeadModel" and report.after.cost.parameters < report.before.cost.parameters
    (place / "gpt2" / "config.json").write_text("{")
    done = run("inspect", "gpt2")
    assert done.exit_code == 2 and "reading gpt2 failed" in done.stderr


def told(title: str) -> Findings:
    rows = [{"ours": 1.0, "published": 1.0, "verdict": "reproduced"}, {"ours": 3.0, "verdict": ""}]
    return Findings("lattice", title, tables=[Table("one", "Table 1", rows)], paragraph="It was **1**.")


def register(monkeypatch: pytest.MonkeyPatch, given: dict[str, dict], fails: str = "") -> None:
    """Replace all studies by ones without trials that note their options."""

    def fake(study: Study) -> Study:
        def trials(**options: object) -> list:
            given[study.name] = options
            if study.name == fails:
                raise InputError("no such thing")
            return []

        return replace(study, trials=trials, findings=lambda _: told(f"On {study.name}"))

    for study in list(STUDIES.values()):
        monkeypatch.setitem(STUDIES, study.name, fake(study))


def test_study_writes_findings_and_the_page(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, dict] = {}
    register(monkeypatch, given)
    done = run("study", "lattice", "--full", "--seed", "4", "--jobs", "1", "--docs", "pages")
    assert done.exit_code == 0, done.output
    assert given == {
        "lattice": {"full": True, "seed": 4, "folders": {}, "cache": "runs/studies/lattice/weights"}
    }
    assert "1 reproduced" in done.stdout and "It was **1**." in done.stdout and "differs" not in done.stdout
    page = (place / "pages" / "lattice.md").read_text()
    assert page == (place / "runs/studies/lattice/findings.md").read_text()
    assert "# On lattice" in page


def test_all_studies_go_on_when_one_fails(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, {}, fails="spectral")
    done = run("study", "all", "--docs", "pages", "--out", "all")
    assert done.exit_code == 2 and "failed: spectral" in done.stderr
    pages = {path.name for path in (place / "pages").iterdir()}
    assert pages == {"README.md", *(f"{name}.md" for name in STUDIES if name != "spectral")}
    index = (place / "pages" / "README.md").read_text()
    assert "(matroid.md)" in index and "Failed: InputError: no such thing" in index
    assert index.count("| matroid | 1 | 1 | 0 | 0 | ok |") == 1
    assert {"index.md", "index.html", "matroid"} <= {path.name for path in (place / "all").iterdir()}


def test_each_study_gets_the_folders_that_it_reads(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, dict] = {}
    register(monkeypatch, given)
    for name in ("here", "there"):
        (place / name).mkdir()
    done = run("study", "all", "--folder", "mnist=here", "--folder", "cifar100=there")
    assert done.exit_code == 0, done.output
    assert {name: options["folders"] for name, options in given.items()} == {
        "matroid": {},
        "spectral": {"cifar100": "there"},
        "mip": {"mnist": "here"},
        "lattice": {"mnist": "here"},
        "joint": {},
    }
    done = run("study", "all", "--folder", "cifar11=there")
    assert done.exit_code == 2 and "did you mean 'cifar10'" in done.stderr
    done = run("study", "lattice", "--folder", "cifar10=there")
    assert done.exit_code == 2 and "Known: 'fashion', 'mnist'" in done.stderr


def test_progress_is_a_line_a_minute_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter([0.0, 10.0, 59.0, 61.0, 100.0, 125.0])
    monkeypatch.setattr(terminal, "err", Console(stderr=True, width=200))
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(now))
    with terminal.telling("study all") as tell:
        for count in range(5):
            tell(f"matroid: {count} of 5 [cells]")
    assert capsys.readouterr().err.splitlines() == [
        "study all, 1 min: matroid: 2 of 5 [cells]",
        "study all, 2 min: matroid: 4 of 5 [cells]",
    ]


def test_an_unknown_study_is_refused() -> None:
    done = run("study", "matriod")
    assert done.exit_code == 2 and "did you mean 'matroid'" in done.stderr


# --- the demonstration


def test_demo_leaves_table_and_report(place: Path) -> None:
    done = run("demo", "--quick", "--out", "shown", "--keep", "0.5")
    assert done.exit_code == 0, done.output
    runs = json.loads((place / "shown" / "runs.json").read_text())
    assert [(r["method"], r["repair"]) for r in runs] == [(m, r) for m in METHODS for r in (None, "fold")]
    for one in runs:
        assert one["status"] == "ok" and one["data"] == "digits"
        assert one["groups"]["1"] == {"units": 128, "kept": 64} and one["before"]["metric"] > 0.95
        assert one["method"] in done.stdout and f"{one['after']['metric']:.3f}" in done.stdout
    folded = [one["after"]["metric"] for one in runs if one["repair"] == "fold"]
    assert min(folded) > 0.9
    assert {path.name for path in (place / "shown").iterdir()} == {"report.html", "runs.json", "table.md"}
    assert (place / "shown" / "table.md").read_text() == markdown(runs)


def test_a_refusal_is_a_row_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise InputError("the network\n is unsuitable")

    monkeypatch.setattr("secateur.cli.demo.prune", refuse)
    runs = demonstrate(0.5, methods=["random", "mip"], quick=True)
    assert {run["status"] for run in runs} == {"the network is unsuitable"} and len(runs) == 4
    (first, _) = pivot(runs)
    assert first.pop("status") == "the network is unsuitable"
    assert first == {"data": "digits", "model": "MLP 64-128-64-10", "method": "random"}
    assert "| random | the network is unsuitable |" in markdown(runs)


def test_demo_repeats_itself() -> None:
    first, second = (demonstrate(0.5, methods=["random", "matroid"], quick=True, seed=1) for _ in range(2))
    drop = {"seconds", "finetune"}
    assert [{k: v for k, v in run.items() if k not in drop} for run in first] == [
        {k: v for k, v in run.items() if k not in drop} for run in second
    ]
