"""VGG-16, residual, dense and mobile networks, of any width."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import B, Entry, floats

VGG16 = (1, 1, 0, 2, 2, 0, 4, 4, 4, 0, 8, 8, 8, 0, 8, 8, 8, 0)


def vgg16_bn(width: int = 64, classes: int = 10, hidden: int = 0, side: int = 1) -> nn.Sequential:
    """Build VGG-16 with batch normalisation; `hidden` > 0 gives it the original's three linear layers."""
    layers: list[nn.Module] = []
    channels = 3
    for times in VGG16:
        if not times:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [
            nn.Conv2d(channels, times * width, 3, padding=1),
            nn.BatchNorm2d(times * width),
            nn.ReLU(True),
        ]
        channels = times * width
    sizes = [channels * side * side, *([hidden, hidden] if hidden else []), classes]
    head: list[nn.Module] = []
    for n, m in pairwise(sizes):
        head += [nn.Linear(n, m), nn.ReLU(True), nn.Dropout()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(side), nn.Flatten(), *head[:-2])


class PaddedShortcut(nn.Module):
    """Shortcut without parameters: every second pixel, zeros for the new channels."""

    def __init__(self, channels: int, planes: int) -> None:
        super().__init__()
        self.extra = (planes - channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Subsample and pad."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra, self.extra))


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    def __init__(self, channels: int, planes: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(planes), nn.BatchNorm2d(planes)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != planes:
            projection = nn.Conv2d(channels, planes, 1, stride, bias=False)
            self.shortcut = (
                PaddedShortcut(channels, planes)
                if shortcut == "padded"
                else nn.Sequential(projection, nn.BatchNorm2d(planes))
            )

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to the shortcut."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Residual network for small images (3 stages) or large ones (4 stages, a 7 x 7 stem)."""

    def __init__(
        self, blocks: tuple[int, ...], width: int, classes: int = 10, shortcut: str = "projection"
    ) -> None:
        super().__init__()
        stem = (7, 2, 3) if len(blocks) == 4 else (3, 1, 1)
        self.conv1, self.bn1 = nn.Conv2d(3, width, *stem, bias=False), nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, 1) if len(blocks) == 4 else nn.Identity()
        layers, channels = [], width
        for stage, count in enumerate(blocks):
            planes = width << stage
            for i in range(count):
                layers.append(Block(channels, planes, 2 if stage and not i else 1, shortcut))
                channels = planes
        self.layers, self.fc = nn.Sequential(*layers), nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to class scores."""
        x = self.layers(self.pool(F.relu(self.bn1(self.conv1(x)))))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Bottleneck(nn.Module):
    """A ResNeXt block: 1 x 1, grouped 3 x 3, 1 x 1."""

    def __init__(self, channels: int, inner: int, groups: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)
        self.grouped = nn.Conv2d(inner, inner, 3, padding=1, groups=groups)
        self.bn = nn.BatchNorm2d(inner)

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to x."""
        return F.relu(x + self.expand(F.relu(self.bn(self.grouped(F.relu(self.reduce(x)))))))


class DenseNet(nn.Module):
    """Layers that concatenate all earlier features, and a transition."""

    def __init__(self, growth: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 10, 3, padding=1)
        widths = [10 + i * growth for i in range(4)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in widths)
        self.convs = nn.ModuleList(nn.Conv2d(n, growth, 3, padding=1) for n in widths[:-1])
        self.transition = nn.Conv2d(widths[-1], 16, 1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to class scores."""
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.fc(self.transition(F.relu(self.norms[-1](x))).mean((2, 3)))


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand, depthwise, project."""

    def __init__(self, channels: int, planes: int, stride: int, times: int = 3) -> None:
        super().__init__()
        inner = channels * times
        self.branch = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(True),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(True),
            nn.Conv2d(inner, planes, 1, bias=False),
            nn.BatchNorm2d(planes),
        )
        self.residual = stride == 1 and channels == planes

    def forward(self, x: Tensor) -> Tensor:
        """Add x where the shapes agree."""
        return x + self.branch(x) if self.residual else self.branch(x)


def mobilenet() -> nn.Sequential:
    """Build a MobileNetV2 of four blocks."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU6(True),
        InvertedResidual(8, 8, 1),
        InvertedResidual(8, 12, 2),
        InvertedResidual(12, 12, 1),
        InvertedResidual(12, 20, 2),
        nn.Conv2d(20, 26, 1),
        nn.ReLU6(True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(26, 5),
    )


def resnext() -> nn.Sequential:
    """Build a stem, two ResNeXt blocks and a head."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        Bottleneck(16, 24, 4),
        Bottleneck(16, 24, 4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


SMALL = (floats(B, 3, 16, 16),)
ENTRIES = (
    Entry("VGG-16-BN", lambda: vgg16_bn(6), (floats(B, 3, 32, 32),), outputs=("46",), units=396),
    Entry(
        "VGG-16-BN, three linear layers",
        lambda: vgg16_bn(4, hidden=36, side=2),
        (floats(B, 3, 32, 32),),
        outputs=("52",),
        units=336,
    ),
    Entry(
        "ResNet-18",
        lambda: ResNet((2, 2, 2, 2), 6),
        (floats(B, 3, 40, 40),),
        outputs=("fc",),
        units=270,
        slow=True,
    ),
    Entry(
        "ResNet-20, padded shortcut",
        lambda: ResNet((3, 3, 3), 8, shortcut="padded"),
        SMALL,
        outputs=("fc",),
        units=176,
    ),
    Entry("ResNet-20, projection", lambda: ResNet((3, 3, 3), 8), SMALL, outputs=("fc",), units=224),
    Entry("ResNet-56", lambda: ResNet((9, 9, 9), 4), SMALL, outputs=("fc",), units=280, slow=True),
    Entry("ResNeXt (grouped convolution)", resnext, (floats(B, 3, 9, 9),), outputs=("6",), units=48),
    Entry("DenseNet (concatenation)", DenseNet, (floats(B, 3, 9, 9),), outputs=("fc",), units=50),
    Entry("MobileNetV2 (depthwise)", mobilenet, SMALL, outputs=("12",), units=186),
)
