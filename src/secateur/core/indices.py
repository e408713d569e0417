"""Index arithmetic of a pruning: which units go, and which indices of each axis stay.

Everything that shrinks, counts or repairs uses these functions.  `secateur.apply.mask` does not: its
arithmetic is independent, so that comparing the masked model with the shrunk one is a real check.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from secateur.core.errors import PlanError

if TYPE_CHECKING:
    from secateur.core.graph import PruningGraph, SizeAttribute
    from secateur.core.group import BoolArray, IntArray
    from secateur.core.interface import StateAxis

__all__ = [
    "check_units",
    "kept_axes",
    "kept_indices",
    "kept_length",
    "kept_on_axis",
    "kept_positions",
    "kept_shapes",
    "kept_states",
    "padded_axes",
    "removed_units",
]


def check_units(group: str, size: int, kept: Any) -> IntArray:
    """Return the units that a group keeps as an array, after checking them.

    Raises:
        PlanError: If they are not integers from 0 to `size` - 1, each once, rising.

    Example:
        >>> check_units("fc", 4, [1, 3])
        array([1, 3])
    """
    try:
        units = np.empty(0, np.int64) if isinstance(kept, (list, tuple)) and not kept else np.asarray(kept)
    except (TypeError, ValueError) as error:  # tensors without values, lists of unequal lengths
        raise PlanError(f"keep[{group!r}] must be a vector of integers: {error}") from error
    if units.ndim != 1 or units.dtype.kind not in "iu":
        raise PlanError(
            f"keep[{group!r}] must be a vector of integers, the units that stay; got "
            f"{units.dtype} of shape {units.shape}. Of a boolean vector, give np.flatnonzero(it)"
        )
    outside, back = (units < 0) | (units >= size), np.append(False, units[1:] <= units[:-1])
    if not (outside | back).any():
        return units
    at = int(np.argmax(outside | back))
    if outside[at]:
        reason = f"group {group!r} has units 0 to {size - 1}"
    elif units[at] in units[:at]:
        reason = "it is there twice"
    else:
        reason = f"it comes after {units[at - 1]}"
    raise PlanError(
        f"keep[{group!r}] has unit {units[at]} at index {at}, and {reason}: give each unit that "
        "stays once, rising, as np.unique does"
    )


def removed_units(size: int, kept: IntArray | None) -> BoolArray:
    """Return a boolean vector [size], True for the units that go; None keeps them all."""
    gone = np.full(size, kept is not None)
    if kept is not None:
        gone[kept] = False
    return gone


def kept_positions(length: int, owners: Iterable[tuple[IntArray, BoolArray]]) -> BoolArray:
    """Return which positions of an axis stay: those of which no owner goes.

    Args:
        length: Length of the axis.
        owners: For each group on the axis, its `Slot.index` [units, per_unit] and its removed units [units].

    Example:
        >>> heads = np.array([[0, 1], [2, 3]])
        >>> kept_positions(4, [(heads, np.array([False, True]))])
        array([ True,  True, False, False])
    """
    stays = np.ones(length, dtype=bool)
    for index, gone in owners:
        stays[index[gone]] = False
    return stays


def kept_axes(graph: PruningGraph, keep: Mapping[str, IntArray]) -> dict[tuple[str, int], BoolArray]:
    """Return which indices stay, for every axis that loses any.

    Args:
        graph: A traced network.
        keep: Group name -> units that stay; other groups stay whole.

    Returns:
        (tensor, axis) -> boolean vector of the axis' length.  An index that several units own stays only
        if all of them do.

    Raises:
        InputError: If a group is unknown.
        PlanError: If the units of a group are invalid.
    """
    owners: dict[tuple[str, int], list[tuple[IntArray, BoolArray]]] = {}
    for name, kept in keep.items():
        group = graph.group(name)
        gone = removed_units(group.size, check_units(name, group.size, kept))
        for slot in group.slots if gone.any() else ():
            owners.setdefault((slot.tensor, slot.axis), []).append((slot.index, gone))
    return {axis: kept_positions(graph.shapes[axis[0]][axis[1]], slots) for axis, slots in owners.items()}


def kept_indices(graph: PruningGraph, keep: Mapping[str, IntArray]) -> dict[str, dict[int, IntArray]]:
    """Return tensor -> axis -> indices that stay, for every axis that loses any; see `kept_axes`."""
    kept: dict[str, dict[int, IntArray]] = {}
    for (tensor, axis), stays in kept_axes(graph, keep).items():
        kept.setdefault(tensor, {})[axis] = np.flatnonzero(stays)
    return kept


def padded_axes(
    graph: PruningGraph, keep: Mapping[str, IntArray]
) -> dict[tuple[str, int], tuple[IntArray, int]]:
    """Return where the indices that stay are, for every axis on which zeros take the place of removed units.

    Returns:
        (tensor, axis) -> the place of each index that stays, and the length of the axis with the zeros; see
        `Group.padded`.

    Example:
        >>> from secateur.core import Group, PruningGraph, Slot
        >>> heads = Group("heads", 2, (Slot("v", 0, np.arange(6).reshape(2, 3), "out"),), "heads")
        >>> rows = Slot("v", 0, np.arange(6)[:, None], "out")
        >>> graph = PruningGraph(
        ...     (heads, Group("v", 6, (rows,), "value positions")), (), (), {"v": (6, 4)}, ()
        ... )
        >>> padded_axes(graph, {"heads": np.array([1]), "v": np.array([0, 1, 2, 4])})
        {('v', 0): (array([1]), 3)}
    """
    padded = {group.name for group in graph.groups if group.padded}
    shorter = kept_axes(graph, {name: kept for name, kept in keep.items() if name not in padded})
    left = kept_axes(graph, keep)
    found = {}
    for axis in kept_axes(graph, {name: kept for name, kept in keep.items() if name in padded}):
        stays = left[axis][shorter.get(axis, np.ones(len(left[axis]), bool))]
        if not stays.all():  # else the units that went were those of heads that are gone as a whole
            found[axis] = np.flatnonzero(stays), len(stays)
    return found


def kept_shapes(graph: PruningGraph, keep: Mapping[str, IntArray]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter and buffer if only these units stay; see `kept_axes`.

    Example:
        >>> from secateur.core import Group, PruningGraph, Slot
        >>> rows = np.arange(4)[:, None]
        >>> hidden = Group("0", 4, (Slot("0.weight", 0, rows, "out"), Slot("2.weight", 1, rows, "in")))
        >>> graph = PruningGraph((hidden,), (), (), {"0.weight": (4, 3), "2.weight": (2, 4)}, ())
        >>> kept_shapes(graph, {"0": np.array([1, 3])})
        {'0.weight': (2, 3), '2.weight': (2, 2)}
    """
    lengths = {axis: int(stays.sum()) for axis, stays in kept_axes(graph, keep).items()}
    return {
        name: tuple(lengths.get((name, axis), n) for axis, n in enumerate(shape))
        for name, shape in graph.shapes.items()
    }


def kept_states(graph: PruningGraph, keep: Mapping[str, IntArray]) -> dict[tuple[int, int], IntArray]:
    """Return (number of a state, axis) -> positions that stay, for every axis of a state that loses any."""
    kept = {}
    for number, state in enumerate(graph.interface.states):
        for axis in state.axes:
            stays = kept_on_axis(graph, axis, keep)
            if not stays.all():
                kept[number, axis.axis] = np.flatnonzero(stays)
    return kept


def kept_length(graph: PruningGraph, size: SizeAttribute, keep: Mapping[str, IntArray]) -> int:
    """Return the value of an attribute that holds a length if only these units stay."""
    return size.value - int((~kept_on_axis(graph, size, keep)).sum())


def kept_on_axis(
    graph: PruningGraph, axis: SizeAttribute | StateAxis, keep: Mapping[str, IntArray]
) -> BoolArray:
    """Return which entries of the axis behind a size or a state stay; it may be longer than the value."""
    gone = [removed_units(graph.group(name).size, keep.get(name)) for name in axis.groups]
    length = max([axis.value, *(int(position.max(initial=-1)) + 1 for _, position in axis.index)])
    owners = ((position, dead[unit]) for (unit, position), dead in zip(axis.index, gone, strict=True))
    return kept_positions(length, owners)
