"""Plans in sequence: the network that a plan leaves, and two plans as one on the original network.

Index arithmetic on values only, so that pruning in several steps needs no second tracing, groups keep
their names, and the plan of all steps together can be replayed on the original class.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from secateur.core import BoolArray, Group, IntArray, Plan, PlanError, PruningGraph, Size, Slot

Axis = tuple[str, int]


def alive(graph: PruningGraph, keep: Mapping[str, IntArray]) -> dict[Axis, BoolArray]:
    """Say of every axis that loses something which of its indices stay.

    An index that several units own stays while all of them do.

    Returns:
        (tensor, axis) -> boolean vector of the axis' length.

    Raises:
        PlanError: Units that do not exist.
    """
    found: dict[Axis, BoolArray] = {}
    for name, kept in keep.items():
        group = graph.group(name)
        gone = _gone(group, kept)
        for slot in group.slots if gone.any() else ():
            axis = (slot.tensor, slot.axis)
            length = graph.shapes[slot.tensor][slot.axis]
            stays = found.setdefault(axis, np.ones(length, dtype=bool))
            stays[slot.index[gone]] = False
    return found


def shapes(graph: PruningGraph, keep: Mapping[str, IntArray]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter and buffer once only these units stay.

    Example:
        >>> rows = np.arange(4)[:, None]
        >>> hidden = Group("0", 4, (Slot("0.weight", 0, rows, "out"), Slot("2.weight", 1, rows, "in")))
        >>> graph = PruningGraph((hidden,), (), (), {"0.weight": (4, 3), "2.weight": (2, 4)}, ())
        >>> shapes(graph, {"0": np.array([1, 3])})
        {'0.weight': (2, 3), '2.weight': (2, 2)}
    """
    lengths: dict[str, dict[int, int]] = defaultdict(dict)
    for (tensor, axis), stays in alive(graph, keep).items():
        lengths[tensor][axis] = int(stays.sum())
    return {
        name: tuple(lengths[name].get(axis, n) for axis, n in enumerate(shape)) if name in lengths else shape
        for name, shape in graph.shapes.items()
    }


def restrict(graph: PruningGraph, keep: Mapping[str, IntArray]) -> PruningGraph:
    """Return the network that is left once only these units stay, its units numbered anew.

    Raises:
        PlanError: Units that do not exist, or a removal after which a group's units are unlike.
    """
    left = alive(graph, keep)
    groups = tuple(_restrict_group(group, keep.get(group.name), left) for group in graph.groups)
    sizes = tuple(_restrict_size(size, graph, keep) for size in graph.sizes)
    convolved = {size.module: size.value for size in sizes if size.attribute == "groups"}
    layers = tuple(replace(x, groups=convolved.get(x.name, x.groups)) for x in graph.layers)
    return replace(graph, groups=groups, layers=layers, sizes=sizes, shapes=shapes(graph, keep))


def compose(first: Plan, second: Plan) -> Plan:
    """Return two plans as one, where the second speaks of the network that the first leaves.

    Masks are joined: a weight stays if it stays in both.  Merges are left out: they state what holds
    for the weights of one step, and were folded in at that step.  Budget and notes are the second's.

    Raises:
        PlanError: The second plan does not fit what the first leaves.
    """
    graph = first.graph
    keep = dict(first.keep)
    for name, kept in second.keep.items():
        before = np.asarray(first.keep.get(name, np.arange(graph.group(name).size)))
        _gone(replace(graph.group(name), size=len(before)), kept)
        keep[name] = before[np.asarray(kept)]
    masks = {name: np.array(mask) for name, mask in first.masks.items()}
    left = alive(graph, first.keep)
    for name, mask in second.masks.items():
        whole = masks.setdefault(name, np.ones(graph.shapes[name], dtype=bool))
        axes = [np.flatnonzero(left.get((name, i), np.ones(n, bool))) for i, n in enumerate(whole.shape)]
        if tuple(map(len, axes)) != mask.shape:
            raise PlanError(
                f"the mask of {name!r} has shape {mask.shape}; the first plan leaves {tuple(map(len, axes))}"
            )
        whole[np.ix_(*axes)] &= mask
    return replace(second, graph=graph, keep=keep, masks=masks, merges={})


def narrow_masks(plan: Plan) -> dict[str, BoolArray]:
    """Return a plan's masks in the shapes that the weights have once its units are gone."""
    left = alive(plan.graph, plan.keep)
    found = {}
    for name, mask in plan.masks.items():
        for axis in range(mask.ndim):
            if (name, axis) in left:
                mask = mask.compress(left[name, axis], axis)
        found[name] = mask
    return found


def _gone(group: Group, kept: IntArray) -> BoolArray:
    units, size = np.asarray(kept), group.size
    if len(np.unique(units)) != len(units) or (len(units) and not 0 <= units.min() <= units.max() < size):
        raise PlanError(f"group {group.name!r} has units 0 to {size - 1}, each once; got {units.tolist()}")
    gone = np.ones(group.size, dtype=bool)
    gone[units] = False
    return gone


def _restrict_group(group: Group, kept: IntArray | None, left: Mapping[Axis, BoolArray]) -> Group:
    units = np.arange(group.size) if kept is None else np.asarray(kept)
    slots = tuple(
        Slot(s.tensor, s.axis, _renumber(s.index[units], left.get((s.tensor, s.axis)), group.name), s.role)
        for s in group.slots
    )
    return replace(group, size=len(units), slots=slots)


def _restrict_size(size: Size, graph: PruningGraph, keep: Mapping[str, IntArray]) -> Size:
    dead = {
        name: _gone(graph.group(name), keep.get(name, np.arange(graph.group(name).size)))
        for name in size.groups
    }
    stays = np.ones(max([size.value, *(int(i[1].max(initial=-1)) + 1 for i in size.index)]), dtype=bool)
    for name, (unit, position) in zip(size.groups, size.index, strict=True):
        stays[position[dead[name][unit]]] = False
    rank, index = np.cumsum(stays) - 1, []
    for name, (unit, position) in zip(size.groups, size.index, strict=True):
        left = stays[position]
        index.append(np.stack([(np.cumsum(~dead[name]) - 1)[unit[left]], rank[position[left]]]))
    return replace(size, value=size.value - int((~stays).sum()), index=tuple(index))


def _renumber(index: IntArray, stays: BoolArray | None, group: str) -> IntArray:
    if stays is None:
        return index
    lives = stays[index]
    counts = lives.sum(1)
    if len(counts) and (counts != counts[0]).any():
        raise PlanError(f"units of group {group!r} would own unlike numbers of indices: prune in one step")
    rank = np.cumsum(stays) - 1
    return rank[index[lives]].reshape(len(index), -1)


__all__ = ["alive", "compose", "narrow_masks", "restrict", "shapes"]
