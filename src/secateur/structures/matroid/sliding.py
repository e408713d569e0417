"""Numerical ranks of all windows of a sequence of vectors, with an SVD only if a cheap bound does not decide.

Neighbouring windows of k rows in k columns differ in one row, so the inverse X of the window follows by
Sherman and Morrison in O(k^2), and sigma_min >= (1 - rho) / |X|_F, rho = |M X - I|, shows when a window is
far from losing rank.  rho is sampled (at the row about to leave), taken as at most 1/2 for a sample under
1e-3, and the bound must still clear the tolerance by a factor of 100.  Windows of fewer rows than columns are
sketched by a Gaussian matrix G first, sigma_min(A) >= sigma_min(A G) / |G|; of longer ones it is enough that
k of their rows are clear.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg.blas import dger

from secateur.structures.matroid.interval import check_window
from secateur.structures.matroid.modular import Ints, as_rows

__all__ = ["MARGIN", "WindowRanks", "check_rtol", "normalized_rows", "window_ranks"]

Floats = NDArray[np.float64]

MARGIN = 100.0
_DRIFT = 1e-3


@dataclass(frozen=True, eq=False)
class WindowRanks:
    """Numerical ranks of windows, with the evidence for every verdict.

    Attributes:
        size: Vectors in a window.
        ranks: Integers [windows].
        tolerance: Singular values up to this count as zero, [windows].
        above: Smallest singular value that counts (or a lower bound of it), [windows]; inf if none does.
        below: Largest singular value that does not count, [windows]; 0 if all do.
        decompositions: Number of windows that needed an SVD.
    """

    size: int
    ranks: Ints
    tolerance: Floats
    above: Floats
    below: Floats
    decompositions: int

    @property
    def gap(self) -> Floats:
        """Ratio of the smallest value that counts to the tolerance or the next value, [windows]."""
        return self.above / np.maximum(np.maximum(self.below, self.tolerance), np.finfo(float).tiny)


def normalized_rows(rows: Floats) -> Floats:
    """Scale every row by its largest entry, then to length 1; rows of zeros stay."""
    largest = np.abs(rows).max(axis=1, keepdims=True)
    scaled = rows / np.where(largest > 0, largest, 1.0)
    length = np.linalg.norm(scaled, axis=1, keepdims=True)
    return scaled / np.where(length > 0, length, 1.0)


def check_rtol(rtol: float | None) -> None:
    """Raise ValueError unless `rtol` is None or in [0, 1)."""
    if rtol is not None and not 0 <= rtol < 1:
        raise ValueError(f"rtol must be in [0, 1), relative to the largest singular value; got {rtol!r}")


def window_ranks(
    vectors: ArrayLike,
    size: int,
    *,
    rtol: float | None = None,
    normalize: bool = False,
    cyclic: bool = False,
    screen: bool = True,
) -> WindowRanks:
    """Return the numerical ranks of all windows of `size` neighbours.

    Args:
        vectors: Rows [n, d], finite.
        size: Vectors in a window, 1 .. n.
        rtol: Tolerance relative to the window's largest singular value; None: max(size, d) * eps, as
            in `numpy.linalg.matrix_rank`.
        normalize: Scale rows to length 1 first.
        cyclic: Whether windows may wrap.
        screen: Skip the SVD if the sliding bound proves that a window has full rank by a
            factor of 100 or more.

    Returns:
        The ranks, and for each its tolerance and the singular values on both sides of it.

    Raises:
        ValueError: If `vectors` is not a finite matrix, or `size` or `rtol` is out of range.

    Example:
        >>> window_ranks([[1, 0], [2, 0], [0, 1]], 2).ranks.tolist()
        [1, 2]
    """
    rows = as_rows(vectors)
    check_window(size, rows.shape[0])
    check_rtol(rtol)
    rows = normalized_rows(rows) if normalize else rows
    relative = max(size, rows.shape[1]) * np.finfo(float).eps if rtol is None else rtol
    windows = rows.shape[0] if cyclic else rows.shape[0] - size + 1
    around = np.vstack([rows, rows[: size - 1]]) if cyclic and size > 1 else rows
    bound = _window_bounds(around, size)[:windows] if screen else np.zeros(windows)
    return _decide_windows(around, size, relative, bound)


def _decide_windows(rows: Floats, size: int, rtol: float, bound: Floats) -> WindowRanks:
    """Decide each window by its bound where that is clear, else by its singular values."""
    squares = np.concatenate([[0.0], np.cumsum((rows**2).sum(axis=1))])
    count = bound.size
    tolerance = rtol * np.sqrt(np.maximum(squares[size : size + count] - squares[:count], 0.0))
    full = min(size, rows.shape[1])
    ranks, above, below = np.full(count, full), bound.copy(), np.zeros(count)
    unclear = np.flatnonzero(~(bound > MARGIN * tolerance))
    for i in unclear:
        values = np.linalg.svd(rows[i : i + size], compute_uv=False)
        tolerance[i] = rtol * values[0]
        ranks[i] = int((values > tolerance[i]).sum())
        above[i] = values[ranks[i] - 1] if ranks[i] else np.inf
        below[i] = values[ranks[i]] if ranks[i] < full else 0.0
    return WindowRanks(size, ranks, tolerance, above, below, unclear.size)


def _window_bounds(rows: Floats, size: int) -> Floats:
    """Return lower bounds of the smallest singular value of every window, 0 where none is known."""
    d = rows.shape[1]
    if size < d:
        sketch = np.random.default_rng(0).normal(size=(d, size)) / np.sqrt(d)
        return _square_bounds(rows @ sketch) / np.linalg.norm(sketch, 2)
    # More rows never lower sigma_min: the best of the d-row windows inside bounds the longer one.
    square = _square_bounds(rows)
    return np.lib.stride_tricks.sliding_window_view(square, size - d + 1).max(axis=1)


def _square_bounds(rows: Floats) -> Floats:
    """Bound sigma_min of each window of k rows from below, k the number of columns.

    Slot s = i mod k holds row i.  With w = v_new X, the new inverse is X - X e_s (w - e_s) / w_s.  The
    update relies on v_old X = e_s for the row that leaves: that identity is measured at each step, and
    where it has drifted the window is inverted again.
    """
    n, k = rows.shape
    bounds = np.zeros(n - k + 1)
    inverse: Floats | None = None
    for i in range(n - k + 1):
        if inverse is not None:
            inverse = _replace_row(inverse, rows[i + k - 1], (i - 1) % k)
        if inverse is None or _drift(inverse, rows[i], i % k) > _DRIFT:
            inverse = _invert(np.roll(rows[i : i + k], i % k, axis=0))
        if inverse is not None:
            bounds[i] = 0.5 / np.linalg.norm(inverse)  # (1 - rho) / |X|_F with rho <= 1/2
    return bounds


def _replace_row(inverse: Floats, new: Floats, slot: int) -> Floats | None:
    """Update the inverse in place for a new row in `slot`; None if the new window is singular."""
    w = new @ inverse
    pivot = w[slot]
    if abs(pivot) <= np.finfo(float).eps * np.abs(w).max():
        return None
    w[slot] -= 1.0
    return np.asarray(dger(-1.0 / pivot, inverse[:, slot].copy(), w, a=inverse, overwrite_a=1))


def _drift(inverse: Floats, row: Floats, slot: int) -> float:
    residual = row @ inverse
    residual[slot] -= 1.0
    return float(np.linalg.norm(residual)) if np.isfinite(residual).all() else np.inf


def _invert(window: Floats) -> Floats | None:
    """Return the inverse in Fortran order, or None if it does not exist or is inaccurate."""
    try:
        inverse = np.asfortranarray(np.linalg.inv(window))
    except np.linalg.LinAlgError:
        return None
    return inverse if np.isfinite(inverse).all() and _drift(inverse, window[0], 0) <= _DRIFT else None
