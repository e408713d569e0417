"""The features that the axes of a network's weights share: the nodes of the graph of the whole network.

Two positions of two axes are one feature if a unit of the traced groups owns both: what a producer writes and
a consumer reads, terms of a residual addition, copies under a flattening, gates of a recurrent unit.  Grouped
convolutions need more care, because their units couple features that stay apart: channel i of every group,
or all channels of some groups at its input and at its output.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from secateur.core import Group, IntArray, Layer, PruningGraph

__all__ = ["axis_features"]

Axis = tuple[str, int]


def axis_features(graph: PruningGraph, layers: tuple[Layer, ...]) -> Mapping[Axis, IntArray]:
    """Return level and node of each feature along axes 0 and 1 of the layers' weights.

    Axes that no unit owns (frozen ones) are separate levels, also where two layers share them.

    Args:
        graph: The traced network.
        layers: The layers that are edges of the network's graph.

    Returns:
        By weight and axis, integers [features, 2].  Axis 1 of a grouped convolution covers the channels of
        one of its groups; its features are those of all groups, one group after the other.
    """
    lengths = {
        (x.weight, axis): graph.shapes[x.weight][axis] * (x.groups if axis == 1 else 1)
        for x in layers
        for axis in (0, 1)
    }
    owned = list(_owned_positions(graph, layers))
    ranks = _lowest_ranks(owned, lengths)
    # Vertices: the positions of all axes, then the features of every section of every group.
    start = dict(zip(lengths, np.cumsum([0, *lengths.values()]).tolist(), strict=False))
    sections = {(o.group, o.section): o.features for o in owned}
    sizes = [*lengths.values(), *sections.values()]
    offset = dict(zip(sections, np.cumsum([0, *sizes])[len(lengths) :].tolist(), strict=False))
    ends = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    for o in owned:
        wins = ranks[o.axis][o.positions] == o.rank
        features = np.broadcast_to(offset[o.group, o.section] + o.feature, wins.shape)
        ends.append((start[o.axis] + o.positions[wins], features[wins]))
    u, v = (np.concatenate(x) for x in zip(*ends, strict=True))
    joined = coo_matrix((np.ones(len(u), np.int8), (u, v)), shape=(sum(sizes), sum(sizes)))
    label = connected_components(joined, directed=False)[1].astype(np.int64)
    # Levels of sections come first: a feature takes the lowest level of what it joins.
    levels = [*range(len(sections), len(sizes)), *range(len(sections))]
    return _number_by_level(label, lengths, start, np.repeat(levels, sizes))


@dataclass(frozen=True, eq=False)
class _Owned:
    """The positions of one axis that the units of a group own.

    Attributes:
        axis: Weight and axis.
        group: Number of the group.
        section: How many convolutions the group has passed before: each has its own features at both ends.
        positions: Positions [units, per unit].
        feature: Number of the feature at each position, [units, per unit].
        features: How many features the section has.
        rank: The lowest rank owns a position; groups of grouped convolutions share it.
    """

    axis: Axis
    group: int
    section: int
    positions: IntArray
    feature: IntArray
    features: int
    rank: int


def _owned_positions(graph: PruningGraph, layers: tuple[Layer, ...]) -> Iterator[_Owned]:
    order = {x.weight: i for i, x in enumerate(graph.layers)}
    known = {x.weight: x for x in layers}
    # Units of two groups may share an index (heads, and dimensions in them): the larger group is finer.
    rank = {g.name: i for i, g in enumerate(sorted(graph.groups, key=lambda g: -g.size), 1)}
    for number, group in enumerate(graph.groups):
        slots = [s for s in group.slots if s.tensor in known and s.axis < 2]
        axes = {(s.tensor, s.axis): np.sort(s.index, 1) for s in slots}
        grouped = [known[w] for w, _ in axes if known[w].groups > 1]
        if not grouped:
            for axis, index in axes.items():
                feature = np.arange(group.size)[:, None]
                yield _Owned(axis, number, 0, index, feature, group.size, rank[group.name])
            continue
        # One feature of a unit is the same share of the unit's positions on every axis, in rising order.
        sections: dict[int, dict[Axis, IntArray]] = {}
        for axis, section, index in _by_section(graph, group, axes, known, order):
            sections.setdefault(section, {})[axis] = index
        for section, entries in sections.items():
            members = math.gcd(*(index.shape[1] for index in entries.values()))
            for axis, index in entries.items():
                member = np.arange(index.shape[1]) * members // index.shape[1]
                feature = np.arange(group.size)[:, None] * members + member
                yield _Owned(axis, number, section, index, feature, group.size * members, 0)


def _by_section(
    graph: PruningGraph,
    group: Group,
    axes: Mapping[Axis, IntArray],
    known: Mapping[str, Layer],
    order: Mapping[str, int],
) -> Iterator[tuple[Axis, int, IntArray]]:
    """Split the axes of a group where it passes through grouped convolutions.

    A convolution that the units pass (depthwise, or whole groups of channels) has one feature before and
    another behind it.  Where something else is produced behind the first of them (a residual stream,
    squeeze-and-excitation), the graph does not say what joins what: then those convolutions get ends of their
    own, and everything else is one section.
    """
    first_made = min(
        (order[s.tensor] for s in group.slots_with("out") if s.tensor in known), default=len(order)
    )
    passed = [
        w
        for w in sorted({w for w, axis in axes if axis == 0}, key=order.__getitem__)
        if (w, 1) not in axes and order[w] > first_made and _owns_whole_groups(graph, known[w], axes[w, 0])
    ]
    produced = [order[w] for w, axis in axes if w not in passed and axis == known[w].out_axis]
    chain = bool(passed) and not any(order[passed[0]] < at for at in produced)
    for (w, axis), index in axes.items():
        layer = known[w]
        if w not in passed:
            section = sum(order[p] < order[w] for p in passed) if chain else 0
            copies = layer.groups if axis == 1 else 1
            width = graph.shapes[w][axis]
            yield (w, axis), section, np.concatenate([index + g * width for g in range(copies)], 1)
        elif chain:
            before = passed.index(w)
            behind = before + 1
            first, second = (behind, before) if layer.out_axis == 0 else (before, behind)
            yield (w, 0), first, index
            yield (w, 1), second, _other_side(graph, layer, index)


def _owns_whole_groups(graph: PruningGraph, layer: Layer, index: IntArray) -> bool:
    """Return whether each unit owns all of axis 0 of some groups of a convolution."""
    block = graph.shapes[layer.weight][0] // layer.groups
    if layer.groups == 1 or index.shape[1] % block:
        return False
    blocks = index.reshape(len(index), -1, block) // block
    return bool((blocks == blocks[:, :, :1]).all())


def _other_side(graph: PruningGraph, layer: Layer, index: IntArray) -> IntArray:
    """Return the channels along axis 1, over all groups, of the groups that own these along axis 0."""
    block, width = graph.shapes[layer.weight][0] // layer.groups, graph.shapes[layer.weight][1]
    groups = index[:, ::block] // block
    return (groups[:, :, None] * width + np.arange(width)).reshape(len(index), -1)


def _lowest_ranks(owned: Sequence[_Owned], lengths: Mapping[Axis, int]) -> dict[Axis, IntArray]:
    """Return the lowest rank at each position of each axis."""
    ranks = {axis: np.full(length, np.iinfo(np.int64).max) for axis, length in lengths.items()}
    for o in owned:
        np.minimum.at(ranks[o.axis], o.positions, o.rank)
    return ranks


def _number_by_level(
    label: IntArray, lengths: Mapping[Axis, int], start: Mapping[Axis, int], levels: IntArray
) -> dict[Axis, IntArray]:
    """Return level and node of each position: those of one joined feature are equal.

    A feature has the lowest level among the vertices that it joins; its node is its rank in that level.
    """
    level = np.full(int(label.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(level, label, levels)
    order = np.lexsort((np.arange(len(level)), level))
    node = np.empty_like(order)
    first = np.searchsorted(level[order], level[order])
    node[order] = np.arange(len(order)) - first
    found = np.stack([level[label], node[label]], 1)
    return {axis: found[start[axis] : start[axis] + length] for axis, length in lengths.items()}
