"""Exact effective resistances in the graph of a whole network (Algorithm 1 on the union of its layers).

Nodes are the features of each level (the input, then the outputs of each layer); weights are edges.  The
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

Ends = int | Tensor


@dataclass(frozen=True, eq=False)
class Link:
    """A layer between levels of features.

    Attributes:
        scores: Non-negative scores in the shape of the weight, [out, in / groups, *taps].
        source: What the layer reads: the number of a level, whose features it reads in their order, each with
            as many adjacent copies as fit (flattening); or integers [in, 2]: level and node of each input.
        target: What the layer produces or adds to: the number of a level, or integers [out, 2].
        groups: Groups of a convolution.
    """

    scores: Tensor
    source: Ends
    target: Ends
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
        ValueError: If a layer's scores are not a graph, or its sizes do not fit its levels.
        ArithmeticError: If the network's graph is singular in float64 or violates Foster's identity.

    Example:
        >>> result = chain_resistance([torch.ones(2, 1), torch.ones(1, 2)])     # a cycle of four edges
        >>> result.values[0].flatten().tolist()
        [0.75, 0.75]
    """
    links = [x if isinstance(x, Link) else Link(x, i, i + 1) for i, x in enumerate(layers)]
    if not links:
        raise ValueError("a network's graph needs at least one layer; got none")
    for link in links:
        _check_link(link)
    sizes = _level_sizes(links)
    ends = [
        (_feature_nodes(x.target, x.scores.shape[0], sizes), _feature_nodes(x.source, _input_count(x), sizes))
        for x in links
    ]
    network = _Levels(sizes)
    for link, (rows, cols) in zip(links, ends, strict=True):
        network.add_edges(_dense_conductances(link), rows, cols)
    count, label = network.ground()
    network.solve()
    return _read_resistances(links, ends, network, count, label)


def _check_link(link: Link) -> None:
    if link.scores.dim() < 2:
        raise ValueError(f"scores must have a weight's shape, [out, in, ...]; got {tuple(link.scores.shape)}")
    checked_scores(link.scores.flatten(1))
    if link.groups < 1 or link.scores.shape[0] % link.groups:
        raise ValueError(f"{link.scores.shape[0]} outputs do not divide into {link.groups} groups")
    for what, end, number in (
        ("source", link.source, _input_count(link)),
        ("target", link.target, len(link.scores)),
    ):
        if isinstance(end, Tensor) and (end.shape != (number, 2) or bool((end < 0).any())):
            raise ValueError(f"{what} must be [{number}, 2], level and node; got shape {tuple(end.shape)}")


def _input_count(link: Link) -> int:
    return link.scores.shape[1] * link.groups


def _level_sizes(links: Sequence[Link]) -> dict[int, int]:
    """Return the size of every level; one that no layer produces has the size its reader implies."""
    sizes: dict[int, int] = {}
    for link in links:
        for end in (link.target, link.source):
            for level, node in end.tolist() if isinstance(end, Tensor) else ():
                sizes[level] = max(sizes.get(level, 0), node + 1)
    for link in links:
        features = link.scores.shape[0]
        if not isinstance(link.target, Tensor) and sizes.setdefault(link.target, features) != features:
            raise ValueError(
                f"one layer gives level {link.target} {sizes[link.target]} features, another {features}"
            )
    for link in links:
        if not isinstance(link.source, Tensor):
            sizes.setdefault(link.source, _input_count(link))
    return sizes


def _feature_nodes(end: Ends, features: int, sizes: dict[int, int]) -> Tensor:
    """Return level and node of each feature [features, 2]."""
    if isinstance(end, Tensor):
        return end.long()
    if features % sizes[end]:
        raise ValueError(
            f"a layer has {features} features on level {end}, which has {sizes[end]}; a multiple would do"
        )
    nodes = torch.arange(features) // (features // sizes[end])
    return torch.stack([torch.full_like(nodes, end), nodes], 1)


def _dense_conductances(link: Link) -> Tensor:
    """Add up the taps: conductances [out, in] in float64, zero between groups."""
    W = (
        link.scores.reshape(link.groups, len(link.scores) // link.groups, link.scores.shape[1], -1)
        .double()
        .sum(3)
    )
    return W[0] if link.groups == 1 else torch.block_diag(*W)


def _expand_to_edges(link: Link, values: Tensor) -> Tensor:
    """Bring values [out, in] into the shape of the scores; the taps of a kernel share one value."""
    rows, cols = len(values) // link.groups, link.scores.shape[1]
    blocks = [values[g * rows : (g + 1) * rows, g * cols : (g + 1) * cols] for g in range(link.groups)]
    edges = torch.cat(blocks).to(link.scores.dtype)
    return edges.view(*edges.shape, *[1] * (link.scores.dim() - 2)).expand(link.scores.shape)


def _split_by_level(ends: Tensor) -> list[tuple[int, Tensor, Tensor]]:
    """Split features by level: level, the features there, their nodes."""
    levels = [(int(x), torch.nonzero(ends[:, 0] == x).flatten()) for x in ends[:, 0].unique()]
    return [(level, at, ends[at, 1]) for level, at in levels]


@dataclass
class _Levels:
    """Conductances between levels, eliminated in place; then blocks of the inverse."""

    sizes: dict[int, int]
    C: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    g: dict[int, Tensor] = field(default_factory=dict)
    Z: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def add_edges(self, W: Tensor, rows: Tensor, cols: Tensor) -> None:
        """Add conductances W [out, in] between the nodes of its features; parallel ones add up."""
        for s, u, i in _split_by_level(rows):
            for t, v, j in _split_by_level(cols):
                merged_rows = W.new_zeros(self.sizes[s], len(v)).index_add_(
                    0, i.to(W.device), _submatrix(W, u, v)
                )
                T = W.new_zeros(self.sizes[s], self.sizes[t])
                self.add(s, t, T.index_add_(1, j.to(W.device), merged_rows))

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
        label = torch.as_tensor(_label_components(self.C, start, total), dtype=torch.long)
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
        remaining, steps = set(self.sizes), []
        while remaining:
            level = min(remaining, key=lambda x: (self._elimination_cost(x), x))
            remaining.remove(level)
            steps.append((level, *self._eliminate(level)))
        for step, (level, around, factor, Y) in reversed(list(enumerate(steps))):
            read_later = any(level in earlier[1] for earlier in steps[:step]) or (level, level) in self.C
            self._fill_inverse(level, around, factor, Y, full=read_later)

    def _elimination_cost(self, level: int) -> int:
        size, rim = self.sizes[level], sum(self.sizes[t] for t in self.neighbours(level))
        return size * (size + rim) ** 2

    def _eliminate(self, level: int) -> tuple[list[int], Tensor, dict[int, Tensor]]:
        around = self.neighbours(level)
        inner = self.C.get((level, level))
        D = torch.diag(self.g[level] + sum(self.C[level, t].sum(1) for t in around))
        if inner is not None:
            D = D + torch.diag(inner.sum(1)) - inner
        factor, info = torch.linalg.cholesky_ex(D)
        if int(info) != 0:
            raise ArithmeticError(
                "the network's graph is singular in float64: parts of it are connected only by weights too "
                "small to count. Scale the layers equally, or set the smallest scores to zero"
            )
        Y = {t: torch.cholesky_solve(self.C[level, t], factor) for t in around}
        to_ground = torch.cholesky_solve(self.g[level][:, None], factor)
        # Star-mesh: C_st grows by C_sj D_j^-1 C_jt, and the conductance to ground by C_sj D_j^-1 g_j.
        for i, s in enumerate(around):
            self.g[s] = self.g[s] + (self.C[s, level] @ to_ground)[:, 0]
            for t in around[i:]:
                fill = self.C[s, level] @ Y[t]
                self.add(s, t, fill / 2 if s == t else fill)  # `add` adds the transpose within a level
        for t in around:
            del self.C[level, t], self.C[t, level]
        return around, factor, Y

    def _fill_inverse(
        self, level: int, around: list[int], factor: Tensor, Y: dict[int, Tensor], *, full: bool
    ) -> None:
        for t in around:
            self.Z[level, t] = sum((Y[s] @ self.Z[s, t] for s in around), torch.zeros_like(Y[t]))
            self.Z[t, level] = self.Z[level, t].T
        # Z_jj = D_j^-1 + Z_jS Y_j^T; most levels need only its diagonal.
        inverse = torch.cholesky_inverse(factor)
        if full:
            self.Z[level, level] = sum((self.Z[level, t] @ Y[t].T for t in around), inverse)
        else:
            diagonal = sum(((self.Z[level, t] * Y[t]).sum(1) for t in around), inverse.diagonal())
            self.Z[level, level] = torch.diag(diagonal)


def _label_components(
    C: dict[tuple[int, int], Tensor], start: dict[int, int], total: int
) -> NDArray[np.int32]:
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


def _submatrix(W: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return W[u.to(W.device)][:, v.to(W.device)]


def _read_resistances(
    links: Sequence[Link],
    ends: Sequence[tuple[Tensor, Tensor]],
    network: _Levels,
    count: int,
    label: dict[int, Tensor],
) -> ChainResistance:
    values, total = [], 0.0
    for link, (rows, cols) in zip(links, ends, strict=True):
        W = _dense_conductances(link)
        R = torch.zeros_like(W)
        for s, u, i in _split_by_level(rows):
            for t, v, j in _split_by_level(cols):
                z_target, z_source = (network.Z[x, x].diagonal() for x in (s, t))
                # R_ij = Z_ii + Z_jj - 2 Z_ij
                between = z_target[:, None] + z_source[None, :] - 2 * network.Z[s, t]
                between.masked_fill_(label[s][:, None] != label[t][None, :], float("inf"))
                R[u.to(W.device)[:, None], v.to(W.device)[None, :]] = _submatrix(between, i, j)
        total += float(torch.where(W > 0, W * R, 0.0).sum())
        values.append(_expand_to_edges(link, R))
    nodes = sum(network.sizes.values())
    residual = abs(total / (nodes - count) - 1) if nodes > count else total
    if not residual <= 1e-6:
        raise ArithmeticError(
            f"Foster's identity fails by {residual:.1e} in the network's graph: its weights span more "
            "decades than float64 has digits. Scale the layers equally, or set the smallest scores to zero"
        )
    return ChainResistance(tuple(values), nodes, count, residual)
