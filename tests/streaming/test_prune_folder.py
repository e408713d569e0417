"""Tests for pruning a folder block by block: the same as in memory, and whatever kills it, the same bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sampled import sampled
from torch import Tensor, nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from secateur.apply.shrink import shrink
from secateur.batches import split_off_guard
from secateur.core import InputError, Latency, NothingToPrune, Params, StoreError, Units
from secateur.formats.modelling_file import import_class
from secateur.measure.cost import cost
from secateur.measure.metrics import perplexity
from secateur.pruning import plan as decide
from secateur.repair.fold import fold
from secateur.repair.refit import refit_in_place
from secateur.statistics.collect import collect_statistics
from secateur.streaming import prune_folder
from secateur.streaming.blocks import BlockChain
from secateur.streaming.journal import Journal
from secateur.streaming.sizes import trace_chain
from secateur.tracing.trace import trace

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 28,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        {"sliding_window": 6, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
    ),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"tie_word_embeddings": True}),
}
BUDGET = Params(0.8, scope="layer", even=True)


def make(folder: Path, family: str = "llama", **sizes: int) -> nn.Module:
    """Save a small model with random weights in several shards."""
    kind, config, more = FAMILIES[family]
    torch.manual_seed(0)
    model = kind(config(**{**SIZES, **more, **sizes})).eval()
    model.save_pretrained(folder, max_shard_size="9KB")
    return model


def batches(count: int = 6) -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(0, 40, (2, 12), generator=draw)} for _ in range(count)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(x.relative_to(folder)): x.read_bytes() for x in sorted(folder.rglob("*")) if x.is_file()}


@pytest.mark.parametrize("family", sampled(FAMILIES, "gemma3"))
def test_it_is_what_the_same_steps_give_in_memory(family: str, tmp_path: Path) -> None:
    """The last weight is solved in memory only: a stream leaves the output layer as it is."""
    model = make(tmp_path / "in", family)
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 3
    judged = {"text": [{**x, "labels": x["input_ids"]} for x in batches(2)]}
    how: dict[str, Any] = {"method": "leverage", "repair": "refit", "judged": judged, "progress": False}
    result = prune_folder(tmp_path / "in", tmp_path / "out", BUDGET, batches(), **how)
    graph = trace(model, torch.zeros(2, 13, dtype=torch.long), ["kind:hidden"]).with_even_layers()
    fitting, guard = split_off_guard(batches())
    plan = decide(graph, "leverage", BUDGET, fitting, model=model)
    assert {k: list(v) for k, v in result.plan.keep.items()} == {k: list(v) for k, v in plan.keep.items()}
    small = shrink(model, plan)
    held_out = collect_statistics(model, graph, guard, {"gram"})
    small, _ = fold(model, small, plan, collect_statistics(model, graph, fitting, {"gram"}), held_out)
    refit_in_place(model, small, plan, fitting, guard)
    loaded, report = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    solved = dict(small.named_parameters())
    for name, tensor in loaded.named_parameters():
        if name != "lm_head.weight":
            torch.testing.assert_close(tensor, solved[name], rtol=1e-3, atol=1e-5)
    before, after = (x.metrics["text"] for x in (result.report.before, result.report.after))
    assert before == pytest.approx(perplexity(model, judged["text"]), rel=1e-5)
    assert after == pytest.approx(perplexity(loaded.eval(), judged["text"]), rel=1e-5)
    for m, measured in ((model, result.report.before), (loaded, result.report.after)):
        counted = cost(m, torch.zeros(2, 13, dtype=torch.long), embeddings=graph.embeddings())
        assert measured.cost == dataclasses.replace(counted, nonzero=counted.parameters)
    assert not (tmp_path / "out.unfinished").exists()


def test_positions_within_heads_are_found_in_one_block_of_each_kind(tmp_path: Path) -> None:
    model = make(tmp_path / "in", num_hidden_layers=2)
    found = trace_chain(BlockChain(tmp_path / "in"), BUDGET, ["kind:value positions"], positions=True)
    whole = trace(model, batches()[0], ["kind:hidden", "kind:value positions"], positions=True)
    here, there = ([g for g in graph.groups if g.padded] for graph in (found, whole))
    assert [(g.name, g.size, g.kind) for g in here] == [(g.name, g.size, g.kind) for g in there]
    for a, b in zip(here, there, strict=True):
        assert [(x.tensor, x.axis, x.index.tolist()) for x in a.slots] == [
            (x.tensor, x.axis, x.index.tolist()) for x in b.slots
        ]


@pytest.mark.slow
def test_positions_within_heads(tmp_path: Path) -> None:
    """Each block loses its own; the modelling file states them."""
    model = make(tmp_path / "in", "qwen3")
    judged = {"text": [{**x, "labels": x["input_ids"]} for x in batches(2)]}
    result = prune_folder(
        tmp_path / "in", tmp_path / "out", BUDGET, batches(), positions=True, judged=judged, progress=False
    )
    gone = {g.kind for g in result.plan.graph.groups if len(result.plan.removed(g.name))}
    assert {"query-key positions", "value positions"} <= gone
    loaded, report = import_class(tmp_path / "out", model).from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report.values())
    after = result.report.after
    assert after.metrics["text"] == pytest.approx(perplexity(loaded.eval(), judged["text"]), rel=1e-5)
    assert after.cost.parameters == sum(x.numel() for x in loaded.parameters())
    ids = batches()[0]["input_ids"][:1]
    how: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    assert loaded.generate(ids, **how).equal(loaded.generate(ids, **how, use_cache=False))


class Killed(BaseException):
    """Ends a run anywhere, as a signal does."""


def test_a_run_that_is_killed_after_any_write_goes_on_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "in", num_hidden_layers=2)
    arguments = (BUDGET, batches(2))
    prune_folder(tmp_path / "in", tmp_path / "whole", *arguments, method="wanda", progress=False)
    rename: Callable[[Path, Path], Path] = Path.rename
    replace_: Callable[[Path, Path], Path] = Path.replace
    left, after = 0, False

    def dying(real: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def write(self: Path, target: Path) -> Path:
            nonlocal left
            left -= 1
            if left == 0 and not after:
                raise Killed
            result = real(self, target)
            if left == 0:
                raise Killed
            return result

        return write

    monkeypatch.setattr(Path, "rename", dying(rename))
    monkeypatch.setattr(Path, "replace", dying(replace_))
    kills = 0
    for step in range(60):
        # Each run dies a few writes later than the one before, before or after the write.
        left, after = 4 + step % 3, step % 2 == 1
        try:
            prune_folder(tmp_path / "in", tmp_path / "out", *arguments, method="wanda", progress=False)
            break
        except Killed:
            kills += 1
    assert kills >= 4
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(x.name for x in tmp_path.iterdir()) == ["in", "out", "whole"]


def test_a_folder_of_another_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "in")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Journal, "write_hidden", fail)
    with pytest.raises(StoreError, match=r"No space left.*What was finished stays.*same command"):
        prune_folder(tmp_path / "in", tmp_path / "out", BUDGET, batches(), method="wanda", progress=False)
    before = contents(tmp_path / "out.unfinished")
    assert any("safetensors" in name for name in before)
    with pytest.raises(StoreError, match=r"another method, seed .*Wanda"):
        prune_folder(tmp_path / "in", tmp_path / "out", BUDGET, batches(), method="flap", seed=1)
    assert contents(tmp_path / "out.unfinished") == before
    (tmp_path / "other.unfinished").mkdir()
    (tmp_path / "other.unfinished" / "letter.txt").write_text("")
    with pytest.raises(StoreError, match="holds other files"):
        prune_folder(tmp_path / "in", tmp_path / "other", BUDGET, batches(), method="wanda")


@pytest.mark.parametrize(
    ("budget", "options", "words"),
    [
        (Params(0.8, scope="global"), {}, "scope='global' compares all layers"),
        (Params(0.8, scope="loss"), {}, "scope='loss' compares all layers"),
        (Latency(0.5), {}, r"Latency\(0.5\) is not for a stream"),
        (Units(0.5), {"method": "taylor"}, "'taylor' looks at the whole network"),
        (Units(0.5), {"repair": "finetune"}, "fine-tuning needs the whole network"),
    ],
)
def test_what_needs_the_whole_network_is_refused(
    budget: Any, options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        prune_folder(tmp_path, tmp_path / "out", budget, batches(), **options)


def test_what_is_wrong_is_found_before_anything_is_written(tmp_path: Path) -> None:
    make(tmp_path / "in")
    shards = sorted((tmp_path / "in").glob("*.safetensors"))
    cases: list[tuple[Any, type[Exception], str]] = [
        (Units(1.0), NothingToPrune, "keep less"),
        (Units({"model.layers.0.mlp.gate_proj": 0.5}), InputError, "unequal counts"),
    ]
    for budget, error, words in cases:
        with pytest.raises(error, match=words):
            prune_folder(tmp_path / "in", tmp_path / "out", budget, batches(), method="wanda")
    shards[1].write_bytes(shards[1].read_bytes()[:100])
    with pytest.raises(StoreError, match="is damaged"):
        prune_folder(tmp_path / "in", tmp_path / "out", BUDGET, batches(), method="wanda")
    shards[1].unlink()
    with pytest.raises(InputError, match=r"1 of .* shards are missing"):
        prune_folder(tmp_path / "in", tmp_path / "out", BUDGET, batches(), method="wanda")
    assert [x.name for x in tmp_path.iterdir()] == ["in"]
