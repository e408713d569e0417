"""Sizes that the code computes: axes are tied so that every size comes out right, or they stay whole."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.apply.shrink import shrink
from secateur.core import InputError, Plan, PruningGraph
from secateur.tracing.trace import trace


class Heads(nn.Module):
    """A residual stream with attention whose sizes are computed from its width."""

    def __init__(self, split: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.heads, self.split = 4, split
        self.first, self.last = nn.Linear(5, 24), nn.Linear(24, 3)
        self.q, self.k, self.v, self.out = (nn.Linear(24, 24) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        b, n, c = x.shape
        q, k, v = (self.split(f(x), self.heads) for f in (self.q, self.k, self.v))
        scores = (q @ k.transpose(-2, -1)) * (c // self.heads) ** -0.5
        return self.last(x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c)))


def by_width(x: Tensor, heads: int) -> Tensor:
    return x.reshape(x.shape[0], x.shape[1], heads, x.shape[2] // heads).transpose(1, 2)


def check(model: nn.Module, x: Tensor) -> PruningGraph:
    """Remove half of the units; `shrink` raises if the result is not the masked model."""
    graph = trace(model, x)
    small = shrink(model, Plan(graph, "test", {g.name: np.arange(g.size)[::2] for g in graph.groups}))
    assert small(x[:1]).shape == model(x[:1]).shape
    return graph


def test_a_stream_whose_width_sizes_the_heads_goes_in_blocks_with_them() -> None:
    graph = check(Heads(by_width).double(), torch.randn(2, 6, 5).double())
    assert [(g.size, g.kind) for g in graph.groups] == [(4, "hidden")]
    widths = {(s.tensor, s.axis): s.index.shape[1] for s in graph.groups[0].slots}
    assert widths["first.weight", 0] == widths["q.weight", 0] == widths["out.weight", 0] == 6


@dataclass
class AttentionConfig:
    """Sizes that several layers share."""

    heads: int
    groups: int


class Sliced(nn.Module):
    """Attention that cuts queries, keys and values out of one matrix, at products of attributes."""

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.config, self.length, self.groups = config, 3, config.groups
        self.repeats = config.heads // config.groups
        self.qkv = nn.Linear(8, (config.heads + 2 * config.groups) * self.length)
        self.out = nn.Linear(config.heads * self.length, 8)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.qkv(x)
        queries = self.config.heads * self.length
        q = mixed[..., :queries]
        k = mixed[..., queries : queries + self.groups * self.length]
        v = mixed[..., queries + self.groups * self.length :]
        q, k, v = (y.view(*x.shape[:2], -1, self.length).transpose(1, 2) for y in (q, k, v))
        k, v = (y.repeat_interleave(self.repeats, 1) for y in (k, v))
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return x + self.out(mixed.transpose(1, 2).reshape(*x.shape[:2], -1))


@pytest.mark.parametrize("groups", [4, 2])
def test_heads_cut_at_a_product_of_attributes(groups: int) -> None:
    """The layers keep equally many heads, because one config states their number, but not the same ones."""
    config = AttentionConfig(4, groups)
    layers = nn.Sequential(nn.Linear(5, 8), *(Sliced(config) for _ in range(2)), nn.Linear(8, 3))
    graph = trace(layers.double(), torch.randn(2, 6, 5).double())
    heads = [g for g in graph.groups if g.kind != "hidden"]
    assert [g.size for g in heads] == ([4, 4] if groups == 4 else [2, 2, 2, 2])
    assert len(graph.equal_counts) == len(heads) // 2
    keep = {g.name: np.arange(g.size)[i // (len(heads) // 2) :][: g.size // 2] for i, g in enumerate(heads)}
    small = shrink(layers, Plan(graph, "test", keep))
    assert small[1].config.heads == 2 if groups == 4 else 1
    assert small[1].qkv.weight.shape == small[2].qkv.weight.shape != layers[1].qkv.weight.shape
    assert config.heads == 4


@pytest.mark.parametrize("made", ["number", "sum"])
def test_a_size_of_another_form_freezes(made: str) -> None:
    def split(x: Tensor, heads: int) -> Tensor:
        inner = 24 // heads if made == "number" else (x.shape[2] + heads - 4) // heads
        return x.reshape(x.shape[0], x.shape[1], heads, inner).transpose(1, 2)

    graph = trace(Heads(split).double(), torch.randn(2, 6, 5).double())
    assert not graph.groups
    assert any("does not follow" in f.reason or "written in the code" in f.reason for f in graph.frozen)


def test_code_that_takes_plain_integers_only_freezes_what_it_sizes() -> None:
    def split(x: Tensor, heads: int) -> Tensor:
        if type(heads) is not int:
            raise TypeError("a plain integer is needed")
        return by_width(x, heads)

    graph = trace(Heads(split).double(), torch.randn(2, 6, 5).double())
    reasons = {f.tensor: f.reason for f in graph.frozen if f.axis == 0}
    assert "failed: TypeError: a plain integer" in reasons["q.weight"]


def test_a_model_that_does_not_run_is_an_error_of_ours_where_outputs_are_named() -> None:
    with pytest.raises(InputError, match="cannot take the example inputs"):
        trace(Heads(by_width), torch.randn(2, 6, 4), outputs=0)


def test_sizes_that_einops_remembers_are_computed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shapes that einops keeps hold the plain numbers of an earlier call."""
    einops = types.ModuleType("einops.einops")

    def shapes(sizes: tuple[int, ...], heads: int) -> tuple[int, ...]:
        b, n, c = sizes
        return b, n, heads, c // heads

    einops._reconstruct_from_shape = functools.lru_cache(shapes)
    monkeypatch.setitem(sys.modules, "einops.einops", einops)

    def split(x: Tensor, heads: int) -> Tensor:
        return x.reshape(einops._reconstruct_from_shape(x.shape, heads)).transpose(1, 2)

    model = Heads(split).double()
    x = torch.randn(2, 6, 5).double()
    model(x)
    assert [g.size for g in check(model, x).groups] == [4]
    assert hasattr(einops._reconstruct_from_shape, "cache_info")


class PaddedHalf(nn.Module):
    """Half of the channels, and as many zeros as there are channels in it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        half = x.size(1) // 2
        return self.last(F.pad(x[:, :half], (0, 0, 0, 0, 0, half)))


def test_a_padding_as_long_as_the_units_keeps_them_whole() -> None:
    """Padded entries belong to no unit, so their number must not follow the width."""
    graph = trace(PaddedHalf(), torch.randn(2, 3, 6, 6))
    assert not graph.groups and "enters the computation as a number" in graph.describe_frozen()
