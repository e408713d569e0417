"""Residual networks for small images.

K. He, X. Zhang, S. Ren and J. Sun, "Deep residual learning for image recognition", arXiv:1512.03385.
Where a block changes the size, its shortcut is their option A (every other pixel, new channels zero) or
option B (a 1 x 1 convolution).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from secateur.core import InputError
from secateur.zoo.factory import factory

__all__ = ["Block", "Padded", "ResNet", "resnet18", "resnet20"]

Shortcut = Literal["pad", "projection"]


class Padded(nn.Module):
    """Option A: every `stride`-th pixel, and zeros for the new channels."""

    def __init__(self, new: int, stride: int) -> None:
        """Store the number of new channels and the stride."""
        super().__init__()
        self.new, self.stride = new, stride

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, c, h, w] to [batch, c + new, h / stride, w / stride]."""
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new))


class Block(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation, and a shortcut around them."""

    def __init__(self, channels: int, out: int, stride: int, shortcut: Shortcut) -> None:
        """Build the block; the shortcut is the identity if no size changes."""
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Identity()
        if (channels, stride) != (out, 1):
            projection = (nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
            padded = Padded(out - channels, stride)
            self.shortcut = padded if shortcut == "pad" else nn.Sequential(*projection)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, channels, h, w] to [batch, out, h / stride, w / stride]."""
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, stages of blocks that double the channels and halve the image, and a linear layer."""

    def __init__(
        self, blocks: Sequence[int], width: int, shortcut: Shortcut, channels: int, classes: int
    ) -> None:
        """Build as many stages as `blocks` has entries."""
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        stages: list[nn.Module] = []
        features = width
        for stage, count in enumerate(blocks):
            out = width * 2**stage
            for i in range(count):
                stages.append(Block(features, out, 2 if stage and not i else 1, shortcut))
                features = out
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, channels, h, w] to [batch, classes]."""
        y = self.stages(functional.relu(self.bn(self.conv(x))))
        return self.fc(y.mean((2, 3)))


@factory(3, 32, 32)
def resnet20(
    shortcut: Shortcut = "pad", width: int = 16, *, channels: int = 3, classes: int = 10, seed: int = 0
) -> ResNet:
    """Return ResNet-20 of the CIFAR experiments: three stages of three blocks.

    Args:
        shortcut: ``"pad"`` (option A) or ``"projection"`` (option B).
        width: Channels of the first stage.
        channels: Channels of the images.
        classes: Number of classes.
        seed: Seed of the initial weights.

    Example:
        >>> sum(p.numel() for p in resnet20().parameters())
        269722
    """
    return _resnet((3, 3, 3), width, shortcut, channels, classes)


@factory(3, 32, 32)
def resnet18(width: int = 64, *, channels: int = 3, classes: int = 10, seed: int = 0) -> ResNet:
    """Return ResNet-18 with a stem for small images; `width` below 64 makes it narrow.

    Example:
        >>> resnet18(width=8).fc.in_features
        64
    """
    return _resnet((2, 2, 2, 2), width, "projection", channels, classes)


def _resnet(blocks: Sequence[int], width: int, shortcut: Shortcut, channels: int, classes: int) -> ResNet:
    if shortcut not in ("pad", "projection"):
        raise InputError(f"shortcut is 'pad' or 'projection'; got {shortcut!r}")
    if min(width, channels, classes) < 1:
        raise InputError(f"width, channels and classes are positive; got {width}, {channels}, {classes}")
    return ResNet(blocks, width, shortcut, channels, classes)
