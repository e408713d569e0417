"""Positroids, total positivity, and regions of arrangements, exactly, for small cases.

The matroid of an ordered sequence of vectors lies in a positroid, the largest matroid with the same Grassmann
necklace; S. Oh, "Positroids and Schubert matroids", J. Combin. Theory A 118 (2011): its bases are the sets B
with B >=_i I_i for all i, where >=_i compares sorted elements in the order i, i + 1, .., i - 1.  Knutson,
Lam, Speyer (2013): the codimension of its cell is the number of inversions of the bounded affine permutation.
M. Gasca, J. M. Pena, "Total positivity and Neville elimination", Linear Algebra Appl. 165 (1992): a matrix is
totally positive exactly if its initial minors are positive: of adjacent rows and adjacent columns, the first
row or the first column among them.
T. Zaslavsky, "Facing up to arrangements", Mem. AMS 154 (1975): an arrangement has one region more than the
restrictions to each of its hyperplanes of those before it have together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import ArrayLike

from secateur.structures.matroid.base import FiniteMatroid
from secateur.structures.matroid.interval import IntervalMatroid
from secateur.structures.matroid.modular import as_rows

__all__ = [
    "MinorSigns",
    "TooMany",
    "cell_dimension",
    "count_regions",
    "is_positroid",
    "is_totally_positive",
    "is_uniform",
    "maximal_minor_signs",
    "necklace_bases",
]

LIMIT = 50_000
Row = tuple[Fraction, ...]
Necklace = Sequence[frozenset[int]]


class TooMany(ValueError):
    """There are more sets, minors or restrictions than the limit allows."""


@dataclass(frozen=True)
class MinorSigns:
    """How many maximal minors are positive, zero and negative."""

    positive: int
    zero: int
    negative: int


def is_uniform(matroid: FiniteMatroid, limit: int = LIMIT) -> bool:
    """Return whether every set of as many elements as the rank is a basis.

    Raises:
        TooMany: If there are more than `limit` such sets.

    Example:
        >>> from secateur.structures.matroid import LinearMatroid
        >>> is_uniform(LinearMatroid([[1, 0], [0, 1], [1, 1]])), is_uniform(LinearMatroid([[1, 0], [2, 0]]))
        (True, True)
    """
    rank = matroid.rank()
    return all(matroid.rank(subset) == rank for subset in _subsets(len(matroid.elements), rank, limit))


def is_positroid(matroid: FiniteMatroid, limit: int = LIMIT) -> bool:
    """Return whether the matroid is a positroid in the order of its elements 0 .. n-1.

    It is one exactly if it has all bases that its necklace allows.

    Raises:
        TooMany: If more than `limit` sets have the size of a basis.

    Example:
        >>> from secateur.structures.matroid import LinearMatroid
        >>> is_positroid(LinearMatroid([[1, 0], [0, 1], [1, 0], [0, 1]]))  # 0 || 2 crosses 1 || 3
        False
    """
    n, rank = len(matroid.elements), matroid.rank()
    necklace = [frozenset(matroid.basis([-((e - i) % n) for e in range(n)])) for i in range(n)]
    allowed = necklace_bases(necklace, limit)
    return all(matroid.rank(basis) == rank for basis in allowed)


def necklace_bases(necklace: Necklace, limit: int = LIMIT) -> tuple[frozenset[int], ...]:
    """Return the bases of the positroid with this Grassmann necklace (Oh's theorem).

    Raises:
        TooMany: If more than `limit` sets have the size of a basis.

    Example:
        >>> m = IntervalMatroid([[1, 0], [2, 0], [0, 1]])
        >>> [sorted(basis) for basis in necklace_bases(m.grassmann_necklace)]
        [[0, 2], [1, 2]]
    """
    n = len(necklace)
    least = [sorted((e - i) % n for e in first) for i, first in enumerate(necklace)]
    return tuple(
        frozenset(subset)
        for subset in _subsets(n, len(necklace[0]) if n else 0, limit)
        if all(
            all(a >= b for a, b in zip(sorted((e - i) % n for e in subset), first, strict=True))
            for i, first in enumerate(least)
        )
    )


def cell_dimension(matroid: IntervalMatroid) -> int:
    """Return the dimension of the positroid cell: k (n - k) less the inversions of the permutation.

    Example:
        >>> cell_dimension(IntervalMatroid([[1, 0], [0, 1], [1, 1]])), cell_dimension(
        ...     IntervalMatroid([[1, 0], [2, 0], [0, 1]])
        ... )
        (2, 1)
    """
    n, k = matroid.size, matroid.rank
    f = matroid.bounded_affine_permutation
    # f(i) <= i + n, so an inversion i < j with f(j) < f(i) has j < i + n.
    later = np.arange(n)[:, None] + np.arange(1, n)[None, :]
    lifted = f[later % n] + later // n * n
    return k * (n - k) - int((lifted < f[:, None]).sum())


def is_totally_positive(matrix: ArrayLike, limit: int = LIMIT) -> bool:
    """Return whether all minors of a matrix are positive, by its initial minors.

    Raises:
        TooMany: If it has more than `limit` entries.

    Example:
        >>> is_totally_positive([[1, 1], [1, 2]]), is_totally_positive([[1, 1], [1, 1]])
        (True, False)
    """
    rows = _fractions(as_rows(matrix, "matrix"))
    n, d = len(rows), len(rows[0])
    if n * d > limit:
        raise TooMany(f"the matrix has {n * d} initial minors; the limit is {limit}")
    for i in range(n):
        for j in range(d):
            size = min(i, j) + 1  # the minor that ends at (i, j) and reaches the first row or column
            block = [row[j - size + 1 : j + 1] for row in rows[i - size + 1 : i + 1]]
            if _determinant(block) <= 0:
                return False
    return True


def maximal_minor_signs(vectors: ArrayLike, limit: int = LIMIT) -> MinorSigns:
    """Count the signs of the minors of as many rows as there are columns.

    Raises:
        TooMany: If there are more than `limit` of them.

    Example:
        >>> maximal_minor_signs([[1, 0], [0, 1], [1, 1]])
        MinorSigns(positive=2, zero=0, negative=1)
    """
    rows = _fractions(as_rows(vectors))
    counts = {1: 0, 0: 0, -1: 0}
    for chosen in _subsets(len(rows), len(rows[0]), limit):
        value = _determinant([rows[i] for i in chosen])
        counts[(value > 0) - (value < 0)] += 1
    return MinorSigns(counts[1], counts[0], counts[-1])


def count_regions(rows: ArrayLike, limit: int = LIMIT) -> int:
    """Count the regions into which the hyperplanes w x + b = 0 of rows [w | b] cut the space of x.

    Rows without a normal are not hyperplanes and are left out; equal hyperplanes count once.

    Raises:
        TooMany: If more than `limit` restrictions are needed: one for each set of fewer than d hyperplanes.

    Example:
        >>> count_regions([[1, 0, 0], [0, 1, 0], [1, 1, -1]]), count_regions([[1, 0, 0], [1, 0, 1]])
        (7, 3)
    """
    hyperplanes = _distinct(_fractions(as_rows(rows)))
    n, d = len(hyperplanes), len(hyperplanes[0]) - 1 if hyperplanes else 0
    if sum(comb(n, k) for k in range(min(d, n + 1))) > limit:
        raise TooMany(f"{n} hyperplanes in {d} dimensions need more than {limit} restrictions")
    return _regions(hyperplanes)


def _regions(hyperplanes: list[Row]) -> int:
    if not hyperplanes or len(hyperplanes[0]) == 2:
        return 1 + len(hyperplanes)  # points on a line
    return 1 + sum(_regions(_restrict(hyperplanes[:i], h)) for i, h in enumerate(hyperplanes))


def _restrict(hyperplanes: list[Row], to: Row) -> list[Row]:
    """Return the hyperplanes on another one, in coordinates of one dimension less."""
    pivot = next(j for j, x in enumerate(to) if x)
    solved = []
    for row in hyperplanes:
        factor = row[pivot] / to[pivot]
        solved.append(tuple(x - factor * y for x, y in zip(row, to, strict=True)))
    return _distinct([row[:pivot] + row[pivot + 1 :] for row in solved])


def _distinct(rows: Sequence[Row]) -> list[Row]:
    """Return each hyperplane once, its first coefficient 1."""
    scaled: dict[Row, None] = {}
    for row in rows:
        lead = next((x for x in row[:-1] if x), None)
        if lead is not None:
            scaled[tuple(x / lead for x in row)] = None
    return list(scaled)


def _subsets(n: int, size: int, limit: int) -> Iterator[tuple[int, ...]]:
    if comb(n, size) > limit:
        raise TooMany(f"there are {comb(n, size)} sets of {size} of {n}; the limit is {limit}")
    return combinations(range(n), size)


def _fractions(rows: np.ndarray) -> list[Row]:
    return [tuple(Fraction(x) for x in row) for row in rows.tolist()]


def _determinant(block: Sequence[Sequence[Fraction]]) -> Fraction:
    """Eliminate over the rationals."""
    left, value = [list(row) for row in block], Fraction(1)
    for c in range(len(left)):
        lead = next((i for i in range(c, len(left)) if left[i][c]), None)
        if lead is None:
            return Fraction(0)
        if lead != c:
            left[c], left[lead], value = left[lead], left[c], -value
        value *= left[c][c]
        for i in range(c + 1, len(left)):
            factor = left[i][c] / left[c][c]
            left[i] = [x - factor * y for x, y in zip(left[i], left[c], strict=True)]
    return value
