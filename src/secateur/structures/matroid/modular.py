"""Rank arithmetic modulo a prime, for floats taken as the dyadic rationals that they are.

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
from numba import njit
from numpy.typing import ArrayLike, NDArray

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
        ValueError: Not a matrix, empty, not finite, or integers that float64 cannot hold.
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
    mantissa, exponent = np.frexp(rows)
    whole = np.ldexp(mantissa, 53).astype(np.int64) % p
    return (whole * _powers_of_two(p)[exponent - 53 - _LOWEST] % p).astype(np.uint32)


@lru_cache(maxsize=len(PRIMES))
def _powers_of_two(p: int) -> Ints:
    """Return 2^e mod p for every exponent e from `_LOWEST` that a double can have."""
    return np.array([pow(2, e % (p - 1), p) for e in range(_LOWEST, 1030)], dtype=np.int64)


@njit(cache=True)
def _inverse(a: int, p: int) -> int:
    """Return a^-1 mod p by Euclid's algorithm."""
    r0, r1, t0, t1 = p, a, 0, 1
    while r1 != 0:
        q = r0 // r1
        r0, r1 = r1, r0 - q * r1
        t0, t1 = t1, t0 - q * t1
    return t0 % p


@njit(cache=True)
def _axpy(row: Residues, pivot: Residues, coefficient: int, start: int, p: int) -> None:
    """Add coefficient * pivot to row from column `start` on; all entries stay in [0, 2p).

    Shoup's product: with c' = floor(c 2^32 / p), c x - floor(c' x / 2^32) p lies in [0, 2p) for every
    x below 2^32, so two products replace a division; 4p < 2^32 leaves room for the sum.
    """
    c = np.uint64(coefficient)
    prime = np.uint64(p)
    scaled = (c << np.uint64(32)) // prime
    twice = np.uint32(2 * p)
    for t in range(start, row.size):
        x = np.uint64(pivot[t])
        product = np.uint32(c * x - ((scaled * x) >> np.uint64(32)) * prime)
        total = np.uint32(row[t] + product)
        row[t] = min(total, np.uint32(total - twice))


@njit(cache=True)
def greedy_mod(rows: Residues, p: int) -> NDArray[np.bool_]:
    """Mark the rows that are not in the span (mod p) of the rows before them.

    Args:
        rows: Residues [n, d].
        p: The prime.

    Returns:
        Booleans [n]; their number is the rank, and the marked rows are the first basis in order.
    """
    n, d = rows.shape
    pool = np.zeros((d, d), np.uint32)
    inverse = np.zeros(d, np.int64)
    taken = np.zeros(n, np.bool_)
    count = 0
    for i in range(n):
        x = rows[i].copy()
        for c in range(d):
            lead = int(x[c]) % p
            if lead == 0:
                continue
            if inverse[c] == 0:
                inverse[c] = _inverse(lead, p)
                pool[c] = x
                taken[i] = True
                count += 1
                break
            _axpy(x, pool[c], p - lead * inverse[c] % p, c, p)
        if count == d:
            break
    return taken


@njit(cache=True)
def affine_permutation_mod(rows: Residues, p: int) -> Ints:
    """Return f(i) = min { j >= i : v_i in span(v_(i+1) .. v_j) } of the cyclically repeated rows, mod p.

    One pass from right to left over the doubled sequence keeps an echelon basis of which every slot
    knows the index up to which its vector reaches; the slots that reach at most j span
    v_i .. v_j, for every j.  A new row takes the place of the older vector in the first slot it
    meets, which moves on to the next; what is reduced to zero in the end is the latest element of
    the new row's circuit.  O(n d^2).

    Args:
        rows: Residues [n, d].
        p: The prime.

    Returns:
        Integers [n], i <= f(i) <= i + n: f(i) = i for a loop, i + n for a coloop.
    """
    n, d = rows.shape
    pool = np.zeros((d + 1, d), np.uint32)
    place = np.arange(d)
    spare = d
    inverse = np.zeros(d, np.int64)
    reach = np.full(d, 2 * n, np.int64)
    f = np.zeros(n, np.int64)
    for i in range(2 * n - 1, -1, -1):
        pool[spare] = rows[i % n]
        latest = i
        for c in range(d):
            lead = int(pool[spare, c]) % p
            if lead == 0:
                continue
            if latest < reach[c]:
                spare, place[c] = place[c], spare
                latest, reach[c] = reach[c], latest
                old, inverse[c] = inverse[c], _inverse(lead, p)
                if old == 0:
                    break
                lead = int(pool[spare, c]) % p
            _axpy(pool[spare], pool[place[c]], p - lead * inverse[c] % p, c, p)
        if i < n:
            f[i] = latest
    return f


def rank_mod(rows: NDArray[np.float64], p: int) -> int:
    """Return the rank modulo p of a float matrix [n, d]: a lower bound of its rank."""
    slim = rows if rows.shape[0] >= rows.shape[1] else rows.T
    return int(greedy_mod(residues(slim, p), p).sum())


def flint() -> Any:
    """Return the module python-flint.

    Raises:
        ImportError: It is not installed.
    """
    try:
        return import_module("flint")
    except ImportError as error:
        raise ImportError(
            "confirm='rational' needs python-flint: pip install 'secateur[peers]', or use confirm='prime'"
        ) from error


def rank_rational(rows: NDArray[np.float64]) -> int:
    """Return the rank of a float matrix [n, d] over the rationals, by python-flint."""
    return int(flint().fmpz_mat([_integers(row) for row in rows]).rank())


def _integers(row: NDArray[np.float64]) -> list[int]:
    """Scale a row by a power of two to integers; ranks do not change."""
    pairs = [float(x).as_integer_ratio() for x in row]
    common = max(denominator for _, denominator in pairs)
    return [numerator * (common // denominator) for numerator, denominator in pairs]


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
