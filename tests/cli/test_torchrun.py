"""Two real processes share the batches of one pruning."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import NET
from language_folder import make_folder, make_mixtral, make_text
from safetensors.torch import load_file
from typer.testing import CliRunner

from secateur.cli.main import app
from secateur.core import InputError, Latency, Params
from secateur.processes import Processes
from secateur.result import load_report

PRUNE = ("-m", "secateur", "prune")
USER = '''
import os
import torch
from secateur.core import InputError
from secateur.methods import Magnitude

class FailsInOne(Magnitude):
    """Magnitude, but for the second process."""
    name = "fails"

    def plan(self, graph, statistics, budget):
        if os.environ.get("RANK") == "1":
            raise InputError("the second process has no disk left")
        return super().plan(graph, statistics, budget)

class Differs(Magnitude):
    """Another plan in each process."""
    name = "differs"

    def unit_scores(self, graph, statistics):
        scores = super().unit_scores(graph, statistics)
        return {name: x.flip(0) if os.environ.get("RANK") == "1" else x for name, x in scores.items()}
'''


SCRIPT = """
import torch
import secateur as sc
from secateur.processes import split_over_processes
from torch import nn

for method in ("taylor", "lattice"):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 5))
    data = list(torch.randn(5, 16, 8))
    alone = sc.prune(net, data[0], sc.Units(0.5), data, method=method, repair="fold", progress=False)
    with split_over_processes() as processes:
        found = sc.prune(net, data[0], sc.Units(0.5), data, method=method, repair="fold", progress=False)
        assert processes.count == 2
    assert found.plan.keep["0"].tolist() == alone.plan.keep["0"].tolist()
    for x, y in zip(found.model.parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(x, y)
    if processes.number == 0:
        print("as alone:", method)
"""


def two(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a module, or a script, in two processes of torchrun."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*start, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_two_processes_prune_as_one_does(tmp_path: Path) -> None:
    """Seven sequences do not divide evenly, and the one that judges gives the other process nothing."""
    make_folder(tmp_path / "llama")
    (tmp_path / "gardens.txt").write_text(make_text("gardens"))
    texts = ("--text", "gardens.txt", "--sequence-length", "32", "--samples", "7", "--holdout-samples", "1")
    options = ("--budget", "params=0.8,of=body", "--method", "taylor", "--repair", "fold", *texts)
    done = two(tmp_path, *PRUNE, "llama", *options, "--out", "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("saved in two") == 1 and done.stdout.count("perplexity on") == 1
    one = tmp_path / "one"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        alone = CliRunner().invoke(app, ["prune", "llama", *options, "--out", "one"])
    assert alone.exit_code == 0, alone.output
    first, second = load_report(one), load_report(tmp_path / "two")
    assert first.groups == second.groups and any(x["kept"] < x["units"] for x in first.groups.values())
    weights = [load_file(folder / "model.safetensors") for folder in (one, tmp_path / "two")]
    for name, x in weights[0].items():
        torch.testing.assert_close(weights[1][name], x, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_two_processes_choose_the_experts_of_one(tmp_path: Path) -> None:
    """What experts add is summed over both; seven sequences do not divide evenly."""
    make_mixtral(tmp_path / "mixtral")
    (tmp_path / "gardens.txt").write_text(make_text("gardens"))
    texts = ("--text", "gardens.txt", "--sequence-length", "32", "--samples", "7", "--holdout-samples", "1")
    options = ("--experts", "3", "--method", "taylor", "--repair", "none", "--budget", "params=0.6,of=body")
    done = two(tmp_path, *PRUNE, "mixtral", *options, *texts, "--out", "two")
    assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        alone = CliRunner().invoke(app, ["prune", "mixtral", *options, *texts, "--out", "one"])
    assert alone.exit_code == 0, alone.output
    one, both = (load_report(tmp_path / folder) for folder in ("one", "two"))
    first, second = one.notes["experts gone"], both.notes["experts gone"]
    assert [note["gone"] for note in first.values()] == [note["gone"] for note in second.values()]
    for name, note in first.items():
        assert second[name]["saliency"] == pytest.approx(note["saliency"], rel=1e-9)
    assert one.groups == both.groups and any(x["kept"] < x["units"] for x in one.groups.values())
    weights = [load_file(tmp_path / folder / "model.safetensors") for folder in ("one", "two")]
    assert all(torch.equal(x, weights[1][name]) for name, x in weights[0].items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("FailsInOne", "the second process has no disk left"),
        ("Differs", "is not the same in all processes"),
    ],
)
def test_an_error_of_one_ends_all_with_one_message(tmp_path: Path, method: str, message: str) -> None:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "user.py").write_text(USER)
    done = two(tmp_path, *PRUNE, "net.py:ready", "--method", f"user.py:{method}", "--budget", "units=0.5")
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1 and message in done.stderr, done.stderr


@pytest.mark.slow
def test_prunings_in_a_row_share_data_without_labels(tmp_path: Path) -> None:
    """Random projections stand for labels, and a sample of activations is no sum."""
    (tmp_path / "script.py").write_text(SCRIPT)
    done = two(tmp_path, "script.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["as alone: taylor", "as alone: lattice"]


def test_what_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.cli import torchrun

    monkeypatch.setattr(torchrun, "current_processes", lambda: Processes(0, 2))
    for budget, stream in ((Latency(0.5), False), (Params(0.5), True)):
        with pytest.raises(InputError, match="without torchrun"):
            torchrun.check_divisible(budget, stream)
    torchrun.check_divisible(Params(0.5), stream=False)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    done = CliRunner().invoke(app, ["methods"])
    assert done.exit_code == 2 and "under torchrun" in done.output
