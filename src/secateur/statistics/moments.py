"""Means and Gram matrices of the inputs of weights, added up batch by batch in float64.

Rows are converted to float64 and multiplied in blocks; activations are not kept.  In float32 the products
take half the time on a CPU, but their errors are 1e-7 of the largest entry of a matrix whose small
eigenvalues decide which units are dependent; in float64 they are 1e-15.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.core import Moments
from secateur.processes import gather_over_processes, sum_over_processes
from secateur.statistics.weight_inputs import WeightInput, Window

__all__ = ["InputMoments", "patch_view", "patches"]

BLOCK = 1 << 22
SQUARE = 256  # columns of a Gram matrix that are made at once


class InputMoments:
    """Statistics of one weight's inputs, added up use by use.

    Args:
        gram: Whether to keep the Gram matrix too.
        cap: Largest number of patch features (channels times kernel positions) for which a
            convolution gets the Gram matrix of its patches; above it, that of its channels.
        root: Whether the rows themselves may take the place of a Gram matrix of more than twice as many.
    """

    def __init__(self, gram: bool, cap: int, root: bool = False) -> None:
        """Start with empty sums."""
        self._wants_gram, self._cap = gram, cap
        self._kept: list[Tensor] | None = [] if root else None
        self._count = self._rows = 0
        self._sums: Tensor | None = None
        self._gram: Tensor | None = None
        self._patch_sum: Tensor | None = None
        self._taps = 1

    def add(self, entry: WeightInput) -> None:
        """Add one use of the weight."""
        features = entry.x.shape[entry.axis]
        taps = math.prod(entry.window.kernel) if entry.window else 1
        if taps == 1 and entry.window is not None:
            # A strided 1 x 1 convolution reads only some of the positions.
            for block in _patch_blocks(entry.x, entry.window):
                self._add_rows(block, self._wants_gram)
            return
        spans = self._wants_gram and taps > 1 and features * taps <= self._cap
        for block in entry.x.movedim(entry.axis, -1).reshape(-1, features).split(max(1, BLOCK // features)):
            self._add_rows(block.double(), self._wants_gram and not spans)
        if spans and entry.window is not None:
            self._taps = taps
            for block in _patch_blocks(entry.x, entry.window):
                self._add_gram(block)

    def _add_rows(self, rows: Tensor, gram: bool) -> None:
        sums = torch.stack([rows.sum(0), rows.abs().sum(0), rows.square().sum(0)])
        self._sums = sums if self._sums is None else self._sums + sums
        self._count += len(rows)
        if gram:
            self._add_gram(rows)

    def _add_gram(self, rows: Tensor) -> None:
        if self._patch_sum is None:
            self._patch_sum = rows.new_zeros(rows.shape[1])
        self._patch_sum += rows.sum(0)
        self._rows += len(rows)
        if self._kept is None:
            self._add_products(rows)
            return
        self._kept.append(rows.clone())  # the model may write into its activations
        if 2 * self._rows > rows.shape[1]:
            kept, self._kept = self._kept, None
            for some in kept:
                self._add_products(some)

    def _add_products(self, rows: Tensor) -> None:
        if self._gram is None:
            self._gram = rows.new_zeros(rows.shape[1], rows.shape[1])
        for start in range(0, rows.shape[1], SQUARE):  # the other triangle is the same
            some = rows[:, start : start + SQUARE]
            self._gram[start : start + SQUARE, start:].addmm_(some.T, rows[:, start:])

    def add_other_processes(self) -> None:
        """Add the sums of all processes that share the batches."""
        names = ("_sums", "_gram", "_patch_sum")
        sums = {name: x for name in names if (x := getattr(self, name)) is not None}
        # Taps are the same wherever there are any.
        sums["counts"] = torch.tensor([self._count, self._rows])
        taps = max(gather_over_processes(self._taps))
        total = sum_over_processes(sums)
        self._count, self._rows = map(int, total.pop("counts"))
        self._taps = taps
        for name, x in total.items():
            setattr(self, name, x)

    def moments(self) -> Moments | None:
        """Return the statistics, or None if there was no input; nothing may be added after that."""
        if self._sums is None or not self._count:
            return None
        mean, absolute, second = self._sums / self._count
        if self._patch_sum is None:
            return Moments(self._count, mean, absolute, second)
        patch_mean = self._patch_sum / self._rows
        if self._gram is None:
            root = torch.cat(self._kept or []) / math.sqrt(self._rows)
            return Moments(self._count, mean, absolute, second, None, self._taps, patch_mean, root)
        gram = self._gram.div_(self._rows)  # a copy of a wide one takes gigabytes
        for start in range(0, len(gram), SQUARE):
            stop = start + SQUARE
            square = gram[start:stop, start:stop]
            square.copy_(square.triu() + square.triu(1).T)
            gram[stop:, start:stop] = gram[start:stop, stop:].T
        return Moments(self._count, mean, absolute, second, gram, self._taps, patch_mean)


def _patch_blocks(x: Tensor, window: Window) -> Iterator[Tensor]:
    each = patches(x[:1], window).numel()
    for part in x.split(max(1, BLOCK // max(1, each))):
        yield patches(part, window).double()


def patches(x: Tensor, window: Window) -> Tensor:
    """Cut an input into the patches that a convolution multiplies with its kernel.

    Args:
        x: Shape [batch, channels, *space], one to three spatial axes.
        window: How the convolution slides.

    Returns:
        Shape [batch * positions, channels * taps], features (channel, tap) with the tap fastest: the
        rows of `torch.nn.functional.unfold`, for any number of axes.

    Example:
        >>> x = torch.arange(4.0).reshape(1, 1, 4)
        >>> patches(x, Window(kernel=(2,), stride=(1,), padding=((0, 1),), dilation=(2,)))
        tensor([[0., 2.],
                [1., 3.],
                [2., 0.]])
    """
    view = patch_view(x, window)
    return view.reshape(-1, x.shape[1] * math.prod(window.kernel))


def patch_view(x: Tensor, window: Window) -> Tensor:
    """Return a view [batch, *positions, channels, *taps] of the patches of an input; see `patches`."""
    dims = len(window.kernel)
    if any(pad for pair in window.padding for pad in pair):
        x = F.pad(x, [p for pair in reversed(window.padding) for p in pair])
    for i, (k, s, d) in enumerate(zip(window.kernel, window.stride, window.dilation, strict=True)):
        x = x.unfold(2 + i, d * (k - 1) + 1, s)[..., ::d]
    space, taps = range(2, 2 + dims), range(2 + dims, 2 + 2 * dims)
    return x.permute(0, *space, 1, *taps)
