"""Torch's own attention and Transformer modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .entry import B, Entry, floats, tokens


def module_heads(model: nn.Module) -> dict[nn.Module, int]:
    """Return the number of heads of each `nn.MultiheadAttention`."""
    return {m: m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)}


class SelfAttention(nn.Module):
    """nn.MultiheadAttention in a residual, then a classifier."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first
        self.inlet, self.attention = nn.Linear(7, 24), nn.MultiheadAttention(24, 4, batch_first=first)
        self.last = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, 7] or [T, B, 7] to [B, 5]."""
        x = self.inlet(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.last(x.mean(1 if self.first else 0))


class CrossAttention(nn.Module):
    """nn.MultiheadAttention over keys and values of other widths."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet, self.memory = nn.Linear(7, 24), nn.Linear(9, 18)
        self.attention = nn.MultiheadAttention(24, 4, kdim=18, vdim=18, batch_first=True)
        self.last = nn.Linear(24, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Let x [B, T, 7] read y [B, S, 9]."""
        y = torch.tanh(self.memory(y))
        return self.last(self.attention(self.inlet(x), y, y)[0])


class Encoder(nn.Module):
    """nn.TransformerEncoder and a classifier."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.inlet, self.last = nn.Linear(7, 24), nn.Linear(24, 5)
        layer = nn.TransformerEncoderLayer(24, 4, 34, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, 7] to [B, 5]."""
        return self.last(self.encoder(self.inlet(x)).mean(1))


class LanguageModel(nn.Module):
    """PyTorch's tutorial: an embedding, a buffer of sines and cosines, and nn.TransformerEncoder."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.last = nn.Embedding(23, 24), nn.Linear(24, 23)
        angles = torch.arange(30)[:, None] / 100 ** (torch.arange(12) / 12)
        self.register_buffer("positions", torch.stack([angles.sin(), angles.cos()], -1).flatten(1))
        layer = nn.TransformerEncoderLayer(24, 4, 34, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Map [B, T] to [B, T, 23]."""
        return self.last(self.encoder(self.embedding(ids) * 5 + self.positions[: ids.size(1)]))


class Seq2Seq(nn.Module):
    """nn.Transformer, encoder and decoder; it looks into the mask unless told that it is causal."""

    def __init__(self, told: bool | None) -> None:
        super().__init__()
        self.told = told
        self.embedding, self.last = nn.Embedding(23, 24), nn.Linear(24, 23)
        self.body = nn.Transformer(24, 4, 1, 1, 34, batch_first=True)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Map ids [B, S] and [B, T] to scores [B, T, 23]."""
        mask = nn.Transformer.generate_square_subsequent_mask(target.size(1), dtype=self.last.weight.dtype)
        return self.last(
            self.body(self.embedding(source), self.embedding(target), tgt_mask=mask, tgt_is_causal=self.told)
        )


ENTRIES = (
    Entry(
        "nn.MultiheadAttention",
        lambda: SelfAttention(first=True),
        (floats(B, 9, 7),),
        outputs=("last",),
        heads=module_heads,
        units=28,
    ),
    Entry(
        "nn.MultiheadAttention, time first",
        lambda: SelfAttention(first=False),
        (floats(9, B, 7),),
        outputs=("last",),
        heads=module_heads,
        units=28,
    ),
    Entry(
        "nn.MultiheadAttention, cross",
        CrossAttention,
        (floats(B, 7, 7), floats(B, 11, 9)),
        outputs=("last",),
        heads=module_heads,
        units=70,
    ),
    Entry(
        "nn.TransformerEncoder, norm last",
        lambda: Encoder(norm_first=False),
        (floats(B, 9, 7),),
        outputs=("last",),
        heads=module_heads,
        units=100,
    ),
    Entry(
        "nn.TransformerEncoder, norm first",
        lambda: Encoder(norm_first=True),
        (floats(B, 9, 7),),
        outputs=("last",),
        heads=module_heads,
        units=100,
    ),
    Entry(
        "nn.TransformerEncoder after a buffer of positions",
        LanguageModel,
        (tokens(23, B, 9),),
        outputs=("last",),
        heads=module_heads,
        units=76,
    ),
    Entry(
        "nn.Transformer",
        lambda: Seq2Seq(told=True),
        (tokens(23, B, 7), tokens(23, B, 6)),
        outputs=("last",),
        heads=module_heads,
        units=104,
    ),
    Entry(
        "nn.Transformer that examines its mask",
        lambda: Seq2Seq(told=None),
        (tokens(23, B, 7), tokens(23, B, 6)),
        outputs=("last",),
        heads=module_heads,
        refused="data",
    ),
)
