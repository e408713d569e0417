"""The ways in which people write attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import B, Entry, floats, tokens


def qkv_heads(model: nn.Module) -> dict[nn.Module, int]:
    """Return the number of heads of each fused or separate projection."""
    heads: dict[nn.Module, int] = {}
    for module in model.modules():
        if not isinstance(getattr(module, "num_heads", None), int):
            continue
        for name in ("qkv", "q", "k", "v"):
            if isinstance(projection := getattr(module, name, None), nn.Linear):
                heads[projection] = (
                    getattr(module, "kv_heads", module.num_heads) if name in "kv" else module.num_heads
                )
    return heads


class Fused(nn.Module):
    """Attention with one projection for q, k and v, as in timm."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Keep [B, N, C]."""
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        weight = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weight @ v).transpose(1, 2).reshape(n, t, -1))


class FusedWidth(Fused):
    """The same, merging heads by the width of the input, and with torch's attention."""

    def forward(self, x: Tensor) -> Tensor:
        """Keep [B, N, C]."""
        n, t, c = x.shape
        qkv = self.qkv(x).reshape(n, t, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(n, t, c))


class Separate(nn.Module):
    """Attention with separate projections, which may read another sequence."""

    def __init__(self, dim: int, num_heads: int, kv_heads: int = 0, other: int = 0) -> None:
        super().__init__()
        self.num_heads, self.kv_heads, self.head_dim = num_heads, kv_heads or num_heads, dim // num_heads
        width = self.kv_heads * self.head_dim
        self.q, self.proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.k, self.v = nn.Linear(other or dim, width), nn.Linear(other or dim, width)

    def split(self, x: Tensor, heads: int) -> Tensor:
        """Map [B, T, H D] to [B, H, T, D]."""
        return x.view(x.size(0), x.size(1), heads, self.head_dim).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with torch's function."""
        return F.scaled_dot_product_attention(q, k, v, scale=self.head_dim**-0.5)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Let x read y, or itself."""
        y = x if y is None else y
        q, k, v = (
            self.split(self.q(x), self.num_heads),
            self.split(self.k(y), self.kv_heads),
            self.split(self.v(y), self.kv_heads),
        )
        return self.proj(self.attend(q, k, v).transpose(1, 2).flatten(2))


class Einsum(Separate):
    """Attention by einsum."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Contract by name."""
        weight = torch.einsum("bhid,bhjd->bhij", q, k).mul(self.head_dim**-0.5).softmax(-1)
        return torch.einsum("bhij,bhjd->bhid", weight, v)


class Ellipsis(Separate):
    """Attention by einsum, in which batch and heads are three dots."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Contract by name."""
        weight = torch.einsum("...id,...jd->...ij", q, k).mul(self.head_dim**-0.5).softmax(-1)
        return torch.einsum("...ij,...jd->...id", weight, v)


class Interleaved(Separate):
    """Grouped queries, keys and values repeated by `repeat_interleave`."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Repeat, then attend."""
        times = self.num_heads // self.kv_heads
        return super().attend(q, k.repeat_interleave(times, 1), v.repeat_interleave(times, 1))


class Expanded(Separate):
    """Grouped queries, keys and values repeated by expansion."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Repeat, then attend."""
        n, h, t, d = k.shape
        times = self.num_heads // h
        k = k[:, :, None].expand(n, h, times, t, d).reshape(n, h * times, t, d)
        v = v[:, :, None].expand(n, h, times, t, d).reshape(n, h * times, t, d)
        return super().attend(q, k, v)


class Enabled(Separate):
    """Grouped queries by torch's `enable_gqa`."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with groups."""
        return F.scaled_dot_product_attention(q, k, v, scale=0.4, enable_gqa=True)


class Rotary(Separate):
    """Queries and keys turned by their position."""

    def turn(self, x: Tensor) -> Tensor:
        """Rotate pairs (i, i + D/2)."""
        half = x.size(-1) // 2
        rate = 10.0 ** (-torch.arange(half, dtype=x.dtype) / half)
        angle = torch.arange(x.size(-2), dtype=x.dtype)[:, None] * rate
        cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Rotate, then attend causally."""
        return F.scaled_dot_product_attention(self.turn(q), self.turn(k), v, is_causal=True)


class Linearised(Separate):
    """Attention without softmax: keys and values contracted first."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Use elu + 1 as feature map."""
        q, k = F.elu(q) + 1, F.elu(k) + 1
        memory = k.transpose(-2, -1) @ v
        return q @ memory / (q @ k.sum(-2, keepdim=True).transpose(-2, -1))


class RelativeBias(Separate):
    """A learnt bias for each head and distance."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads)
        self.table = nn.Parameter(torch.randn(num_heads, 17))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Add the bias to the scores."""
        place = torch.arange(q.size(-2))
        bias = self.table[:, place[:, None] - place[None] + 8]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=0.5)


class SwiGLU(nn.Module):
    """A gated perceptron whose two halves share one matrix."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(dim, 2 * hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the width."""
        a, b = self.up(x).chunk(2, -1)
        return self.down(F.silu(a) * b)


class Layer(nn.Module):
    """A Transformer layer around any attention."""

    def __init__(self, attention: nn.Module, dim: int = 24, mlp: nn.Module | None = None) -> None:
        super().__init__()
        self.attention = attention
        self.mlp = mlp or nn.Sequential(nn.Linear(dim, 34), nn.GELU(), nn.Linear(34, dim))
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Keep [B, T, dim]."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def around(make: type[nn.Module], *args: int, mlp: type[nn.Module] | None = None) -> nn.Sequential:
    """Build an inlet, one Transformer layer of width 24 around `make(24, 4, *args)`, and an outlet."""
    layer = Layer(make(24, 4, *args), mlp=mlp(24, 34) if mlp else None)
    return nn.Sequential(nn.Linear(7, 24), layer, nn.Linear(24, 5))


class Reader(nn.Module):
    """Cross attention written by hand, in a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet, self.memory = nn.Linear(7, 24), nn.Linear(9, 18)
        self.attention, self.last = Separate(24, 4, other=18), nn.Linear(24, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Let x [B, T, 7] read y [B, S, 9]."""
        x = self.inlet(x)
        return self.last(x + self.attention(x, torch.relu(self.memory(y))))


class Perceiver(nn.Module):
    """Learnt latents that read the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.latents, self.attention = nn.Parameter(torch.randn(1, 5, 24)), Separate(24, 4, other=18)
        self.inlet, self.last = nn.Linear(7, 18), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, 7] to [B, 5]."""
        z = self.latents.expand(x.size(0), -1, -1)
        return self.last((z + self.attention(z, self.inlet(x))).mean(1))


class VisionTransformer(nn.Module):
    """Patches, a class token, learnt positions, two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.cls = nn.Conv2d(3, 24, 4, 4), nn.Parameter(torch.randn(1, 1, 24))
        self.position = nn.Parameter(torch.randn(1, 10, 24))
        self.layers, self.norm = nn.Sequential(Layer(Fused(24, 4)), Layer(Fused(24, 4))), nn.LayerNorm(24)
        self.last = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 3, 12, 12] to [B, 5]."""
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.size(0), -1, -1), x], 1) + self.position
        return self.last(self.norm(self.layers(x))[:, 0])


class Causal(nn.Module):
    """A small GPT: token and position embeddings, a registered causal mask, tied output."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(29, 24), nn.Embedding(13, 24)
        self.q, self.k, self.v, self.proj = (nn.Linear(24, 24) for _ in range(4))
        self.norm, self.mlp = nn.LayerNorm(24), SwiGLU(24, 30)
        self.last = nn.Linear(24, 29, bias=False)
        self.last.weight = self.token.weight
        self.num_heads = 4
        self.register_buffer("mask", torch.tril(torch.ones(13, 13)).view(1, 1, 13, 13))

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids [B, T] to scores [B, T, 29]."""
        n, t = ids.shape
        x = self.token(ids) + self.place(torch.arange(t))
        y = self.norm(x)
        q, k, v = (f(y).view(n, t, self.num_heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        score = (q @ k.transpose(-2, -1)) / 6**0.5
        score = score.masked_fill(self.mask[:, :, :t, :t] == 0, float("-inf"))
        x = x + self.proj((score.softmax(-1) @ v).transpose(1, 2).contiguous().view(n, t, -1))
        return self.last(x + self.mlp(x))


SERIES, PAIR = (floats(B, 7, 7),), (floats(B, 7, 7), floats(B, 11, 9))


def row(
    name: str, make: type[nn.Module], *args: int, units: int, mlp: type[nn.Module] | None = None
) -> Entry:
    """List a Transformer layer around an attention."""
    return Entry(
        name,
        lambda: around(make, *args, mlp=mlp),
        (floats(B, 9, 7),),
        outputs=("2",),
        heads=qkv_heads,
        units=units,
    )


ENTRIES = (
    row("Fused qkv (timm)", Fused, units=62),
    row("Fused qkv, reshape by input width", FusedWidth, units=38),
    row("Separate q, k, v", Separate, units=62),
    row("Einsum attention", Einsum, units=62),
    row("Einsum attention, ellipsis", Ellipsis, units=62),
    row("Grouped queries, repeat_interleave", Interleaved, 2, units=62),
    row("Grouped queries, expand", Expanded, 2, units=62),
    row("Grouped queries, enable_gqa", Enabled, 2, units=62),
    row("Rotary positions", Rotary, units=62),
    row("Linear attention", Linearised, units=62),
    row("Relative position bias", RelativeBias, units=62),
    row("SwiGLU", Separate, units=62, mlp=SwiGLU),
    Entry("Cross attention", Reader, PAIR, outputs=("last",), heads=qkv_heads, units=46),
    Entry("Perceiver latents", Perceiver, SERIES, outputs=("last",), heads=qkv_heads, units=46),
    Entry(
        "Vision Transformer",
        VisionTransformer,
        (floats(B, 3, 12, 12),),
        outputs=("last",),
        heads=qkv_heads,
        units=100,
    ),
    Entry("Small GPT, tied", Causal, (tokens(29, B, 9),), outputs=("last",), heads=qkv_heads, units=64),
)
