"""Blocks of published convolutional networks, each in a network of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import B, Entry, floats


class Wrapped(nn.Module):
    """A stem, a block, and a linear classifier on the means over space."""

    def __init__(self, block: nn.Module, enter: int = 16, leave: int = 16) -> None:
        super().__init__()
        self.stem, self.block, self.last = nn.Conv2d(3, enter, 3, padding=1), block, nn.Linear(leave, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 3, H, W] to [B, 5]."""
        return self.last(self.block(F.silu(self.stem(x))).mean((2, 3)))


class C2f(nn.Module):
    """YOLOv8's block: split, a chain of bottlenecks, everything concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(16, 20, 1), nn.Conv2d(40, 14, 1)
        self.chain = nn.ModuleList(
            nn.Sequential(nn.Conv2d(10, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 10, 3, padding=1))
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map 16 channels to 14."""
        parts = list(self.enter(x).chunk(2, 1))
        parts.extend(step(parts[-1]) for step in self.chain)
        return self.leave(torch.cat(parts, 1))


class PyramidPooling(nn.Module):
    """Spatial pyramid pooling, fast: the same pooling three times, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(16, 8, 1), nn.Conv2d(32, 14, 1)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map 16 channels to 14."""
        x = self.enter(x)
        y = self.pool(x)
        z = self.pool(y)
        return self.leave(torch.cat((x, y, z, self.pool(z)), 1))


class Ghost(nn.Module):
    """GhostNet's module: half of the features by a cheap depthwise convolution of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.primary, self.leave = nn.Conv2d(16, 12, 1), nn.Conv2d(22, 14, 1)
        self.cheap = nn.Conv2d(12, 12, 3, padding=1, groups=12)

    def forward(self, x: Tensor) -> Tensor:
        """Map 16 channels to 14."""
        x = F.relu(self.primary(x))
        return self.leave(torch.cat([x, F.relu(self.cheap(x))], 1)[:, :22])


class Res2Net(nn.Module):
    """Slices of the channels, each convolved after the one before was added."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(16, 24, 1), nn.Conv2d(24, 16, 1)
        self.steps = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Keep 16 channels."""
        first, *rest = torch.split(F.relu(self.enter(x)), 6, 1)
        out, y = [first], torch.zeros_like(first)
        for part, step in zip(rest, self.steps, strict=True):
            y = F.relu(step(part + y))
            out.append(y)
        return x + self.leave(torch.cat(out, 1))


class SelectiveKernel(nn.Module):
    """Two branches weighted by a softmax over the branches, for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.three, self.five = nn.Conv2d(16, 14, 3, padding=1), nn.Conv2d(16, 14, 5, padding=2)
        self.reduce, self.expand = nn.Linear(14, 9), nn.Linear(9, 28)

    def forward(self, x: Tensor) -> Tensor:
        """Map 16 channels to 14."""
        both = torch.stack([F.relu(self.three(x)), F.relu(self.five(x))], 1)
        weight = self.expand(F.relu(self.reduce(both.sum(1).mean((2, 3))))).view(-1, 2, both.size(2))
        return (both * weight.softmax(1)[..., None, None]).sum(1)


class BlockAttention(nn.Module):
    """CBAM: channel attention, then spatial attention by maximum and mean over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 16))
        self.space, self.leave = nn.Conv2d(2, 1, 3, padding=1), nn.Conv2d(16, 14, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map 16 channels to 14."""
        gate = torch.sigmoid(self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3))))
        x = x * gate[:, :, None, None]
        seen = torch.cat([x.max(1, keepdim=True).values, x.mean(1, keepdim=True)], 1)
        return F.relu(self.leave(x * torch.sigmoid(self.space(seen))))


class EfficientAttention(nn.Module):
    """ECA: channel attention by a convolution along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.across, self.leave = nn.Conv1d(1, 1, 3, padding=1, bias=False), nn.Conv2d(16, 14, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map 16 channels to 14."""
        gate = self.across(x.mean((2, 3))[:, None])[:, 0]
        return F.relu(self.leave(x * torch.sigmoid(gate)[..., None, None]))


class NonLocal(nn.Module):
    """Self-attention over positions, with a bottleneck."""

    def __init__(self) -> None:
        super().__init__()
        self.theta, self.phi, self.g = (nn.Conv2d(16, 10, 1) for _ in range(3))
        self.leave = nn.Conv2d(10, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Keep 16 channels."""
        q, k, v = self.theta(x).flatten(2), self.phi(x).flatten(2), self.g(x).flatten(2)
        weight = (q.transpose(1, 2) @ k).softmax(-1)
        return x + self.leave((v @ weight.transpose(1, 2)).view(x.size(0), -1, *x.shape[2:]))


class Pyramid(nn.Module):
    """A feature pyramid: lateral convolutions, sums of interpolated maps, one shared head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList(nn.Conv2d(n, m, 3, 2, 1) for n, m in ((3, 10), (10, 14), (14, 18)))
        self.lateral = nn.ModuleList(nn.Conv2d(n, 12, 1) for n in (10, 14, 18))
        self.head = nn.Sequential(nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map images to predictions at three scales."""
        maps = []
        for step in self.body:
            x = F.relu(step(x))
            maps.append(x)
        top, out = None, []
        for lateral, level in zip(reversed(self.lateral), reversed(maps), strict=True):
            top = lateral(level) if top is None else lateral(level) + F.interpolate(top, size=level.shape[2:])
            out.append(self.head(top))
        return out


class Generator(nn.Module):
    """DCGAN's generator: a linear layer viewed as a small image, then transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(9, 14 * 3 * 3)
        self.up = nn.ConvTranspose2d(14, 10, 4, 2, 1, bias=False)
        self.bn, self.last = nn.BatchNorm2d(10), nn.ConvTranspose2d(10, 3, 4, 2, 1)

    def forward(self, z: Tensor) -> Tensor:
        """Map [B, 9] to [B, 3, 12, 12]."""
        x = F.relu(self.enter(z)).unflatten(1, (-1, 3, 3))
        return torch.tanh(self.last(F.relu(self.bn(self.up(x)))))


class Autoencoder(nn.Module):
    """A variational autoencoder's means: convolutions, a flat bottleneck, a view by attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.channels, self.side = 14, 3
        self.down = nn.Sequential(
            nn.Conv2d(3, 10, 3, 2, 1), nn.ReLU(), nn.Conv2d(10, self.channels, 3, 2, 1), nn.ReLU()
        )
        self.mu, self.back = nn.Linear(126, 7), nn.Linear(7, 126)
        self.up = nn.Sequential(
            nn.ConvTranspose2d(14, 10, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(10, 3, 4, 2, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct [B, 3, 12, 12]."""
        z = self.mu(self.down(x).flatten(1))
        return self.up(F.relu(self.back(z)).view(-1, self.channels, self.side, self.side))


class SpatialTransformer(nn.Module):
    """A small network that moves the image before the next one sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.where = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(200, 6))
        self.what, self.last = nn.Conv2d(3, 14, 3), nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 3, 12, 12] to [B, 5]."""
        grid = F.affine_grid(self.where(x).view(-1, 2, 3), list(x.shape), align_corners=False)
        return self.last(F.relu(self.what(F.grid_sample(x, grid, align_corners=False))).mean((2, 3)))


class Standardised(nn.Conv2d):
    """A convolution whose weights are standardised over what they read: nothing that it reads may go."""

    def forward(self, x: Tensor) -> Tensor:
        """Standardise, then convolve."""
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        w = w / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, padding=1)


class Coordinates(nn.Module):
    """A convolution that also sees where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(16, 10, 1), nn.Conv2d(12, 14, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map 16 channels to 14."""
        x = F.relu(self.first(x))
        line = torch.linspace(-1, 1, x.size(-1), dtype=x.dtype)
        grid = torch.stack(torch.meshgrid(line, line, indexing="ij")).expand(x.size(0), -1, -1, -1)
        return self.second(torch.cat([x, grid], 1))


class Shift(nn.Module):
    """Channels shifted in four directions, a quarter each."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(16, 20, 1), nn.Conv2d(20, 14, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map 16 channels to 14."""
        a, b, c, d = F.relu(self.enter(x)).chunk(4, 1)
        moved = [a.roll(1, 2), b.roll(-1, 2), c.roll(1, 3), d.roll(-1, 3)]
        return self.leave(torch.cat(moved, 1))


class Patches(nn.Module):
    """A convolution written with unfold and a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(16, 10, 1), nn.Linear(90, 14)

    def forward(self, x: Tensor) -> Tensor:
        """Map 16 channels to 14."""
        rows = F.unfold(F.relu(self.first(x)), 3, padding=1)
        return self.second(rows.transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])


def grouped_then_shuffled() -> nn.Sequential:
    """Build ShuffleNet v1's block: grouped 1 x 1, channel shuffle, depthwise, grouped 1 x 1."""
    return nn.Sequential(
        nn.Conv2d(16, 24, 1, groups=4),
        nn.ReLU(),
        nn.ChannelShuffle(4),
        nn.Conv2d(24, 24, 3, 1, 1, groups=24),
        nn.BatchNorm2d(24),
        nn.Conv2d(24, 16, 1, groups=4),
        nn.ReLU(),
    )


def fire() -> nn.Module:
    """Build SqueezeNet's fire module."""

    class Fire(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.squeeze, self.one = nn.Conv2d(16, 7, 1), nn.Conv2d(7, 9, 1)
            self.three = nn.Conv2d(7, 11, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.squeeze(x))
            return torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)

    return Fire()


SIDE9, SIDE12 = (floats(B, 3, 9, 9),), (floats(B, 3, 12, 12),)


def row(name: str, block: type[nn.Module], leave: int, units: int) -> Entry:
    """List a block between a stem and a classifier."""
    return Entry(name, lambda: Wrapped(block(), leave=leave), SIDE9, outputs=("last",), units=units)


ENTRIES = (
    row("YOLO C2f (split, chain, concatenate)", C2f, 14, 76),
    row("Spatial pyramid pooling", PyramidPooling, 14, 38),
    row("Ghost module", Ghost, 14, 30),
    row("Res2Net (cascaded slices)", Res2Net, 16, 22),
    row("Selective kernel (softmax over branches)", SelectiveKernel, 14, 39),
    row("CBAM (maximum and mean over channels)", BlockAttention, 14, 20),
    row("ECA (convolution along channels)", EfficientAttention, 14, 14),
    row("Non-local block", NonLocal, 16, 26),
    row("Coordinate convolution", Coordinates, 14, 40),
    row("Shifted channels", Shift, 14, 35),
    row("Unfold and matrix product", Patches, 14, 30),
    row("Grouped 1 x 1 and channel shuffle", grouped_then_shuffled, 16, 10),
    row("Fire module", fire, 20, 43),
    row("Weight standardisation", lambda: nn.Sequential(Standardised(16, 14, 3), nn.ReLU()), 14, 14),
    Entry("Feature pyramid", Pyramid, SIDE12, outputs=("head.2",), units=70),
    Entry("DCGAN generator", Generator, (floats(B, 9),), outputs=("last",), units=24),
    Entry("Autoencoder, view by attributes", Autoencoder, SIDE12, outputs=("up.2",), units=55),
    Entry("Spatial transformer", SpatialTransformer, SIDE12, outputs=("last",), units=22),
)
