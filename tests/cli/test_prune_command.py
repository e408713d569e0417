"""``secateur prune``: data without labels, metrics, losses, checkpoints, budgets, schedules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_line import prune, run
from torch import nn

import secateur
from secateur.formats.store import load_plan
from secateur.report import Report
from secateur.result import load_report


def report_of(*arguments: str) -> Report:
    done = prune(*arguments, "--out", "small")
    assert done.exit_code == 0, done.output
    return load_report("small")


def test_defaults_are_those_of_python() -> None:
    report = report_of()
    assert (report.method, report.repair, report.budget) == ("magnitude", None, repr(secateur.Units(0.5)))
    report = report_of("--data", "net.py:batches")
    assert (report.method, report.repair) == ("matroid", "refit") and report.after.latency == ()
    report = report_of("--data", "net.py:batches", "--budget", "weights=0.5")
    assert (report.method, report.repair) == ("magnitude", None)


@pytest.mark.parametrize("data", ["batches", "unlabelled", "dicts", "loader"])
def test_data_may_have_labels_or_not(data: str) -> None:
    report = report_of("--data", f"net.py:{data}", "--repair", "fold+finetune", "--epochs", "2")
    assert report.after.cost.parameters < report.before.cost.parameters and report.repair == "fold+finetune"


def test_a_fine_tuning_takes_its_options() -> None:
    options = ("--tuning-steps", "7", "--minutes", "9", "--lr", "0.01", "--teacher", "--feature", "4")
    report = report_of("--data", "net.py:batches", "--repair", "fold+finetune", *options)
    known = {"teacher": True, "steps": 7, "minutes": 9.0, "lr": 0.01, "features": ["4"]}
    assert {name: report.finetune[name] for name in known} == known
    report = report_of("--data", "net.py:batches", "--repair", "finetune", "--no-teacher", "--epochs", "2")
    assert report.finetune["teacher"] is False and report.finetune["steps"] == 12
    for option in (("--tuning-steps", "3"), ("--no-teacher",), ("--feature", "4"), ("--minutes", "1")):
        done = prune("--data", "net.py:batches", *option)
        assert done.exit_code == 2 and f"{option[0].replace('no-', '')} is for a fine-tuning" in done.stderr
    done = prune("--data", "net.py:batches", "--repair", "finetune", "--epochs", "1", "--tuning-steps", "3")
    assert done.exit_code == 2 and "give epochs or steps" in done.stderr


def test_without_labels_the_metric_is_the_agreement() -> None:
    done = prune("--data", "net.py:unlabelled", "--holdout", "net.py:held_out", "--method", "taylor")
    assert done.exit_code == 0 and "no class numbers" in done.stderr
    assert "agreement: 1.0000 ->" in done.stdout
    done = prune("--data", "net.py:batches", "--holdout", "net.py:dicts")
    assert "accuracy: " in done.stdout and "no class numbers" not in done.stderr


def test_a_user_brings_a_metric_and_a_loss() -> None:
    report = report_of(
        *("--data", "net.py:unlabelled", "--holdout", "net.py:held_out", "--method", "taylor"),
        *("--metric", "net.py:count_positive", "--loss", "net.py:squared", "--repair", "finetune"),
    )
    assert report.metric == "count_positive"


def test_a_budget_may_give_a_share_for_each_layer() -> None:
    report = report_of("--budget", "units=0:0.75,2*:0.5")
    assert {name: group["kept"] for name, group in report.groups.items()} == {"0": 24, "2": 12}
    report = report_of("--budget", "units=2:0.5", "--steps", "2")
    assert {name: group["kept"] for name, group in report.groups.items()} == {"0": 32, "2": 12}


def test_a_tolerance_is_a_schedule() -> None:
    arguments = ("--data", "net.py:batches", "--holdout", "net.py:held_out", "--tolerance", "0.2")
    report = report_of(*arguments)
    assert report.schedule == "Tolerance(drop=0.2, metric='agreement', step=0.05)"
    assert report.after.metric >= 0.8
    least = report_of(*arguments, "--budget", "units=0.9")
    assert least.after.cost.parameters > report.after.cost.parameters


def test_weights_are_found_in_checkpoints() -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 3))
    state = model.state_dict()
    torch.save(state, "plain.pt")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, "lightning.pt")
    torch.save({"model": state, "ema": {k: v + 1 for k, v in state.items()}}, "two.pt")
    torch.save({**state, "head.weight": torch.ones(2)}, "extra.pt")
    for weights in ("plain.pt", "lightning.pt", "two.pt:model"):
        assert prune("--weights", weights).exit_code == 0
    for weights, message in (
        ("two.pt", "two.pt:model"),
        ("two.pt:ama", "'ema'"),
        ("extra.pt", "head.weight"),
    ):
        done = prune("--weights", weights)
        assert done.exit_code == 2 and message in done.stderr, done.stderr
    assert prune("--weights", "extra.pt", "--no-strict").exit_code == 0


def test_repairs_that_were_undone_are_named() -> None:
    done = prune("--data", "net.py:batches", "--method", "random", "--budget", "units=0.1")
    assert done.exit_code == 0
    report = report_of("--data", "net.py:batches", "--method", "random", "--budget", "units=0.1")
    undone = [name for name, note in report.folds.items() if note["undone"]]
    assert all(f"repair of {name} undone" in done.stdout for name in undone)


def test_a_large_model_without_units_has_a_short_message(place: Path) -> None:
    (place / "deep.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Deep(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(40))\n\n"
        "    def forward(self, x):\n        return [layer(x) for layer in self.layers]\n"
    )
    done = run("prune", "deep.py:Deep", "--example-shape", "2,4")
    assert done.exit_code == 2 and len(done.stderr.splitlines()) < 30, done.stderr
    assert "secateur inspect" in done.stderr


def test_bert_with_tokens_but_no_labels(place: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertForSequenceClassification(config).save_pretrained("bert")
    (place / "text.py").write_text(
        "import torch\nfrom transformers import BatchEncoding\n\n\ndef tokens():\n"
        "    generator = torch.Generator().manual_seed(0)\n"
        "    ids = [torch.randint(50, (4, 7), generator=generator) for _ in range(6)]\n"
        "    return [BatchEncoding({'input_ids': x, 'attention_mask': torch.ones_like(x)}) for x in ids]\n"
    )
    done = run("prune", "bert", "--data", "text.py:tokens", "--holdout", "text.py:tokens", "--out", "small")
    assert done.exit_code == 0, done.output
    report = load_report("small")
    assert (report.metric, report.repair) == ("agreement", "refit")
    assert report.after.cost.parameters < report.before.cost.parameters


@pytest.mark.parametrize("inside", ["body", "auto"])
def test_inside_prunes_a_part_of_the_model(inside: str) -> None:
    done = run("prune", "net.py:Parts", "--example-shape", "2,8", "--inside", inside, "--out", "run")
    assert not done.exit_code, done.output
    assert [group.name for group in load_plan("run").graph.groups] == ["body.0", "body.2"]
