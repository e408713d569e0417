"""Whole blocks: what is left equals the model whose blocks are zero, and is an ordinary model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur import Params, Units, load, mask, prune, shrink
from secateur.apply.blocks import drop_blocks, find_blocks
from secateur.core import ExactnessError, InputError, Plan, PlanError
from secateur.depth import find_least_needed_blocks, measure_blocks
from secateur.tracing.trace import trace
from secateur.zoo import resnet20

WIDTH = 8


class Residual(nn.Module):
    def __init__(self, gain: float = 1.0, skip: bool = True) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)
        self.skip = skip
        with torch.no_grad():
            self.outer.weight.mul_(gain)
            self.outer.bias.mul_(gain)

    def forward(self, x: Tensor) -> Tensor:
        y = self.outer(self.inner(self.norm(x)).relu())
        return x + y if self.skip else y


class Stack(nn.Module):
    """Four residual blocks; the gains say how much each is needed."""

    def __init__(self, gains: tuple[float, ...] = (1.0, 0.01, 2.0, 0.1), skip: bool = True) -> None:
        super().__init__()
        self.read = nn.Linear(5, WIDTH)
        self.blocks = nn.ModuleList([Residual(gain, skip) for gain in gains])
        self.out = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x)
        for block in self.blocks:
            x = block(x)
        return self.out(x)


X = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))


def numbers(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_what_is_left_equals_zeroed_blocks() -> None:
    model = Stack().double()
    small = drop_blocks(model, ["blocks.2", "blocks.0"], X.double())
    with torch.no_grad():
        for i in (0, 2):
            model.blocks[i].outer.weight.zero_()
            model.blocks[i].outer.bias.zero_()
    assert torch.equal(small(X.double()), model(X.double()))
    assert len(small.blocks) == 2 and len(model.blocks) == 4
    assert {n for n, _ in small.named_parameters() if n.startswith("blocks.")} == {
        n for n, _ in model.named_parameters() if n.startswith(("blocks.0.", "blocks.1."))
    }


def test_a_stage_of_a_residual_network() -> None:
    model = resnet20()
    blocks = find_blocks(model)
    small = drop_blocks(model, [blocks[1], blocks[5]], resnet20.example_inputs)
    assert len(find_blocks(small)) == len(blocks) - 2 and numbers(small) < numbers(model)


def test_a_transformer_encoder() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, norm_first=True, batch_first=True)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    small = drop_blocks(model, ["layers.1"], torch.randn(2, 4, 8))
    assert (len(small.layers), small.num_layers) == (2, 2)


@pytest.mark.parametrize(
    ("make", "name", "problem"),
    [
        (lambda: Stack(skip=False), "blocks.1", "deviates"),  # no skip: zeros, not the input
        (
            lambda: nn.TransformerEncoder(
                nn.TransformerEncoderLayer(5, 1, 16), 2, enable_nested_tensor=False
            ),
            "layers.0",
            "deviates",  # the norm behind the sum stays in the masked model
        ),
        (
            lambda: nn.Sequential(nn.Sequential(nn.Linear(5, 8)), nn.Sequential(nn.Linear(8, 3))),
            "0",
            "not run",
        ),
    ],
)
def test_blocks_that_do_more_than_add_are_refused(
    make: Callable[[], nn.Module], name: str, problem: str
) -> None:
    model = make()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ExactnessError, match=problem):
        drop_blocks(model, [name], X)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["blocks.4"], "no block 'blocks.4'"),
        (["read"], "no block 'read'"),
        (["blocks.0.inner"], "no block"),
        ([f"blocks.{i}" for i in range(4)], "at least one must stay"),
        ("blocks.0", "a list"),
        (3, "a list"),
    ],
)
def test_bad_names_are_errors(names: Any, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        drop_blocks(Stack(), names, X)


def test_the_least_needed_blocks_are_found_by_trial() -> None:
    model = Stack()
    assert find_least_needed_blocks(model, [X], 2) == ("blocks.1", "blocks.3")
    with pytest.raises(InputError, match="3 of the 4"):
        find_least_needed_blocks(model, [X], 4)


def test_pruning_blocks_and_units_under_one_budget(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Stack().eval()
    result = prune(model, X, Params(0.4), [X, X + 1], method="magnitude", blocks=2, progress=False)
    assert result.plan.blocks == ("blocks.1", "blocks.3") and result.original is model
    assert result.report.before.cost.parameters == numbers(model)
    assert numbers(result.model) <= 0.4 * numbers(model)
    assert "whole blocks gone: 2" in repr(result) and "blocks gone: blocks.1" in result.plan.explain()
    masked, small = mask(model, result.plan), shrink(model, result.plan)
    assert torch.allclose(masked(X), small(X), atol=1e-6)
    result.save(tmp_path)
    assert torch.equal(load(tmp_path, Stack)(X), result.model(X))
    for other in (lambda: nn.Linear(5, 3), lambda: Stack((1.0, 1.0, 1.0))):
        with pytest.raises(PlanError, match="blocks"):
            load(tmp_path, other)


def test_blocks_alone_may_meet_a_budget(tmp_path: Path) -> None:
    model = Stack().eval()
    result = prune(model, X, Params(0.9), method="magnitude", blocks=["blocks.0", "blocks.2"], progress=False)
    assert len(result.model.blocks) == 2 and not result.plan.keep
    result.save(tmp_path)
    assert torch.equal(load(tmp_path, Stack)(X), drop_blocks(model, ["blocks.0", "blocks.2"])(X))


def test_the_program_weighs_blocks_against_units() -> None:
    torch.manual_seed(0)
    model, batches = Stack((1.0, 1e-4, 2.0, 0.5)).eval(), [X, X + 1, X - 1]
    result = prune(model, X, Params(0.7), batches, blocks="auto", progress=False)
    assert result.plan.blocks == ("blocks.1",) and numbers(result.model) <= 0.7 * numbers(model)
    assert result.plan.notes["predicted loss"] > measure_blocks(model, batches)["blocks.1"]
    assert measure_blocks(model, batches).keys() < {f"blocks.{i}" for i in range(4)}
    needed = prune(
        Stack((3.0, 3.0, 3.0, 3.0)).eval(), X, Params(0.95), batches, blocks="auto", progress=False
    )
    assert needed.plan.blocks == ()
    with pytest.raises(InputError, match="scope"):
        prune(model, X, Params(0.7, "layer"), batches, blocks="auto", progress=False)


def test_blocks_that_do_more_than_add_are_not_weighed() -> None:
    """A norm behind the sum stays in the masked model, so that leaving out the block is not exact."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    batches = [torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    assert len(measure_blocks(model, batches)) == 2
    assert measure_blocks(model, batches, (batches[0], {})) == {}
    result = prune(model, batches[0], Params(0.6), batches, blocks="auto", progress=False)
    assert result.plan.blocks == () and numbers(result.model) <= 0.6 * numbers(model)


@pytest.mark.parametrize("blocks", [-1, 1.5, True, "blocks.0", None])
def test_bad_numbers_of_blocks_are_errors(blocks: Any) -> None:
    with pytest.raises(InputError):
        prune(Stack(), X, Units(0.5), [X], method="magnitude", blocks=blocks, progress=False)


def test_a_number_of_blocks_needs_data_and_a_plan_needs_names() -> None:
    with pytest.raises(InputError, match="data"):
        prune(Stack(), X, Units(0.5), method="magnitude", blocks=1, progress=False)
    with pytest.raises(Exception, match="names of blocks"):
        Plan(trace(Stack(), X), "by hand", blocks="blocks.0")  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["Llama", "Gemma3", "GPT2", "Mixtral"])
def test_decoder_layers_leave_an_ordinary_model(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    config: Any = {
        "Llama": lambda: transformers.LlamaConfig(**SIZES),
        "Gemma3": lambda: transformers.Gemma3TextConfig(**SIZES, layer_types=TYPES),
        "GPT2": lambda: transformers.GPT2Config(vocab_size=31, n_embd=16, n_layer=3, n_head=2),
        "Mixtral": lambda: transformers.MixtralConfig(**SIZES, num_local_experts=4),
    }[family]()
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    ids = torch.arange(1, 15).reshape(2, 7)
    small = drop_blocks(model, [find_blocks(model)[1]], {"input_ids": ids})
    assert (small.config.num_hidden_layers, model.config.num_hidden_layers) == (2, 3)
    if family == "Gemma3":
        assert list(small.config.layer_types) == ["sliding_attention", "full_attention"]
    fresh = type(model)(small.config).eval()
    fresh.load_state_dict(small.state_dict())
    assert torch.equal(fresh(ids).logits, small(ids).logits)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(small.generate(ids, **options), small.generate(ids, use_cache=False, **options))


TYPES = ["sliding_attention", "sliding_attention", "full_attention"]
SIZES = {
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 32,
}
