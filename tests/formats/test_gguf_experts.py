"""GGUF files of mixtures of experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_transformers import build, halve, ids
from test_gguf import fields

import secateur as sc
from secateur.apply.deviation import deviation
from secateur.apply.experts import find_mixtures
from secateur.core import InputError
from secateur.formats.gguf import write_gguf

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

MIXTRAL = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate_inp": "mlp.gate",
}


def mixtral_from(path: Path, config: Any) -> Any:
    """Load the tensors of a file by llama.cpp's names; all of them are taken, and none is missing."""
    tensors = {t.name: torch.from_numpy(np.array(t.data)) for t in gguf.GGUFReader(path).tensors}
    outer = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    state = {f"{name}.weight": tensors.pop(f"{own}.weight") for own, name in outer.items()}
    for i in range(config.num_hidden_layers):
        layer, block = f"model.layers.{i}", {own: tensors.pop(f"blk.{i}.{own}.weight") for own in MIXTRAL}
        for own, heads in (("attn_q", config.num_attention_heads), ("attn_k", config.num_key_value_heads)):
            rows = block[own]
            block[own] = rows.reshape(heads, -1, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)
        state |= {f"{layer}.{MIXTRAL[own]}.weight": x for own, x in block.items()}
        gate, up, down = (tensors.pop(f"blk.{i}.ffn_{x}_exps.weight") for x in ("gate", "up", "down"))
        state[f"{layer}.mlp.experts.gate_up_proj"] = torch.cat([gate, up], 1)
        state[f"{layer}.mlp.experts.down_proj"] = down
    assert not tensors
    model = transformers.MixtralForCausalLM(config).eval()
    model.load_state_dict(state)
    return model


def pruned(model: Any) -> Any:
    """Take one of four experts, and half of the units, out of each layer."""
    whole = ["kind:hidden", "kind:heads", "kind:key-value groups"]
    options = {"experts": {name: [0, 2, 3] for name in find_mixtures(model)}, "method": "magnitude"}
    budget = sc.Units(0.5, even=True)
    return sc.prune(
        model, {"input_ids": ids()}, budget, ignored_layers=whole, check=False, progress=False, **options
    )


def assert_equal_logits(model: Any, loaded: Any) -> None:
    assert type(loaded) is type(model)
    with torch.no_grad():
        assert deviation(*[[m(input_ids=ids()).logits] for m in (model, loaded)]) < 1e-5


def test_a_mixtral_with_fewer_units(tmp_path: Path) -> None:
    small, plan = halve(build("mixtral", num_hidden_layers=1), "attn embed")
    assert write_gguf(tmp_path / "m.gguf", small, plan, "f32") == 0
    found = fields(tmp_path / "m.gguf")
    sizes = {"expert_count": 4, "expert_used_count": 2, "feed_forward_length": 24, "embedding_length": 32}
    assert found["general.architecture"] == "llama"
    assert {name: found[f"llama.{name}"] for name in sizes} == sizes
    config = transformers.MixtralConfig(**{**small.config.to_dict(), "intermediate_size": 24})  # type: ignore[union-attr, operator]
    assert_equal_logits(small, mixtral_from(tmp_path / "m.gguf", config))


@pytest.mark.slow
def test_a_mixtral_without_some_experts_and_units(tmp_path: Path) -> None:
    small = pruned(build("mixtral"))
    small.to_gguf(tmp_path / "m.gguf", "f32")
    assert fields(tmp_path / "m.gguf")["llama.expert_count"] == 3
    small.save_pretrained(tmp_path / "plain")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "plain")
    assert (config.num_local_experts, config.intermediate_size) == (3, 24)
    assert_equal_logits(small.model, mixtral_from(tmp_path / "m.gguf", config))


@pytest.mark.slow
def test_transformers_reads_a_qwen3_moe_without_some_experts_and_units(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    # transformers reads all sizes but this one, which is 768 by default.
    small = pruned(build("qwen3_moe", moe_intermediate_size=1536, norm_topk_prob=True))
    assert small.to_gguf(tmp_path / "m.gguf", "f32") == 0
    found = fields(tmp_path / "m.gguf")
    assert found["general.architecture"] == "qwen3moe"
    assert found["qwen3moe.expert_count"] == 3 and found["qwen3moe.expert_feed_forward_length"] == 768
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf").eval()
    assert_equal_logits(small.model, loaded)
    small.to_gguf(tmp_path / "m.gguf", "q8_0")
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert kinds["blk.0.ffn_gate_inp.weight"] == "F32"
    assert {kinds[f"blk.1.ffn_{x}_exps.weight"] for x in ("gate", "up", "down")} == {"Q8_0"}


@pytest.mark.slow
def test_what_the_graph_of_qwen3_moe_lacks_is_refused(tmp_path: Path) -> None:
    moe = build("qwen3_moe", mlp_only_layers=[0])
    with pytest.raises(InputError, match=r"layers without experts and weights .*norm_topk_prob=False"):
        write_gguf(tmp_path / "m.gguf", *halve(moe, "attn embed"))
    assert not list(tmp_path.iterdir())
