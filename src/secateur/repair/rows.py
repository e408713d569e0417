"""The rows that a weight multiplies, as a matrix; where there are very many, a random part of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from secateur.statistics.moments import patch_view
from secateur.statistics.weight_inputs import WeightInput, Window

__all__ = ["draw_rows", "row_shape", "rows"]


def row_shape(entry: WeightInput) -> tuple[int, ...]:
    """Return the axes of an input that number its rows: examples and positions."""
    shape = entry.x.shape
    if entry.window is None:
        return tuple(n for axis, n in enumerate(shape) if axis != entry.axis)
    spans = (sum(pad) for pad in entry.window.padding)
    sizes = zip(shape[2:], spans, *entry.window[:2], entry.window.dilation, strict=True)
    return (shape[0], *((n + pad - d * (k - 1) - 1) // step + 1 for n, pad, k, step, d in sizes))


def draw_rows(shape: tuple[int, ...], share: float, seed: int) -> Tensor | None:
    """Draw numbers of rows, with replacement; None for all of them.

    Args:
        shape: What `row_shape` returned.
        share: The part of the rows that is wanted.
        seed: Seed of the draw.
    """
    count = math.prod(shape)
    if share >= 1:
        return None
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(count, (max(1, math.ceil(share * count)),), generator=generator)


def rows(entry: WeightInput, blocks: int, numbers: Tensor | None = None) -> Tensor:
    """Return rows of an input as [n, blocks, features].

    Args:
        entry: The input.
        blocks: Number of blocks that the features are in: the groups of a convolution.
        numbers: The rows that are wanted; None for all.
    """
    x, shape = entry.x, row_shape(entry)
    if numbers is None:
        found = x.movedim(entry.axis, -1) if entry.window is None else patch_view(x, entry.window)
    else:
        index = torch.unravel_index(numbers.to(x.device), shape)
        found = x.movedim(entry.axis, -1)[index] if entry.window is None else _patches(x, entry.window, index)
    count = math.prod(shape) if numbers is None else len(numbers)
    # Sums of products need more than half precision.
    return found.reshape(count, blocks, -1).to(torch.promote_types(x.dtype, torch.float32))


def _patches(x: Tensor, window: Window, index: tuple[Tensor, ...]) -> Tensor:
    """Return patches [n, channels, taps] of an input [batch, channels, ...], zero outside of it."""
    taps = torch.cartesian_prod(*(torch.arange(k, device=x.device) for k in window.kernel))
    taps = taps.reshape(-1, len(window.kernel))
    inside = torch.ones(1, 1, dtype=torch.bool, device=x.device)
    places = []
    for i, size in enumerate(x.shape[2:]):
        start = index[1 + i] * window.stride[i] - window.padding[i][0]
        place = start[:, None] + taps[:, i] * window.dilation[i]
        inside = inside & (place >= 0) & (place < size)
        places.append(place.clamp(0, size - 1))
    where: tuple[Any, ...] = (index[0][:, None], slice(None), *places)
    found = x[where]  # [n, taps, channels]
    return (found * inside[..., None]).transpose(1, 2)
