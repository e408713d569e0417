"""Stable ranking: ties go to the lower index, and counts are exact."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.core import InputError, IntArray

__all__ = ["comparable", "ranked", "top", "top_of_every"]


def ranked(scores: Tensor) -> IntArray:
    """Return the indices of a vector by falling score; ties go to the lower index.

    Example:
        >>> ranked(torch.tensor([1.0, 3.0, 1.0])).tolist()
        [1, 0, 2]
    """
    return torch.argsort(scores.detach(), descending=True, stable=True).cpu().numpy()


def top(scores: Tensor, count: int) -> Tensor:
    """Mark exactly `count` entries of largest score; ties go to the lower index: a stable top-k.

    One selection instead of a sort: mark the entries above the count-th largest value, and of those equal
    to it the first ones until the count is reached.

    Args:
        scores: Any shape, no NaN.
        count: From 0 to the number of entries.

    Returns:
        Boolean tensor of the same shape and device.

    Example:
        >>> top(torch.tensor([[1.0, 3.0], [1.0, 1.0]]), 3)
        tensor([[ True,  True],
                [ True, False]])
    """
    flat = comparable(scores).reshape(-1)
    if not 0 <= count <= flat.numel():
        raise InputError(f"cannot take {count} of {flat.numel()} scores")
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = torch.kthvalue(flat, flat.numel() - count + 1).values
    above, equal = flat > threshold, flat == threshold
    missing = count - above.sum()
    return (above | (equal & (equal.cumsum(0) <= missing))).reshape(scores.shape)


def top_of_every(scores: Tensor, n: int, m: int, axis: int) -> Tensor:
    """Mark the `n` largest of every `m` neighbours along an axis; ties go to the lower index.

    Args:
        scores: Any shape, no NaN.
        n: Number to mark, from 1 to `m`.
        m: Number of neighbours; if it does not divide the length of the axis, everything is marked.
        axis: The axis.

    Returns:
        Boolean tensor of the same shape and device.

    Raises:
        InputError: If `n` is not in 1 to `m`.

    Example:
        >>> top_of_every(torch.tensor([4.0, 1.0, 2.0, 3.0]), 2, 4, 0)
        tensor([ True, False, False,  True])
    """
    if not 1 <= n <= m:
        raise InputError(f"cannot take {n} of every {m} scores")
    if scores.shape[axis] % m:
        return torch.ones_like(scores, dtype=torch.bool)
    lines = comparable(scores).movedim(axis, -1)
    parts = lines.reshape(*lines.shape[:-1], -1, m)
    order = parts.argsort(stable=True, dim=-1, descending=True)[..., :n]
    mask = torch.zeros_like(parts, dtype=torch.bool).scatter_(-1, order, True)
    return mask.reshape(lines.shape).movedim(-1, axis)


def comparable(scores: Tensor) -> Tensor:
    """Return scores in a type in which every device can select, without loss."""
    scores = scores.detach()
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
