"""Units that must stay so that no choice of the others leaves an axis empty.

Every group keeps a unit.  That leaves an index of every axis alive, unless the indices of an axis need
several units at once: index 0 the units a and b, index 1 the units c and d; then a and d leave nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["find_needed_atoms"]

Ints = NDArray[np.int64]
Row = frozenset[int]


def find_needed_atoms(
    axes: Iterable[tuple[Ints, Ints, int]], families: Sequence[Ints], number_of_atoms: int
) -> Ints:
    """Return the atoms of one index of every axis that could end empty.

    Args:
        axes: For each axis the index and the free atom of every occurrence, and the length of the axis.
        families: The atoms of each family; of every family at least one stays.
        number_of_atoms: More than the largest atom.

    Example:
        >>> index = np.array([0, 0, 1, 1])
        >>> families = [np.array([1, 2]), np.array([3, 4])]
        >>> find_needed_atoms([(index, np.array([1, 3, 2, 4]), 2)], families, 5)  # 1 and 4 leave nothing
        array([1, 3])
        >>> every_pair = np.array([1, 3, 1, 4, 2, 3, 2, 4])
        >>> find_needed_atoms([(np.repeat(np.arange(4), 2), every_pair, 4)], families, 5)
        array([], dtype=int64)
    """
    family_of = np.full(number_of_atoms, -1)
    for number, roots in enumerate(families):
        family_of[roots] = number
    needed: set[int] = set()
    for index, atoms, length in axes:
        count = np.bincount(index, minlength=length)
        if not len(count) or count.min() == 0 or count.max() == 1:
            continue  # an index that always stays, or the plain case of one unit an index
        order = np.argsort(index, kind="stable")
        rows = {frozenset(row.tolist()) for row in np.split(atoms[order], np.cumsum(count)[:-1])}
        if not _never_empty(rows, family_of, families):
            needed |= min(rows, key=lambda row: (len(row), sorted(row)))
    return np.array(sorted(needed), dtype=np.int64)


def _never_empty(rows: set[Row], family_of: Ints, families: Sequence[Ints]) -> bool:
    """Return whether an index survives if each family keeps one unit, whichever.

    It does if some families have an index for every combination of their units.
    """
    combinations: dict[tuple[int, ...], int] = defaultdict(int)
    for row in rows:
        combinations[tuple(sorted(int(family_of[atom]) for atom in row))] += 1
    return any(
        len(set(numbers)) == len(numbers) and count == math.prod(len(families[n]) for n in numbers)
        for numbers, count in combinations.items()
    )
