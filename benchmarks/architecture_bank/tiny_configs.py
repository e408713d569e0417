"""Tiny configs of transformers: every size that a config states becomes a small one."""

from __future__ import annotations

from typing import Any

__all__ = ["tiny_config"]

VOCABULARY = 61
# Field of a config -> small value; a config gets those that it has.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "embedding_size"), 24),
    **dict.fromkeys(("word_embed_proj_dim", "encoder_hidden_size", "decoder_hidden_size", "lru_width"), 24),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers"), 2),
    **dict.fromkeys(("decoder_layers", "num_encoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "mamba_n_heads"), 4),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "d_ff", "d_inner", "encoder_ffn_dim"), 34),
    **dict.fromkeys(("hidden_dim", "ffn_hidden_size"), 34),
    "decoder_ffn_dim": 30,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "d_kv": 6,
    "rotary_dim": 4,
    "query_pre_attn_scalar": 6,
    "attention_head_dim": 6,
    "vocab_size": VOCABULARY,
    "type_vocab_size": 2,
    "num_labels": 5,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 48),
    "max_source_positions": 9,
    "max_target_positions": 40,
    "sliding_window": 5,
    "attention_window_size": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "use_cache": False,
    # experts
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token"), 2),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "num_experts_shared"), 1),
    "q_lora_rank": 12,
    "kv_lora_rank": 10,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 6,
    # states
    "state_size": 5,
    "expand": 2,
    "time_step_rank": 4,
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_d_head": 12,
    **dict.fromkeys(("mamba_n_groups", "n_groups"), 1),
    # images and sounds
    "image_size": 32,
    "patch_size": 8,
    "num_channels": 3,
    "projection_dim": 12,
    "bottleneck_size": 8,
    "num_mel_bins": 10,
    "input_feat_per_channel": 10,
    "conv_dim": (14, 16),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
STAGES = {"depths": [1] * 4, "hidden_sizes": [8, 12, 16, 20]}
WINDOWS = {
    "embed_dim": 12,
    "depths": [2, 1],
    "num_heads": [2, 4],
    "window_size": 4,
    "patch_size": 4,
    "hidden_size": None,
}
EXPERTS = {"intermediate_size": 32}  # the kernel for experts wants rows of multiples of 16 bytes
STATE_SPACE = {"conv_kernel": 4, "sliding_window": None}
NECK = {"neck_hidden_sizes": [8] * 4, "fusion_hidden_size": 8}
DETECTOR = {"backbone_config": None, "use_timm_backbone": False, "use_pretrained_backbone": False}
BACKBONE = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 12, 16, 20],
    "depths": [1] * 4,
    "layer_type": "basic",
    "out_features": ["stage4"],
}
# Kind of model -> values of its own; None keeps the config's default.
OWN: dict[str, dict[str, Any]] = {
    "beit": {"image_size": 32},
    "big_bird": {"attention_type": "original_full"},
    "bit": {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [1, 1], "num_groups": 4},
    "canine": {"num_hash_functions": 2, "num_hash_buckets": 50, "local_transformer_stride": 8},
    "convnext": {**STAGES, "patch_size": 4, "num_stages": 4},
    "convnextv2": {**STAGES, "patch_size": 4, "num_stages": 4},
    "cvt": {"embed_dim": [8, 12, 16], "num_heads": [1, 2, 4], "depth": [1, 2, 3]},
    "deberta": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "deepseek_v3": {**EXPERTS, "head_dim": None, "num_key_value_heads": 4, "n_group": 2, "topk_group": 1},
    "depth_anything": {
        "depth_estimation_type": "metric",  # a sigmoid; behind the ReLU of the other type all is zero
        **NECK,
        "reassemble_hidden_size": 24,
        "head_hidden_size": 8,
        "backbone_config": {
            "model_type": "dinov2",
            "hidden_size": 24,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
            "out_indices": [1, 2, 3, 4],
            "reshape_hidden_states": False,
        },
    },
    "detr": {**DETECTOR, "backbone_config": BACKBONE},
    "dpt": {**NECK, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]},
    "efficientnet": {
        "width_coefficient": 0.25,
        "depth_coefficient": 0.2,
        "hidden_dim": 320,
        "image_size": 64,
    },
    "falcon": {"new_decoder_architecture": False, "multi_query": False},
    "focalnet": {
        "embed_dim": 12,
        "depths": [1, 1],
        "hidden_sizes": [12, 24],
        "focal_levels": [2, 2],
        "focal_windows": [3, 3],
        "patch_size": 4,
        "hidden_size": None,
    },
    "funnel": {
        "block_sizes": [1, 1],
        "hidden_size": None,
        "num_hidden_layers": None,
        "num_decoder_layers": 1,
        "d_head": 6,
        "n_head": 4,
        "num_attention_heads": None,
    },
    "glpn": {**STAGES, "num_attention_heads": [1, 2, 2, 4], "decoder_hidden_size": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 5},
    "hiera": {"embed_dim": 12, "depths": [1] * 4, "num_heads": [1, 1, 2, 2], "image_size": [64, 64]},
    **dict.fromkeys(
        ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "gpt_oss", "phimoe"), EXPERTS
    ),
    "jamba": {
        **EXPERTS,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "bamba": {"attn_layer_indices": [1]},
    "levit": {
        "image_size": 64,
        "hidden_sizes": [16, 24, 32],
        "num_attention_heads": [2] * 3,
        "depths": [1] * 3,
        "key_dim": [4] * 3,
        "patch_size": 16,
    },
    "longformer": {"attention_window": 4},
    "led": {
        "attention_window": 4,
        "max_encoder_position_embeddings": 48,
        "max_decoder_position_embeddings": 48,
    },
    "mamba": STATE_SPACE,
    "mamba2": {**STATE_SPACE, "num_heads": 8, "head_dim": 6, "n_groups": 1, "chunk_size": 4},
    "mobilebert": {"true_hidden_size": 24, "intra_bottleneck_size": 24, "embedding_size": 16},
    "mobilenet_v1": {"depth_multiplier": 0.25, "image_size": 64},
    "mobilenet_v2": {"depth_multiplier": 0.25, "image_size": 64},
    "mobilevit": {
        "hidden_sizes": [12, 16, 20],
        "neck_hidden_sizes": [8, 8, 12, 12, 16, 16, 32],
        "image_size": 64,
        "patch_size": 2,
    },
    "mobilevitv2": {"patch_size": 2, "image_size": 64},
    "mpt": {"hidden_size": None, "max_seq_len": 48, "expansion_ratio": 2},
    "phi": {"hidden_size": 32},  # half of a head is rotated
    "persimmon": {"hidden_size": 32},
    "prophetnet": {"num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4},
    "squeezebert": {"intermediate_size": 36},
    "poolformer": {**STAGES, "num_attention_heads": None, "patch_size": 7},
    "pvt": {
        **STAGES,
        "num_attention_heads": [1, 2, 2, 4],
        "sequence_reduction_ratios": [8, 4, 2, 1],
        "patch_size": 4,
        "image_size": 64,
    },
    "pvt_v2": {**STAGES, "num_attention_heads": [1, 2, 2, 4], "image_size": 64},
    "qwen3_next": {"linear_num_value_heads": 4, "linear_num_key_heads": 2},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "attn_layers": ["local", "local"],
        "axial_pos_shape": [4, 4],
        "axial_pos_embds_dim": [8, 16],
        "num_hidden_layers": None,
        "local_attn_chunk_length": 4,
        "feed_forward_size": 34,
        "attention_head_size": 6,
        "is_decoder": True,
    },
    "regnet": {"embedding_size": 10, "hidden_sizes": [12, 16], "depths": [1, 1], "groups_width": 4},
    "resnet": {"embedding_size": 10, "hidden_sizes": [12, 16], "depths": [1, 1], "layer_type": "basic"},
    "rwkv": {"context_length": 32},
    "segformer": {
        "num_encoder_blocks": 2,
        "depths": [1, 1],
        "sr_ratios": [2, 1],
        "hidden_sizes": [12, 20],
        "patch_sizes": [7, 3],
        "strides": [4, 2],
        "num_attention_heads": [2, 4],
        "mlp_ratios": [3, 3],
    },
    "swiftformer": {
        "depths": [1] * 4,
        "embed_dims": [8, 12, 16, 20],
        "image_size": 64,
        "hidden_size": None,
    },
    "swin": WINDOWS,
    "swinv2": WINDOWS,
    "table-transformer": {**DETECTOR, "backbone_config": BACKBONE},
    "xlnet": {"hidden_size": None, "use_mems_eval": False},
}
PARTS = ("text_config", "vision_config", "encoder_config", "decoder_config")


def tiny_config(kind: str) -> Any:
    """Return the config of a kind of model with small sizes."""
    from transformers import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[kind]
    config = config_class(**_small_values(config_class(), OWN.get(kind, {})))
    config.architectures = []  # where several classes fit, the first one
    return config


def _small_values(config: Any, own: dict[str, Any]) -> dict[str, Any]:
    """Return small values for the fields that a config has."""
    fields = config.to_dict()
    aliases = getattr(config, "attribute_map", {})
    values = {k: v for k, v in SMALL.items() if (k in fields or k in aliases) and k not in own}
    for key, value in values.items():
        if isinstance(fields.get(key), (list, tuple)) and not isinstance(value, (list, tuple)):
            values[key] = type(fields[key])([value] * len(fields[key]))
    for alias, target in aliases.items():
        if alias in values and (target in values or target in own):
            del values[alias]
    for part in PARTS:
        inner = getattr(config, part, None)
        if hasattr(inner, "to_dict"):
            model_type = getattr(inner, "model_type", "")
            kept = {"model_type": model_type} if model_type else {}
            values[part] = {**_small_values(inner, OWN.get(model_type, {})), **kept}
    for key in ("layer_types", "mlp_layer_types"):
        if isinstance(fields.get(key), list) and key not in own:
            count = values.get("num_hidden_layers", len(fields[key]))
            kinds = list(dict.fromkeys(fields[key]))
            values[key] = (kinds * count)[:count]
    return values | {key: value for key, value in own.items() if value is not None}
