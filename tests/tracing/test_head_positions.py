"""Positions within heads: which rows are a unit, and that zeros in their place give the masked model."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from sampled import sampled
from torch import Tensor, nn

import secateur as sc
from secateur.apply.compose import restrict
from secateur.core import Group, InputError, Plan, PruningGraph, Statistics
from secateur.modules.padded_linear import PaddedLinear
from secateur.statistics.collect import collect_statistics

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
SHARED = {**SIZES, "num_key_value_heads": 2}
OPT = {**SIZES, "ffn_dim": 24, "word_embed_proj_dim": 32}
GPTJ = {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 64}
GPT2 = {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
# Heads of 8 positions; the rows of queries and keys that unit 1 owns, and the columns of value position 1.
FAMILIES: dict[str, tuple[str, dict[str, Any], list[list[int]], list[int]]] = {
    "llama": ("LlamaForCausalLM", SHARED, [[1, 5, 9, 13], [1, 5]], [1, 9]),
    "qwen2, with biases": ("Qwen2ForCausalLM", SHARED, [[1, 5, 9, 13], [1, 5]], [1, 9]),
    "qwen3, norms of queries and keys": (
        "Qwen3ForCausalLM",
        {**SHARED, "head_dim": 8},
        [[1, 5, 9, 13], [1, 5]],
        [1, 9],
    ),
    "olmo2, norms over all heads": ("Olmo2ForCausalLM", SHARED, [[1, 5, 9, 13], [1, 5]], [1, 9]),
    "gemma2, no fused attention": (
        "Gemma2ForCausalLM",
        {**SHARED, "head_dim": 8},
        [[1, 5, 9, 13], [1, 5]],
        [1, 9],
    ),
    "gemma3, one key": (
        "Gemma3ForCausalLM",
        {**SIZES, "num_key_value_heads": 1, "head_dim": 8},
        [[1, 5, 9, 13, 17, 21, 25, 29], [1, 5]],
        [1, 9, 17, 25],
    ),
    "cohere, neighbours turn": ("CohereForCausalLM", SHARED, [[2, 3, 10, 11], [2, 3]], [1, 9]),
    "gptj, the first half turns": ("GPTJForCausalLM", GPTJ, [[2, 3], [2, 3]], [1]),
    "stablelm, the first half turns": (
        "StableLmForCausalLM",
        {**SIZES, "num_key_value_heads": 4, "partial_rotary_factor": 0.5},
        [[1, 3], [1, 3]],
        [1],
    ),
    "phi3, one layer makes all": ("Phi3ForCausalLM", SHARED, [[1, 5, 9, 13], [33, 37]], [1, 9]),
    "gpt_neox, one layer by heads": (
        "GPTNeoXForCausalLM",
        {**SIZES, "rotary_pct": 0.5},
        [[1, 3], [9, 11]],
        [1],
    ),
    "gpt2, one Conv1D makes all": ("GPT2LMHeadModel", GPT2, [[1, 5], [33, 37]], [1]),
    "bloom, products of three axes": (
        "BloomForCausalLM",
        {"vocab_size": 60, "hidden_size": 32, "n_layer": 2, "n_head": 4},
        [[1, 5], [9, 13]],
        [1],
    ),
    "falcon, linear layers of its own": (
        "FalconForCausalLM",
        {**SHARED, "new_decoder_architecture": True, "num_kv_heads": 2},
        [[1, 5, 9, 13], [17, 21]],
        [1, 9],
    ),
    "opt, nothing turns": ("OPTForCausalLM", OPT, [[1, 5], [1, 5]], [1]),
    "bert": ("BertModel", SIZES, [[1, 5], [1, 5]], [1]),
}


def build(family: str) -> nn.Module:
    name, options, *_ = FAMILIES[family]
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    model = cls(cls.config_class(**options)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.5 if parameter.ndim == 1 else 0.0, 0.2)
    return model


def tokens() -> Tensor:
    return torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(0))


@cache
def traced(family: str, ignored: tuple[str, ...] = ()) -> tuple[nn.Module, PruningGraph]:
    model = build(family)
    return model, sc.trace(model, {"input_ids": tokens()}, positions=True, ignored_layers=ignored)


def padded(graph: PruningGraph) -> list[Group]:
    return [group for group in graph.groups if group.padded]


def some_of_each(graph: PruningGraph, seed: int = 0) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    keep = {}
    for groups in graph.counted_together():
        count = 1 + draw.integers(groups[0].size)
        keep |= {g.name: np.sort(draw.choice(g.size, count, replace=False)) for g in groups}
    return keep


@pytest.mark.parametrize("family", sampled(FAMILIES, "llama", "phi3, one layer makes all", "bert"))
def test_the_units_of_a_family(family: str) -> None:
    *_, rows, columns = FAMILIES[family]
    _, graph = traced(family)
    first, values, *_ = groups = padded(graph)
    assert [g.kind for g in groups] == ["query-key positions", "value positions"] * 2
    weights = [slot.index[1].tolist() for slot in first.slots if slot.tensor.endswith("weight")]
    assert weights == rows
    assert values.slots_with("in")[0].index[1].tolist() == columns
    for group in groups:  # every row of queries, keys and values, and every column, has one owner
        for slot in group.slots:
            assert len(np.unique(slot.index)) == slot.index.size
    read = values.slots_with("in")[0]
    assert read.index.size == graph.shapes[read.tensor][read.axis]
    frozen = {(x.tensor, x.axis) for x in graph.frozen}
    assert not frozen & {(s.tensor, s.axis) for g in groups for s in g.slots}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(2))
def test_zeros_in_their_place_compute_what_the_masked_model_does(family: str, seed: int) -> None:
    """Heads, positions, hidden and feed-forward units together; `shrink` compares in float64."""
    model, graph = traced(family)
    plan = Plan(graph, "by hand", some_of_each(graph, seed))
    small = sc.shrink(model, plan)
    changed = [m for m in small.modules() if isinstance(m, PaddedLinear)]
    assert len(changed) >= 2
    for m in changed:
        assert m.weight.shape == (m.out_features, m.in_features)[:: -1 if m.transposed else 1]
    with torch.no_grad():
        a, b = (m(input_ids=tokens())[0] for m in (small, sc.mask(model, plan)))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


def test_a_whole_head_of_zeros_and_unequal_heads() -> None:
    model, graph = traced("llama")
    keys, values = padded(graph)[:2]
    keep = {keys.name: np.array([0, 1, 2, 7]), values.name: np.arange(8, 13)}
    small = sc.shrink(model, Plan(graph, "by hand", keep))
    attention = small.get_submodule("model.layers.0.self_attn")
    assert attention.k_proj.weight.shape == (8, 32) and attention.q_proj.weight.shape == (16, 32)
    assert attention.v_proj.weight.shape == (5, 32) and attention.o_proj.weight.shape == (32, 10)
    assert attention.v_proj(torch.ones(1, 32)).reshape(2, 8)[0].eq(0).all()
    ids = small.generate(tokens()[:1], max_new_tokens=5, do_sample=False)
    again = small.generate(tokens()[:1], max_new_tokens=5, do_sample=False, use_cache=False)
    assert ids.equal(again)


def test_a_pair_that_is_gone_takes_no_part_in_the_scores() -> None:
    """Rows of queries whose key is zero do not matter, and the other way round: so they are one unit."""
    model, graph = build("llama"), traced("llama")[1]
    keys = padded(graph)[0]
    query, key = (slot for slot in keys.slots)
    unit = 3
    with torch.no_grad():
        model.get_parameter(key.tensor)[key.index[unit]] = 0
        before = model(tokens()).logits
        model.get_parameter(query.tensor)[query.index[unit]] += 1
        assert torch.allclose(model(tokens()).logits, before, atol=1e-5)
        model.get_parameter(query.tensor)[query.index[unit - 1]] += 1
        assert not torch.allclose(model(tokens()).logits, before, atol=1e-3)


def test_positions_that_a_norm_switches_off() -> None:
    """In three layers of Gemma 3 270M the gain of some positions is 0."""
    model = build("gemma3, one key")
    for name in ("q_norm", "k_norm"):
        norm = model.get_submodule(f"model.layers.0.self_attn.{name}")
        with torch.no_grad():
            norm.weight[[1, 2, 5]] = -1  # a gain of 1 + weight
    graph = sc.trace(model, {"input_ids": tokens()}, positions=True)
    assert [g.size for g in padded(graph)] == [4, 8, 4, 8]
    plan = Plan(graph, "by hand", {padded(graph)[0].name: np.array([0, 1])})
    with torch.no_grad():
        a, b = (m(input_ids=tokens())[0] for m in (sc.shrink(model, plan), sc.mask(model, plan)))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


def test_what_the_user_ignores_stays() -> None:
    def kinds(*ignored: str) -> set[str]:
        return {g.kind + g.name[13:14] for g in padded(traced("llama", ignored)[1])}

    whole = {f"{kind} positions{layer}" for kind in ("query-key", "value") for layer in "01"}
    assert kinds() == whole
    assert kinds("kind:value positions") == {"query-key positions0", "query-key positions1"}
    assert kinds("*.0.self_attn.v_proj") == whole - {"value positions0"}
    assert kinds("model.layers.1.self_attn.q_proj (query-key positions)") == whole - {"query-key positions1"}
    model = build("llama")
    graph = sc.trace(model, {"input_ids": tokens()})  # by default they are no units
    assert not padded(graph) and any(g.kind == "key-value groups" for g in graph.groups)


def test_models_without_such_heads() -> None:
    mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(InputError, match="positions within heads cannot go"):
        sc.trace(mlp, torch.ones(2, 4), positions=True)
    codegen = transformers.CodeGenForCausalLM(  # its heads are in an order of its own
        transformers.CodeGenConfig(
            vocab_size=60, n_embd=32, n_layer=1, n_head=4, rotary_dim=4, n_positions=64
        )
    )
    with pytest.raises(InputError, match="whose heads can be found"):
        sc.trace(codegen, {"input_ids": tokens()}, positions=True)
    with torch.device("meta"):
        empty = build("llama")
    with pytest.raises(InputError, match="weights are not here"):
        sc.trace(empty, {"input_ids": tokens().to("meta")}, positions=True)
    with pytest.raises(InputError, match="positions"):
        sc.trace(build("llama"), {"input_ids": tokens()}, positions="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "method",
    ["taylor", "magnitude", "random", "sensitivity", "matroid", "snip", "activation", "wanda", "leverage"],
)
def test_they_go_with_everything_else(method: str) -> None:
    model = build("llama")
    batches = [{"input_ids": torch.randint(3, 60, (4, 7))} for _ in range(5)]
    options: dict[str, Any] = {"ignored_layers": ["kind:hidden"], "progress": False}
    result = sc.prune(
        model,
        {"input_ids": tokens()},
        sc.Params(0.7, of="body", scope="layer"),
        batches,
        method=method,
        repair="fold" if method == "taylor" else None,
        positions=True,
        **options,
    )
    report = result.report
    gone = {group.kind for group in result.graph.groups if len(result.plan.removed(group.name))}
    assert {"query-key positions", "value positions"} <= gone
    assert report.after.cost.parameters == sum(p.numel() for p in result.model.parameters())


def statistics_of(model: nn.Module, graph: PruningGraph) -> Statistics:
    batch = {"input_ids": tokens(), "labels": tokens()}
    return collect_statistics(model, graph, [batch], {"moments", "gram", "taylor"})


FUSED = [x for x in FAMILIES if "one layer" in x or "Conv1D" in x]


@pytest.mark.parametrize("family", sampled(["llama", *FUSED], "llama"))
def test_what_is_left_has_the_statistics_of_the_masked_model(family: str) -> None:
    """Units of a shrunk model find the rows of their layers, and their heads, among the zeros."""
    model, graph = traced(family)
    by_kind = graph.by_kind()
    heads = by_kind.get("key-value groups", by_kind.get("heads", ()))[0]
    tied = next((names for names in graph.equal_counts if heads.name in names), (heads.name,))
    keep = {name: kept for name, kept in some_of_each(graph).items() if graph.group(name).padded}
    keep |= {name: np.arange(1, heads.size) for name in tied}
    plan = Plan(graph, "by hand", keep)
    small, left = sc.shrink(model, plan), restrict(graph, keep)
    assert heads.name not in {g.name for g in left.groups}  # what is left of heads is unequal
    here, whole = statistics_of(small, left), statistics_of(sc.mask(model, plan), graph)
    groups = padded(left)
    assert len(groups) >= 3 and any(g.size < len(keep[g.name]) for g in groups)
    for group in groups:
        alive = whole.taylor[group.name][keep[group.name]]
        kept = keep[group.name][-group.size :]  # the first head has gone
        torch.testing.assert_close(here.taylor[group.name], whole.taylor[group.name][kept], rtol=1e-3, atol=0)
        assert int((alive != 0).sum()) <= group.size
        if group.kind == "query-key positions":
            for name in ("mean", "second", "variance"):
                a, b = (getattr(x.logits[group.name], name) for x in (here, whole))
                torch.testing.assert_close(a, b[kept], rtol=1e-3, atol=1e-6 * float(b.abs().max()))


@pytest.mark.parametrize("method, even", [("taylor", False), ("flap", True)])
def test_several_steps(method: str, even: bool) -> None:
    """Each step cuts more positions; without a repair the result is the original without what went."""
    model, plans = build("llama"), list[Plan]()
    result = sc.prune(
        model,
        {"input_ids": tokens()},
        sc.Params(0.5, of="body", scope="layer", even=even),
        [{"input_ids": tokens()}] * 5,
        method=method,
        repair=None,
        schedule=sc.Steps(3),
        positions=True,
        progress=False,
        callback=lambda step: plans.append(step.plan),
    )
    assert len(plans) == 3
    for group in padded(result.graph):
        first, _, last = (set(x.keep.get(group.name, range(group.size))) for x in plans)
        assert last < first or (group.kind == "value positions" and last <= first)
    with torch.no_grad():
        a, b = (m(input_ids=tokens())[0] for m in (result.model, sc.shrink(model, result.plan)))
    torch.testing.assert_close(a, b)


class Branching(nn.Module):
    """A model that nobody can export: what it calls depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = build("llama").model, build("llama").model.layers[0].self_attn

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.inner(input_ids).last_hidden_state
        return x * 2 if x.sum() > 0 else x - 1


def test_inside_submodules() -> None:
    model = Branching()
    graph = sc.trace(model, {"input_ids": tokens()}, positions=True, inside="inner")
    groups = padded(graph)
    assert len(groups) == 4
    assert all(slot.tensor.startswith("inner.layers.") for group in groups for slot in group.slots)
    plan = Plan(graph, "by hand", some_of_each(graph))
    small = sc.shrink(model, plan)
    assert any(isinstance(m, PaddedLinear) for m in small.modules())
    with torch.no_grad():
        a, b = (m(input_ids=tokens()) for m in (small, sc.mask(model, plan)))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))
    with pytest.raises(InputError, match="positions within heads cannot go"):
        sc.trace(model, {"input_ids": tokens()}, positions=True, inside="inner.layers.0.mlp")
