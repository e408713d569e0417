"""The least-squares problem of one weight: rows that reach it, targets from the original, the solution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.core import IntArray, Layer
from secateur.repair.least_squares import InputSums, OriginalSums, TargetSums, solve
from secateur.repair.rows import draw_rows, row_shape, rows
from secateur.repair.sweep import Cut, Pair
from secateur.repair.weight_matrix import as_blocks, block_count, set_blocks

__all__ = ["SharedSums", "WeightFit"]

# Neighbouring rows of an image are nearly the same: above this many rows, a random part of them serves.
# A row of a convolution with groups is read in every block, so fewer will do.
ROWS, BLOCK_ROWS, ROWS_PER_FEATURE = 4096, 1024, 32


@dataclass(frozen=True, eq=False)
class SharedSums:
    """Sums that weights with the same inputs share, over the batches to fit and those kept apart.

    Attributes:
        inputs: Over the rows that reach the pruned network.
        originals: Over pairs with those of the original; None if targets are cheaper.
    """

    inputs: tuple[InputSums, InputSums]
    originals: tuple[OriginalSums, OriginalSums] | None


class WeightFit:
    """Fits a weight of the pruned network to what the original computes.

    Args:
        layer: The layer.
        weights: Its weight in the original, and in the pruned network, where the solution goes.
        biases: Its bias in both, or None; the original's without the outputs that are gone.
        kept: The outputs of the weight that are left.
        centred: Whether a constant can be fitted: into the bias, or into the BatchNorm layer that follows.
        fitted: Batches from this number on are kept apart.
        shared: Sums over the same inputs, if another weight has them.
    """

    def __init__(
        self,
        layer: Layer,
        weights: tuple[Tensor, Tensor],
        biases: tuple[Tensor, Tensor] | None,
        kept: IntArray,
        centred: bool,
        fitted: int,
        shared: SharedSums | None = None,
    ) -> None:
        """Start without rows."""
        self._layer, (self._original, self._weight), self._biases = layer, weights, biases
        self._kept, self._centred, self._fitted = kept, centred, fitted
        self.sums, self._complete = shared, shared is not None
        self._targets: tuple[TargetSums, TargetSums] | None = None
        self._W: Tensor | None = None  # the original's weight in blocks, in the type of the rows
        self.features = 0

    def add(self, cut: Cut, calls: int = 1) -> None:
        """Add the rows of a cut.

        Args:
            cut: Passes that are about to use the weight.
            calls: How many cuts there are about to be.
        """
        total = calls * sum(math.prod(row_shape(pair.z)) for pair in cut.pairs)
        for pair in cut:
            shapes = ([n for n in row_shape(entry) if n > 1] for entry in (pair.x, pair.z))
            if len({tuple(shape) for shape in shapes}) == 1:  # else the same tokens did not reach it
                self._add(pair, total)

    def finite(self) -> bool:
        """Return whether all sums are finite."""
        originals = self.sums.originals if self.sums is not None else None
        return all(sums.finite() for sums in self._targets or originals or ())

    def _add(self, pair: Pair, total: int) -> None:
        features_x, features_z = (entry.x.shape[entry.axis] for entry in (pair.x, pair.z))
        blocks_x = block_count(self._original, self._layer, features_x)
        blocks_z = block_count(self._weight, self._layer, features_z)
        taps = 1 if pair.z.window is None else math.prod(pair.z.window.kernel)
        width = features_z // blocks_z * taps
        share = max(ROWS if blocks_z == 1 else BLOCK_ROWS, ROWS_PER_FEATURE * width) / total
        numbers = draw_rows(row_shape(pair.z), share, pair.batch)
        z, x = rows(pair.z, blocks_z, numbers), rows(pair.x, blocks_x, numbers)
        part = int(pair.batch >= self._fitted)
        self.features = width
        if self.sums is None:
            inputs = InputSums(z, self._centred), InputSums(z, self._centred)
            tall = self._original.ndim == 2 and features_x <= len(self._kept)
            originals = (OriginalSums(inputs[0], x), OriginalSums(inputs[1], x)) if tall else None
            self.sums = SharedSums(inputs, originals)
        if not self._complete:
            self.sums.inputs[part].add(z)
        if self.sums.originals is None:
            self._add_targets(part, z, self._target(x).reshape(len(z), blocks_z, -1))
        elif not self._complete:
            self.sums.originals[part].add(z, x)

    def _add_targets(self, part: int, z: Tensor, t: Tensor) -> None:
        if self._targets is None and self.sums is not None:
            fitting, apart = self.sums.inputs
            self._targets = TargetSums(fitting, t), TargetSums(apart, t)
        if self._targets is not None:
            self._targets[part].add(z, t)

    def _target(self, x: Tensor) -> Tensor:
        """Return W x without the outputs that are gone [n, outputs], taps of an output side by side."""
        if self._W is None:
            self._W = as_blocks(self._original, self._layer, x.shape[1]).to(x)
        t = torch.einsum("nbf,bof->nbo", x, self._W)
        kept = torch.from_numpy(self._kept).to(x.device)
        if self._layer.kind != "conv":  # [blocks, outs * taps]: the outputs of a block
            outs = self._original.shape[self._layer.out_axis or 0]
            t = t.reshape(len(x), -1, outs, t.shape[-1] // outs)
            return t.index_select(2, kept).flatten(1)
        return t.flatten(1).index_select(1, kept)

    def _all_targets(self) -> tuple[TargetSums, TargetSums] | None:
        if self.sums is None or self.sums.originals is None:
            return self._targets
        kept = torch.from_numpy(self._kept).to(self._original.device)
        W = as_blocks(self._original, self._layer, 1).index_select(1, kept)
        fitting, apart = self.sums.originals
        return fitting.targets(W), apart.targets(W)

    @torch.no_grad()
    def solve(self) -> dict[str, Any]:
        """Write the solution into the pruned network and return a note."""
        inputs = None if self.sums is None else self.sums.inputs[0]
        targets = self._all_targets()
        if targets is None or inputs is None or not inputs.count:
            return {"skipped": "no rows reach it in both networks"}
        V = as_blocks(self._weight, self._layer, len(inputs.shift))
        c = V.new_zeros(V.shape[:2])
        if self._biases is not None:
            c = (self._biases[1].double() - self._biases[0].double()).reshape(c.shape)
        solution = solve(*targets, V, c)
        set_blocks(self._weight, self._layer, solution.V)
        if self._biases is not None:
            self._biases[1].copy_(self._biases[0].double() + solution.c.flatten())
        return {
            "before": solution.before,
            "after": solution.after,
            "ridge": float(solution.ridge.median()),
            "rows": inputs.count,
            "features": self.features,
            "undone": not bool(solution.ridge.isfinite().any()),
        }
