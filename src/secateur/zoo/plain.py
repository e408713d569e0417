"""Feed-forward networks without branches: perceptron, LeNet-5, VGG.

Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, "Gradient-based learning applied to document recognition",
1998; K. Simonyan and A. Zisserman, "Very deep convolutional networks for large-scale image recognition",
arXiv:1409.1556, here with batch normalisation and one linear layer on top, as usual on small images.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn

from secateur.core import InputError
from secateur.zoo.factory import factory

__all__ = ["VGG_PLANS", "lenet5", "mlp", "small_cnn", "vgg11", "vgg16", "vgg_small"]

VGG_PLANS: dict[str, tuple[int | Literal["M"], ...]] = {
    "small": (32, 32, "M", 64, 64, "M", 128, 128, "M"),
    "11": (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    "16": (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"),
}


@factory(1, 28, 28)
def mlp(sizes: Sequence[int] = (784, 512, 10), *, seed: int = 0) -> nn.Sequential:
    """Return a multilayer perceptron with ReLU on flattened images.

    Args:
        sizes: Features of the input, of each hidden layer, and of the output.
        seed: Seed of the initial weights.

    Example:
        >>> mlp((64, 32, 10))
        Sequential(
          (0): Flatten(start_dim=1, end_dim=-1)
          (1): Linear(in_features=64, out_features=32, bias=True)
          (2): ReLU()
          (3): Linear(in_features=32, out_features=10, bias=True)
        )
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise InputError(f"a perceptron needs at least two positive sizes; got {tuple(sizes)}")
    layers: list[nn.Module] = [nn.Flatten()]
    for features, out in pairwise(sizes):
        layers += [nn.Linear(features, out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@factory(1, 8, 8)
def small_cnn(
    width: int = 16, hidden: int = 64, *, channels: int = 1, side: int = 8, classes: int = 10, seed: int = 0
) -> nn.Sequential:
    """Return two convolutions with pooling and two linear layers, small enough for 8 x 8 digits."""
    if side < 4:
        raise InputError(f"two poolings need images of side 4 or more; got {side}")
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * width * (side // 4) ** 2, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )


@factory(1, 28, 28)
def lenet5(
    pool: Literal["avg", "max"] = "max",
    *,
    channels: int = 1,
    side: int = 28,
    classes: int = 10,
    seed: int = 0,
) -> nn.Sequential:
    """Return LeNet-5 with ReLU: 6 and 16 channels, 120 and 84 hidden units.

    Args:
        pool: Average pooling, as in the paper, or maximum.
        channels: Channels of the images.
        side: Side of the images; 28 is padded to the paper's 32.
        classes: Number of classes.
        seed: Seed of the initial weights.

    Example:
        >>> lenet5(side=32)[7].in_features, lenet5()[7].in_features
        (400, 400)
    """
    if pool not in ("avg", "max"):
        raise InputError(f"pool is 'avg' or 'max'; got {pool!r}")
    padding = 2 if side == 28 else 0
    rest = ((side + 2 * padding - 4) // 2 - 4) // 2
    if rest < 1:
        raise InputError(f"LeNet-5 needs images of side 16 or more; got {side}")
    pooling = nn.AvgPool2d if pool == "avg" else nn.MaxPool2d
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=padding),
        nn.ReLU(),
        pooling(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        pooling(2),
        nn.Flatten(),
        nn.Linear(16 * rest**2, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, classes),
    )


def _vgg(plan: str, channels: int, side: int, classes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for step in VGG_PLANS[plan]:
        if step == "M":
            layers.append(nn.MaxPool2d(2))
            side //= 2
            continue
        layers += [nn.Conv2d(channels, step, 3, padding=1, bias=False), nn.BatchNorm2d(step), nn.ReLU()]
        channels = step
    if side < 1:
        halvings = VGG_PLANS[plan].count("M")
        raise InputError(f"VGG-{plan} halves its images {halvings} times: side must be {2**halvings} or more")
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side**2, classes))


@factory(1, 28, 28)
def vgg_small(*, channels: int = 1, side: int = 28, classes: int = 10, seed: int = 0) -> nn.Sequential:
    """Return a VGG of six convolutions with batch normalisation, 32 to 128 channels."""
    return _vgg("small", channels, side, classes)


@factory(3, 32, 32)
def vgg11(*, channels: int = 3, side: int = 32, classes: int = 10, seed: int = 0) -> nn.Sequential:
    """Return VGG-11 with batch normalisation and one linear layer."""
    return _vgg("11", channels, side, classes)


@factory(3, 32, 32)
def vgg16(*, channels: int = 3, side: int = 32, classes: int = 10, seed: int = 0) -> nn.Sequential:
    """Return VGG-16 with batch normalisation and one linear layer."""
    return _vgg("16", channels, side, classes)
