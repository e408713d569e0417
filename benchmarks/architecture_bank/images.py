"""Networks for images: timm and torchvision."""

from __future__ import annotations

from functools import partial
from importlib import import_module

from torch import nn

from .entry import Architecture, normal, with_inputs

__all__ = ["TIMM", "TORCHVISION"]

CLASSES = 10
# Name -> side of the images.
TIMM_SIDES = {
    # the test models of timm
    **dict.fromkeys(("test_vit", "test_vit2", "test_vit3", "test_vit4", "test_byobnet", "test_resnet"), 160),
    **dict.fromkeys(("test_efficientnet", "test_efficientnet_gn", "test_efficientnet_ln"), 96),
    **dict.fromkeys(("test_efficientnet_evos", "test_mambaout", "test_nfnet"), 96),
    **dict.fromkeys(("test_convnext", "test_convnext2", "test_convnext3"), 96),
    "test_coatnet": 160,
    # convolutions
    **dict.fromkeys(("mobilenetv3_small_050", "mobilenetv4_conv_small_035", "lcnet_035", "tinynet_e"), 64),
    **dict.fromkeys(
        ("ghostnet_050", "ghostnetv3_050", "repghostnet_050", "mnasnet_small", "semnasnet_050"), 64
    ),
    **dict.fromkeys(("mobilenetv2_035", "fbnetc_100", "spnasnet_100", "rexnet_100", "hardcorenas_a"), 64),
    **dict.fromkeys(("regnetx_002", "regnety_002", "resnet10t", "resnet14t", "seresnet18", "skresnet18"), 64),
    **dict.fromkeys(("starnet_s050", "mobileone_s0", "repvgg_a0", "dla46x_c"), 64),
    **dict.fromkeys(("ese_vovnet19b_slim", "cs3darknet_focus_s", "hgnetv2_b0"), 64),
    **dict.fromkeys(("nf_regnet_b0", "resnetv2_50x1_bit", "convnext_atto", "convnextv2_atto"), 64),
    **dict.fromkeys(("hrnet_w18_small", "densenet121", "repvit_m0_9", "resnest14d"), 64),
    **dict.fromkeys(("gernet_s", "edgenext_xx_small"), 64),
    # attention
    **dict.fromkeys(("levit_128s", "levit_conv_128s", "efficientformer_l1", "tiny_vit_5m_224"), 224),
    **dict.fromkeys(("pvt_v2_b0", "poolformer_s12", "fastvit_t8", "mobilevit_xxs", "mobilevitv2_050"), 64),
    **dict.fromkeys(("efficientvit_b0", "efficientvit_m0", "shvit_s1", "swiftformer_xs"), 224),
    **dict.fromkeys(("xcit_nano_12_p16_224", "cait_xxs24_224", "vit_tiny_patch16_224"), 64),
    **dict.fromkeys(("deit_tiny_distilled_patch16_224", "convit_tiny"), 64),
    **dict.fromkeys(("gmlp_ti16_224", "pit_ti_224"), 64),
    **dict.fromkeys(("coat_tiny", "visformer_tiny"), 224),
    "crossvit_tiny_240": 240,
}
TORCHVISION_SIDES = {
    **dict.fromkeys(("resnet18", "googlenet", "mobilenet_v2", "mobilenet_v3_small", "squeezenet1_1"), 64),
    **dict.fromkeys(
        ("shufflenet_v2_x0_5", "mnasnet0_5", "efficientnet_b0", "regnet_y_400mf", "densenet121"), 64
    ),
    **dict.fromkeys(("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"), 64),
}


def make_timm(name: str, side: int) -> nn.Module:
    """Build a model of timm for images of this side; networks of convolutions take any."""
    timm = import_module("timm")
    try:
        model: nn.Module = timm.create_model(name, num_classes=CLASSES, img_size=side)
    except TypeError:
        model = timm.create_model(name, num_classes=CLASSES)
    return model


def make_torchvision(name: str) -> nn.Module:
    """Build a model of torchvision without weights."""
    models = import_module("torchvision.models")
    options = {"weights_backbone": None} if name in SEGMENTATION else {}
    model: nn.Module = models.get_model(name, weights=None, num_classes=CLASSES, **options)
    return model


SEGMENTATION = ("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large")
TIMM: tuple[Architecture, ...] = tuple(
    with_inputs(f"timm/{name}", partial(make_timm, name, side), [normal(3, side, side)])
    for name, side in TIMM_SIDES.items()
)
TORCHVISION: tuple[Architecture, ...] = tuple(
    with_inputs(
        f"torchvision/{name}",
        partial(make_torchvision, name),
        [normal(3, side, side)],
        ("out",) if name in SEGMENTATION else (),
    )
    for name, side in TORCHVISION_SIDES.items()
)
