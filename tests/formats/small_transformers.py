"""Small models of the families of transformers, and what tests of their folders compare."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.apply.deviation import deviation
from secateur.core import Plan

transformers = pytest.importorskip("transformers")

BASE: dict[str, Any] = {
    "vocab_size": 90,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {**BASE, "num_key_value_heads": 2, "head_dim": 8}
GEMMA = {**GROUPED, "query_pre_attn_scalar": 8}
EXPERTS = {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GPT2 = {"vocab_size": 90, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
DISTIL = {"vocab_size": 90, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}

# Family -> class, options of its config, and the sizes in it after halving all units.
HEADS = {"num_attention_heads": 1, "num_key_value_heads": 1}
WIDTHS = {"hidden_size": 16, "intermediate_size": 24}
DECODERS: dict[str, tuple[str, dict[str, Any], dict[str, int]]] = {
    "llama": ("LlamaForCausalLM", GROUPED, {**HEADS, **WIDTHS}),
    "mistral": ("MistralForCausalLM", GROUPED, {**HEADS, **WIDTHS}),
    "qwen2": ("Qwen2ForCausalLM", {**GROUPED, "tie_word_embeddings": True}, {**HEADS, **WIDTHS}),
    "qwen3": ("Qwen3ForCausalLM", GROUPED, {**HEADS, **WIDTHS}),
    "gemma2": ("Gemma2ForCausalLM", GEMMA, {**HEADS, **WIDTHS}),
    "gemma3_text": ("Gemma3ForCausalLM", GEMMA, {**HEADS, **WIDTHS}),
    "phi3": (
        "Phi3ForCausalLM",
        BASE,
        {"num_attention_heads": 2, "num_key_value_heads": 2, **WIDTHS},
    ),
    "olmo2": ("Olmo2ForCausalLM", GROUPED, {**HEADS, **WIDTHS}),
    "mixtral": ("MixtralForCausalLM", {**GROUPED, "num_local_experts": 4}, {**HEADS, **WIDTHS}),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        {**EXPERTS, "shared_expert_intermediate_size": 24},
        {**HEADS, "hidden_size": 16, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 12},
    ),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        EXPERTS,
        {**HEADS, "hidden_size": 16, "moe_intermediate_size": 8},
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", BASE, {"intermediate_size": 24}),
    "gpt2": ("GPT2LMHeadModel", GPT2, {"n_inner": 64}),
    "opt": ("OPTForCausalLM", {**BASE, "ffn_dim": 48, "word_embed_proj_dim": 32}, {"ffn_dim": 24}),
}
ENCODERS: dict[str, tuple[str, dict[str, Any], dict[str, int]]] = {
    "bert": ("BertModel", BASE, {"intermediate_size": 24}),
    "roberta": ("RobertaModel", BASE, {"intermediate_size": 24}),
    "distilbert": ("DistilBertModel", DISTIL, {"hidden_dim": 24}),
    "electra": (
        "ElectraModel",
        {**BASE, "embedding_size": 16},
        {"embedding_size": 16, "intermediate_size": 24},
    ),
}
EVERY = (*DECODERS, *ENCODERS)
ONLY_UNITS = ("gpt_neox", "gpt2", "opt", *ENCODERS)


def build(family: str, **options: Any) -> Any:
    """Return a small model with random gains and biases, so that no axis is alike another."""
    name, known, _ = {**DECODERS, **ENCODERS}[family]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **{**known, **options})
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def ids() -> Tensor:
    return torch.randint(3, 90, (2, 11), generator=torch.Generator().manual_seed(1))


def halve(model: nn.Module, leave: str = "nothing", **options: Any) -> tuple[nn.Module, Plan]:
    """Remove half of the units, in repeated layers equally many; groups with `leave` in their name stay."""
    graph = sc.trace(model, {"input_ids": ids()})
    whole = [group.name for group in graph.groups if any(x in group.name for x in leave.split())]
    graph = graph.without_groups(whole, "they stay")
    budget = sc.Units(**{"keep": 0.5, "even": True, **options})
    plan = sc.plan(graph, "magnitude", budget, model=model)
    return sc.shrink(model, plan, check=False), plan


def compared(model: nn.Module, other: nn.Module) -> float:
    with torch.no_grad():
        first, second = (m(input_ids=ids())[0] for m in (model, other))
    return deviation([first], [second])


def check_generation(model: Any) -> None:
    """Compare generating with a cache with recomputing everything for each token."""
    known = ids()[:1]
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(known, attention_mask=torch.ones_like(known), **options)
    with torch.no_grad():
        for _ in range(6):
            scores = model(input_ids=known, use_cache=False).logits[:, -1]
            scores[:, model.config.eos_token_id] = -torch.inf
            known = torch.cat([known, scores.argmax(-1, keepdim=True)], 1)
    assert cached.equal(known)
