"""Vision transformers: vit_pytorch, whose shapes pass through einops."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

from torch import nn

from .entry import Architecture, normal, with_inputs

__all__ = ["VIT_PYTORCH"]

IMAGES, LARGE = [normal(3, 32, 32)], [normal(3, 64, 64)]
VIDEOS, SEQUENCES = [normal(3, 4, 32, 32)], [normal(3, 32)]
VIT: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "num_classes": 5,
    "dim": 24,
    "depth": 2,
    "heads": 4,
    "mlp_dim": 34,
}
HEADS = {**VIT, "dim_head": 6}
VIDEO = {
    **{k: v for k, v in HEADS.items() if k not in ("patch_size", "depth")},
    "frames": 4,
    "image_patch_size": 8,
    "frame_patch_size": 2,
}
STAGES: dict[str, Any] = {"num_classes": 5}
# module.Class -> options beyond `HEADS`; the inputs are `IMAGES`.
LIKE_VIT: dict[str, dict[str, Any]] = {
    "vit.ViT": {},
    "simple_vit.SimpleViT": {},
    "deepvit.DeepViT": {},
    "cait.CaiT": {"cls_depth": 1},
    "parallel_vit.ViT": {},
    "vit_for_small_dataset.ViT": {},
    "simple_vit_with_register_tokens.SimpleViT": {},
    "simple_vit_with_qk_norm.SimpleViT": {},
    "simple_vit_with_patch_dropout.SimpleViT": {},
    "vit_with_patch_dropout.ViT": {},
    "simple_vit_with_value_residual.SimpleViT": {},
    "learnable_memory_vit.ViT": {},
    "normalized_vit.nViT": {},
    "simple_vit_with_fft.SimpleViT": {"freq_patch_size": 8},
    "xcit.XCiT": {"cls_depth": 1},
    "vit_with_patch_merger.ViT": {"patch_merge_layer": 1, "patch_merge_num_tokens": 4},
    "simple_vit_with_hyper_connections.SimpleViT": {"num_residual_streams": 2},
    "vit_with_decorr.ViT": {},
    "jumbo_vit.JumboViT": {"num_jumbo_cls": 1, "jumbo_cls_k": 2, "jumbo_ff_mult": 1},
    "vit_with_keel_post_ln.ViT": {},
    "rvt.RvT": {},
    "ats_vit.ViT": {"max_tokens_per_depth": (10, 6)},
}
# module.Class -> options, inputs.
OTHERS: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "vit_1d.ViT": (
        {**{k: v for k, v in HEADS.items() if k != "image_size"}, "seq_len": 32},
        SEQUENCES,
    ),
    "simple_vit_1d.SimpleViT": (
        {**{k: v for k, v in HEADS.items() if k != "image_size"}, "seq_len": 32},
        SEQUENCES,
    ),
    "vit_3d.ViT": ({**VIDEO, "depth": 2}, VIDEOS),
    "simple_vit_3d.SimpleViT": ({**VIDEO, "depth": 2}, VIDEOS),
    "vivit.ViViT": ({**VIDEO, "spatial_depth": 1, "temporal_depth": 1}, VIDEOS),
    "pit.PiT": ({**HEADS, "depth": (1, 1)}, IMAGES),
    "t2t.T2TViT": ({**{k: v for k, v in HEADS.items() if k != "patch_size"}, "depth": 1}, IMAGES),
    "cct.CCT": (
        {
            **STAGES,
            "img_size": 32,
            "embedding_dim": 24,
            "n_conv_layers": 2,
            "num_layers": 2,
            "num_heads": 4,
            "mlp_ratio": 2.0,
        },
        IMAGES,
    ),
    "cross_vit.CrossViT": (
        {
            **STAGES,
            "image_size": 32,
            "depth": 1,
            "sm_dim": 24,
            "sm_patch_size": 8,
            "sm_enc_depth": 1,
            "sm_enc_heads": 4,
            "sm_enc_mlp_dim": 34,
            "sm_enc_dim_head": 6,
            "lg_dim": 28,
            "lg_patch_size": 16,
            "lg_enc_depth": 1,
            "lg_enc_heads": 4,
            "lg_enc_mlp_dim": 40,
            "lg_enc_dim_head": 6,
            "cross_attn_depth": 1,
            "cross_attn_heads": 4,
            "cross_attn_dim_head": 6,
        },
        IMAGES,
    ),
    "levit.LeViT": (
        {
            **STAGES,
            "image_size": 64,
            "stages": 2,
            "dim": (16, 24),
            "depth": 1,
            "heads": (2, 4),
            "mlp_mult": 2,
            "dim_key": 8,
            "dim_value": 8,
        },
        LARGE,
    ),
    "cvt.CvT": (
        {
            **STAGES,
            **{f"s{i}_emb_dim": width for i, width in ((1, 8), (2, 12), (3, 16))},
            **{f"s{i}_heads": heads for i, heads in ((1, 1), (2, 2), (3, 2))},
            **{f"s{i}_depth": 1 for i in (1, 2, 3)},
        },
        LARGE,
    ),
    "twins_svt.TwinsSVT": (
        {
            **STAGES,
            **{f"s{i}_emb_dim": width for i, width in enumerate((16, 24, 32, 32), 1)},
            **{f"s{i}_patch_size": size for i, size in enumerate((4, 2, 1, 1), 1)},
            **{f"s{i}_{what}": 4 for i in (1, 2, 3, 4) for what in ("local_patch_size", "global_k")},
            **{f"s{i}_depth": 1 for i in (1, 2, 3, 4)},
        },
        LARGE,
    ),
    "regionvit.RegionViT": (
        {
            **STAGES,
            "dim": (16, 24, 32, 32),
            "depth": (1,) * 4,
            "window_size": 7,
            "tokenize_local_3_conv": False,
        },
        [normal(3, 56, 56)],
    ),
    "scalable_vit.ScalableViT": (
        {
            **STAGES,
            "dim": 16,
            "heads": (1, 2, 2, 2),
            "depth": (1,) * 4,
            "ssa_dim_key": (8,) * 4,
            "reduction_factor": (4, 2, 1, 1),
            "window_size": (16, 8, None, None),
        },
        LARGE,
    ),
    "sep_vit.SepViT": (
        {**STAGES, "dim": 16, "heads": (1, 2, 2), "depth": (1,) * 3, "window_size": 7},
        [normal(3, 112, 112)],
    ),
    "max_vit.MaxViT": (
        {**STAGES, "dim_conv_stem": 16, "dim": 24, "dim_head": 8, "depth": (1, 1), "window_size": 4},
        LARGE,
    ),
    "nest.NesT": (
        {
            **STAGES,
            "image_size": 32,
            "patch_size": 4,
            "dim": 16,
            "heads": 2,
            "num_hierarchies": 2,
            "block_repeats": (1, 1),
        },
        IMAGES,
    ),
    "mobile_vit.MobileViT": (
        {
            **STAGES,
            "image_size": (64, 64),
            "dims": [24, 28, 32],
            "channels": [8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 32],
        },
        LARGE,
    ),
}


def make_vit(name: str, options: dict[str, Any]) -> nn.Module:
    """Build a model of vit_pytorch."""
    module, _, kind = name.partition(".")
    model: nn.Module = getattr(import_module(f"vit_pytorch.{module}"), kind)(**options)
    return model


ALL = {**{name: ({**HEADS, **more}, IMAGES) for name, more in LIKE_VIT.items()}, **OTHERS}
VIT_PYTORCH: tuple[Architecture, ...] = tuple(
    with_inputs(f"vit_pytorch/{name}", partial(make_vit, name, options), inputs)
    for name, (options, inputs) in ALL.items()
)
