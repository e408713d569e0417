"""The Dedekind-MacNeille completion, one cut at a time.

A lower cut is an intersection of principal down-sets.  They are produced in lectic order over the
join-irreducibles by Ganter's NextClosure (B. Ganter, Two basic algorithms in concept analysis, 1984), which
needs no memory of the cuts already seen and finds each next one in polynomial time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from secateur.structures.order import bitset

if TYPE_CHECKING:
    from secateur.structures.order.poset import Poset

__all__ = ["Completion", "CompletionTooLarge", "complete", "cuts"]


class CompletionTooLarge(ValueError):
    """The completion has more elements than allowed.

    Attributes:
        lower_bound: Number of different elements found before the search was stopped.
    """

    def __init__(self, limit: int, lower_bound: int) -> None:
        """Set the message and `lower_bound`."""
        super().__init__(
            f"the completion has at least {lower_bound} elements, more than the limit of {limit}; raise the "
            "limit, iterate over `cuts`, or ask only for the irreducibles, which do not need it"
        )
        self.lower_bound = lower_bound


@dataclass(frozen=True, eq=False)
class Completion:
    """A completion in memory; element `i` is the lower cut `cuts[i]`.

    Attributes:
        poset: The poset that was completed.
        bits: Lower cuts as rows of bits over the poset's elements [m, words], in lectic order.
        embedding: For each element of the poset, its principal cut [n].
    """

    poset: Poset
    bits: bitset.Bits
    embedding: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of elements."""
        return len(self.bits)

    def cut(self, element: int) -> NDArray[np.int64]:
        """Return the members of a lower cut, ascending."""
        return np.flatnonzero(bitset.unpack(self.bits[[element]], len(self.poset))[0])

    def moebius_from_bottom(self) -> NDArray[np.int64]:
        """Return mu(0, x) by the Moebius function of the lattice, for every element x of the poset [n].

        It differs from that of the poset, which has fewer elements between 0 and x.

        Raises:
            OverflowError: If a value does not fit in 64 bits.
        """
        return self.lattice.moebius_from_bottom()[self.embedding]

    @cached_property
    def lattice(self) -> Poset:
        """The completion as a poset of its own (inclusion of cuts); needs m * m bytes."""
        return type(self.poset).from_digraph(_inclusion_matrix(self.bits))


def complete(poset: Poset, limit: int = 100_000) -> Completion:
    """Build the completion of a poset, up to `limit` elements.

    Raises:
        ValueError: If the limit is not positive.
        CompletionTooLarge: If there are more; it holds the number found so far.
    """
    if limit < 1:
        raise ValueError(f"limit must be at least 1; got {limit}")
    rows = list(islice(_lectic_cuts(poset), limit + 1))
    if len(rows) > limit:
        raise CompletionTooLarge(limit, len(rows))
    number = {row.tobytes(): i for i, row in enumerate(rows)}
    embedding = np.array([number[row.tobytes()] for row in poset.down], np.int64)
    return Completion(poset, np.stack(rows), embedding)


def cuts(poset: Poset) -> Iterator[NDArray[np.int64]]:
    """Yield the lower cuts lazily, each as ascending element numbers; the least cut comes first.

    Example:
        >>> from secateur.structures.order import Poset
        >>> [cut.tolist() for cut in cuts(Poset.from_digraph([[0, 0], [0, 0]]))]  # two incomparable elements
        [[], [1], [0], [0, 1]]
    """
    return (np.flatnonzero(bitset.unpack(row[None], len(poset))[0]) for row in _lectic_cuts(poset))


def _lectic_cuts(poset: Poset, chunk: int = 256) -> Iterator[bitset.Bits]:
    """Yield the lower cuts as rows of bits in lectic order, computed `chunk` at a time."""
    full = bitset.full_row(len(poset))
    attributes = poset.down[poset.meet_irreducibles()]
    joins = poset.join_irreducibles()
    chosen = np.zeros((1, len(poset)), np.bool_)
    chosen[0, joins] = True
    mask = bitset.pack(chosen)[0]
    row = _intersect_above(np.zeros_like(full), attributes, full)
    yield row
    while True:
        block = _next_closures(row, attributes, full, joins, mask, chunk)
        yield from block
        if len(block) < chunk:
            return
        row = block[-1]


@njit(cache=True, nogil=True)
def _intersect_above(members: Any, attributes: Any, full: Any) -> Any:
    """Return the closure of `members`: the intersection of all attributes that contain them."""
    result = full.copy()
    for m in range(len(attributes)):
        inside = True
        for w in range(len(full)):
            if members[w] & ~attributes[m, w]:
                inside = False
                break
        if inside:
            for w in range(len(full)):
                result[w] &= attributes[m, w]
    return result


@njit(cache=True, nogil=True)
def _next_closures(row: Any, attributes: Any, full: Any, joins: Any, mask: Any, count: int) -> Any:
    """Return the next `count` cuts after `row` in lectic order, fewer at the end.

    Cuts compare as bit strings over the join-irreducibles, lowest number first.  The successor of a cut A is
    the closure of (A below j) + {j} for the largest j outside A whose closure adds nothing below j: then it
    agrees with A below j, is larger at j, and no cut lies between.
    """
    words = len(full)
    block = np.empty((count, words), np.uint64)
    filled = 0
    while filled < count:
        advanced = False
        for k in range(len(joins) - 1, -1, -1):
            j = joins[k]
            word, bit = j >> 6, np.uint64(1) << np.uint64(j & 63)
            if row[word] & bit:  # j is in A already
                continue
            # (A below j) + {j}: whole words before j's, then the lower bits of its word.
            seed = np.zeros(words, np.uint64)
            for w in range(word):
                seed[w] = row[w] & mask[w]
            seed[word] = (row[word] & mask[word] & (bit - np.uint64(1))) | bit
            closed = _intersect_above(seed, attributes, full)
            # What the closure adds below j; `mask` leaves only join-irreducibles.
            fresh = closed[word] & ~seed[word] & mask[word] & (bit - np.uint64(1))
            for w in range(word):
                fresh |= closed[w] & ~seed[w] & mask[w]
            if fresh == 0:
                block[filled] = closed
                row = block[filled]
                filled += 1
                advanced = True
                break
        if not advanced:
            break
    return block[:filled]


@njit(cache=True, nogil=True)
def _inclusion_matrix(bits: Any) -> Any:
    """Return [m, m], true where row a is a subset of row b."""
    m, words = bits.shape
    result = np.ones((m, m), np.bool_)
    for a in range(m):
        for b in range(m):
            for w in range(words):
                if bits[a, w] & ~bits[b, w]:
                    result[a, b] = False
                    break
    return result
