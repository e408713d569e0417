"""Folders of transformers: models, shards, tokenizers, and what is missing or wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from language_folder import make_folder, tiny_llama

from secateur.core import InputError
from secateur.pretrained import load_pretrained, load_tokenizer


def write_gguf(path: Path, model: transformers.LlamaForCausalLM) -> None:
    """Write a Llama as a GGUF file, with the names and fields of llama.cpp."""
    gguf = pytest.importorskip("gguf")
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        writer.add_tensor(names.get_name(name, (".weight",)), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in three or more shards, with its tokenizer."""
    return make_folder(tmp_path / "llama", max_shard_size="20KB")


def test_a_model_in_shards_and_its_tokenizer(folder: Path) -> None:
    assert len(list(folder.glob("*.safetensors"))) > 2
    model, tokenizer = load_pretrained(folder), load_tokenizer(folder)
    assert type(model) is transformers.LlamaForCausalLM and not model.config.use_cache
    tokens = tokenizer("old roses", return_tensors="pt")["input_ids"]
    assert model(tokens).logits.equal(tiny_llama()(tokens).logits)


def test_an_encoder_has_the_class_that_its_config_names(tmp_path: Path) -> None:
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(**sizes, intermediate_size=8)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    assert type(load_pretrained(tmp_path)) is transformers.BertForSequenceClassification


def test_a_gguf_file_is_a_model_and_a_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_llama())
    model = load_pretrained(path)
    assert type(model) is transformers.LlamaForCausalLM and model.dtype == torch.float32
    assert model.model.layers[0].mlp.up_proj.weight.equal(tiny_llama().model.layers[0].mlp.up_proj.weight)


def test_files_that_are_missing(folder: Path) -> None:
    shard = min(folder.glob("model-*.safetensors"))
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(InputError, match=f"1 of . shards are missing in .*{shard.name}"):
        load_pretrained(folder)
    shard.write_bytes(content[:200])
    with pytest.raises(InputError, match=r"reading .* failed"):
        load_pretrained(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(InputError, match="has no weights"):
        load_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match="pickled weights are not read"):
        load_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"it has no config\.json"):
        load_pretrained(folder)


def test_a_tensor_that_is_missing_is_not_made_up(tmp_path: Path) -> None:
    model = tiny_llama()
    state = {k: v for k, v in model.state_dict().items() if "layers.1.mlp.up_proj" not in k}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(InputError, match=r"lacks 1 tensors .*layers\.1\.mlp\.up_proj"):
        load_pretrained(tmp_path)


def test_quantised_weights(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"quantised \(gptq\).*dequantize"):
        load_pretrained(folder)


def test_folders_without_a_tokenizer(tmp_path: Path, folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match=r"has no tokenizer.*--tokenizer"):
        load_tokenizer(folder)
    with pytest.raises(InputError, match="there is no folder"):
        load_tokenizer(tmp_path / "none")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="reading the tokenizer"):
        load_tokenizer(folder)
