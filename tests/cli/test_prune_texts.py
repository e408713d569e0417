"""``secateur prune FOLDER --text``: language models, their texts, and what can be wrong with both."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from click.testing import Result
from command_line import run
from language_folder import make_folder, make_mixtral, make_text, make_tokenizer
from safetensors.torch import load_file
from sampled import sampled
from transformers import AutoTokenizer, LlamaForCausalLM, MixtralForCausalLM

from secateur.cli.options import parse_experts
from secateur.core import InputError
from secateur.measure.metrics import perplexity
from secateur.result import load_report
from secateur.texts import read_texts

TEXTS = ("--text", "gardens.txt", "--sequence-length", "32", "--samples", "6", "--holdout-samples", "2")


@pytest.fixture
def llama(place: Path) -> Path:
    """A folder with a model and a tokenizer, and two texts beside it."""
    for subject in ("gardens", "ships"):
        (place / f"{subject}.txt").write_text(make_text(subject))
    return make_folder(place / "llama")


def prune(*arguments: str) -> Result:
    budget = () if "--budget" in arguments else ("--budget", "params=0.8,of=body")
    return run("prune", "llama", *budget, *arguments)


def test_a_language_model_is_pruned_and_judged_on_every_text(llama: Path) -> None:
    done = prune(*TEXTS, "--holdout-text", "ships.txt", "--out", "small")
    assert done.exit_code == 0, done.output
    report = load_report("small")
    assert (report.method, report.repair, report.metric) == ("taylor", "fold", "perplexity")
    assert list(report.after.metrics) == ["gardens.txt, second half", "ships.txt"]
    assert all(math.isfinite(x) and x > 1 for x in report.after.metrics.values())
    assert 0.5 < report.after.cost.body / report.before.cost.body <= 0.8
    assert report.before.cost.body == report.before.cost.parameters - 2 * 300 * 24
    assert report.before.rates.prompt == 32 and report.after.rates.decode > 0
    assert report.peak_memory > 2**20 and report.seconds["repair"] > 0
    assert not any("embed_tokens" in name for name in report.groups)
    for line in ("perplexity on ships.txt", "without embeddings", "tokens per second, decode", "peak memory"):
        assert line in done.stdout
    assert "no other text was judged" not in done.stderr
    page = (Path("small") / "report.html").read_text()
    assert "perplexity on ships.txt" in page and "tokens per second" in page


def test_the_result_is_a_folder_that_transformers_loads(llama: Path) -> None:
    done = prune(*TEXTS, "--holdout-text", "ships.txt", "--out", "small")
    assert done.exit_code == 0 and "from_pretrained loads" in done.stdout, done.output
    model = LlamaForCausalLM.from_pretrained("small")
    report = load_report("small")
    assert sum(x.numel() for x in model.parameters()) == report.after.cost.parameters
    assert model.config.intermediate_size < 20
    tokenizer = AutoTokenizer.from_pretrained("small")
    (judged,) = {"ships.txt"} & set(report.after.metrics)
    batches = read_texts(["gardens.txt"], ["ships.txt"], tokenizer, model, length=32, judging=2).judged
    assert perplexity(model, batches[judged]) == pytest.approx(report.after.metrics[judged], rel=1e-4)
    done = run("report", "small")
    assert done.exit_code == 0, done.output
    again = prune(*TEXTS, "--out", "small")
    assert again.exit_code == 2 and "holds files" in again.stderr


def test_uneven_layers_are_filled_up_with_zeros(llama: Path) -> None:
    plain = ("--method", "magnitude", "--repair", "none", "--scope", "global", "--uneven")
    done = prune(*TEXTS, *plain, "--out", "small")
    assert done.exit_code == 0 and "filled up with units of zeros" in done.stderr, done.output
    kept = {name: group["kept"] for name, group in load_report("small").groups.items() if "mlp" in name}
    assert len(set(kept.values())) == 2
    assert LlamaForCausalLM.from_pretrained("small").config.intermediate_size == max(kept.values())


def test_uneven_layers_with_a_modelling_file(llama: Path) -> None:
    plain = ("--method", "magnitude", "--repair", "none", "--scope", "global", "--uneven")
    done = prune(*TEXTS, *plain, "--modelling-file", "--out", "small")
    assert done.exit_code == 0 and "loads with trust_remote_code=True" in done.stderr, done.output
    report = load_report("small")
    weights = load_file("small/model.safetensors")
    assert sum(x.numel() for x in weights.values()) == report.after.cost.parameters
    done = run("prune", "small", "--budget", "params=0.8")
    assert done.exit_code == 2 and "its own code" in done.stderr


def test_without_another_text_the_output_says_so(llama: Path) -> None:
    done = prune(*TEXTS, "--method", "magnitude", "--repair", "none")
    assert done.exit_code == 0, done.output
    assert "no other text was judged" in done.stderr and "--holdout-text" in done.stderr


def test_the_residual_stream_is_cut_if_asked_for(llama: Path) -> None:
    plain = ("--method", "magnitude", "--repair", "none", "--scope", "layer")
    done = prune(*TEXTS, *plain, "--cut", "hidden")
    assert done.exit_code == 0, done.output
    assert "embed_tokens" in done.stdout and "embed_tokens" not in prune(*TEXTS, *plain).stdout
    done = prune(*TEXTS, *plain, "--cut", "hiden")
    assert done.exit_code == 2 and "'hidden'" in done.stderr


@pytest.mark.parametrize("blocks", sampled(["1", "auto", "model.layers.0"], "auto"))
def test_whole_blocks_go_first(llama: Path, blocks: str) -> None:
    plain = ("--method", "matroid", "--repair", "none", "--budget", "params=0.8,of=body")
    done = prune(*TEXTS, *plain, "--blocks", blocks, "--out", "small")
    assert done.exit_code == 0, done.output
    gone = load_report("small").notes.get("blocks gone", ())
    small = LlamaForCausalLM.from_pretrained("small")
    assert small.config.num_hidden_layers == len(small.model.layers) == 2 - len(gone)
    assert len(gone) == 1 or blocks == "auto"
    done = prune(*TEXTS, *plain, "--blocks", "model.layers.7")
    assert done.exit_code == 2 and "no block 'model.layers.7'" in done.stderr


def mixtral(place: Path, *arguments: str) -> Result:
    make_mixtral(place / "mixtral")
    (place / "gardens.txt").write_text(make_text("gardens"))
    plain = ("--method", "magnitude", "--repair", "none", "--budget", "params=0.6,of=body")
    return run("prune", "mixtral", *TEXTS, *plain, *arguments)


def test_whole_experts_go_first(place: Path) -> None:
    done = mixtral(place, "--experts", "3,by=tokens", "--out", "small", "--explain")
    assert done.exit_code == 0 and "from_pretrained loads" in done.stdout, done.output
    assert "experts 2 of 8 (" in done.stdout and "experts that stay in model.layers.0.mlp: [" in done.stdout
    small = MixtralForCausalLM.from_pretrained("small")
    assert small.config.num_local_experts == 3 and small.config.intermediate_size < 16
    report = load_report("small")
    assert report.kinds["experts"]["kept"] == 6
    assert {note["by"] for note in report.notes["experts gone"].values()} == {"tokens"}


@pytest.mark.slow
def test_experts_by_name(place: Path) -> None:
    named = [x for n in (0, 1) for x in ("--experts", f"model.layers.{n}.mlp:{n},2,3")]
    done = mixtral(place, *named, "--out", "other")
    assert done.exit_code == 0, done.output
    notes = load_report("other").notes["experts gone"]
    assert [note["gone"] for note in notes.values()] == [[1], [0]]
    done = mixtral(place, *named[:2], "--out", "uneven")
    assert done.exit_code == 0 and "unequal numbers of experts" in done.stderr, done.output
    assert "secateur.load reads" in done.stderr
    done = mixtral(place, "--experts", "1")
    assert done.exit_code == 2 and "keep at least 2" in done.stderr


def test_the_stream_takes_no_experts(place: Path) -> None:
    """Nothing is read: the model is not there."""
    streamed = ("--stream", "--text", "gardens.txt", "--experts", "3", "--out", "streamed")
    done = run("prune", "not-there", *streamed)
    assert done.exit_code == 2 and "--experts needs the whole model in memory" in done.stderr
    assert not (place / "streamed").exists()


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        (["model.layers.0.mlp"], "--experts takes"),
        (["mlp:0,x"], "takes one number, as in 6 or 6,by=tokens"),
        (["6", "mlp:0,1"], "got '6'"),
        (["mlp:0,1", "mlp:2,3"], "got 'mlp:2,3'"),
        (["3,by=size"], "no saliency of experts 'size'"),
        (["3,by"], "got '3,by'"),
    ],
)
def test_experts_that_cannot_be_read(texts: list[str], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        parse_experts(texts)


def test_the_tokenizer_may_be_elsewhere(llama: Path) -> None:
    make_tokenizer(280).save_pretrained("other")
    for file in llama.glob("tokenizer*"):
        file.unlink()
    done = prune(*TEXTS, "--out", "small")
    assert done.exit_code == 2 and "--tokenizer" in done.stderr and not Path("small").exists()
    done = prune(*TEXTS, "--method", "magnitude", "--repair", "none", "--tokenizer", "other")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--text", "gardens.txt", "--sequence-length", "65"), "longer than the 64"),
        (("--text", "none.txt"), "No such file"),
        (("--text", "empty.txt"), "is empty"),
        (("--text", "gardens.txt", "--budget", "params=0.01,of=body"), "cannot be reached"),
        (("--text", "gardens.txt", "--budget", "params=0.8,of=heads"), "'body'"),
        (("--text", "gardens.txt", "--budget", "units=0.8,of=body"), "no option of units 'of'"),
        (("--text", "gardens.txt", "--data", "net.py:batches"), "leave out --data"),
        (("--holdout-text", "ships.txt"), "give the text to calibrate on"),
        (("--tokenizer", "llama"), "are for texts"),
    ],
)
def test_bad_input_is_reported_before_anything_is_written(
    llama: Path, arguments: tuple[str, ...], message: str
) -> None:
    Path("empty.txt").write_text("\n")
    done = prune(*arguments, "--out", "small")
    assert done.exit_code == 2 and message in done.stderr.replace("\n", " "), done.output
    assert not Path("small").exists()


def test_a_factory_brings_no_tokenizer(llama: Path) -> None:
    done = run("prune", "net.py:ready", "--text", "gardens.txt")
    assert done.exit_code == 2 and "brings no tokenizer" in done.stderr


def test_inspect_measures_sensitivity_on_texts(llama: Path) -> None:
    done = run("inspect", "llama", "--sensitivity", "--method", "taylor", *TEXTS[:6], "--out", "found")
    assert done.exit_code == 0, done.output
    assert "units by taylor" in done.stdout and "mlp.gate_proj" in done.stdout
    assert (Path("found") / "sensitivity.html").exists()
    for wrong, message in (
        (("--text", "gardens.txt"), "--text belong to --sensitivity"),
        (("--sensitivity",), "--data or --text"),
        (("--sensitivity", "--tokenizer", "llama"), "give --text"),
        (("--sensitivity", "--text", "none.txt"), "none.txt"),
    ):
        done = run("inspect", "llama", *wrong)
        assert done.exit_code == 2 and message in done.stderr, done.output


def test_positions_within_heads_are_cut_where_the_user_asks_for_it(llama: Path) -> None:
    plain = ("--method", "taylor", "--repair", "fold", "--cut", "positions", "--scope", "layer")
    done = prune(*TEXTS, *plain, "--modelling-file", "--out", "small")
    assert done.exit_code == 0, done.output
    padded = json.loads(Path("small/config.json").read_text())["secateur"]["padded"]
    names = [f"model.layers.{layer}.self_attn.{x}_proj" for layer in range(2) for x in "qkvo"]
    assert sorted(padded) == sorted(names)
    shapes = {name: x.shape for name, x in load_file("small/model.safetensors").items()}
    assert shapes["model.layers.0.self_attn.v_proj.weight"][0] < 12
    assert shapes["model.layers.0.self_attn.q_proj.outputs"] == (24,)
    done = prune(*TEXTS, "--cut", "positions", "--cut", "hidden", "--stream", "--out", "streamed")
    assert done.exit_code == 2 and "--cut needs the whole model in memory" in done.stderr, done.output


def test_the_vocabulary_is_cut_where_the_user_asks_for_it(llama: Path) -> None:
    plain = ("--method", "taylor", "--repair", "fold", "--cut", "vocabulary")
    done = prune(*TEXTS, *plain, "--holdout-text", "ships.txt", "--out", "small")
    assert done.exit_code == 0 and "vocabulary: 300 -> " in done.stdout, done.output
    model, tokenizer = LlamaForCausalLM.from_pretrained("small"), AutoTokenizer.from_pretrained("small")
    assert model.config.vocab_size == len(tokenizer) < 300 and model.config.intermediate_size < 20
    text = Path("gardens.txt").read_text()[:500]
    whole = AutoTokenizer.from_pretrained("llama")
    assert tokenizer.tokenize(text) == whole.tokenize(text)
    assert list(load_report("small").after.metrics) == ["gardens.txt, second half", "ships.txt"]
    done = prune("--cut", "vocabulary")
    assert done.exit_code == 2 and "give --text" in done.stderr
    done = prune(*TEXTS, "--cut", "rows")
    assert done.exit_code == 2 and "'rows'" in done.stderr and "vocabulary" in done.stderr
