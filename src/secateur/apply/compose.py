"""Plans in sequence: the network that a plan leaves, and two plans as one on the original network.

This is index arithmetic on values.  So pruning in several steps traces once, groups keep their names, and
the plan of all steps together applies to the original model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from secateur.core import BoolArray, Group, IntArray, Plan, PlanError, PruningGraph, Slot
from secateur.core.graph import Sized
from secateur.core.indices import check_units, kept_axes, kept_on_axis, kept_shapes, removed_units
from secateur.views import narrow_example

__all__ = ["compose", "narrow_masks", "restrict"]

Axis = tuple[str, int]


def restrict(graph: PruningGraph, keep: Mapping[str, IntArray]) -> PruningGraph:
    """Return the graph of the network that is left when only these units stay; its units are renumbered.

    Heads that have lost positions own unequal numbers of them: they stay from here on.

    Raises:
        PlanError: If a unit does not exist, or if the units of a group would own unequal numbers of indices.
    """
    keep = _without_lost_positions(graph, keep)
    left = kept_axes(graph, keep)
    last = _unequal_heads(graph, keep)
    groups = tuple(
        replace(group, size=len(keep.get(group.name, range(group.size))), slots=())
        if group.name in last
        else _restrict_group(group, keep.get(group.name), left)
        for group in graph.groups
    )
    sizes = tuple(_restrict_size(size, graph, keep) for size in graph.sizes)
    interface = graph.interface.with_axes(lambda axis: _restrict_size(axis, graph, keep))
    args, kwargs = narrow_example(graph, keep)
    convolved = {size.module: size.value for size in sizes if size.attribute == "groups"}
    layers = tuple(replace(x, groups=convolved.get(x.name, x.groups)) for x in graph.layers)
    counts = {group.name: group.size for group in groups}
    tied = (names for names in graph.equal_counts if len({counts[name] for name in names}) == 1)
    return replace(
        graph,
        equal_counts=tuple(tied),
        groups=groups,
        layers=layers,
        sizes=sizes,
        shapes=kept_shapes(graph, keep),
        interface=interface,
        example_inputs=args,
        example_kwargs=kwargs,
    ).without_groups(last, "its heads have lost positions")


def _without_lost_positions(graph: PruningGraph, keep: Mapping[str, IntArray]) -> Mapping[str, IntArray]:
    """Return the units that stay without the positions of heads that go as a whole."""
    heads = kept_axes(graph, {name: kept for name, kept in keep.items() if not graph.group(name).padded})
    left = dict(keep)
    for group in graph.groups if heads else ():
        axes = [(heads[s.tensor, s.axis], s.index) for s in group.slots if (s.tensor, s.axis) in heads]
        if group.padded and axes:
            alive = np.logical_and.reduce([stays[index].any(1) for stays, index in axes])
            kept = np.asarray(keep.get(group.name, np.arange(group.size)))
            left[group.name] = kept[alive[kept]]
    return left


def _unequal_heads(graph: PruningGraph, keep: Mapping[str, IntArray]) -> set[str]:
    """Return the groups of heads that have lost positions, and those of positions that have none left."""
    whole = {name: kept for name, kept in keep.items() if not graph.group(name).padded}
    most = _without_lost_positions(graph, whole)
    cut: set[Axis] = set()
    for group in graph.groups:
        alive = len(most[group.name]) if group.name in most else group.size
        if group.padded and group.name in keep and len(keep[group.name]) < alive:
            cut |= _axes(group)
    return {
        group.name
        for group in graph.groups
        if not (group.padded or cut.isdisjoint(_axes(group)))
        or (group.name in keep and not len(keep[group.name]))
    }


def _axes(group: Group) -> set[Axis]:
    return {(slot.tensor, slot.axis) for slot in group.slots}


def compose(first: Plan, second: Plan) -> Plan:
    """Return two plans as one, where the second refers to the network that the first leaves.

    A weight stays if it stays in both masks.  Factors are those of the first plan.  Merges are left out: they
    hold for the weights of one step and were applied in that step.  Budget and notes are those of the second
    plan.

    Raises:
        PlanError: If the second plan does not fit what the first leaves, or has factors.
    """
    if second.factors:
        raise PlanError(
            "a plan that rescales the weights that stay (factors) cannot follow another: prune in one step"
        )
    graph = first.graph
    keep, units = dict(first.keep), _without_lost_positions(graph, first.keep)
    for name, kept in second.keep.items():
        before = np.asarray(units.get(name, np.arange(graph.group(name).size)))
        keep[name] = before[check_units(name, len(before), kept)]
    masks = {name: np.array(mask) for name, mask in first.masks.items()}
    left = kept_axes(graph, first.keep)
    for name, mask in second.masks.items():
        whole = masks.setdefault(name, np.ones(graph.shapes[name], dtype=bool))
        axes = [np.flatnonzero(left.get((name, i), np.ones(n, bool))) for i, n in enumerate(whole.shape)]
        if tuple(map(len, axes)) != mask.shape:
            raise PlanError(
                f"the mask of {name!r} has shape {mask.shape}; the first plan leaves {tuple(map(len, axes))}"
            )
        whole[np.ix_(*axes)] &= mask
    return replace(
        second,
        graph=graph,
        keep=keep,
        masks=masks,
        merges={},
        experts=first.experts,
        blocks=first.blocks,
        factors=first.factors,
    )


def narrow_masks(plan: Plan) -> dict[str, BoolArray]:
    """Return a plan's masks in the shapes that the weights have once its units are gone."""
    left = kept_axes(plan.graph, plan.keep)
    narrow = {}
    for name, mask in plan.masks.items():
        for axis in range(mask.ndim):
            if (name, axis) in left:
                mask = mask.compress(left[name, axis], axis)
        narrow[name] = mask
    return narrow


def _restrict_group(group: Group, kept: IntArray | None, left: Mapping[Axis, BoolArray]) -> Group:
    units = np.arange(group.size) if kept is None else np.asarray(kept)
    slots = tuple(
        Slot(s.tensor, s.axis, _renumber(s.index[units], left.get((s.tensor, s.axis)), group.name), s.role)
        for s in group.slots
    )
    return replace(group, size=len(units), slots=slots)


def _restrict_size(size: Sized, graph: PruningGraph, keep: Mapping[str, IntArray]) -> Sized:
    gone = [removed_units(graph.group(name).size, keep.get(name)) for name in size.groups]
    stays = kept_on_axis(graph, size, keep)
    rank, index = np.cumsum(stays) - 1, []
    for dead, (unit, position) in zip(gone, size.index, strict=True):
        left = stays[position]
        index.append(np.stack([(np.cumsum(~dead) - 1)[unit[left]], rank[position[left]]]))
    return replace(size, value=size.value - int((~stays).sum()), index=tuple(index))


def _renumber(index: IntArray, stays: BoolArray | None, group: str) -> IntArray:
    """Return the indices that stay, in the numbering of the shorter axis."""
    if stays is None:
        return index
    lives = stays[index]
    counts = lives.sum(1)
    if len(counts) and (counts != counts[0]).any():
        raise PlanError(f"units of group {group!r} would own unequal numbers of indices: prune in one step")
    rank = np.cumsum(stays) - 1
    return rank[index[lives]].reshape(len(index), -1)
