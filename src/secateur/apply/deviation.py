"""How far the outputs of one model are from those of another."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["are_integers", "deviation", "differ"]


def deviation(expected: list[Tensor], actual: list[Tensor]) -> float:
    """Return the largest difference relative to the largest output.

    It is infinite if shapes or NaNs differ, or outputs that are not floating.
    """
    if [t.shape for t in expected] != [t.shape for t in actual]:
        return float("inf")
    worst = 0.0
    for a, b in zip(expected, actual, strict=True):
        if not a.is_floating_point():
            if not torch.equal(a, b):
                return float("inf")
            continue
        if not torch.equal(a.isnan(), b.isnan()):
            return float("inf")
        finite = a.isfinite() & b.isfinite()
        if not torch.equal(a[~finite], b[~finite]) and not a[~finite].isnan().all():
            return float("inf")
        if finite.any():
            scale = a[finite].abs().max().clamp_min(torch.finfo(a.dtype).tiny)
            worst = max(worst, float((a[finite] - b[finite]).abs().max() / scale))
    return worst


def differ(first: list[Tensor], second: list[Tensor]) -> bool:
    """Return whether finite floating values differ; True if outputs are integers only, False without outputs.

    One of them may have more rows, which do not count.

    Example:
        >>> a, nan = torch.ones(2, 3), torch.full((2, 3), torch.nan)
        >>> differ([a], [torch.ones(3, 3)]), differ([a], [2 * a]), differ([nan], [nan]), differ([], [])
        (False, True, False, False)
    """
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a.is_floating_point()]
    return bool(first) if not pairs else any(_differ(a, b) for a, b in pairs)


def _differ(a: Tensor, b: Tensor) -> bool:
    if a.ndim != b.ndim:
        return True
    common = tuple(slice(min(sizes)) for sizes in zip(a.shape, b.shape, strict=True))
    a, b = a[common], b[common]
    return bool(((a != b) & (a.isfinite() | b.isfinite())).any())


def are_integers(outputs: list[Tensor]) -> bool:
    """Return whether all outputs are integers, which hide small differences, whatever their type is."""
    return all(not x.is_floating_point() or torch.equal(x, x.round()) for x in outputs)
