"""Networks drawn at random from everyday operations: what no one thought of writing down."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS = 5
WIDTHS = (6, 8, 12)
Build = Callable[[random.Random, int], nn.Module]
UNARY: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.relu,
    F.gelu,
    torch.tanh,
    torch.sigmoid,
    F.silu,
    torch.cos,
    torch.square,
    torch.neg,
    lambda x: x + 1,
    lambda x: 0.5 * x,
    lambda x: x.clamp(-1, 1),
    lambda x: x.flip(-1),
    lambda x: x.roll(2, -1),
    lambda x: x.softmax(-1),
    lambda x: x.cumsum(1),
    lambda x: F.normalize(x, dim=-1),
    lambda x: x.abs().sqrt(),
    lambda x: x / (1 + x.square().sum(-1, keepdim=True)),
    lambda x: x - x.mean(-1, keepdim=True),
    lambda x: x * x.amax(1, keepdim=True),
    lambda x: x + x.mean(1, keepdim=True),
    lambda x: x / (2 + x.abs()),
    lambda x: torch.where(x > 0, x, 0.1 * x),
    lambda x: x[..., ::2].repeat(1, 1, 2),
    lambda x: x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2),
    lambda x: x.unflatten(-1, (-1, 2)).amax(-1).repeat_interleave(2, -1),
    lambda x: torch.cat([a * b for a, b in zip(x.chunk(2, -1), reversed(x.chunk(2, -1)), strict=True)], -1),
    lambda x: x.transpose(1, 2).reshape(x.size(0), -1).view(x.size(0), -1, STEPS).transpose(1, 2),
)
BINARY: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    torch.add,
    torch.mul,
    torch.sub,
    torch.maximum,
    lambda a, b: a * torch.sigmoid(b),
    lambda a, b: a + b.sum(-1, keepdim=True),
    lambda a, b: torch.lerp(a, b, 0.3),
    lambda a, b: (a @ b.transpose(1, 2)).softmax(-1) @ a,
    lambda a, b: torch.einsum("btc,bsc->bts", a, b) @ b,
)


class OverTime(nn.Module):
    """A module that wants channels before time."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Transpose, apply, transpose."""
        return self.inner(x.transpose(1, 2)).transpose(1, 2)


class Recurrent(nn.Module):
    """The outputs of a recurrent layer."""

    def __init__(self, inner: nn.RNNBase) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Drop the state."""
        return self.inner(x)[0]


class Heads(nn.Module):
    """Self-attention with two heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        q, k, v = (p.unflatten(-1, (2, -1)).transpose(1, 2) for p in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, scale=0.4)
        return self.out(y.transpose(1, 2).flatten(2))


class Excite(nn.Module):
    """Features scaled by what their means say."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Linear(width, 5), nn.Linear(5, width)

    def forward(self, x: Tensor) -> Tensor:
        """Scale every feature."""
        return x * torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean(1)))))[:, None]


class Outer(nn.Module):
    """Products of all features with a few others, then a linear layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.few, self.read = nn.Linear(width, 3), nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the width."""
        return self.read((x[..., :, None] * self.few(x)[..., None, :]).flatten(-2))


class Loop(nn.Module):
    """A recurrent cell in a loop."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Collect the states."""
        state, out = None, []
        for step in x.unbind(1):
            state = self.cell(step, state)
            out.append(state[0])
        return torch.stack(out, 1)


class Mixture(nn.Module):
    """Two experts in one tensor, weighted by a softmax."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, 2)
        self.up, self.down = nn.Parameter(torch.randn(2, width, 7)), nn.Parameter(torch.randn(2, 7, width))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the width."""
        hidden = torch.einsum("bti,eih->bteh", x, self.up).relu()
        return torch.einsum("bteh,eho,bte->bto", hidden, self.down, self.gate(x).softmax(-1))


class Scale(nn.Module):
    """A parameter for each feature."""

    def __init__(self, width: int, add: bool) -> None:
        super().__init__()
        self.value, self.add = nn.Parameter(torch.randn(width)), add

    def forward(self, x: Tensor) -> Tensor:
        """Shift or scale."""
        return x + self.value if self.add else x * self.value


class EachFeature(nn.Module):
    """One recurrent or convolutional network for every feature: features are examples."""

    def __init__(self, recurrent: bool) -> None:
        super().__init__()
        self.inner = nn.GRU(1, 1, batch_first=True) if recurrent else nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Fold the features into the batch and back."""
        rows = x.transpose(1, 2).reshape(-1, x.size(1))
        y = (
            self.inner(rows[..., None])[0][..., 0]
            if isinstance(self.inner, nn.GRU)
            else self.inner(rows[:, None])[:, 0]
        )
        return y.view(x.size(0), -1, x.size(1)).transpose(1, 2)


def grouped(rng: random.Random, n: int) -> nn.Module:
    """Build a convolution over time in 1, 2 or n groups."""
    return OverTime(nn.Conv1d(n, n, 3, padding=1, groups=rng.choice([1, 2, n])))


LAYERS: tuple[Build, ...] = (
    lambda rng, n: nn.Linear(n, rng.choice(WIDTHS), bias=rng.random() < 0.8),
    lambda rng, n: nn.Linear(n, n),
    lambda rng, n: nn.LayerNorm(n),
    lambda rng, n: nn.RMSNorm(n),
    lambda rng, n: OverTime(nn.BatchNorm1d(n)),
    lambda rng, n: OverTime(nn.GroupNorm(2, n)),
    lambda rng, n: OverTime(nn.PReLU(n)),
    grouped,
    lambda rng, n: Recurrent(nn.GRU(n, rng.choice(WIDTHS), batch_first=True)),
    lambda rng, n: Recurrent(nn.LSTM(n, n // 2, bidirectional=True, batch_first=True)),
    lambda rng, n: Heads(n),
    lambda rng, n: nn.TransformerEncoderLayer(n, 2, 9, batch_first=True, norm_first=rng.random() < 0.5),
    lambda rng, n: Excite(n),
    lambda rng, n: Outer(n),
    lambda rng, n: Loop(n),
    lambda rng, n: Mixture(n),
    lambda rng, n: Scale(n, rng.random() < 0.5),
    lambda rng, n: OverTime(nn.Linear(STEPS, STEPS)),
    lambda rng, n: EachFeature(rng.random() < 0.5),
    lambda rng, n: nn.Sequential(nn.Linear(n, 2 * n), nn.GLU()),
    lambda rng, n: nn.Sequential(nn.Linear(n, 10), nn.ReLU(), nn.Linear(10, n)),
)


@dataclass(frozen=True)
class Kit:
    """What networks of one kind are drawn from.

    Attributes:
        widths: Numbers of features that a layer may make.
        rest: Sizes of the axes other than batch and features.
        axis: Where the features are.
        unary: Functions of one tensor that keep its shape.
        binary: Functions of two tensors of equal shape that keep it.
        layers: Makers of layers for a number of features.
    """

    widths: tuple[int, ...]
    rest: tuple[int, ...]
    axis: int
    unary: tuple[Callable[[Tensor], Tensor], ...]
    binary: tuple[Callable[[Tensor, Tensor], Tensor], ...]
    layers: tuple[Build, ...]

    def shape(self, batch: int, features: int) -> tuple[int, ...]:
        """Return the shape of a tensor with so many features."""
        return (batch, features, *self.rest) if self.axis == 1 else (batch, *self.rest, features)


SERIES = Kit(WIDTHS, (STEPS,), -1, UNARY, BINARY, LAYERS)


class RandomNetwork(nn.Module):
    """A directed acyclic graph of random steps, the same for the same seed."""

    def __init__(self, seed: int, steps: int = 7, kit: Kit | None = None) -> None:
        super().__init__()
        rng = random.Random(seed)
        self.kit = kit or SERIES
        self.inlet = nn.Linear(4, 8) if self.kit.axis == -1 else nn.Conv2d(4, 8, 1)
        self.layers, self.fits = nn.ModuleList(), list[int]()
        self.steps: list[tuple[str, int, tuple[int, ...]]] = []
        widths = [8]
        for _ in range(steps):
            self._draw(rng, widths)
            widths.append(self._width(len(self.steps) - 1, widths))
        read = {i for _, _, at in self.steps for i in at}
        self.ends = [i for i in range(len(widths)) if i not in read]
        self.last = nn.Linear(sum(widths[i] for i in self.ends), 3)

    def _draw(self, rng: random.Random, widths: list[int]) -> None:
        at = len(widths) - 1 if rng.random() < 0.7 else rng.randrange(len(widths))
        kind = rng.choices(("layer", "unary", "binary", "join"), (5, 4, 3, 1))[0]
        if kind == "layer":
            fits = [k for k, n in enumerate(self.fits) if n == widths[at]]
            if not fits or rng.random() < 0.7:
                fits = [len(self.layers)]
                self.layers.append(rng.choice(self.kit.layers)(rng, widths[at]))
                self.fits.append(widths[at])
            self.steps.append((kind, rng.choice(fits), (at,)))
        elif kind == "unary":
            self.steps.append((kind, rng.randrange(len(self.kit.unary)), (at,)))
        else:
            peers = [i for i, n in enumerate(widths) if n == widths[at]]
            other = rng.choice(peers) if kind == "binary" else rng.randrange(len(widths))
            self.steps.append((kind, rng.randrange(len(self.kit.binary)), (at, other)))

    def _width(self, step: int, widths: list[int]) -> int:
        pool = [torch.zeros(self.kit.shape(2, n)) for n in widths]
        self.eval()
        with torch.no_grad():
            return self._step(step, pool).shape[self.kit.axis]

    def _step(self, i: int, pool: list[Tensor]) -> Tensor:
        kind, which, at = self.steps[i]
        if kind == "layer":
            return self.layers[which](pool[at[0]])
        if kind == "unary":
            return self.kit.unary[which](pool[at[0]])
        if kind == "binary":
            return self.kit.binary[which](pool[at[0]], pool[at[1]])
        return torch.cat([pool[at[0]], pool[at[1]]], self.kit.axis)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 5, 4] or [B, 4, 6, 6] to [B, 3]."""
        pool = [torch.tanh(self.inlet(x))]
        for i in range(len(self.steps)):
            pool.append(self._step(i, pool))
        found = torch.cat([pool[i] for i in self.ends], self.kit.axis)
        return self.last(found.mean((2, 3))) if self.kit.axis == 1 else self.last(found).mean(1)


def conv(n: int, m: int, **options: Any) -> nn.Conv2d:
    """Build a 3 x 3 convolution that keeps height and width."""
    return nn.Conv2d(n, m, 3, padding=options.pop("padding", 1), **options)


class Squeezed(nn.Module):
    """Channels scaled by what their means say."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 5, 1), nn.ReLU(), nn.Conv2d(5, width, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Scale every channel."""
        return x * self.gate(x)


class LastNorm(nn.Module):
    """LayerNorm over channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Permute, normalise, permute."""
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


IMAGES = Kit(
    widths=(8, 12, 16),
    rest=(6, 6),
    axis=1,
    unary=(
        torch.relu,
        F.silu,
        torch.sigmoid,
        lambda x: x + 1,
        lambda x: F.max_pool2d(x, 3, 1, 1),
        lambda x: F.avg_pool2d(x, 3, 1, 1),
        lambda x: x * x.mean((2, 3), keepdim=True),
        lambda x: x.flip(1),
        lambda x: F.channel_shuffle(x, 2),
        lambda x: F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2),
        lambda x: F.interpolate(F.avg_pool2d(x, 2), scale_factor=2),
        lambda x: x.transpose(2, 3),
        lambda x: x.softmax(1),
        lambda x: x / (1 + x.sum(1, keepdim=True).square()),
        lambda x: F.dropout2d(x, 0.3, False),
        lambda x: torch.cat([x[:, 1::2], x[:, ::2]], 1),
        lambda x: x - x.amax(1, keepdim=True),
        lambda x: F.pad(x[:, : x.size(1) // 2], (0, 0, 0, 0, 0, x.size(1) // 2)),
        lambda x: x.roll(1, 2),
        lambda x: F.pixel_shuffle(x.repeat_interleave(4, 1), 2)[..., ::2, ::2],
        lambda x: x * F.softmax(x.flatten(2), -1).view_as(x),
    ),
    binary=(
        torch.add,
        torch.mul,
        torch.sub,
        torch.maximum,
        lambda a, b: a * torch.sigmoid(b),
        lambda a, b: a + b.mean((2, 3), keepdim=True),
        lambda a, b: a + F.adaptive_max_pool2d(b, 1),
        lambda a, b: torch.stack([a, b]).amax(0),
        lambda a, b: torch.stack([a, b], 1).flatten(1, 2)[:, : a.size(1)],
    ),
    layers=(
        lambda rng, n: conv(n, rng.choice(IMAGES.widths), bias=rng.random() < 0.7),
        lambda rng, n: conv(n, n, padding_mode=rng.choice(["zeros", "reflect", "circular"])),
        lambda rng, n: nn.Conv2d(n, rng.choice(IMAGES.widths), 1),
        lambda rng, n: conv(n, n, groups=rng.choice([2, n])),
        lambda rng, n: conv(n, 2 * n, groups=n),
        lambda rng, n: conv(n, n, dilation=2, padding=2),
        lambda rng, n: nn.Sequential(
            nn.Conv2d(n, 2 * n, 2, 2), nn.ReLU(), nn.ConvTranspose2d(2 * n, n, 2, 2)
        ),
        lambda rng, n: nn.Sequential(
            nn.Conv2d(n, 4 * n, 1), nn.PixelShuffle(2), nn.ReLU(), conv(n, n, stride=2)
        ),
        lambda rng, n: nn.Sequential(
            nn.Conv2d(n, n + 3, 1), nn.BatchNorm2d(n + 3), nn.ReLU(), nn.Conv2d(n + 3, n, 1)
        ),
        lambda rng, n: nn.BatchNorm2d(n),
        lambda rng, n: nn.GroupNorm(rng.choice([1, 2, n]), n),
        lambda rng, n: nn.InstanceNorm2d(n, affine=rng.random() < 0.5),
        lambda rng, n: nn.PReLU(n),
        lambda rng, n: LastNorm(n),
        lambda rng, n: Squeezed(n),
        lambda rng, n: nn.Linear(6, 6),
    ),
)


# What broke a tracing once, or only the check found: orders, values as indices, and arithmetic with lengths.
HARD_UNARY: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x.sort(-1)[0],
    lambda x: x * x.kthvalue(2, -1, keepdim=True)[0],
    lambda x: x + x.median(-1, keepdim=True)[0],
    lambda x: x + x.quantile(0.3, -1, keepdim=True),
    lambda x: x - x.mode(1, keepdim=True)[0],
    lambda x: x.gather(-1, x.argsort(-1)),
    lambda x: x.gather(1, x.argsort(1)),
    lambda x: torch.zeros_like(x).scatter_add(-1, x.argsort(-1), x),
    lambda x: torch.zeros_like(x).scatter_add(1, x.argsort(1), x),
    lambda x: x.index_select(-1, torch.arange(x.size(-1) - 1, -1, -1)),
    lambda x: x[..., torch.arange(x.size(-1)) // 2],
    lambda x: x.roll(3),
    lambda x: (x > 0.1).to(x.dtype).sum(-1, keepdim=True) * x,
    lambda x: torch.cat([x[..., :-2], x[..., -2:] * 2], -1),
    lambda x: x / x.shape[-1],
    lambda x: x * x.numel() ** -0.5,
    lambda x: x * len(x[0, 0]),
    lambda x: F.pad(x[..., 1:], (0, 1)),
    lambda x: F.layer_norm(x, x.shape[-1:]),
    lambda x: x.clone().mul_(0.5).add_(1),
    lambda x: x.clone().masked_fill_(x < 0, 0.1),
    lambda x: x.repeat_interleave(torch.tensor([2] * x.size(1)), 1, output_size=2 * x.size(1))[:, ::2],
    lambda x: x.topk(x.size(-1), -1)[0],
    lambda x: x.cumsum(-1),
    lambda x: x.logsumexp(-1, keepdim=True) + x,
    lambda x: x.norm(dim=1, keepdim=True) * x,
    lambda x: x * x.std(-1, keepdim=True),
    lambda x: torch.stack(x.unbind(1), 1),
    lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    lambda x: x.expand(2, *x.shape).sum(0),
    lambda x: torch.tensordot(x, torch.eye(x.size(1), dtype=x.dtype), ([1], [0])).movedim(-1, 1),
)
HARD_BINARY: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    lambda a, b: torch.where(a > b, a, b),
    lambda a, b: a.scatter(-1, b.argsort(-1), b),
    lambda a, b: a.gather(-1, b.argsort(-1)),
    lambda a, b: torch.addcmul(a, a, b, value=0.1),
    lambda a, b: torch.cat([a, b], -1)[..., ::2],
    lambda a, b: a.clone().copy_(b),
)


class Shared(nn.Module):
    """One layer applied twice."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Apply, squash, apply."""
        return self.layer(torch.tanh(self.layer(x)))


class Cross(nn.Module):
    """torch's attention, with options that append keys."""

    def __init__(self, width: int, **options: Any) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(width, 2, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        """Attend to the reversed sequence."""
        return self.inner(x, x.flip(1), x, need_weights=False)[0]


HARD_SERIES = replace(
    SERIES,
    unary=SERIES.unary + HARD_UNARY,
    binary=SERIES.binary + HARD_BINARY,
    layers=(
        *SERIES.layers,
        lambda rng, n: Shared(nn.Linear(n, n)),
        lambda rng, n: Cross(n, add_bias_kv=rng.random() < 0.5, add_zero_attn=rng.random() < 0.5),
        lambda rng, n: OverTime(nn.GroupNorm(1, n)),
        lambda rng, n: OverTime(nn.InstanceNorm1d(n)),
        lambda rng, n: OverTime(nn.ConvTranspose1d(n, n, 3, padding=1, groups=rng.choice([1, 2]))),
        lambda rng, n: nn.utils.parametrizations.weight_norm(nn.Linear(n, n)),
        lambda rng, n: nn.Sequential(nn.Linear(n, n), nn.Softplus(), nn.Threshold(0.5, 0.1)),
    ),
)
HARD_IMAGES = replace(
    IMAGES,
    unary=IMAGES.unary + HARD_UNARY,
    binary=IMAGES.binary + HARD_BINARY,
    layers=(
        *IMAGES.layers,
        lambda rng, n: Shared(conv(n, n)),
        lambda rng, n: nn.ConvTranspose2d(n, n, 3, padding=1, groups=rng.choice([1, 2])),
        lambda rng, n: nn.GroupNorm(1, n, affine=False),
        lambda rng, n: nn.LocalResponseNorm(3),
        lambda rng, n: nn.Sequential(conv(n, n), nn.Hardswish(inplace=True), nn.Dropout2d()),
    ),
)
