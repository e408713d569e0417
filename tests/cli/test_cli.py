"""The command line: what it prints, writes and rejects, with which exit code."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import prune, run
from rich.console import Console
from safetensors.torch import save_model
from torch import nn

import secateur
from secateur.cli import printing
from secateur.cli.inspect import print_everything, print_summary
from secateur.cli.options import check_writable
from secateur.core import StoreError
from secateur.html.files import is_own_page
from secateur.methods import METHODS
from secateur.result import load_report
from secateur.tracing.trace import trace
from secateur.user_code import find_function
from secateur.zoo import lstm, resnet20, transformer


def test_version_and_help() -> None:
    assert run("--version").stdout.count(secateur.__version__) == 1
    listed = run("--help").stdout
    assert all(command in listed for command in ("demo", "methods", "inspect", "prune", "report", "study"))
    assert "units=0.5" in run("prune", "--help").stdout


def test_methods_lists_each_with_its_options() -> None:
    shown = run("methods").stdout
    assert all(name in shown for name in METHODS)
    assert "over='producers'" in shown


def test_inspect_shows_what_each_group_costs_and_why_axes_are_frozen() -> None:
    done = run("inspect", "net.py:make", "--example-shape", "2,8", "--ignore", "2")
    assert done.exit_code == 0, done.output
    assert re.search(r"0 +ffn +32 +1,056 +91.4% +1,024 +93.4%", done.stdout), done.stdout
    assert re.search(r"1 +an output of the model +4\.weight", done.stdout)
    assert "1 group, 32 units (32 ffn)" in done.stdout and "--all" in done.stdout


def test_inspect_proposes_the_parts_of_a_model_that_cannot_be_exported() -> None:
    refused = run("inspect", "net.py:Parts", "--example-shape", "2,8")
    assert refused.exit_code and "--inside body (or --inside auto)" in " ".join(refused.output.split())
    done = run("inspect", "net.py:Parts", "--example-shape", "2,8", "--inside", "body")
    assert not done.exit_code and "body.0" in done.output
    hopeless = run("inspect", "net.py:Branching", "--example-shape", "2,8")
    assert hopeless.exit_code and "--inside" not in hopeless.output


def test_inspect_all_lists_every_tensor_and_frozen_axis() -> None:
    done = run("inspect", "net.py:make", "--example-shape", "2,8", "--ignore", "2", "--all")
    assert re.search(r"0 +32 +2\.weight +1 +in", done.stdout)
    assert re.search(r"2\.weight +0 +ignored_layers", done.stdout)
    assert re.search(r"4\.weight +0 +an output of the model", done.stdout)


@pytest.mark.parametrize("factory", [resnet20, transformer, lstm], ids=lambda f: f.__name__)
def test_every_name_that_inspect_prints_can_be_ignored(
    factory: Callable[..., nn.Module], capsys: pytest.CaptureFixture[str]
) -> None:
    model = factory()
    graph = trace(model, factory.example_inputs)
    print_everything(graph)
    print_summary(graph)
    printed = capsys.readouterr().out
    groups = {group.name for group in graph.groups}
    names = groups | {slot.tensor for group in graph.groups for slot in group.slots}
    names |= {axis.tensor for axis in graph.frozen}
    assert groups and all(name in printed for name in names)
    assert trace(model, factory.example_inputs, ignored_layers=sorted(names - groups)).groups == ()
    assert trace(model, factory.example_inputs, ignored_layers=sorted(groups)).groups == ()


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
    report = load_report("small")
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
    report = load_report("small")
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
    report = load_report("small")
    assert report.agreement.examples == 539 and report.metric == "accuracy"


WRONG = {
    "net.py:make": "example inputs of the model are missing",
    "net.py:mak": "did you mean 'make'",
    "net.py:constant": "is of type int, not a function",
    "net.py:Lost": "returned a value of type Lost, not a torch.nn.Module",
    "net.py:broken": r"no disk left \(.*net\.py:1\d\)",
    "net.py:number": "returned a value of type int, not a torch.nn.Module",
    "none.py:make": "the file none.py does not exist",
    "no_such_package.module:make": "No module named 'no_such_package'",
    "net": "has the wrong form",
    "net.py:branching --example-shape 2,8": "data-dependent",
    "net.py:spoiled --example-shape 2,8": "NaN",
    "net.py:make --example-shape 2,9": r"calling Sequential on example inputs \(2, 9\) failed",
    "net.py:make --example-shape two": "a shape is integers with commas",
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
    "net.py:ready --data net.py:none": "no batches",
    "net.py:ready --data net.py:number": "net.py:number: data is a list, a DataLoader",
    "net.py:ready --data digit": "did you mean 'digits'",
    "net.py:ready --data mnist": "mnist has no default folder",
    "net.py:ready --data fashion:nowhere": "no train-images-idx3-ubyte.gz",
    "net.py:ready --method taylor --data net.py:strings": "net.py:strings",
    "net.py:ready --data net.py:one_batch": "put it into a list",
    "net.py:ready --data net.py:broken_batches": "no such image",
    "net.py:ready --budget units=0:0.5,2": "units=layer1",
    "net.py:ready --budget units=9:0.5": "9",
    "net.py:ready --budget units=0:1.5": r"\(0, 1\]",
    "net.py:ready --budget params=0:0.5": "must be one number",
    "net.py:ready --steps 2 --tolerance 0.1": "not both",
    "net.py:ready --epochs 2": "fine-tuning",
    "net.py:ready --lr 0.1 --repair fold --data net.py:batches": "fine-tuning",
    "net.py:ready --metric accuracy": "--holdout",
    "net.py:ready --metric accuracy --data net.py:batches --holdout net.py:unlabelled": "agreement",
    "net.py:ready --metric net.py:wrong_metric --data net.py:batches --holdout net.py:dicts": "one number",
    "net.py:ready --metric net.py:failing_metric --data net.py:batches --holdout net.py:dicts": "score",
    "net.py:ready --metric net.py:no_metric": "no function in net.py 'no_metric'",
    "net.py:ready --loss net.py:no_loss": "no function in net.py 'no_loss'",
    "net.py:ready --loss squared": "has the wrong form",
    "net.py:ready --weights net.py:key": "neither a safetensors file",
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
    assert load_report("small").method == "random"


def test_files_of_the_user_are_not_replaced(place: Path) -> None:
    (place / "mine").mkdir()
    for name in ("report.html", "runs.csv", "failures.json"):
        (place / "mine" / name).write_text("mine")
    bench = ("bench", "net.py:ready", "--data", "net.py:batches", "--out", "mine")
    for command in (bench, ("demo", "--quick", "--out", "mine"), ("report", "mine")):
        done = run(*command)
        assert done.exit_code == 2 and "files that Secateur did not write" in done.stderr
    assert prune("--out", "mine").exit_code == 2
    assert all(path.read_text() == "mine" for path in (place / "mine").iterdir())


def test_pages_of_earlier_runs_are_replaced(place: Path) -> None:
    assert prune("--out", "runs/a").exit_code == 0
    for _ in range(2):
        assert run("report", "runs").exit_code == 0
    assert is_own_page(place / "runs" / "report.html") and not is_own_page(place / "net.py")
    (place / "runs" / "mine.jsonl").touch()
    check_writable(place / "runs", replaced=["report.html"], mark="mine.jsonl")


def test_check_writable_leaves_no_trace(place: Path) -> None:
    check_writable(place / "a" / "b")
    assert not (place / "a").exists()
    (place / "kept").mkdir()
    check_writable(place / "kept")
    assert (place / "kept").is_dir()
    with pytest.raises(StoreError):
        check_writable(place / "net.py" / "a")


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
    report = load_report("small")
    assert report.model == "GPT2LMHeadModel" and report.after.cost.parameters < report.before.cost.parameters
    (place / "gpt2" / "config.json").write_text("{")
    done = run("inspect", "gpt2")
    assert done.exit_code == 2 and "reading gpt2 failed" in done.stderr


def test_progress_is_a_line_a_minute_where_there_is_no_printing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter([0.0, 10.0, 59.0, 61.0, 100.0, 125.0])
    monkeypatch.setattr(printing, "err", Console(stderr=True, width=200))
    monkeypatch.setattr(printing.time, "monotonic", lambda: next(now))
    with printing.progress("study all") as log:
        for count in range(5):
            log(f"matroid: {count} of 5 [cells]")
    assert capsys.readouterr().err.splitlines() == [
        "study all, 1 min: matroid: 2 of 5 [cells]",
        "study all, 2 min: matroid: 4 of 5 [cells]",
    ]
