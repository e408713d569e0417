"""GGUF files: read back by the package gguf and by transformers, which computes the same from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sampled import sampled
from small_transformers import BASE, GROUPED, build, halve, ids

import secateur as sc
from secateur.apply.deviation import deviation
from secateur.core import ExactnessError, InputError, Plan, StoreError
from secateur.formats.gguf import write_gguf

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

# What transformers reads back: families whose length of a head it finds in the file or in its own defaults.
READABLE = {
    "llama": GROUPED,
    "mistral": GROUPED,
    "qwen2": {**BASE, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3": {**GROUPED, "head_dim": 128},
    "gemma3_text": {**GROUPED, "head_dim": 256, "query_pre_attn_scalar": 256},
}


def fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


@pytest.mark.parametrize("family", sampled(READABLE, "qwen2", "gemma3_text"))
def test_transformers_reads_the_file(family: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")  # transformers reads GGUF with it
    small, plan = halve(build(family, **READABLE[family]), "attn embed" if family == "qwen2" else "nothing")
    assert write_gguf(tmp_path / "m.gguf", small, plan, "f32") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf").eval()
    expected = transformers.LlamaForCausalLM if family == "mistral" else type(small)  # one graph
    assert type(loaded) is expected
    with torch.no_grad():
        outputs = [[m(input_ids=ids()).logits] for m in (small, loaded)]
    assert deviation(*outputs) < 1e-5
    found = fields(tmp_path / "m.gguf")
    architecture = found["general.architecture"]
    assert architecture == {"mistral": "llama", "gemma3_text": "gemma3"}.get(family, family)
    assert found[f"{architecture}.feed_forward_length"] == 24
    assert found[f"{architecture}.embedding_length"] == (32 if family == "qwen2" else 16)


@pytest.mark.parametrize("dtype", sampled(["f32", "f16", "bf16", "q8_0"], "bf16", "q8_0"))
def test_types_of_matrices(dtype: Any, tmp_path: Path) -> None:
    small, plan = halve(build("llama", intermediate_size=128), "embed")
    difference = write_gguf(tmp_path / "m.gguf", small, plan, dtype)
    assert (difference == 0) == (dtype == "f32") and difference < 0.005
    kinds = {t.name: t.tensor_type.name.lower() for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert kinds["blk.0.ffn_down.weight"] == dtype and kinds["blk.0.attn_norm.weight"] == "f32"
    assert kinds["blk.1.attn_output.weight"] == ("f16" if dtype == "q8_0" else dtype)


def test_uneven_layers_are_a_deci_file(tmp_path: Path) -> None:
    """Every layer states its own heads, key-value heads and feed-forward units."""
    model = build("llama")
    graph = sc.trace(model, {"input_ids": ids()})
    hidden = [group.name for group in graph.groups if "mlp" in group.name]
    heads = [
        g.name for g in graph.groups if any(s.tensor.endswith("1.self_attn.k_proj.weight") for s in g.slots)
    ]
    keep = {hidden[0]: np.arange(20), hidden[1]: np.arange(10, 40), heads[-1]: np.array([1])}
    keep["model.embed_tokens"] = np.arange(8, 32)
    plan = Plan(graph, "by hand", keep)
    small = sc.shrink(model, plan)
    write_gguf(tmp_path / "m.gguf", small, plan, "f32")
    found = fields(tmp_path / "m.gguf")
    assert found["general.architecture"] == "deci" and found["deci.embedding_length"] == 24
    assert found["deci.feed_forward_length"] == [20, 30]
    assert found["deci.attention.head_count"] == [4, 2] and found["deci.attention.head_count_kv"] == [2, 1]
    assert found["deci.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6 * 32 / 24)
    tensors = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    rows = small.model.layers[1].self_attn.k_proj.weight.detach()  # type: ignore[union-attr, index]
    pairs = [row for i in range(4) for row in (i, i + 4)]  # the halves of a rotated pair, side by side
    assert np.array_equal(tensors["blk.1.attn_k.weight"], rows[pairs].numpy())
    qwen, plan = halve(build("qwen2"), "attn embed", keep={"*layers.0.mlp.gate_proj": 0.5}, even=False)
    with pytest.raises(InputError, match="unequal counts"):
        write_gguf(tmp_path / "q.gguf", qwen, plan)


def test_positions_within_heads_come_back_as_zeros(tmp_path: Path) -> None:
    model = build("llama")
    graph = sc.trace(model, {"input_ids": ids()}, positions=True)
    keep = {g.name: np.arange(1, g.size) for g in graph.groups if g.padded}
    plan = Plan(graph, "by hand", keep)
    small = sc.shrink(model, plan)
    with pytest.warns(UserWarning, match="padded with zeros"):
        write_gguf(tmp_path / "m.gguf", small, plan, "f32")
    assert fields(tmp_path / "m.gguf")["general.architecture"] == "llama"
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids()).logits, small(ids()).logits, rtol=1e-4, atol=1e-5)
    rows = loaded.get_parameter("model.layers.0.self_attn.v_proj.weight")
    assert rows[0].eq(0).all() and rows[1:].ne(0).any(1).all()


@pytest.mark.parametrize("byte_fallback", [False, True])
def test_the_tokenizer_travels_along(byte_fallback: bool, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())[:60]
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", "<unk>", *letters, "AB", "ABC"])}
    words = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocabulary, [("A", "B"), ("AB", "C")], unk_token="<unk>", byte_fallback=byte_fallback
        )
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = tokenizers.decoders.ByteLevel()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(tmp_path / "words")
    small, plan = halve(build("qwen2", head_dim=8), "attn embed")
    for given in (tokenizer, tmp_path / "words"):
        write_gguf(tmp_path / "m.gguf", small, plan, tokenizer=given)
    found = fields(tmp_path / "m.gguf")
    assert (
        found["tokenizer.ggml.tokens"][:3] == list(special.values())
        and len(found["tokenizer.ggml.tokens"]) == 90
    )
    assert found["tokenizer.ggml.token_type"][:3] == [3, 3, 2] and found["tokenizer.ggml.token_type"][-1] == 5
    assert found["tokenizer.ggml.bos_token_id"] == 0 and found["tokenizer.chat_template"] == "{{ messages }}"
    if byte_fallback:
        assert found["tokenizer.ggml.model"] == "llama"
        scores = dict(zip(found["tokenizer.ggml.tokens"], found["tokenizer.ggml.scores"], strict=True))
        assert scores["AB"] == 0 and scores["ABC"] == -1
    else:
        assert found["tokenizer.ggml.model"] == "gpt2" and found["tokenizer.ggml.pre"] == "qwen2"
        again = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
        assert again("ABCAB", add_special_tokens=False).input_ids == tokenizer("ABCAB").input_ids


def test_bad_input_writes_nothing(tmp_path: Path) -> None:
    small, plan = halve(build("llama"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match="not a file"):
        write_gguf(tmp_path / "folder", small, plan)
    with pytest.raises(InputError, match=r"no GGUF type 'q4_k'.*f16"):
        write_gguf(tmp_path / "m.gguf", small, plan, "q4_k")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no GGUF of a BertModel"):
        write_gguf(tmp_path / "m.gguf", *halve(build("bert"), "attention"))
    with pytest.raises(InputError, match="no tokenizer in"):
        write_gguf(tmp_path / "m.gguf", small, plan, tokenizer=tmp_path)
    other = build("gemma3_text", layer_types=["full_attention", "sliding_attention"], query_pre_attn_scalar=9)
    with pytest.raises(InputError, match=r"layers \[0\], not in every 6th and query_pre_attn_scalar=9"):
        write_gguf(tmp_path / "m.gguf", *halve(other, "attn embed"))
    large = halve(build("llama"), "attn embed")
    with torch.no_grad():
        large[0].lm_head.weight[0, 0] = 1e6  # type: ignore[union-attr, index, operator]
    with pytest.raises(ExactnessError, match=r"output\.weight differs .*as f16"):
        write_gguf(tmp_path / "m.gguf", *large)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
