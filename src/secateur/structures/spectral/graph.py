"""Bipartite graphs of weighted layers (S. Laenen, arXiv:2306.08849, section 2.4).

A layer's non-negative score matrix S [inputs, outputs] is a bipartite graph: nodes are its rows and
columns, S_uv is the weight of the edge {u, v}, and zeros are missing edges.  Convolutions are unfolded to
(Kh Kw Cin) x Cout; a grouped convolution and the stacked gates of a recurrent matrix are several graphs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

__all__ = ["Bipartite", "LayerGraph", "bipartite", "checked_scores", "layer_graph"]


@dataclass(frozen=True, eq=False)
class LayerGraph:
    """The graphs of one weight tensor.

    Attributes:
        scores: Score matrices [graphs, inputs, outputs], a view of the scores where strides allow.
        shape: Shape of the weight tensor.
        out_axis: Axis of the weight that produces features.
        in_axis: Axis of the weight that reads features.
    """

    scores: Tensor
    shape: tuple[int, ...]
    out_axis: int
    in_axis: int

    def fold(self, values: Tensor) -> Tensor:
        """Bring values [graphs, inputs, outputs] back into the shape of the weight."""
        blank = torch.empty(self.shape, device="meta")
        split = values.reshape(_unfold(blank, len(self.scores), self.out_axis, self.in_axis).shape)
        return split.movedim((1, -1), (self.in_axis + 1, self.out_axis + 1)).reshape(self.shape)


def _unfold(weight: Tensor, graphs: int, out_axis: int, in_axis: int) -> Tensor:
    split = weight.reshape(graphs, weight.shape[0] // graphs, *weight.shape[1:])
    return split.movedim((in_axis + 1, out_axis + 1), (1, -1))


def layer_graph(
    scores: Tensor, out_axis: int = 0, in_axis: int = 1, groups: int = 1, gates: int = 1
) -> LayerGraph:
    """Unfold the scores of a weight tensor into bipartite graphs.

    Args:
        scores: Non-negative scores in the shape of the weight: linear [out, in], convolution
            [out, in / groups, *kernel], transposed convolution [in, out / groups, *kernel]
            (`out_axis` 1, `in_axis` 0), recurrent [gates * hidden, in].
        out_axis: Axis that produces features.
        in_axis: Axis that reads features.
        groups: Groups of a convolution, along axis 0.
        gates: Gates stacked along axis 0.

    Raises:
        ValueError: If the axes do not exist or axis 0 does not divide into the graphs.

    Example:
        >>> layer_graph(torch.rand(8, 2, 3, 3), groups=4).scores.shape
        torch.Size([4, 18, 2])
    """
    if scores.dim() < 2 or {out_axis, in_axis} - set(range(scores.dim())) or out_axis == in_axis:
        raise ValueError(f"axes {out_axis} and {in_axis} must be two axes of {tuple(scores.shape)}")
    graphs = groups * gates
    if graphs < 1 or scores.shape[0] % graphs:
        raise ValueError(
            f"axis 0 of {tuple(scores.shape)} does not split into {groups} groups x {gates} gates"
        )
    split = _unfold(scores, graphs, out_axis, in_axis)
    matrices = split.reshape(graphs, math.prod(split.shape[1:-1]), split.shape[-1])
    return LayerGraph(matrices, tuple(scores.shape), out_axis, in_axis)


def checked_scores(scores: Tensor) -> Tensor:
    """Return the scores in float32 or float64; raise `ValueError` if they are not a weighted graph."""
    if not isinstance(scores, Tensor) or scores.dim() not in (2, 3) or scores.numel() == 0:
        given = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            f"scores must be a non-empty [inputs, outputs] or [graphs, inputs, outputs]; got {given}"
        )
    if not scores.is_floating_point():
        scores = scores.double()
    elif scores.dtype not in (torch.float32, torch.float64):
        scores = scores.float()
    low, high = (float(x) for x in scores.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(
            "scores must be finite; they hold NaN or infinity. Check the computation of the scores"
        )
    if low < 0:
        raise ValueError(f"scores must be non-negative; the smallest is {low:g}. Pass their absolute values")
    if high == 0:
        raise ValueError("all scores are zero: the graph has no edge, so there is nothing to rank or sample")
    return scores


@dataclass(frozen=True, eq=False)
class Bipartite:
    """A prepared graph: no isolated nodes, at least as many rows as columns, weights of moderate size.

    Attributes:
        S: Weights [n1, n2] with n1 >= n2.
        d1: Degrees of the rows [n1].
        d2: Degrees of the columns [n2].
        label1: Component of each row, or None if there is one component.
        label2: Component of each column.
        components: Number of components among the nodes that have an edge.
        shape: Shape of the scores it came from.
        rows: Rows of the scores that are in the graph, or None for all; before transposition.
        cols: The same for columns.
        flipped: Whether S is the transpose of the scores.
        unit: S = scores / unit, a power of two.
    """

    S: Tensor
    d1: Tensor
    d2: Tensor
    label1: Tensor | None
    label2: Tensor | None
    components: int
    shape: tuple[int, int]
    rows: Tensor | None
    cols: Tensor | None
    flipped: bool
    unit: float

    @property
    def nodes(self) -> int:
        """Number of nodes that have an edge."""
        return self.S.shape[0] + self.S.shape[1]

    def to(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the degrees (d1, d2), summed in that type."""
        if dtype == self.d1.dtype:
            return self.d1, self.d2
        return self.S.sum(1, dtype=dtype), self.S.sum(0, dtype=dtype)

    def volumes(self, d2: Tensor) -> tuple[Tensor, Tensor]:
        """Return for each row and each column the volume of one side of its component."""
        if self.label1 is None or self.label2 is None:
            total = d2.sum()
            return total.expand(self.S.shape[0]), total.expand(self.S.shape[1])
        sums = d2.new_zeros(self.components).index_add_(0, self.label2, d2)
        return sums[self.label1], sums[self.label2]

    def kernel(self, d2: Tensor) -> Tensor:
        """Return unit vectors q_c ~ sqrt(d2) on each component c [n2, components]."""
        _, volume = self.volumes(d2)
        q = d2.new_zeros(len(d2), self.components)
        column = self.label2
        if column is None:
            column = torch.zeros(len(d2), dtype=torch.long, device=d2.device)
        return q.scatter_(1, column[:, None], (d2 / volume).sqrt()[:, None])

    def restore(self, values: Tensor) -> Tensor:
        """Bring resistances [n1, n2] back to the scores' shape and unit; other pairs are infinite."""
        if self.label1 is not None and self.label2 is not None:
            values.masked_fill_(self.label1[:, None] != self.label2[None, :], math.inf)
        if self.unit != 1:
            values.div_(self.unit)
        values = values.T if self.flipped else values
        if self.rows is None and self.cols is None:
            return values
        full = values.new_full(self.shape, math.inf)
        rows = torch.arange(self.shape[0], device=values.device) if self.rows is None else self.rows
        cols = torch.arange(self.shape[1], device=values.device) if self.cols is None else self.cols
        full[rows[:, None], cols[None, :]] = values
        return full


def bipartite(scores: Tensor) -> Bipartite:
    """Prepare one checked score matrix: drop isolated nodes, transpose to tall, label components."""
    S, unit, d1, d2 = scores, 1.0, scores.sum(1), scores.sum(0)
    exponent = math.frexp(max(float(d1.max()), float(d2.max())))[1]
    if abs(exponent) > (40 if S.dtype == torch.float32 else 400):  # squares could overflow or vanish
        unit = 2.0**exponent
        S = S / unit
        d1, d2 = S.sum(1), S.sum(0)
    rows, cols = _nodes_with_edges(d1), _nodes_with_edges(d2)
    S, d1 = (S, d1) if rows is None else (S[rows], d1[rows])
    S, d2 = (S, d2) if cols is None else (S[:, cols], d2[cols])
    flipped = S.shape[0] < S.shape[1]
    if flipped:
        S, d1, d2 = S.T, d2, d1
    label1, label2, components = components_of(S)
    shape = (scores.shape[0], scores.shape[1])
    return Bipartite(S, d1, d2, label1, label2, components, shape, rows, cols, flipped, unit)


def _nodes_with_edges(degree: Tensor) -> Tensor | None:
    """Return the numbers of the nodes of positive degree, or None for all."""
    return None if bool((degree > 0).all()) else torch.nonzero(degree > 0).flatten()


def components_of(S: Tensor) -> tuple[Tensor | None, Tensor | None, int]:
    """Label the components of a graph without isolated nodes; (None, None, 1) if it is connected."""
    if _is_connected(S):
        return None, None, 1
    n1, n2 = S.shape
    u, v = (x.cpu().numpy() for x in torch.nonzero(S, as_tuple=True))
    pattern = coo_matrix((np.ones(len(u), np.int8), (u, v + n1)), shape=(n1 + n2, n1 + n2))
    count, labels = connected_components(pattern, directed=False)
    label = torch.as_tensor(labels, dtype=torch.long, device=S.device)
    return label[:n1], label[n1:], int(count)


def _is_connected(S: Tensor) -> bool:
    """Grow the component of one row until it is all (True) or stops growing (False)."""
    # `reached`: columns in the component of row 0.  No row or column is empty, so all columns mean all rows.
    reached, size = S[0] > 0, -1
    while int(reached.sum()) > size:
        size = int(reached.sum())
        if size == S.shape[1]:
            return True
        touched = (S[:, reached] > 0).any(1)
        reached = (S[touched] > 0).any(0)
    return False
