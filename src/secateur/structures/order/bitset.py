"""Order relations as rows of bits: condensation, closure, covers and irreducibles in compiled loops.

A set of elements 0..n-1 is a row of ceil(n / 64) unsigned 64-bit words, element `i` being bit `i % 64` of
word `i // 64`.  Digraphs and cover relations are in compressed rows: `starts` [n + 1], `targets`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Bits = NDArray[np.uint64]
Indices = NDArray[np.int32]

_ONE = np.uint64(1)


@njit(cache=True, nogil=True)
def rows_of(dense: Any) -> Any:
    """Return (starts, targets) of the true off-diagonal entries of a boolean matrix [n, n]."""
    n = dense.shape[0]
    starts = np.zeros(n + 1, np.int32)
    for i in range(n):
        count = 0
        for j in range(n):
            count += dense[i, j]
        starts[i + 1] = starts[i] + count - dense[i, i]
    targets = np.empty(starts[n], np.int32)
    for i in range(n):
        place = starts[i]
        for j in range(n):
            if dense[i, j] and i != j:
                targets[place] = j
                place += 1
    return starts, targets


@njit(cache=True, nogil=True)
def number_by_first_member(labels: Any, count: int) -> Any:
    """Renumber class labels in the order in which the classes first appear."""
    number = np.full(count, -1, np.int32)
    result = np.empty(len(labels), np.int64)
    seen = 0
    for i in range(len(labels)):
        if number[labels[i]] < 0:
            number[labels[i]] = seen
            seen += 1
        result[i] = number[labels[i]]
    return result


@njit(cache=True, nogil=True)
def condense(starts: Any, targets: Any, component: Any, count: int) -> Any:
    """Return the edges between different components (parallel edges stay), in compressed rows."""
    degree = np.zeros(count + 1, np.int32)
    for i in range(len(component)):
        for e in range(starts[i], starts[i + 1]):
            if component[targets[e]] != component[i]:
                degree[component[i] + 1] += 1
    new_starts = np.cumsum(degree).astype(np.int32)
    place = new_starts[:-1].copy()
    new_targets = np.empty(new_starts[count], np.int32)
    for i in range(len(component)):
        c = component[i]
        for e in range(starts[i], starts[i + 1]):
            d = component[targets[e]]
            if c != d:
                new_targets[place[c]] = d
                place[c] += 1
    return new_starts, new_targets


@njit(cache=True, nogil=True)
def transpose(starts: Any, targets: Any, order: Any) -> Any:
    """Reverse every edge; each new row lists its targets in the sequence of `order`."""
    n = len(starts) - 1
    # A counting sort by target: row lengths, then row starts, then each edge into its row.
    degree = np.zeros(n + 1, np.int32)
    for e in range(len(targets)):
        degree[targets[e] + 1] += 1
    new_starts = np.cumsum(degree).astype(np.int32)
    place = new_starts[:-1].copy()
    new_targets = np.empty(len(targets), np.int32)
    for k in range(n):
        i = order[k]
        for e in range(starts[i], starts[i + 1]):
            j = targets[e]
            new_targets[place[j]] = i
            place[j] += 1
    return new_starts, new_targets


@njit(cache=True, nogil=True)
def topological_order(starts: Any, targets: Any) -> Any:
    """Return a linear extension of an acyclic digraph by Kahn's algorithm."""
    n = len(starts) - 1
    waiting = np.zeros(n, np.int32)
    for e in range(len(targets)):
        waiting[targets[e]] += 1
    order = np.empty(n, np.int64)
    filled = 0
    for i in range(n):
        if waiting[i] == 0:
            order[filled] = i
            filled += 1
    done = 0
    while done < filled:
        i = order[done]
        done += 1
        for e in range(starts[i], starts[i + 1]):
            waiting[targets[e]] -= 1
            if waiting[targets[e]] == 0:
                order[filled] = targets[e]
                filled += 1
    return order


@njit(cache=True, nogil=True)
def closure(starts: Any, targets: Any, order: Any) -> Any:
    """Return (up-sets [n, words], cover starts, cover targets) of an acyclic digraph.

    Rows must list their targets in the sequence of `order`.  A target that an earlier target already
    reaches is then no cover, and one that none reaches is one: anything between would come earlier.
    """
    n = len(order)
    words = (n + 63) // 64
    up = np.zeros((n, words), np.uint64)
    covering = np.zeros(len(targets), np.bool_)
    degree = np.zeros(n + 1, np.int32)
    for k in range(n - 1, -1, -1):
        i = order[k]
        row = up[i]
        row[i >> 6] |= _ONE << np.uint64(i & 63)
        for e in range(starts[i], starts[i + 1]):
            j = targets[e]
            if (row[j >> 6] >> np.uint64(j & 63)) & _ONE == 0:
                covering[e] = True
                degree[i + 1] += 1
                above = up[j]
                for w in range(words):
                    row[w] |= above[w]
    return up, np.cumsum(degree).astype(np.int32), targets[covering]


@njit(cache=True, nogil=True)
def down_sets(cover_starts: Any, cover_targets: Any, order: Any) -> Any:
    """Return the down-sets [n, words], pushed along the covers in one pass."""
    n = len(order)
    words = (n + 63) // 64
    down = np.zeros((n, words), np.uint64)
    for k in range(n):
        i = order[k]
        row = down[i]
        row[i >> 6] |= _ONE << np.uint64(i & 63)
        for e in range(cover_starts[i], cover_starts[i + 1]):
            above = down[cover_targets[e]]
            for w in range(words):
                above[w] |= row[w]
    return down


@njit(cache=True, nogil=True)
def irreducible(down: Any, cover_starts: Any, cover_targets: Any, full: Any) -> Any:
    """Return for each element whether its down-set differs from the meet of its covers' down-sets."""
    n, words = down.shape
    result = np.zeros(n, np.bool_)
    for i in range(n):
        first, last = cover_starts[i], cover_starts[i + 1]
        for w in range(words):
            meet = full[w]
            for e in range(first, last):
                meet &= down[cover_targets[e], w]
            if meet != down[i, w]:
                result[i] = True
                break
    return result


@njit(cache=True, nogil=True)
def bound_table(sets: Any, rank: Any) -> Any:
    """Return [n, n] element numbers: the one whose set is sets[a] & sets[b], or -1 where none is.

    With down-sets and ranks in a linear extension this is the meet; with up-sets and reversed ranks, the
    join.  The bound can only be the common element of highest rank.
    """
    n, words = sets.shape
    order = np.argsort(rank)
    # The same sets with bits in the sequence of ranks: the highest bit is the element of highest rank.
    by_rank = np.zeros((n, words), np.uint64)
    for i in range(n):
        for k in range(n):
            j = order[k]
            if (sets[i, j >> 6] >> np.uint64(j & 63)) & _ONE:
                by_rank[i, k >> 6] |= _ONE << np.uint64(k & 63)
    table = np.full((n, n), -1, np.int32)
    for a in range(n):
        for b in range(a, n):
            top = -1
            for w in range(words - 1, -1, -1):
                common = by_rank[a, w] & by_rank[b, w]
                if common:
                    top = 64 * w + highest(common)
                    break
            if top < 0:
                continue
            bound = order[top]
            same = True
            for w in range(words):
                if sets[a, w] & sets[b, w] != sets[bound, w]:
                    same = False
                    break
            if same:
                table[a, b] = bound
                table[b, a] = bound
    return table


@njit(cache=True, nogil=True)
def highest(word: Any) -> Any:
    """Return the position of the highest set bit of a non-zero word."""
    position = 0
    step = 32
    while step > 0:
        if word >> np.uint64(step):
            word = word >> np.uint64(step)
            position += step
        step >>= 1
    return position


@njit(cache=True, nogil=True)
def count_bits(word: Any) -> Any:
    """Return the number of set bits of a word: sums over pairs, nibbles and bytes, added by a product."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@njit(cache=True, nogil=True)
def moebius_row(start: int, up: Any, down: Any, order: Any, row: Any) -> bool:
    """Fill row[y] = mu(start, y); return False where a value leaves the 64-bit integers."""
    n, words = up.shape
    row[:] = 0
    row[start] = 1
    for k in range(n):
        y = order[k]
        if y == start or (up[start, y >> 6] >> np.uint64(y & 63)) & _ONE == 0:
            continue
        total = np.int64(0)
        size = 0.0
        for w in range(words):
            common = up[start, w] & down[y, w]
            while common:
                z = 64 * w + highest(common & (~common + _ONE))  # the lowest set bit
                common &= common - _ONE  # clears it
                total -= row[z]
                size += abs(float(row[z]))
        # The sum of absolute values bounds every partial sum, so below 2^63 nothing has wrapped around.
        if size > 9e18:
            return False
        row[y] = total
    return True


@njit(cache=True, nogil=True)
def moebius_matrix(up: Any, down: Any, order: Any, matrix: Any) -> bool:
    """Fill matrix[x, y] = mu(x, y); return False where a value leaves the 64-bit integers."""
    fits = True
    for x in range(len(order)):
        fits = moebius_row(x, up, down, order, matrix[x]) and fits
    return fits


@njit(cache=True, nogil=True)
def heights(cover_starts: Any, cover_targets: Any, order: Any) -> Any:
    """Return for each element the number of steps in the longest chain below it."""
    result = np.zeros(len(order), np.int64)
    for k in range(len(order)):
        i = order[k]
        for e in range(cover_starts[i], cover_starts[i + 1]):
            result[cover_targets[e]] = max(result[cover_targets[e]], result[i] + 1)
    return result


def pack(rows: NDArray[np.bool_]) -> Bits:
    """Pack boolean rows [m, n] into words [m, ceil(n / 64)]."""
    m, n = rows.shape
    octets = np.zeros((m, 8 * ((n + 63) // 64)), np.uint8)
    packed = np.packbits(rows, axis=1, bitorder="little")
    octets[:, : packed.shape[1]] = packed
    return octets.view("<u8").astype(np.uint64, copy=False)


def unpack(bits: Bits, n: int) -> NDArray[np.bool_]:
    """Unpack words [m, words] into boolean rows [m, n]."""
    octets = np.ascontiguousarray(bits.astype("<u8", copy=False)).view(np.uint8)
    return np.unpackbits(octets, axis=1, count=n, bitorder="little").astype(np.bool_)


def full_row(n: int) -> Bits:
    """Return the set of all n elements as one row of words."""
    return pack(np.ones((1, n), np.bool_))[0]
