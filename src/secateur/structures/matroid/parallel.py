"""Rows that are multiples of one another, found without comparing all pairs."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from secateur.structures.matroid.modular import Ints, as_rows

__all__ = ["ParallelRows", "normalise_rows", "parallel_rows"]

Floats = NDArray[np.float64]

_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class ParallelRows:
    """Classes of parallel rows.

    Attributes:
        classes: Rows of each class, its leader (the first) first, in the order of leaders.
        scales: row = scale * leader, in the same order; 1 for the leader.
        zeros: Rows of zeros, which are in no class.
        deviation: Largest entry of |row / |row| - +-leader / |leader|| over all classes.
    """

    classes: tuple[tuple[int, ...], ...]
    scales: tuple[tuple[float, ...], ...]
    zeros: tuple[int, ...]
    deviation: float


def parallel_rows(vectors: ArrayLike, tolerance: float = 0.0, signed: bool = True) -> ParallelRows:
    """Group the rows that are multiples of one another.

    Rows are scaled to length 1 and sorted by one random projection; only neighbours there are compared, so
    that rows in general position cost O(n d + n log n).  Classes are stars, not chains: every member is
    compared with its leader.

    Args:
        vectors: Rows [n, d], finite.
        tolerance: Largest entry by which directions may differ (rows of norm up to it count as zero). 0 asks
            for exactly parallel rows, which is decided over the rationals.
        signed: Whether to count only positive multiples.

    Raises:
        ValueError: If `vectors` is not a finite matrix or the tolerance is negative.

    Example:
        >>> result = parallel_rows([[1.0, 2.0], [0.0, 0.0], [3.0, 6.0], [-1.0, -2.0]])
        >>> result.classes, result.scales, result.zeros
        (((0, 2), (3,)), ((1.0, 3.0), (1.0,)), (1,))
    """
    rows = as_rows(vectors)
    if not tolerance >= 0:
        raise ValueError(f"the tolerance must be 0 or more; got {tolerance!r}")
    units, norms = normalise_rows(rows)
    zero = norms <= tolerance
    stars = _group_by_leader(rows, units, np.flatnonzero(~zero), tolerance, signed)
    scales = tuple(tuple(_scale_factor(rows[star[0]], rows[i]) for i in star) for star in stars)
    deviation = max((_distances(units[star], units[star[0]], signed).max() for star in stars), default=0.0)
    zeros = tuple(np.flatnonzero(zero).tolist())
    return ParallelRows(tuple(map(tuple, stars)), scales, zeros, float(deviation))


def _group_by_leader(
    rows: Floats, units: Floats, alive: Ints, tolerance: float, signed: bool
) -> list[list[int]]:
    """Assign every row to the first leader to which it is parallel.

    |g . (u - l)| <= |g|_1 |u - l|_inf bounds how far a member's projection can be from its leader's.
    """
    g = np.random.default_rng(0).normal(size=rows.shape[1])
    slack = max(tolerance, _ROUNDING)
    key = units @ g if signed else np.abs(units @ g)
    order = alive[np.argsort(key[alive], kind="stable")]
    sorted_keys, reach = key[order], slack * np.abs(g).sum()
    free = np.ones(len(rows), dtype=bool)
    stars = []
    for leader in alive.tolist():
        if not free[leader]:
            continue
        low, high = np.searchsorted(sorted_keys, [key[leader] - reach, key[leader] + reach])
        near = np.sort(order[low : max(high, low + 1)])
        near = near[free[near] & (_distances(units[near], units[leader], signed) <= slack)]
        near = near[near != leader]
        star = [int(i) for i in near if tolerance > 0 or _exactly_parallel(rows[leader], rows[i])]
        free[[leader, *star]] = False
        stars.append([leader, *star])
    return stars


def normalise_rows(rows: Floats) -> tuple[Floats, Floats]:
    """Return rows scaled to length 1 (zeros stay), and their lengths."""
    largest = np.abs(rows).max(axis=1)
    scaled = rows / np.where(largest > 0, largest, 1.0)[:, None]
    length = np.linalg.norm(scaled, axis=1)
    return scaled / np.where(length > 0, length, 1.0)[:, None], largest * length


def _distances(units: Floats, leader: Floats, signed: bool) -> Floats:
    distance = np.abs(units - leader).max(axis=1)
    return distance if signed else np.minimum(distance, np.abs(units + leader).max(axis=1))


def _exactly_parallel(a: Floats, b: Floats) -> bool:
    """Decide a_c b = b_c a over the rationals, c where a is largest."""
    c = int(np.abs(a).argmax())
    lead_a, lead_b = Fraction(float(a[c])), Fraction(float(b[c]))
    return all(lead_a * Fraction(float(y)) == lead_b * Fraction(float(x)) for x, y in zip(a, b, strict=True))


def _scale_factor(leader: Floats, row: Floats) -> float:
    c = int(np.abs(leader).argmax())
    return float(row[c] / leader[c])
