"""From atoms to groups: free atoms are units, and units that own as much of the same axes form a group."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secateur.core import Frozen, Group, Kind, Role, SizeAttribute, Slot
from secateur.tracing.empty_axes import find_needed_atoms
from secateur.tracing.equal_lengths import equally_long, tie_uncountable
from secateur.tracing.kinds import KindFinder
from secateur.tracing.labels import Label
from secateur.tracing.propagate import Propagation, TensorAxes

__all__ = ["Owners", "Tensors", "UnitFamily", "find_equal_counts", "find_frozen", "find_groups", "find_sizes"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Tensors:
    """Parameters and buffers with their labels.

    Attributes:
        states: Name -> axes with their labels.
        parameters: Names of the parameters among them.
    """

    states: Mapping[str, TensorAxes]
    parameters: frozenset[str]


@dataclass(frozen=True, eq=False)
class UnitFamily:
    """A group and the atoms of its units.

    Attributes:
        roots: Atoms [units].
        group: The group.
    """

    roots: Ints
    group: Group


@dataclass(frozen=True, eq=False)
class _Occurrences:
    """Every occurrence of a free atom on a tensor axis, as the columns of one table.

    Attributes:
        root: The atom.
        axis: Number of the tensor axis in `axes`.
        index: Index on that axis.
        axes: (tensor, axis) by number.
    """

    root: Ints
    axis: Ints
    index: Ints
    axes: list[tuple[str, int]]


def find_groups(propagation: Propagation, tensors: Tensors) -> list[UnitFamily]:
    """Collect free atoms into groups; freeze those that cannot lose a unit.

    Args:
        propagation: After all labels have passed through the graph.
        tensors: Parameters and buffers.

    Returns:
        The groups that own indices of a parameter, in the order of the parameters.
    """
    while True:
        occurrences = _occurrences(propagation, tensors)
        families = _families(occurrences)
        single = [roots for roots, _ in families if len(roots) < 2]
        if single:
            why = "only one unit: without it nothing would be left"
            propagation.algebra.freeze(np.concatenate(single)[:, None], why)
            continue
        all_roots = [roots for roots, _ in families]
        needed = find_needed_atoms(_by_axis(occurrences, tensors), all_roots, propagation.algebra.size)
        if needed.size:
            propagation.algebra.freeze(needed[:, None], "without it an axis could end empty")
        elif not tie_uncountable(propagation, all_roots):
            break
    kinds = KindFinder(propagation)
    names: Counter[str] = Counter()
    groups = []
    for roots, indices in families:
        axes = [occurrences.axes[axis] for axis, _ in indices]
        if not any(tensor in tensors.parameters for tensor, _ in axes):
            continue
        slots = tuple(
            _slot(propagation, tensors, tensor, axis, index)
            for (tensor, axis), (_, index) in zip(axes, indices, strict=True)
        )
        kind = kinds.kind(roots, slots)
        groups.append(UnitFamily(roots, Group(_name(slots, tensors, kind, names), len(roots), slots, kind)))
    return groups


def _slot(propagation: Propagation, tensors: Tensors, tensor: str, axis: int, index: Ints) -> Slot:
    default: Role = "out" if tensor in tensors.parameters else "scale"
    return Slot(tensor, axis, index, propagation.roles.get((tensor, axis), default))


def _occurrences(propagation: Propagation, tensors: Tensors) -> _Occurrences:
    roots: list[Ints] = []
    numbers: list[Ints] = []
    indices: list[Ints] = []
    axes: list[tuple[str, int]] = []
    for name, state in tensors.states.items():
        for axis, label in enumerate(state.labels):
            label = propagation.algebra.normal(label)
            if label is None:
                continue
            for column in label.T:
                free = np.flatnonzero(column)
                roots.append(column[free])
                indices.append(free)
                numbers.append(np.full(len(free), len(axes)))
            axes.append((name, axis))
    if not roots:
        empty = np.zeros(0, dtype=np.int64)
        return _Occurrences(empty, empty, empty, axes)
    return _Occurrences(np.concatenate(roots), np.concatenate(numbers), np.concatenate(indices), axes)


def _by_axis(occurrences: _Occurrences, tensors: Tensors) -> Iterator[tuple[Ints, Ints, int]]:
    """Yield the indices and atoms of the occurrences on each axis, and the length of the axis."""
    if not occurrences.axes:
        return
    order = np.argsort(occurrences.axis, kind="stable")
    cuts = np.searchsorted(occurrences.axis[order], np.arange(1, len(occurrences.axes)))
    for (tensor, axis), members in zip(occurrences.axes, np.split(order, cuts), strict=True):
        yield occurrences.index[members], occurrences.root[members], tensors.states[tensor].shape[axis]


def _families(occurrences: _Occurrences) -> list[tuple[Ints, list[tuple[int, Ints]]]]:
    """Group the atoms that own equally many indices of the same axes.

    Returns:
        For each family its atoms [units], and for each axis that they occur on the axis' number and the
        indices [units, per_unit].

    Two atoms belong to one family iff they have the same numbers c of indices on each axis.  Comparing
    these vectors for hundreds of thousands of atoms is slow, so each is reduced to one 64-bit number, the
    sum of c[axis] * weight[axis] with fixed random weights below 2^62.  If two vectors differ by d on an
    axis, then at most gcd(d, 2^64) values of that axis' weight give equal sums, whatever the other weights
    are.  So two families are confused with a probability of at most 2^-62 * gcd(d, 2^64).  d is small, and
    for a thousand families (half a million pairs) with odd d this is 1e-13.  The weights also decide the
    order of families that start at the same index (heads, and positions inside a head): other weights
    would rename groups.
    """
    if not occurrences.root.size:
        return []
    order = np.lexsort((occurrences.index, occurrences.axis, occurrences.root))
    root, axis, index = occurrences.root[order], occurrences.axis[order], occurrences.index[order]
    # A run is what one atom owns of one axis.
    run_starts = np.flatnonzero(np.r_[True, (root[1:] != root[:-1]) | (axis[1:] != axis[:-1])])
    counts = np.diff(np.r_[run_starts, len(root)])
    run_root, run_axis = root[run_starts], axis[run_starts]
    starts_unit = np.r_[True, run_root[1:] != run_root[:-1]]
    unit_of_run = np.cumsum(starts_unit) - 1
    units, first_run = run_root[starts_unit], np.flatnonzero(starts_unit)

    weights = np.random.default_rng(0).integers(1, 2**62, len(occurrences.axes), dtype=np.uint64)
    signature = np.zeros(len(units), dtype=np.uint64)
    np.add.at(signature, unit_of_run, weights[run_axis] * counts.astype(np.uint64))

    # Units in the order of their families, inside a family in the order of their first indices.
    by_family = np.lexsort((index[run_starts][first_run], run_axis[first_run], signature))
    cuts = np.flatnonzero(np.diff(signature[by_family])) + 1
    position = np.empty(len(units), dtype=np.int64)
    position[by_family] = np.arange(len(units))
    unit = position[np.repeat(unit_of_run, counts)]
    order = np.argsort(unit, kind="stable")
    unit, axis, index = unit[order], axis[order], index[order]
    columns = (np.split(column, np.searchsorted(unit, cuts)) for column in (unit, axis, index))
    families = [
        (units[members], _indices_by_axis(u, a, i, len(members)))
        for members, u, a, i in zip(np.split(by_family, cuts), *columns, strict=True)
    ]
    return sorted(families, key=lambda family: (family[1][0][0], family[1][0][1].min()))


def _indices_by_axis(unit: Ints, axis: Ints, index: Ints, units: int) -> list[tuple[int, Ints]]:
    """Return, for each axis of a family, the indices [units, per_unit] that its units own."""
    order = np.lexsort((index, unit, axis))
    axis, index = axis[order], index[order]
    cuts = np.flatnonzero(np.diff(axis)) + 1
    return [
        (int(a[0]), i.reshape(units, -1))
        for a, i in zip(np.split(axis, cuts), np.split(index, cuts), strict=True)
    ]


def _name(slots: Sequence[Slot], tensors: Tensors, kind: Kind, names: Counter[str]) -> str:
    """Name a group after the module that makes its units: weights (2 or more axes) before biases.

    Units of attention, of which a module makes several kinds, are named after their kind, too.
    """
    producers = [s for s in slots if s.role == "out" and len(tensors.states[s.tensor].shape) > 1]
    producers = producers or [s for s in slots if s.role == "out"] or list(slots)
    module, _, tensor = producers[0].tensor.rpartition(".")
    name = (module or tensor) + (f" ({kind})" if kind in KINDS_IN_NAMES else "")
    names[name] += 1
    return name if names[name] == 1 else f"{name} #{names[name]}"


KINDS_IN_NAMES = ("heads", "key-value groups", "head positions")
LOCATION = re.compile(r" \(([^()]*:\d+)\)$")


def find_frozen(
    propagation: Propagation, tensors: Tensors, others: Sequence[Group] = ()
) -> tuple[Frozen, ...]:
    """List the feature axes of weights that cannot lose anything, not even units of other groups, and why."""
    owned = {(slot.tensor, slot.axis) for group in others for slot in group.slots}
    frozen = []
    for name, state in tensors.states.items():
        for axis, label in enumerate(state.labels):
            if name not in tensors.parameters or len(state.shape) < 2 or state.shape[axis] == 1 or axis > 1:
                continue
            if (name, axis) in owned or propagation.algebra.normal(label) is not None:
                continue
            reason = "; ".join(propagation.algebra.reason(label)) or "no units on this axis"
            location = LOCATION.search(reason)
            source = location.group(1) if location else ""
            frozen.append(Frozen(name, axis, LOCATION.sub("", reason), source))
    return tuple(frozen)


def find_equal_counts(
    propagation: Propagation, families: Sequence[UnitFamily]
) -> tuple[tuple[str, ...], ...]:
    """Return the names of the groups that must keep equal counts, set by set, in the order of the groups."""
    names = {int(family.roots.min()): family.group.name for family in families}
    sets = [{names[int(axis.min())] for axis in axes} for axes in equally_long(propagation)]
    return tuple(tuple(name for name in names.values() if name in found) for found in sets)


def find_sizes(propagation: Propagation, families: Sequence[UnitFamily]) -> tuple[SizeAttribute, ...]:
    """Return the attributes that state lengths, with the positions of their axes that each unit owns."""
    owners = Owners(propagation, families)
    sizes: dict[tuple[str, str], SizeAttribute] = {}
    for module, attribute, value, label, source in propagation.size_attributes:
        if (module, attribute) not in sizes:
            names, index = owners.of(label)
            if names:
                sizes[module, attribute] = SizeAttribute(module, attribute, value, names, index, source)
    return tuple(sizes.values())


class Owners:
    """Which units own which positions of an axis.

    Args:
        propagation: After all labels have passed through the graph.
        families: The groups.
    """

    def __init__(self, propagation: Propagation, families: Sequence[UnitFamily]) -> None:
        """Number the groups and units."""
        self._algebra, self._families = propagation.algebra, families
        self._group = np.full(propagation.algebra.size, -1)
        self._unit = np.full(propagation.algebra.size, -1)
        for number, family in enumerate(families):
            self._group[family.roots] = number
            self._unit[family.roots] = np.arange(len(family.roots))

    def of(self, label: Label) -> tuple[tuple[str, ...], tuple[Ints, ...]]:
        """Return the names of the groups on an axis, and for each its units and their positions, [2, m]."""
        label = self._algebra.normal(label)
        if label is None:
            return (), ()
        position, column = np.nonzero(self._group[label] >= 0)
        atoms = label[position, column]
        group, unit = self._group[atoms], self._unit[atoms]
        numbers = np.unique(group)
        index = tuple(np.stack([unit, position])[:, group == n] for n in numbers)
        return tuple(self._families[n].group.name for n in numbers), index
