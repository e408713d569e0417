"""Exact effective resistances in the graph of a whole network (Algorithm 1 on the union of its layers).

Nodes are the features of each level (the input, then what each layer makes); every weight is an edge.  The
copies of an input channel under the taps of a kernel, or under a flattening, are one feature, so they are
contracted into one node: parallel conductances add, Laplacians contract as C^T L C, and a sparsifier of the
layers stays one of the contraction (Lemma 3.1).  A residual addition makes two levels one: give both the
same number.

Levels are eliminated one at a time, which is Kron's star-mesh reduction: with conductances C and conductance
g to ground, eliminating level j replaces C_st by C_st + C_sj D_j^-1 C_jt, D_j = diag(row sums) - C_jj.
Nothing is subtracted, since D_j^-1 >= 0.  One node of each component is grounded, which changes no
resistance between nodes of it.  Backwards, the inverse Z on the blocks that elimination filled follows from
Z_jS = Y_j Z_SS and Z_jj = D_j^-1 + Z_jS Y_j^T, Y_j = D_j^-1 C_jS (Takahashi's selected inversion).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from secateur.structures.spectral.graph import checked_scores

__all__ = ["ChainResistance", "Link", "chain_resistance"]


@dataclass(frozen=True, eq=False)
class Link:
    """A layer between two levels of features.

    Attributes:
        scores: Non-negative scores in the shape of the weight, [out, in / groups, *taps].  `in` may be a
            multiple of the source's size: each feature then has that many adjacent copies (flattening).
        source: Level that the layer reads.
        target: Level that it makes, or adds to.
        groups: Groups of a convolution.
    """

    scores: Tensor
    source: int
    target: int
    groups: int = 1


@dataclass(frozen=True, eq=False)
class ChainResistance:
    """Effective resistances of all edges of a network.

    Attributes:
        values: For each layer, resistances in the shape and type of its scores (expanded views where
            contracted edges share one); infinite where the ends are not connected.
        nodes: Number of nodes, isolated ones included.
        components: Number of components, isolated nodes included.
        foster: Relative residual of Foster's identity.
    """

    values: tuple[Tensor, ...]
    nodes: int
    components: int
    foster: float

    def leverage(self, layers: Sequence[Tensor | Link]) -> tuple[Tensor, ...]:
        """Return w_e R_e of every edge, in the shape of each layer's scores; 0 off the edges."""
        scores = [x.scores if isinstance(x, Link) else x for x in layers]
        pairs = zip(scores, self.values, strict=True)
        return tuple(torch.where(w > 0, w * R, w.new_zeros(())).clamp_(max=1) for w, R in pairs)


def chain_resistance(layers: Sequence[Tensor | Link]) -> ChainResistance:
    """Compute the effective resistance of every edge in the graph of a whole network, in float64.

    Args:
        layers: Scores in the shape of each weight, which then form a chain in that order; or `Link`s that
            say which levels they join.

    Raises:
        ValueError: If a layer's scores are no graph, or its sizes do not fit its levels.
        ArithmeticError: If the network's graph is singular in float64, or Foster's identity fails.

    Example:
        >>> result = chain_resistance([torch.ones(2, 1), torch.ones(1, 2)])     # a cycle of four edges
        >>> result.values[0].flatten().tolist()
        [0.75, 0.75]
    """
    links = [x if isinstance(x, Link) else Link(x, i, i + 1) for i, x in enumerate(layers)]
    if not links:
        raise ValueError("a network's graph needs at least one layer; got none")
    for link in links:
        if link.scores.dim() < 2:
            raise ValueError(
                f"scores must have a weight's shape, [out, in, ...]; got {tuple(link.scores.shape)}"
            )
        checked_scores(link.scores.flatten(1))
    sizes = _level_sizes(links)
    contracted = [_contract(link, sizes) for link in links]
    network = _Levels(sizes)
    for link, T in zip(links, contracted, strict=True):
        network.add(link.target, link.source, T)
    count, label = network.ground()
    network.solve()
    return _answer(links, contracted, network, count, label)


def _level_sizes(links: Sequence[Link]) -> dict[int, int]:
    """Sizes of all levels; a level nobody makes has the size that its readers agree on."""
    sizes: dict[int, int] = {}
    for link in links:
        made = link.scores.shape[0]
        if sizes.setdefault(link.target, made) != made:
            raise ValueError(
                f"level {link.target} is made with {sizes[link.target]} and with {made} features"
            )
    for link in links:
        sizes.setdefault(link.source, link.scores.shape[1] * link.groups)
    for link in links:
        reads, size = link.scores.shape[1] * link.groups, sizes[link.source]
        if link.groups < 1 or reads % size or link.scores.shape[0] % link.groups or size % link.groups:
            raise ValueError(
                f"a layer {tuple(link.scores.shape)} with {link.groups} groups reads {reads} features, "
                f"but level {link.source} has {size}; a multiple of it would do"
            )
    return sizes


def _contract(link: Link, sizes: dict[int, int]) -> Tensor:
    """Add up parallel conductances: [target, source] in float64."""
    out, size = link.scores.shape[0], sizes[link.source]
    per_group = link.scores.reshape(link.groups, out // link.groups, size // link.groups, -1).double().sum(3)
    return per_group[0] if link.groups == 1 else torch.block_diag(*per_group)


def _expand(link: Link, values: Tensor) -> Tensor:
    """Undo `_contract`: give every edge the value of the edge that it was contracted into."""
    out, size = values.shape
    rows, cols = out // link.groups, size // link.groups
    blocks = [values[g * rows : (g + 1) * rows, g * cols : (g + 1) * cols] for g in range(link.groups)]
    share = torch.cat(blocks).to(link.scores.dtype)
    copies = link.scores[0].numel() // cols
    return share[:, :, None].expand(out, cols, copies).reshape(link.scores.shape)


@dataclass
class _Levels:
    """Conductances between levels, eliminated in place; then blocks of the inverse."""

    sizes: dict[int, int]
    C: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    g: dict[int, Tensor] = field(default_factory=dict)
    Z: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def add(self, s: int, t: int, T: Tensor) -> None:
        """Add conductances T [size of s, size of t]; loops at a node carry no current and are dropped."""
        if s == t:
            T = (T + T.T).fill_diagonal_(0)
        for key, value in {(s, t): T, (t, s): T.T}.items():
            self.C[key] = self.C[key] + value if key in self.C else value

    def neighbours(self, level: int) -> list[int]:
        """Return the other levels with an edge to this one."""
        return [t for s, t in self.C if s == level and t != level]

    def ground(self) -> tuple[int, dict[int, Tensor]]:
        """Ground the heaviest node of each component; return their number and each node's component."""
        order = sorted(self.sizes)
        start = dict(zip(order, np.cumsum([0, *(self.sizes[x] for x in order)]).tolist(), strict=False))
        total = sum(self.sizes.values())
        label = torch.as_tensor(_components(self.C, start, total), dtype=torch.long)
        count = int(label.max()) + 1
        degree = torch.zeros(total, dtype=torch.float64)
        for (s, _), T in self.C.items():
            degree[start[s] : start[s] + self.sizes[s]] += T.sum(1).cpu()
        heaviest = torch.full((count,), -1.0, dtype=torch.float64).scatter_reduce_(0, label, degree, "amax")
        earth, taken = torch.zeros_like(degree), set()
        for node in torch.nonzero(degree == heaviest[label]).flatten().tolist():
            if int(label[node]) not in taken:
                taken.add(int(label[node]))
                earth[node] = degree[node] or 1.0
        device = next(iter(self.C.values())).device
        parts = {x: slice(start[x], start[x] + self.sizes[x]) for x in order}
        self.g = {x: earth[part].to(device) for x, part in parts.items()}
        return count, {x: label[part].to(device) for x, part in parts.items()}

    def solve(self) -> None:
        """Eliminate all levels, cheapest first, then fill Z backwards."""
        left, steps = set(self.sizes), []
        while left:
            level = min(left, key=lambda x: (self._cost(x), x))
            left.remove(level)
            steps.append((level, *self._eliminate(level)))
        for step, (level, around, factor, Y) in reversed(list(enumerate(steps))):
            read_later = any(level in earlier[1] for earlier in steps[:step]) or (level, level) in self.C
            self._back(level, around, factor, Y, full=read_later)

    def _cost(self, level: int) -> int:
        size, rim = self.sizes[level], sum(self.sizes[t] for t in self.neighbours(level))
        return size * (size + rim) ** 2

    def _eliminate(self, level: int) -> tuple[list[int], Tensor, dict[int, Tensor]]:
        around = self.neighbours(level)
        own = self.C.get((level, level))
        D = torch.diag(self.g[level] + sum(self.C[level, t].sum(1) for t in around))
        if own is not None:
            D = D + torch.diag(own.sum(1)) - own
        factor, info = torch.linalg.cholesky_ex(D)
        if int(info) != 0:
            raise ArithmeticError(
                "the network's graph is singular in float64: parts of it hang together by weights too small "
                "to count. Scale the layers alike, or set the smallest scores to zero"
            )
        Y = {t: torch.cholesky_solve(self.C[level, t], factor) for t in around}
        held = torch.cholesky_solve(self.g[level][:, None], factor)
        for i, s in enumerate(around):
            self.g[s] = self.g[s] + (self.C[s, level] @ held)[:, 0]
            for t in around[i:]:
                fill = self.C[s, level] @ Y[t]
                self.add(s, t, fill / 2 if s == t else fill)
        for t in around:
            del self.C[level, t], self.C[t, level]
        return around, factor, Y

    def _back(
        self, level: int, around: list[int], factor: Tensor, Y: dict[int, Tensor], *, full: bool
    ) -> None:
        for t in around:
            self.Z[level, t] = sum((Y[s] @ self.Z[s, t] for s in around), torch.zeros_like(Y[t]))
            self.Z[t, level] = self.Z[level, t].T
        inverse = torch.cholesky_inverse(factor)
        if full:
            self.Z[level, level] = sum((self.Z[level, t] @ Y[t].T for t in around), inverse)
        else:
            held = sum(((self.Z[level, t] * Y[t]).sum(1) for t in around), inverse.diagonal())
            self.Z[level, level] = torch.diag(held)


def _components(C: dict[tuple[int, int], Tensor], start: dict[int, int], total: int) -> NDArray[np.int32]:
    rows, cols = [], []
    for (s, t), T in C.items():
        if s <= t:
            edges = T > 0
            if bool(edges.all()):
                edges[1:, 1:] = False  # the edges of one node of each side connect the same nodes
            u, v = (x.cpu().numpy() for x in torch.nonzero(edges, as_tuple=True))
            rows.append(u + start[s])
            cols.append(v + start[t])
    u, v = np.concatenate(rows), np.concatenate(cols)
    graph = coo_matrix((np.ones(len(u), np.int8), (u, v)), shape=(total, total))
    label: NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return label


def _answer(
    links: Sequence[Link],
    contracted: Sequence[Tensor],
    network: _Levels,
    count: int,
    label: dict[int, Tensor],
) -> ChainResistance:
    values, total = [], 0.0
    for link, T in zip(links, contracted, strict=True):
        made, read = (network.Z[x, x].diagonal() for x in (link.target, link.source))
        R = made[:, None] + read[None, :] - 2 * network.Z[link.target, link.source]
        apart = label[link.target][:, None] != label[link.source][None, :]
        total += float((T * R).sum())
        values.append(_expand(link, R.masked_fill_(apart, float("inf"))))
    nodes = sum(network.sizes.values())
    residual = abs(total / (nodes - count) - 1)
    if not residual <= 1e-6:
        raise ArithmeticError(
            f"Foster's identity fails by {residual:.1e} in the network's graph: its weights span more "
            "decades than float64 has digits. Scale the layers alike, or set the smallest scores to zero"
        )
    return ChainResistance(tuple(values), nodes, count, residual)
