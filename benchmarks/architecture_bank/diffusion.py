"""Diffusion models: diffusers."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

from torch import nn

from .entry import Architecture, integers, normal, with_inputs

__all__ = ["DIFFUSION"]

STEP = integers(10)
UNET: dict[str, Any] = {
    "block_out_channels": (16, 24),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 8,
}
VAE = {**UNET, "block_out_channels": (8, 16)}
CODER = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
PATCHES = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 2, "attention_head_dim": 6}
IMAGE, LATENT = normal(3, 8, 8), normal(4, 8, 8)
TEXT = normal(5, 12)
# Class -> options, inputs.
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "UNet2DModel": (
        {
            **UNET,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": 4,
        },
        {"sample": IMAGE, "timestep": STEP},
    ),
    "UNet2DConditionModel": (
        {
            **UNET,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": 2,
            "cross_attention_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
        },
        {"sample": LATENT, "timestep": STEP, "encoder_hidden_states": TEXT},
    ),
    "AutoencoderKL": ({**VAE, **CODER}, {"sample": IMAGE}),
    "VQModel": ({**VAE, **CODER}, {"sample": IMAGE}),
    "AsymmetricAutoencoderKL": (
        {
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "down_block_out_channels": (8, 16),
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "up_block_out_channels": (8, 16),
            "norm_num_groups": 4,
        },
        {"sample": normal(3, 16, 16)},
    ),
    "AutoencoderTiny": (
        {
            "encoder_block_out_channels": (8, 8),
            "decoder_block_out_channels": (8, 8),
            "num_encoder_blocks": (1, 1),
            "num_decoder_blocks": (1, 1),
        },
        {"sample": normal(3, 16, 16)},
    ),
    "DiTTransformer2DModel": (
        {**PATCHES, "num_attention_heads": 2, "num_embeds_ada_norm": 10, "norm_num_groups": 4},
        {"hidden_states": LATENT, "timestep": STEP, "class_labels": STEP},
    ),
    "SD3Transformer2DModel": (
        {
            **PATCHES,
            "num_attention_heads": 4,
            "joint_attention_dim": 12,
            "caption_projection_dim": 24,
            "pooled_projection_dim": 10,
            "out_channels": 4,
        },
        {
            "hidden_states": LATENT,
            "encoder_hidden_states": TEXT,
            "pooled_projections": normal(10),
            "timestep": STEP,
        },
    ),
    "PixArtTransformer2DModel": (
        {
            **PATCHES,
            "num_attention_heads": 2,
            "out_channels": 8,
            "cross_attention_dim": 12,
            "caption_channels": 10,
            "norm_num_groups": 4,
        },
        {"hidden_states": LATENT, "timestep": STEP, "encoder_hidden_states": normal(5, 10)},
    ),
    "Transformer2DModel": (
        {
            "num_attention_heads": 2,
            "attention_head_dim": 6,
            "in_channels": 12,
            "num_layers": 1,
            "norm_num_groups": 4,
            "cross_attention_dim": 10,
        },
        {"hidden_states": normal(12, 8, 8), "encoder_hidden_states": normal(5, 10)},
    ),
    "CogVideoXTransformer3DModel": (
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 8,
            "text_embed_dim": 8,
            "num_layers": 2,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 5,
            "patch_size": 2,
            "max_text_seq_length": 5,
        },
        {"hidden_states": normal(2, 4, 8, 8), "encoder_hidden_states": normal(5, 8), "timestep": STEP},
    ),
    "WanTransformer3DModel": (
        {
            "patch_size": (1, 2, 2),
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 12,
            "freq_dim": 16,
            "ffn_dim": 34,
            "num_layers": 2,
        },
        {"hidden_states": normal(4, 2, 8, 8), "timestep": STEP, "encoder_hidden_states": TEXT},
    ),
    "SanaTransformer2DModel": (
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "num_attention_heads": 2,
            "attention_head_dim": 6,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 6,
            "cross_attention_dim": 12,
            "caption_channels": 8,
            "sample_size": 8,
        },
        {"hidden_states": LATENT, "encoder_hidden_states": normal(5, 8), "timestep": STEP},
    ),
    "PriorTransformer": (
        {
            "num_attention_heads": 2,
            "attention_head_dim": 6,
            "num_layers": 2,
            "embedding_dim": 10,
            "num_embeddings": 7,
            "additional_embeddings": 4,
        },
        {
            "hidden_states": normal(10),
            "timestep": STEP,
            "proj_embedding": normal(10),
            "encoder_hidden_states": normal(7, 10),
        },
    ),
    "UVit2DModel": (
        {
            "hidden_size": 24,
            "cond_embed_dim": 12,
            "encoder_hidden_size": 12,
            "block_out_channels": 24,
            "micro_cond_encode_dim": 4,
            "micro_cond_embed_dim": 20,
            "block_num_heads": 4,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 34,
            "vocab_size": 31,
            "codebook_size": 29,
            "in_channels": 24,
            "sample_size": 8,
        },
        {
            "input_ids": integers(20, 8, 8),
            "encoder_hidden_states": TEXT,
            "pooled_text_emb": normal(12),
            "micro_conds": normal(5),
        },
    ),
}
# Class -> the field that it returns, if that is not the sample; () for a plain tensor.
FIELDS: dict[str, tuple[str, ...]] = {"PriorTransformer": ("predicted_image_embedding",), "UVit2DModel": ()}


def make_diffusers(name: str) -> nn.Module:
    """Build a model of diffusers."""
    model: nn.Module = getattr(import_module("diffusers"), name)(**MODELS[name][0])
    return model


DIFFUSION: tuple[Architecture, ...] = tuple(
    with_inputs(
        f"diffusers/{name}",
        partial(make_diffusers, name),
        inputs,
        FIELDS.get(name, ("sample",)),
    )
    for name, (_, inputs) in MODELS.items()
)
