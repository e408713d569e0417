"""A basis among rows, and the other rows as combinations of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import qr, solve_triangular

from secateur.structures.matroid.modular import Ints, as_rows
from secateur.structures.matroid.parallel import normalise_rows

__all__ = ["RowBasis", "row_basis"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RowBasis:
    """Rows that are independent, and how the others follow: row[removed] = coefficients @ row[kept].

    Attributes:
        kept: Sorted numbers of the rows in the basis, int64 [K].
        removed: Sorted numbers of the others, int64 [R].
        coefficients: float64 [R, K].
        deviation: Largest |row - combination| / |row| of the removed rows; 0 if there are none.
    """

    kept: Ints
    removed: Ints
    coefficients: Floats
    deviation: float


def row_basis(vectors: ArrayLike, tolerance: float = 0.0) -> RowBasis:
    """Choose a basis of rows by QR with column pivoting, and express the other rows by it.

    Rows are scaled to length 1 first, so that a short row counts as much as a long one.  The pivots keep the
    coefficients small: each step takes the row that is farthest from the span of those before.

    Args:
        vectors: Rows [n, d], finite.
        tolerance: A row is dependent if its distance from the span, relative to its length, is at most this.
            Values below the rounding of the QR are raised to it.

    Raises:
        ValueError: If `vectors` is not a finite matrix or the tolerance is negative.

    Example:
        >>> found = row_basis([[2.0, 0.0], [1.0, 3.0], [0.0, 3.0], [0.0, 0.0]])
        >>> found.kept, found.removed, found.coefficients.round(12) + 0.0
        (array([0, 2]), array([1, 3]), array([[0.5, 1. ],
               [0. , 0. ]]))
    """
    rows = as_rows(vectors)
    if not tolerance >= 0:
        raise ValueError(f"the tolerance must be 0 or more; got {tolerance!r}")
    units, norms = normalise_rows(rows)
    if min(rows.shape) == 0 or not units.any():
        return RowBasis(np.zeros(0, int), np.arange(len(rows)), np.zeros((len(rows), 0)), 0.0)
    r, order = qr(units.T, mode="r", pivoting=True)
    floor = max(tolerance, max(rows.shape) * float(np.finfo(np.float64).eps))
    rank = int((np.abs(np.diag(r)) > floor).sum())
    coefficients = solve_triangular(r[:rank, :rank], r[:rank, rank:]).T
    by_kept, by_removed = np.argsort(order[:rank]), np.argsort(order[rank:])
    kept, removed = order[:rank][by_kept], order[rank:][by_removed]
    c = coefficients[by_removed][:, by_kept]
    distances = np.linalg.norm(units[removed] - c @ units[kept], axis=1)
    # From unit rows back to the given ones; ratios first, because norms may differ by hundreds of decades.
    c = c * (norms[removed][:, None] / norms[kept][None])
    return RowBasis(kept.astype(np.int64), removed.astype(np.int64), c, float(distances.max(initial=0.0)))
