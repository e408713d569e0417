"""The rows that a weight multiplies, as a matrix; where there are very many, a random part of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from secateur.statistics.moments import patch_view
from secateur.statistics.weight_inputs import WeightInput

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
    view, axes = _view(entry)
    shape = tuple(view.shape[:axes])
    if numbers is None:
        return view.reshape(math.prod(shape), blocks, -1)
    index = torch.unravel_index(numbers.to(view.device), shape)
    return view[index].reshape(len(numbers), blocks, -1)


def _view(entry: WeightInput) -> tuple[Tensor, int]:
    """Return a view whose first axes number the rows, and how many these are."""
    if entry.window is not None:
        return patch_view(entry.x, entry.window), entry.x.ndim - 1
    x = entry.x.movedim(entry.axis, -1)
    return x, x.ndim - 1
