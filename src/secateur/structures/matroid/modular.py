"""Rank arithmetic modulo a prime, for floats treated as the dyadic rationals that they are.

A finite float is m * 2^e with integers m and e, so it has an exact image in GF(p) for every odd prime
p.  The rank modulo p never exceeds the rank over the rationals, and falls short of it only when p
divides every maximal minor that is not zero: a full rank is proven, a deficiency is confirmed by a
second prime or over the rationals.

In all primes used here 2 is a primitive root: were its order small (31 for p = 2^31 - 1), powers of
two that differ over the rationals would coincide modulo p.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "PRIMES",
    "affine_permutation_mod",
    "as_rows",
    "flint",
    "greedy_mod",
    "rank_mod",
    "rank_rational",
    "residues",
]

PRIMES = (1073741789, 1073741741, 1073741723, 1073741717, 1073741651, 1073741477)

_LOWEST = -1130

Residues = NDArray[np.uint32]
Ints = NDArray[np.int64]


def as_rows(vectors: ArrayLike, what: str = "vectors") -> NDArray[np.float64]:
    """Return `vectors` as a finite float64 matrix of at least one row and one column.

    Args:
        vectors: Array-like or CPU tensor [n, d].
        what: Name for the error message.

    Raises:
        ValueError: If it is not a matrix, is empty or not finite, or holds integers too large for float64.
    """
    given = np.asarray(vectors.detach().cpu() if hasattr(vectors, "detach") else vectors)
    if given.ndim != 2 or 0 in given.shape:
        raise ValueError(f"{what} must be a matrix with rows and columns; got shape {given.shape}")
    rows = given.astype(np.float64)
    if not np.isfinite(rows).all():
        bad = np.argwhere(~np.isfinite(rows))[0]
        raise ValueError(f"{what} must be finite; entry {tuple(bad.tolist())} is {rows[tuple(bad)]}")
    if given.dtype.kind in "iu" and np.abs(rows).max() > 2.0**53:
        raise ValueError(f"{what} holds integers beyond 2^53, which float64 would round; scale them down")
    return rows


def residues(rows: NDArray[np.float64], p: int) -> Residues:
    """Map floats exactly into GF(p).

    Args:
        rows: Finite float64 [n, d].
        p: An odd prime below 2^30.

    Example:
        >>> residues(np.array([[3.0, -1.0, 0.5]]), 7).tolist()
        [[3, 6, 4]]
    """
    # x = (mantissa 2^53) 2^(exponent - 53), and mantissa 2^53 is an integer.
    mantissa, exponent = np.frexp(rows)
    whole = np.ldexp(mantissa, 53).astype(np.int64) % p
    return (whole * _powers_of_two(p)[exponent - 53 - _LOWEST] % p).astype(np.uint32)


@lru_cache(maxsize=len(PRIMES))
def _powers_of_two(p: int) -> Ints:
    """Return 2^e mod p for every exponent e from `_LOWEST` that a double can have."""
    return np.array([pow(2, e % (p - 1), p) for e in range(_LOWEST, 1030)], dtype=np.int64)


def greedy_mod(rows: Residues, p: int) -> NDArray[np.bool_]:
    """Mark the rows that are not in the span (mod p) of the rows before them.

    Args:
        rows: Residues [n, d].
        p: The prime.

    Returns:
        Booleans [n]; their number is the rank, and the marked rows are the first basis in order.
    """
    # Not at the top: compiled code needs numba, which is slow to import, and only exact ranks need it.
    from secateur.structures.matroid import modular_kernels

    return modular_kernels.greedy(rows, p)


def affine_permutation_mod(rows: Residues, p: int) -> Ints:
    """Return f(i) = min { j >= i : v_i in span(v_(i+1) .. v_j) } of the cyclically repeated rows, mod p.

    Args:
        rows: Residues [n, d].
        p: The prime.

    Returns:
        Integers [n], i <= f(i) <= i + n: f(i) = i for a loop, i + n for a coloop.
    """
    from secateur.structures.matroid import modular_kernels

    return modular_kernels.affine_permutation(rows, p)


def rank_mod(rows: NDArray[np.float64], p: int) -> int:
    """Return the rank modulo p of a float matrix [n, d]: a lower bound of its rank."""
    # Elimination costs n d^2: make d the smaller side.
    slim = rows if rows.shape[0] >= rows.shape[1] else rows.T
    return int(greedy_mod(residues(slim, p), p).sum())


def flint() -> Any:
    """Return the module python-flint.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        return import_module("flint")
    except ImportError as error:
        raise ImportError(
            "confirm='rational' needs python-flint: pip install 'secateur[peers]', or use confirm='prime'"
        ) from error


def rank_rational(rows: NDArray[np.float64]) -> int:
    """Return the rank of a float matrix [n, d] over the rationals, by python-flint."""
    return int(flint().fmpz_mat([_scale_to_integers(row) for row in rows]).rank())


def _scale_to_integers(row: NDArray[np.float64]) -> list[int]:
    """Scale a row by a power of two to integers; ranks do not change."""
    pairs = [float(x).as_integer_ratio() for x in row]
    common = max(denominator for _, denominator in pairs)
    return [numerator * (common // denominator) for numerator, denominator in pairs]
