"""Families of the transformers library, built small from their configurations; nothing is downloaded."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from .entry import B, Entry, Maker, floats, ones, tokens
from .transformer import module_heads

ENCODER = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 34,
    "vocab_size": 61,
    "max_position_embeddings": 40,
}
DECODER = {**ENCODER, "use_cache": False}
GROUPED = {**DECODER, "num_key_value_heads": 2}
VISION = {
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 34,
    "image_size": 12,
    "patch_size": 4,
}
SEQ2SEQ = {
    "d_model": 24,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 34,
    "decoder_ffn_dim": 30,
    "vocab_size": 61,
    "max_position_embeddings": 40,
    "use_cache": False,
    "pad_token_id": 1,
    "decoder_start_token_id": 2,
}
SPEECH = {
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 34,
    "conv_dim": (14, 16),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "num_feat_extract_layers": 2,
    "vocab_size": 31,
}
IDS: dict[str, Maker] = {"input_ids": tokens(61, B, 9)}
BOTH: dict[str, Maker] = {**IDS, "decoder_input_ids": tokens(61, B, 7)}
MASKED: dict[str, Maker] = {**IDS, "attention_mask": ones(B, 9)}
PIXELS: dict[str, Maker] = {"pixel_values": floats(B, 3, 12, 12)}
WIDE: dict[str, Maker] = {"pixel_values": floats(B, 3, 32, 32)}
PROJECTIONS = (
    "q_proj",
    "k_proj",
    "v_proj",
    "query",
    "key",
    "value",
    "q",
    "k",
    "v",
    "q_lin",
    "k_lin",
    "v_lin",
    "query_key_value",
    "qkv_proj",
    "c_attn",
)


class Only(nn.Module):
    """A model that returns one of its outputs."""

    def __init__(self, model: nn.Module, output: str) -> None:
        super().__init__()
        self.model, self.output, self.config = model, output, model.config

    def forward(self, **inputs: Tensor) -> Tensor:
        """Return the output of that name."""
        return self.model(**inputs)[self.output]


def build(config: str, model: str, **options: Any) -> nn.Module:
    """Build a transformers model from the names of its configuration and class."""
    library = importlib.import_module("transformers")
    return getattr(library, model)(getattr(library, config)(**options)).to(torch.float64)


def projection_heads(model: nn.Module) -> dict[nn.Module, int]:
    """Return the number of heads of every q, k and v projection, by the model's configuration."""
    config: Any = model.config
    names = ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads")
    heads = next((getattr(config, name) for name in names if hasattr(config, name)), 1)
    grouped = getattr(config, "num_key_value_heads", None) or heads
    found = module_heads(model)
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if last in PROJECTIONS and hasattr(module, "weight"):
            found[module] = grouped if last[0] in "kv" else heads
    return found


def row(
    name: str,
    kind: str,
    head: str,
    options: dict[str, Any],
    kwargs: dict[str, Maker],
    output: str | tuple[str, ...],
    units: int,
    *,
    prefix: str = "",
    slow: bool = True,
    refused: str = "",
    only: str = "",
) -> Entry:
    """List a model by its family's prefix and the name of its head; `only` names the output to return."""
    config, model = f"{prefix or kind}Config", f"{kind}{head}"
    outputs = (output,) if isinstance(output, str) else output
    if only:
        outputs = tuple(f"model.{name}" for name in outputs)

    def make() -> nn.Module:
        return Only(build(config, model, **options), only) if only else build(config, model, **options)

    return Entry(
        f"HF {name}",
        make,
        kwargs=kwargs,
        outputs=outputs,
        heads=projection_heads,
        units=units,
        needs="transformers",
        slow=slow,
        refused=refused,
    )


LM = "ForCausalLM"
CLASSIFY = "ForSequenceClassification"
GPT2 = {"n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 40, "vocab_size": 61, "use_cache": False}
# fmt: off
ENTRIES = (
    row("GPT-2", "GPT2", "LMHeadModel", GPT2, IDS, "lm_head", 200, slow=False),
    row("BERT", "Bert", CLASSIFY, ENCODER, MASKED, "classifier", 76, slow=False),
    row("Llama", "Llama", LM, DECODER, IDS, "lm_head", 76, slow=False),
    row("Llama, grouped queries", "Llama", LM, GROUPED, IDS, "lm_head", 72, slow=False),
    row("Mistral", "Mistral", LM, {**GROUPED, "sliding_window": 5}, IDS, "lm_head", 72),
    row("Qwen2", "Qwen2", LM, GROUPED, IDS, "lm_head", 72),
    row("Qwen3", "Qwen3", LM, {**GROUPED, "head_dim": 6}, IDS, "lm_head", 100),
    row("Gemma", "Gemma", LM, {**GROUPED, "head_dim": 6}, IDS, "lm_head", 68),
    row("Gemma 2", "Gemma2", LM, {**GROUPED, "head_dim": 6, "query_pre_attn_scalar": 6}, IDS, "lm_head",
        68),
    row("Gemma 3", "Gemma3", LM, {**GROUPED, "head_dim": 6, "query_pre_attn_scalar": 6}, IDS, "lm_head",
        100, prefix="Gemma3Text"),
    row("Phi", "Phi", LM, {**DECODER, "partial_rotary_factor": 2 / 3}, IDS, "lm_head", 76),
    row("Phi-3", "Phi3", LM, {**DECODER, "pad_token_id": 0}, IDS, "lm_head", 68),
    row("GPT-NeoX", "GPTNeoX", LM, {**DECODER, "rotary_pct": 2 / 3}, IDS, "lm_head", 76),
    row("GPT-Neo", "GPTNeo", LM, {"hidden_size": 24, "num_layers": 2, "num_heads": 4,
        "intermediate_size": 34,
        "vocab_size": 61, "max_position_embeddings": 40, "window_size": 5, "use_cache": False,
        "attention_types": [[["global", "local"], 1]]}, IDS, "lm_head", 76),
    row("GPT-J", "GPTJ", LM, {**GPT2, "n_inner": 34, "rotary_dim": 4}, IDS, "lm_head", 76),
    row("GPT-BigCode", "GPTBigCode", LM, {**GPT2, "n_inner": 34}, IDS, "lm_head", 68),
    row("CodeGen", "CodeGen", LM, {**GPT2, "n_inner": 34, "rotary_dim": 4}, IDS, "lm_head", 68),
    row("OPT", "OPT", LM, {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "ffn_dim": 34,
        "vocab_size": 61, "max_position_embeddings": 40, "word_embed_proj_dim": 24, "use_cache": False},
        IDS, "lm_head", 76),
    row("Bloom", "Bloom", LM, {"hidden_size": 24, "n_layer": 2, "n_head": 4, "vocab_size": 61,
        "use_cache": False},
        IDS, "lm_head", 192),
    row("Falcon", "Falcon", LM, {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "vocab_size": 61,
        "use_cache": False, "new_decoder_architecture": False, "multi_query": False, "bias": True}, IDS,
        "lm_head", 192),
    row("StarCoder2", "Starcoder2", LM, GROUPED, IDS, "lm_head", 72),
    row("StableLM", "StableLm", LM, {**GROUPED, "partial_rotary_factor": 2 / 3}, IDS, "lm_head", 72),
    row("Cohere", "Cohere", LM, {**GROUPED, "pad_token_id": 0}, IDS, "lm_head", 72),
    row("OLMo", "Olmo", LM, DECODER, IDS, "lm_head", 68),
    row("OLMo 2", "Olmo2", LM, DECODER, IDS, "lm_head", 68),
    row("Granite", "Granite", LM, GROUPED, IDS, "lm_head", 72),
    row("GLM", "Glm", LM, {**GROUPED, "head_dim": 6, "pad_token_id": 0}, IDS, "lm_head", 68),
    row("SmolLM3", "SmolLM3", LM, {**GROUPED, "pad_token_id": 0}, IDS, "lm_head", 72),
    row("Nemotron", "Nemotron", LM, {**GROUPED, "head_dim": 6}, IDS, "lm_head", 72),
    row("Mamba", "Mamba", LM, {"hidden_size": 24, "num_hidden_layers": 2, "state_size": 5, "vocab_size": 61,
        "conv_kernel": 4, "use_cache": False}, IDS, "lm_head", 100),
    row("Mixtral, batched experts", "Mixtral", LM, {**GROUPED, "num_local_experts": 4,
        "experts_implementation": "batched_mm"},
        IDS, "lm_head", 8),
    row("Mixtral, experts in a loop", "Mixtral", LM, {**GROUPED, "num_local_experts": 4,
        "experts_implementation": "eager"},
        IDS, "lm_head", 0, refused="data"),
    row("RoBERTa", "Roberta", CLASSIFY, ENCODER, MASKED, "classifier.out_proj", 76),
    row("DistilBERT", "DistilBert", CLASSIFY, {"dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 34,
        "vocab_size": 61, "max_position_embeddings": 40}, MASKED, "classifier", 76),
    row("ELECTRA", "Electra", CLASSIFY, {**ENCODER, "embedding_size": 18}, MASKED, "classifier.out_proj",
        76),
    row("ALBERT", "Albert", CLASSIFY, {**ENCODER, "embedding_size": 18}, MASKED, "classifier", 38),
    row("DeBERTa v2", "DebertaV2", CLASSIFY, {**ENCODER, "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"]},
        MASKED, "classifier", 68),
    row("MPNet", "MPNet", CLASSIFY, ENCODER, MASKED, "classifier.out_proj", 76),
    row("XLNet", "XLNet", CLASSIFY, {"d_model": 24, "n_layer": 1, "n_head": 4, "d_inner": 34,
        "vocab_size": 61,
        "use_mems_eval": False}, IDS, "logits_proj", 34),
    row("FNet", "FNet", CLASSIFY, {"hidden_size": 24, "num_hidden_layers": 1, "intermediate_size": 34,
        "vocab_size": 61, "max_position_embeddings": 40}, IDS, "classifier", 34),
    row("ModernBERT", "ModernBert", CLASSIFY, {**ENCODER, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1, "sep_token_id": 2, "local_attention": 4}, MASKED, "classifier", 68),
    row("T5", "T5", "ForConditionalGeneration", {"d_model": 24, "d_kv": 6, "d_ff": 34, "num_layers": 1,
        "num_heads": 4, "vocab_size": 61, "use_cache": False, "decoder_start_token_id": 0}, BOTH,
        "lm_head", 80, only="logits"),
    row("BART", "Bart", "ForConditionalGeneration", SEQ2SEQ, BOTH, "lm_head", 76, only="logits"),
    row("Marian", "MarianMTModel", "", SEQ2SEQ, BOTH, "lm_head", 76, prefix="Marian", only="logits"),
    row("Pegasus", "Pegasus", "ForConditionalGeneration", SEQ2SEQ, BOTH, "lm_head", 76, only="logits"),
    row("Whisper", "Whisper", "ForConditionalGeneration", {**SEQ2SEQ, "num_mel_bins": 10,
        "max_source_positions": 9,
        "max_target_positions": 40, "bos_token_id": 3, "eos_token_id": 4}, {"input_features": floats(B, 10,
        18),
        "decoder_input_ids": tokens(61, B, 7)}, "proj_out", 76, only="logits"),
    row("ViT", "ViT", "ForImageClassification", VISION, PIXELS, "classifier", 38),
    row("DeiT", "DeiT", "ForImageClassification", VISION, PIXELS, "classifier", 38),
    row("BEiT", "Beit", "ForImageClassification", VISION, PIXELS, "classifier", 38),
    row("DINOv2", "Dinov2", "ForImageClassification", {**VISION, "mlp_ratio": 2}, PIXELS, "classifier", 52),
    row("CLIP vision", "CLIPVisionModelWithProjection", "", {**VISION, "projection_dim": 10}, PIXELS,
        "visual_projection",
        38, prefix="CLIPVision", only="image_embeds"),
    row("CLIP text", "CLIPTextModelWithProjection", "", {**ENCODER, "num_hidden_layers": 1,
        "projection_dim": 10,
        "eos_token_id": 2}, IDS, "text_projection", 38, prefix="CLIPText",
        only="text_embeds"),
    row("SigLIP vision", "SiglipVisionModel", "", VISION, PIXELS, ("head.attention", "head.mlp.fc2"), 38,
        prefix="SiglipVision", only="pooler_output"),
    row("Swin", "Swin", "ForImageClassification", {"image_size": 32, "patch_size": 4, "embed_dim": 12,
        "depths": [2, 1],
        "num_heads": [2, 4], "window_size": 4, "mlp_ratio": 2.0}, WIDE, "classifier", 60),
    row("SegFormer", "Segformer", "ForImageClassification", {"num_encoder_blocks": 2, "depths": [1, 1],
        "sr_ratios": [2, 1], "hidden_sizes": [12, 20], "patch_sizes": [7, 3], "strides": [4, 2],
        "num_attention_heads": [2, 4], "mlp_ratios": [3, 3]}, WIDE, "classifier", 96),
    row("ConvNeXt", "ConvNext", "ForImageClassification", {"hidden_sizes": [8, 12, 16, 20], "depths": [1,
        1, 1, 1],
        "patch_size": 2}, WIDE, "classifier", 280),
    row("LeViT", "Levit", "ForImageClassification", {"image_size": 64, "hidden_sizes": [16, 24, 32],
        "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1], "key_dim": [4, 4, 4]}, {"pixel_values":
        floats(B, 3, 64, 64)}, "classifier", 326),
    row("ConvNeXt V2", "ConvNextV2", "ForImageClassification", {"hidden_sizes": [8, 12, 16, 20], "depths":
        [1, 1, 1, 1], "patch_size": 2}, WIDE, "classifier", 56),
    row("ResNet", "ResNet", "ForImageClassification", {"embedding_size": 10, "hidden_sizes": [12, 16],
        "depths": [1, 1],
        "layer_type": "basic"}, WIDE, "classifier.1", 38),
    row("RegNet", "RegNet", "ForImageClassification", {"embedding_size": 10, "hidden_sizes": [12, 16],
        "depths": [1, 1],
        "groups_width": 4}, WIDE, "classifier.1", 38),
    row("wav2vec 2.0", "Wav2Vec2", "ForCTC", SPEECH, {"input_values": floats(B, 200)}, "lm_head", 38),
    row("HuBERT", "Hubert", "ForCTC", SPEECH, {"input_values": floats(B, 200)}, "lm_head", 38),
)
