"""Concept contexts from data: which attributes are intersections of others, up to a tolerance.

A context is a boolean table of objects and attributes (B. Ganter and R. Wille, Formal Concept Analysis,
1999).  The extent m' of an attribute m is the set of objects that have it.  An attribute is reducible if its
extent is an intersection of the extents of other attributes; removing it does not change the concept lattice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from secateur.structures.order import bitset
from secateur.structures.order.poset import Poset

__all__ = ["Elimination", "attribute_gaps", "attribute_order", "eliminate_attributes"]

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Elimination:
    """Attributes in the sequence in which they were removed.

    Attributes:
        sequence: All attributes; those after the first `len(gaps)` remain.
        gaps: For each removed attribute, the share of objects that distinguished it from the remaining ones.
    """

    sequence: IntArray
    gaps: NDArray[np.float64]


def attribute_order(incidence: ArrayLike) -> Poset:
    """Return the order of the attributes by inclusion of their extents; equal ones are one element.

    Args:
        incidence: Boolean table [objects, attributes].

    Raises:
        ValueError: If the table is not boolean or is empty.

    Example:
        >>> attribute_order([[1, 1, 1], [1, 0, 0], [0, 1, 0]]).upper_covers(2).tolist()
        [0, 1]
    """
    extents, _ = _check_table(incidence, 0.0)
    return Poset.from_digraph(_containment(bitset.pack(extents), 0))


def attribute_gaps(incidence: ArrayLike, tolerance: float = 0.0) -> NDArray[np.float64]:
    """Return the distance of each attribute's extent to the intersection of the extents above it.

    The intersection is over the other attributes whose extent contains m' except for at most
    `tolerance` of all objects; if there are none it is the set of all objects.  The gap is the share of
    the objects in the symmetric difference: with tolerance 0 it is 0 exactly if m is reducible.

    Args:
        incidence: Boolean table [objects, attributes].
        tolerance: Share of the objects, in [0, 1).

    Raises:
        ValueError: If the table is not boolean, is empty, or the tolerance is outside [0, 1).

    Example:
        >>> attribute_gaps([[1, 1, 1], [1, 0, 0], [0, 1, 0]]).round(2).tolist()  # third = first & second
        [0.33, 0.33, 0.0]
    """
    extents, objects = _check_table(incidence, tolerance)
    missing = _missing_counts(extents, int(tolerance * objects), objects)
    return _gaps(extents, missing[0], np.ones(len(extents), np.bool_), objects) / objects


def eliminate_attributes(
    incidence: ArrayLike, tolerance: float = 0.0, largest_gap: float = 1.0, keep: int = 0
) -> Elimination:
    """Remove the attribute with the smallest gap, repeatedly; ties go to the higher index.

    Each removal takes the attribute out of the intersections of the others, so of two equal attributes only
    one has gap 0.  With `largest_gap=0` the remaining attributes are the reduced context.

    Args:
        incidence: Boolean table [objects, attributes].
        tolerance: As in `attribute_gaps`.
        largest_gap: Stop when every gap left is larger.
        keep: Stop when this many attributes are left.

    Returns:
        The sequence; O(attributes^2 objects) time.

    Raises:
        ValueError: As in `attribute_gaps`.
    """
    extents, objects = _check_table(incidence, tolerance)
    missing, above = _missing_counts(extents, int(tolerance * objects), objects)
    limit = int(np.floor(largest_gap * objects + 1e-9))
    order, gaps, taken = _eliminate_by_gap(extents, missing, above, objects, limit, keep)
    return Elimination(order, gaps[:taken] / objects)


def _check_table(incidence: ArrayLike, tolerance: float) -> tuple[BoolArray, int]:
    """Return the extents [attributes, objects] of a valid table, and the number of objects."""
    table = np.asarray(incidence)
    if table.ndim != 2 or 0 in table.shape or not np.isin(table, (0, 1)).all():
        raise ValueError(
            f"a context is a boolean table [objects, attributes]; got {table.dtype} of shape {table.shape}"
        )
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance is a share of the objects in [0, 1); got {tolerance}")
    return np.ascontiguousarray(table.T.astype(np.bool_)), table.shape[0]


def _missing_counts(extents: BoolArray, slack: int, objects: int) -> tuple[Any, Any]:
    """Return how many of the extents above each one miss each object, and which ones are above."""
    above = _containment(bitset.pack(extents), slack)
    missing = above.astype(np.float32) @ (~extents).astype(np.float32)
    return missing.astype(np.int32), above


@njit(cache=True, nogil=True)
def _containment(bits: Any, slack: int) -> Any:
    """Return [n, n], true where set k contains set m except for at most `slack` objects, k not m."""
    n, words = bits.shape
    above = np.zeros((n, n), np.bool_)
    for m in range(n):
        for k in range(n):
            outside = 0
            for w in range(words):
                outside += bitset.count_bits(bits[m, w] & ~bits[k, w])
                if outside > slack:
                    break
            above[m, k] = outside <= slack and m != k
    return above


@njit(cache=True, nogil=True)
def _count_difference(extent: Any, missing: Any) -> int:
    """Count where an extent and an intersection differ; g is in the intersection if missing[g] is 0."""
    count = 0
    for g in range(len(extent)):
        count += extent[g] != (missing[g] == 0)
    return count


@njit(cache=True, nogil=True)
def _gaps(extents: Any, missing: Any, present: Any, objects: int) -> Any:
    gaps = np.full(len(extents), objects + 1, np.int64)
    for m in range(len(extents)):
        if present[m]:
            gaps[m] = _count_difference(extents[m], missing[m])
    return gaps


@njit(cache=True, nogil=True)
def _eliminate_by_gap(extents: Any, missing: Any, above: Any, objects: int, limit: int, keep: int) -> Any:
    n = len(extents)
    present = np.ones(n, np.bool_)
    gaps = _gaps(extents, missing, present, objects)
    order = np.empty(n, np.int64)
    taken_gaps = np.empty(n, np.int64)
    taken = 0
    while taken < n - keep:
        chosen = n - 1 - np.argmin(gaps[::-1])  # reversed: ties go to the higher index
        if gaps[chosen] > limit:
            break
        order[taken], taken_gaps[taken] = chosen, gaps[chosen]
        taken += 1
        present[chosen] = False
        gaps[chosen] = objects + 1
        # Only intersections that contained the removed extent change: subtract what it was missing.
        for m in range(n):
            if present[m] and above[m, chosen]:
                for g in range(objects):
                    if not extents[chosen, g]:
                        missing[m, g] -= 1
                gaps[m] = _count_difference(extents[m], missing[m])
    order[taken:] = np.flatnonzero(present)
    return order, taken_gaps, taken
