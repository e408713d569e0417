"""From atoms to groups: free atoms are units, units with the same axes are a family."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secateur.core import Frozen, Group, Role, Size, Slot
from secateur.tracing.labels import Label
from secateur.tracing.propagate import Axes, Flow

__all__ = ["Family", "Tensors", "find_frozen", "find_groups", "find_sizes"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Tensors:
    """Parameters and buffers with their labels.

    Attributes:
        states: Name -> labels.
        parameters: Names of the parameters among them.
    """

    states: Mapping[str, Axes]
    parameters: frozenset[str]


@dataclass(frozen=True, eq=False)
class _Table:
    """Every occurrence of a free atom on a tensor axis: three columns of one table."""

    root: Ints
    place: Ints
    row: Ints
    places: list[tuple[str, int]]


@dataclass(frozen=True, eq=False)
class Family:
    """A group and the atoms of its units.

    Attributes:
        roots: Atoms [units].
        group: The group.
    """

    roots: Ints
    group: Group


def find_groups(flow: Flow, tensors: Tensors) -> list[Family]:
    """Collect free atoms into families; freeze those that cannot lose a unit."""
    while True:
        table = _occurrences(flow, tensors)
        found = _families(table)
        hopeless = [roots for roots, slots in found if len(roots) < 2]
        if not hopeless:
            break
        lonely = np.concatenate(hopeless)[:, None]
        flow.atoms.freeze(lonely, "only one unit: without it nothing would be left")
    kinds = _kinds(flow)
    taken: Counter[str] = Counter()
    families = []
    for roots, places in found:
        if not any(table.places[place][0] in tensors.parameters for place, _ in places):
            continue
        slots = tuple(_slot(flow, tensors, *table.places[place], index) for place, index in places)
        name = _name(slots, tensors, kinds.get(int(roots[0]), ""), taken)
        families.append(Family(roots, Group(name, len(roots), slots)))
    return families


def _slot(flow: Flow, tensors: Tensors, tensor: str, axis: int, index: Ints) -> Slot:
    default: Role = "out" if tensor in tensors.parameters else "scale"
    return Slot(tensor, axis, index, flow.roles.get((tensor, axis), default))


def _occurrences(flow: Flow, tensors: Tensors) -> _Table:
    roots: list[Ints] = []
    places: list[Ints] = []
    rows: list[Ints] = []
    names: list[tuple[str, int]] = []
    for name, state in tensors.states.items():
        for axis, label in enumerate(state.labels):
            label = flow.atoms.normal(label)
            if label is None:
                continue
            for column in label.T:
                at = np.flatnonzero(column)
                roots.append(column[at])
                rows.append(at)
                places.append(np.full(len(at), len(names)))
            names.append((name, axis))
    if not roots:
        empty = np.zeros(0, dtype=np.int64)
        return _Table(empty, empty, empty, names)
    return _Table(np.concatenate(roots), np.concatenate(places), np.concatenate(rows), names)


def _families(table: _Table) -> list[tuple[Ints, list[tuple[int, Ints]]]]:
    """Group roots by how often they occur on which axes; return (roots, [(place, index)])."""
    if not table.root.size:
        return []
    order = np.lexsort((table.row, table.place, table.root))
    root, place, row = table.root[order], table.place[order], table.row[order]
    new_pair = np.r_[True, (root[1:] != root[:-1]) | (place[1:] != place[:-1])]
    starts = np.flatnonzero(new_pair)
    counts = np.diff(np.r_[starts, len(root)])
    new_root = np.r_[True, root[starts][1:] != root[starts][:-1]]
    number = np.cumsum(new_root) - 1
    weights = np.random.default_rng(0).integers(1, 2**62, len(table.places), dtype=np.uint64)
    signature = np.zeros(number[-1] + 1, dtype=np.uint64)
    np.add.at(signature, number, weights[place[starts]] * counts.astype(np.uint64))
    units = root[starts][new_root]
    first = np.flatnonzero(new_root)
    where = place[starts][first].astype(np.int64), row[starts][first]
    by_sort = np.lexsort((*where[::-1], signature))
    found = []
    for members in np.split(by_sort, np.flatnonzero(np.diff(signature[by_sort])) + 1):
        rank = np.full(len(units), -1)
        rank[members] = np.arange(len(members))
        mine = rank[number[np.cumsum(new_pair) - 1]]
        inside = mine >= 0
        found.append((units[members], _index(mine[inside], place[inside], row[inside], len(members))))
    return sorted(found, key=lambda f: (f[1][0][0], f[1][0][1].min()))


def _index(unit: Ints, place: Ints, row: Ints, n: int) -> list[tuple[int, Ints]]:
    order = np.lexsort((row, unit, place))
    place, row = place[order], row[order]
    cuts = np.flatnonzero(np.diff(place)) + 1
    return [
        (int(p[0]), r.reshape(n, -1)) for p, r in zip(np.split(place, cuts), np.split(row, cuts), strict=True)
    ]


def _kinds(flow: Flow) -> dict[int, str]:
    words: dict[int, str] = {}
    for label, word in flow.kinds:
        label = flow.atoms.normal(label)
        if label is not None and label.shape[1] == 1:
            words.update({int(root): word for root in label[:, 0] if root})
    return words


def _name(slots: tuple[Slot, ...], tensors: Tensors, kind: str, taken: Counter[str]) -> str:
    producers = [s for s in slots if s.role == "out" and len(tensors.states[s.tensor].shape) > 1]
    producers = producers or [s for s in slots if s.role == "out"] or list(slots)
    module, _, tensor = producers[0].tensor.rpartition(".")
    name = module or tensor
    name += " (heads)" if kind == "heads" else ""
    taken[name] += 1
    return name if taken[name] == 1 else f"{name} #{taken[name]}"


PLACE = re.compile(r" \(([^()]*:\d+)\)$")


def find_frozen(flow: Flow, tensors: Tensors) -> tuple[Frozen, ...]:
    """List the axes of weights that make or read features and cannot lose any, with reasons."""
    found = []
    for name, state in tensors.states.items():
        for axis, label in enumerate(state.labels):
            if name not in tensors.parameters or len(state.shape) < 2 or state.shape[axis] == 1 or axis > 1:
                continue
            if flow.atoms.normal(label) is not None:
                continue
            reason = _reason(flow, label)
            place = PLACE.search(reason)
            found.append(Frozen(name, axis, PLACE.sub("", reason), place.group(1) if place else ""))
    return tuple(found)


def _reason(flow: Flow, label: Label) -> str:
    reasons = flow.atoms.reason(label)
    return "; ".join(reasons) if reasons else "no units on this axis"


def find_sizes(flow: Flow, families: list[Family]) -> tuple[Size, ...]:
    """State for every recorded attribute which groups own which positions of its axis."""
    group_of = np.full(flow.atoms.size, -1)
    unit_of = np.full(flow.atoms.size, -1)
    for number, family in enumerate(families):
        group_of[family.roots] = number
        unit_of[family.roots] = np.arange(len(family.roots))
    sizes: dict[tuple[str, str], Size] = {}
    for module, attribute, value, label, source in flow.sizes:
        label = flow.atoms.normal(label)
        if label is None or (module, attribute) in sizes:
            continue
        position, column = np.nonzero(group_of[label] >= 0)
        atoms = label[position, column]
        numbers = np.unique(group_of[atoms])
        index = tuple(np.stack([unit_of[atoms], position])[:, group_of[atoms] == n] for n in numbers)
        if len(numbers):
            names = tuple(families[n].group.name for n in numbers)
            sizes[module, attribute] = Size(module, attribute, value, names, index, source)
    return tuple(sizes.values())
