"""Convolutional networks beyond the classics: other dimensions, transposed, shuffled, gated, normalised."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import B, Entry, floats


def head(channels: int, classes: int = 5) -> list[nn.Module]:
    """Average over space, then classify."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


def conv1d() -> nn.Sequential:
    """Build two 1-dimensional convolutions and a classifier."""
    return nn.Sequential(
        nn.Conv1d(4, 14, 3),
        nn.BatchNorm1d(14),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(14, 18, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(18, 5),
    )


def conv3d() -> nn.Sequential:
    """Build two 3-dimensional convolutions and a classifier."""
    return nn.Sequential(
        nn.Conv3d(2, 10, 3),
        nn.BatchNorm3d(10),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(10, 12, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 5),
    )


def transposed() -> nn.Sequential:
    """Build a convolutional autoencoder."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(12, 18, 3, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(18, 14, 4, 2, 1),
        nn.BatchNorm2d(14),
        nn.ReLU(),
        nn.ConvTranspose2d(14, 3, 4, 2, 1),
    )


def normalised(norm: str) -> nn.Sequential:
    """Build convolutions with group or instance normalisation, or per-channel PReLU."""
    layer = {
        "group": lambda n: nn.GroupNorm(4, n),
        "instance": lambda n: nn.InstanceNorm2d(n, affine=True),
        "prelu": nn.PReLU,
        "batch": lambda n: nn.BatchNorm2d(n, affine=False),
    }[norm]
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), layer(16), nn.ReLU(), nn.Conv2d(16, 20, 3), layer(20), nn.SiLU(), *head(20)
    )


class UNet(nn.Module):
    """Down, up by transposed convolution, with a concatenated skip."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down = nn.Conv2d(3, 10, 3, padding=1), nn.Conv2d(10, 14, 3, padding=1)
        self.middle, self.up = nn.Conv2d(14, 22, 3, padding=1), nn.ConvTranspose2d(22, 14, 2, 2)
        self.join, self.leave = nn.Conv2d(28, 12, 3, padding=1), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to maps of the same size."""
        skip = F.relu(self.down(F.relu(self.enter(x))))
        x = self.up(F.relu(self.middle(F.max_pool2d(skip, 2))))
        return self.leave(F.relu(self.join(torch.cat([x, skip], 1))))


class UpsampledUNet(UNet):
    """Up by interpolation and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(22, 14, 3, padding=1))


class SubPixel(nn.Module):
    """Super-resolution by pixel shuffle, with features left after it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 14, 3, padding=1), nn.Conv2d(14, 40, 3, padding=1)
        self.shuffle, self.last = nn.PixelShuffle(2), nn.Conv2d(10, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Double the side."""
        return self.last(F.relu(self.shuffle(self.second(F.relu(self.first(x))))))


class SpaceToDepth(nn.Module):
    """Pixel unshuffle in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(48, 16, 1)
        self.head = nn.Sequential(*head(16))

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        return self.head(F.relu(self.second(F.pixel_unshuffle(F.relu(self.first(x)), 2))))


class ShuffleUnit(nn.Module):
    """ShuffleNet's unit: half of the channels pass, half are transformed, then all are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            nn.Conv2d(half, half, 1),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, half, 3, 1, 1, groups=half),
            nn.Conv2d(half, half, 1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        left, right = x.chunk(2, 1)
        x = torch.cat([left, self.branch(right)], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class SqueezeExcite(nn.Module):
    """Channels scaled by a small network that sees their means."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.leave = nn.Conv2d(3, 18, 3), nn.Conv2d(18, 22, 3)
        self.reduce, self.expand = nn.Conv2d(18, 6, 1), nn.Conv2d(6, 18, 1)
        self.head = nn.Sequential(*head(22))

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        x = F.relu(self.stem(x))
        gate = torch.sigmoid(self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(F.relu(self.leave(x * gate)))


class Inception(nn.Module):
    """Parallel branches of several kernel sizes, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.one, self.pooled = nn.Conv2d(12, 6, 1), nn.Conv2d(12, 7, 1)
        self.three = nn.Sequential(nn.Conv2d(12, 8, 1), nn.ReLU(), nn.Conv2d(8, 10, 3, padding=1))
        self.five = nn.Sequential(nn.Conv2d(12, 5, 1), nn.ReLU(), nn.Conv2d(5, 9, 5, padding=2))
        self.head = nn.Sequential(*head(32))

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        x = F.relu(self.stem(x))
        parts = [self.one(x), self.three(x), self.five(x), self.pooled(F.max_pool2d(x, 3, 1, 1))]
        return self.head(F.relu(torch.cat(parts, 1)))


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of images, by a permutation (torchvision, timm)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to itself."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ChannelLayerNorm(nn.Module):
    """The same, written out over axis 1 (Segment Anything)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to itself."""
        centred = x - x.mean(1, keepdim=True)
        x = centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class VarianceLayerNorm(nn.Module):
    """The same, by `torch.var`, with a gain and a shift of four axes (vit_pytorch)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.b = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.eps = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to itself."""
        variance = torch.var(x, dim=1, unbiased=False, keepdim=True)
        return (x - x.mean(1, keepdim=True)) / (variance + self.eps).sqrt() * self.g + self.b


class PooledNorm(nn.Module):
    """Convolutions with a norm over channels, then LayerNorm of the average over space."""

    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 16, 3), nn.Linear(16, 5)
        self.norm1, self.norm2, self.pooled = norm(12), norm(16), nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 3, H, W] to [B, 5]."""
        x = self.norm2(self.second(F.gelu(self.norm1(self.first(x)))))
        return self.last(self.pooled(x.mean((2, 3))))


class StandardConv2d(nn.Conv2d):
    """A convolution whose weight is standardised over its inputs, with a gain (NFNet)."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel)
        self.gain = nn.Parameter(torch.ones(outputs, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        weight, gain = self.weight.flatten(1)[None], self.gain.view(-1)
        weight = F.batch_norm(weight, None, None, weight=gain, training=True, momentum=0.0)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias)


def standardised() -> nn.Sequential:
    """Build two convolutions with standardised weights; the channels between them stay."""
    convolutions = [StandardConv2d(3, 12, 3), nn.ReLU(), StandardConv2d(12, 18, 3), nn.ReLU()]
    return nn.Sequential(*convolutions, *head(18))


class ConvNeXt(nn.Module):
    """Depthwise convolution, LayerNorm with channels last, a perceptron, a learnt layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 14, 3), nn.Conv2d(14, 14, 3, padding=1, groups=14)
        self.norm, self.up, self.down = nn.LayerNorm(14), nn.Linear(14, 34), nn.Linear(34, 14)
        self.gamma = nn.Parameter(torch.randn(14))
        self.head = nn.Sequential(*head(14))

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(F.gelu(self.up(y)))
        return self.head(x + y.permute(0, 3, 1, 2))


class GRN(nn.Module):
    """Global response normalisation, channels last: channels compete by their norms over the image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(torch.randn(1, 1, 1, width)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        return x + self.gamma * (x * (norm / (norm.mean(-1, keepdim=True) + 1e-6))) + self.beta


class ConvNeXtV2(ConvNeXt):
    """A ConvNeXt whose perceptron has a GRN, not a layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.grn = GRN(34)
        del self.gamma

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.down(self.grn(F.gelu(self.up(y))))
        return self.head(x + y.permute(0, 3, 1, 2))


class GatedConvolution(nn.Module):
    """A convolution halved by a gated linear unit, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 28, 3), nn.Conv2d(14, 36, 3)
        self.head = nn.Sequential(*head(18))

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        return self.head(F.glu(self.second(F.glu(self.first(x), 1)), 1))


class Chomped(nn.Module):
    """A causal convolution that cuts off what its padding added."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Conv1d(4, 16, 3, padding=4, dilation=2),
            nn.Conv1d(16, 16, 3, padding=4, dilation=2),
        )
        self.match, self.last = nn.Conv1d(4, 16, 1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 4, T] to [B, 3]."""
        y = F.relu(self.first(x)[:, :, :-4].contiguous())
        y = F.relu(self.second(y)[:, :, :-4].contiguous())
        return self.last(F.relu(y + self.match(x))[:, :, -1])


class Film(nn.Module):
    """Features scaled and shifted by a network that sees another input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.condition = nn.Conv2d(3, 18, 3), nn.Linear(6, 36)
        self.head = nn.Sequential(*head(18))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Classify x given y."""
        scale, shift = self.condition(y).chunk(2, -1)
        return self.head(F.relu(self.conv(x) * scale[:, :, None, None] + shift[:, :, None, None]))


class ConvMixer(nn.Module):
    """Patches, depthwise convolution in a residual, pointwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.bn = nn.Conv2d(3, 18, 3, 3), nn.BatchNorm2d(18)
        self.space = nn.Sequential(nn.Conv2d(18, 18, 3, padding=1, groups=18), nn.GELU(), nn.BatchNorm2d(18))
        self.point = nn.Sequential(nn.Conv2d(18, 24, 1), nn.GELU(), nn.BatchNorm2d(24))
        self.head = nn.Sequential(*head(24))

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        x = self.bn(F.gelu(self.patch(x)))
        return self.head(self.point(x + self.space(x)))


class Mixer(nn.Module):
    """MLP-Mixer without normalisation: perceptrons over patches and over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 18, 3, 3)
        self.space = nn.Sequential(nn.Linear(9, 20), nn.GELU(), nn.Linear(20, 9))
        self.channel = nn.Sequential(nn.Linear(18, 32), nn.GELU(), nn.Linear(32, 18))
        self.last = nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 3, 9, 9] to [B, 5]."""
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.space(x.transpose(1, 2)).transpose(1, 2)
        return self.last((x + self.channel(x)).mean(1))


SIDE9, SIDE12 = (floats(B, 3, 9, 9),), (floats(B, 3, 12, 12),)
ENTRIES = (
    Entry("Conv1d", conv1d, (floats(B, 4, 17),), outputs=("8",), units=32),
    Entry("Conv3d", conv3d, (floats(B, 2, 8, 8, 8),), outputs=("7",), units=22),
    Entry("ConvTranspose2d autoencoder", transposed, SIDE12, outputs=("7",), units=44),
    Entry("GroupNorm", lambda: normalised("group"), SIDE9, outputs=("8",), units=8),
    Entry("LayerNorm2d", lambda: PooledNorm(LayerNorm2d), SIDE9, outputs=("last",), units=28),
    Entry(
        "LayerNorm over channels, written out",
        lambda: PooledNorm(ChannelLayerNorm),
        SIDE9,
        outputs=("last",),
        units=28,
    ),
    Entry(
        "LayerNorm over channels, by variance",
        lambda: PooledNorm(VarianceLayerNorm),
        SIDE9,
        outputs=("last",),
        units=28,
    ),
    Entry("Standardised weights", standardised, SIDE9, outputs=("6",), units=18),
    Entry("InstanceNorm", lambda: normalised("instance"), SIDE9, outputs=("8",), units=36),
    Entry("PReLU per channel", lambda: normalised("prelu"), SIDE9, outputs=("8",), units=36),
    Entry("BatchNorm without affine", lambda: normalised("batch"), SIDE9, outputs=("8",), units=36),
    Entry("U-Net, transposed", UNet, SIDE12, outputs=("leave",), units=72),
    Entry("U-Net, interpolated", UpsampledUNet, SIDE12, outputs=("leave",), units=72),
    Entry("Pixel shuffle", SubPixel, SIDE9, outputs=("last",), units=24),
    Entry("Pixel unshuffle", SpaceToDepth, SIDE12, outputs=("head.2",), units=28),
    Entry(
        "ShuffleNet (channel shuffle)",
        lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), ShuffleUnit(16), ShuffleUnit(16), *head(16)),
        SIDE9,
        outputs=("6",),
        units=20,
    ),
    Entry("Squeeze and excite", SqueezeExcite, SIDE9, outputs=("head.2",), units=46),
    Entry("Inception", Inception, SIDE9, outputs=("head.2",), units=57),
    Entry("ConvNeXt block", ConvNeXt, SIDE9, outputs=("head.2",), units=48),
    Entry("ConvNeXt V2 block", ConvNeXtV2, SIDE9, outputs=("head.2",), units=48),
    Entry("Gated convolution (GLU)", GatedConvolution, SIDE9, outputs=("head.2",), units=32),
    Entry("Causal convolution (chomp)", Chomped, (floats(B, 4, 11),), outputs=("last",), units=32),
    Entry("FiLM conditioning", Film, (*SIDE9, floats(B, 6)), outputs=("head.2",), units=18),
    Entry("ConvMixer", ConvMixer, SIDE9, outputs=("head.2",), units=42),
    Entry("MLP-Mixer", Mixer, SIDE9, outputs=("last",), units=70),
)
