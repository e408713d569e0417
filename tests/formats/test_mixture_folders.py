"""Mixtures that lost whole experts as folders of transformers: plain class, same logits and generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sampled import sampled
from torch import Tensor

import secateur as sc
from secateur.apply.experts import find_mixtures
from secateur.core import ExactnessError, InputError

transformers = pytest.importorskip("transformers")

BASE = {
    "vocab_size": 90,
    "hidden_size": 32,
    "intermediate_size": 32,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
}
JAMBA = {"expert_layer_period": 2, "expert_layer_offset": 1, "attn_layer_period": 2, "attn_layer_offset": 1}
JAMBA |= {"use_mamba_kernels": False, "mamba_d_state": 4, "mamba_dt_rank": 4}
NEXT = {"shared_expert_intermediate_size": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
NEXT |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "head_dim": 8, "partial_rotary_factor": 0.5}
NEXT |= {"layer_types": ["linear_attention", "full_attention"]}
# Family -> options of its config, the field with the number of experts, and that of the mixtures.
FAMILIES: dict[str, tuple[dict[str, Any], str, int]] = {
    "mixtral": ({}, "num_local_experts", 2),
    "qwen2_moe": ({"shared_expert_intermediate_size": 16}, "num_experts", 2),
    "qwen3_moe": ({"head_dim": 8}, "num_experts", 2),
    "olmoe": ({}, "num_experts", 2),
    "gpt_oss": ({"head_dim": 8}, "num_local_experts", 2),
    "deepseek_v3": (LATENT, "n_routed_experts", 1),
    "deepseek_v2": ({**LATENT, "topk_method": "group_limited_greedy"}, "n_routed_experts", 1),
    "granitemoe": ({}, "num_local_experts", 2),
    "phimoe": ({}, "num_local_experts", 2),
    "jamba": (JAMBA, "num_experts", 1),
    "qwen3_next": (NEXT, "num_experts", 2),
}
WHOLE = ("kind:hidden", "kind:heads", "kind:key-value groups")


def build(family: str, **options: Any) -> Any:
    known, field, _ = FAMILIES[family]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **{**BASE, **known, field: 8, **options})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if "correction_bias" in name:
                buffer.copy_(torch.rand_like(buffer))
    return model


def ids(seed: int = 1) -> Tensor:
    return torch.randint(3, 90, (2, 11), generator=torch.Generator().manual_seed(seed))


def generated(model: Any, **options: Any) -> Tensor:
    known = ids()[:1]
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0, **options}
    return model.generate(known, attention_mask=torch.ones_like(known), **options)


@pytest.mark.parametrize("family", sampled(FAMILIES, "mixtral", "deepseek_v3"))
def test_a_family_loads_with_the_plain_class(family: str, tmp_path: Path) -> None:
    """The experts' units and whole experts go together; the config has the new numbers."""
    _, field, count = FAMILIES[family]
    model = build(family)
    batches = [{"input_ids": ids(seed)} for seed in range(2)]
    result = sc.prune(
        model,
        {"input_ids": ids()},
        sc.Units(0.5, even=True),
        batches,
        experts=4,
        method="magnitude",
        repair=None,
        ignored_layers=[*WHOLE, *(["*.mamba"] if family == "jamba" else [])],
        progress=False,
    )
    assert [x.count for x in find_mixtures(result.model).values()] == [4] * count
    assert result.report.kinds["experts"]["units"] == 8 * count and result.plan.keep
    assert result.save_pretrained(tmp_path / "out") <= 1e-5
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(loaded) is type(model)
    assert getattr(loaded.config, field) == 4
    with torch.no_grad():
        first, second = (m(input_ids=ids(7)).logits for m in (result.model, loaded))
    assert torch.allclose(first, second, rtol=0, atol=1e-5 * float(first.abs().max()))
    assert generated(loaded).equal(generated(result.model))
    assert generated(loaded).equal(generated(loaded, use_cache=False))


def test_unequal_numbers_of_experts_are_refused(tmp_path: Path) -> None:
    options = {"method": "magnitude", "progress": False, "experts": {"model.layers.0.mlp": [0, 2, 5]}}
    result = sc.prune(build("mixtral"), {"input_ids": ids()}, sc.Units(1.0), **options)
    for uneven in ("error", "pad", "code"):
        with pytest.raises(InputError, match=r"unequal numbers of experts \(3 in 'model.layers.0.mlp', 8 in"):
            result.save_pretrained(tmp_path / "out", uneven=uneven)
    with pytest.raises(InputError, match="unequal numbers of experts"):
        result.to_gguf(tmp_path / "m.gguf")
    result.save(tmp_path / "own")
    loaded = sc.load(tmp_path / "own", lambda: build("mixtral"))
    assert torch.equal(loaded(ids()).logits, result.model(ids()).logits)


def test_logits_of_the_router_do_not_count_and_its_loss_knows_the_new_number() -> None:
    model = build("mixtral", output_router_logits=True)
    options = {"method": "magnitude", "progress": False}
    options |= {"experts": {name: [0, 2, 5] for name in find_mixtures(model)}}
    with pytest.raises(ExactnessError, match=r"logit -inf .*output that counts"):
        sc.prune(model, {"input_ids": ids()}, sc.Units(1.0), **options)
    small = sc.prune(model, {"input_ids": ids()}, sc.Units(1.0), outputs="logits", **options).model
    output = small(input_ids=ids(), labels=ids())
    assert small.num_experts == 3 and torch.isfinite(output.loss) and output.router_logits[0].shape[-1] == 3
