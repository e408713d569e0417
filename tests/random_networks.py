"""Networks drawn at random from everyday operations: what no one thought of writing down."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS = 5
WIDTHS = (6, 8, 12)
Build = Callable[[random.Random, int], nn.Module]
UNARY: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.relu, F.gelu, torch.tanh, torch.sigmoid, F.silu, torch.cos, torch.square, torch.neg,
    lambda x: x + 1, lambda x: 0.5 * x, lambda x: x.clamp(-1, 1), lambda x: x.flip(-1),
    lambda x: x.roll(2, -1), lambda x: x.softmax(-1), lambda x: x.cumsum(1), lambda x: F.normalize(x, dim=-1),
    lambda x: x.abs().sqrt(), lambda x: x / (1 + x.square().sum(-1, keepdim=True)),
    lambda x: x - x.mean(-1, keepdim=True), lambda x: x * x.amax(1, keepdim=True),
    lambda x: x + x.mean(1, keepdim=True), lambda x: x / (2 + x.abs()),
    lambda x: torch.where(x > 0, x, 0.1 * x), lambda x: x[..., ::2].repeat(1, 1, 2),
    lambda x: x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2),
    lambda x: x.unflatten(-1, (-1, 2)).amax(-1).repeat_interleave(2, -1),
    lambda x: torch.cat([a * b for a, b in zip(x.chunk(2, -1), reversed(x.chunk(2, -1)), strict=True)], -1),
    lambda x: x.transpose(1, 2).reshape(x.size(0), -1).view(x.size(0), -1, STEPS).transpose(1, 2),
)  # fmt: skip
BINARY: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    torch.add, torch.mul, torch.sub, torch.maximum, lambda a, b: a * torch.sigmoid(b),
    lambda a, b: a + b.sum(-1, keepdim=True), lambda a, b: torch.lerp(a, b, 0.3),
    lambda a, b: (a @ b.transpose(1, 2)).softmax(-1) @ a, lambda a, b: torch.einsum("btc,bsc->bts", a, b) @ b,
)  # fmt: skip


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


class RandomNetwork(nn.Module):
    """A directed acyclic graph of random steps on tensors [B, 5, features], the same for the same seed."""

    def __init__(self, seed: int, steps: int = 7) -> None:
        super().__init__()
        rng = random.Random(seed)
        self.inlet, self.layers = nn.Linear(4, 8), nn.ModuleList()
        self.steps: list[tuple[str, int, tuple[int, ...]]] = []
        widths = [8]
        for _ in range(steps):
            at = len(widths) - 1 if rng.random() < 0.7 else rng.randrange(len(widths))
            peers = [i for i, n in enumerate(widths) if n == widths[at]]
            kind = rng.choices(("layer", "unary", "binary", "join"), (5, 4, 3, 1))[0]
            if kind == "layer":
                fits = [k for k, m in enumerate(self.layers) if getattr(m, "in_features", 0) == widths[at]]
                if not fits or rng.random() < 0.7:
                    fits = [len(self.layers)]
                    self.layers.append(rng.choice(LAYERS)(rng, widths[at]))
                self.steps.append((kind, rng.choice(fits), (at,)))
            elif kind == "unary":
                self.steps.append((kind, rng.randrange(len(UNARY)), (at,)))
            else:
                other = rng.choice(peers) if kind == "binary" else rng.randrange(len(widths))
                self.steps.append((kind, rng.randrange(len(BINARY)), (at, other)))
            widths.append(self._width(len(self.steps) - 1, widths))
        read = {i for _, _, at in self.steps for i in at}
        self.ends = [i for i in range(len(widths)) if i not in read]
        self.last = nn.Linear(sum(widths[i] for i in self.ends), 3)

    def _width(self, step: int, widths: list[int]) -> int:
        pool = [torch.zeros(2, STEPS, n) for n in widths]
        self.eval()
        with torch.no_grad():
            return self._step(step, pool).shape[-1]

    def _step(self, i: int, pool: list[Tensor]) -> Tensor:
        kind, which, at = self.steps[i]
        if kind == "layer":
            return self.layers[which](pool[at[0]])
        if kind == "unary":
            return UNARY[which](pool[at[0]])
        if kind == "binary":
            return BINARY[which](pool[at[0]], pool[at[1]])
        return torch.cat([pool[at[0]], pool[at[1]]], -1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 5, 4] to [B, 3]."""
        pool = [torch.tanh(self.inlet(x))]
        for i in range(len(self.steps)):
            pool.append(self._step(i, pool))
        return self.last(torch.cat([pool[i] for i in self.ends], -1)).mean(1)
