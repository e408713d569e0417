"""Compiled elimination modulo a prime, for `secateur.structures.matroid.modular`."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["affine_permutation", "greedy"]

Residues = NDArray[np.uint32]
Ints = NDArray[np.int64]


@njit(cache=True)
def _inverse_mod(a: int, p: int) -> int:
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
def greedy(rows: Residues, p: int) -> NDArray[np.bool_]:
    """Mark the rows that are not in the span (mod p) of the rows before them; see `modular.greedy_mod`."""
    n, d = rows.shape
    pool = np.zeros((d, d), np.uint32)  # row c: the basis vector whose first non-zero entry is in column c
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
                inverse[c] = _inverse_mod(lead, p)
                pool[c] = x
                taken[i] = True
                count += 1
                break
            _axpy(x, pool[c], p - lead * inverse[c] % p, c, p)
        if count == d:
            break
    return taken


@njit(cache=True)
def affine_permutation(rows: Residues, p: int) -> Ints:
    """Return the affine permutation of the rows mod p; see `modular.affine_permutation_mod`.

    One pass from right to left over the doubled sequence keeps an echelon basis.  Each of its slots knows the
    index up to which its vector reaches; the slots that reach at most j span v_i .. v_j, for every j.  A new
    row replaces the vector in the first slot it meets if that one reaches further; the replaced vector is
    reduced and moves on to the next slot.  The vector that ends up zero is the latest of the new row's
    circuit.  O(n d^2).
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
                old, inverse[c] = inverse[c], _inverse_mod(lead, p)
                if old == 0:
                    break
                lead = int(pool[spare, c]) % p
            _axpy(pool[spare], pool[place[c]], p - lead * inverse[c] % p, c, p)
        if i < n:
            f[i] = latest
    return f
