"""``secateur prune FOLDER --stream``: models larger than memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import Result
from command_line import run
from language_folder import make_folder, make_text
from transformers import AutoTokenizer, LlamaForCausalLM

from secateur.result import load_report

TEXTS = ("--text", "gardens.txt", "--sequence-length", "32", "--samples", "6", "--holdout-samples", "2")


@pytest.fixture
def llama(place: Path) -> Path:
    """A folder with a model in shards and a tokenizer, and a text beside it."""
    (place / "gardens.txt").write_text(make_text("gardens"))
    return make_folder(place / "llama", max_shard_size="20KB")


def prune(*arguments: str) -> Result:
    return run("prune", "llama", "--budget", "params=0.8,of=body", "--stream", *arguments)


def test_a_folder_is_pruned_into_a_folder(llama: Path) -> None:
    done = prune(*TEXTS, "--out", "small")
    assert done.exit_code == 0, done.output
    assert "perplexity on gardens.txt, second half" in done.stdout
    report = load_report("small")
    assert report.schedule == "block by block" and list(report.after.metrics) == ["gardens.txt, second half"]
    assert (
        report.after.cost.body < report.before.cost.body and report.after.cost.macs < report.before.cost.macs
    )
    assert "perplexity on gardens.txt" in (Path("small") / "report.html").read_text()
    assert "no other text was judged" in done.stderr
    model = LlamaForCausalLM.from_pretrained("small")
    assert model.config.intermediate_size < 20 and "plan" in model.config.secateur
    assert sum(x.numel() for x in model.parameters()) == report.after.cost.parameters
    assert len(list(Path("small").glob("*.safetensors"))) == 5  # two blocks, and three tensors around them
    assert AutoTokenizer.from_pretrained("small")("roses")["input_ids"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name a folder with --out"),
        (("--out", "small", "--latency"), "--latency needs the whole model in memory"),
        (("--out", "small", "--uneven"), "--uneven needs the whole model in memory"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(arguments: tuple[str, ...], words: str, llama: Path) -> None:
    done = prune(*TEXTS, *arguments)
    assert done.exit_code != 0 and words in " ".join(done.output.split())
    assert not Path("small").exists()


def test_a_stream_needs_a_text(llama: Path) -> None:
    done = prune("--out", "small")
    assert done.exit_code != 0 and "give --text" in done.output
