"""The ranks of all intervals of a sequence of vectors: positroid data, exactly.

Knutson, Lam, Speyer, "Positroid varieties: juggling and geometry", Compositio Math. 149 (2013): the
bounded affine permutation f(i) = min { j >= i : v_i in span(v_(i+1) .. v_j) } of vectors repeated
cyclically fixes the rank of every cyclic interval,

    rank[i, j] = (j - i + 1) - #{ a in [i, j] : f(a) <= j }.

Postnikov, "Total positivity, Grassmannians, and networks" (2006): the same data are the decorated
permutation f mod n and the Grassmann necklace I_i = { f(a) : a < i, f(a) in [i, i + n) }.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from secateur.structures.matroid.modular import (
    PRIMES,
    Ints,
    affine_permutation_mod,
    as_rows,
    flint,
    rank_rational,
    residues,
)

__all__ = ["Confirm", "Decorated", "IntervalMatroid", "check_window"]

Confirm = Literal["prime", "rational"]


@dataclass(frozen=True)
class Decorated:
    """A decorated permutation.

    Attributes:
        image: pi(i) for i = 0 .. n-1.
        loops: Fixed points that are loops (f(i) = i).
        coloops: Fixed points that are coloops (f(i) = i + n).
    """

    image: tuple[int, ...]
    loops: frozenset[int]
    coloops: frozenset[int]


class IntervalMatroid:
    """The ranks of all contiguous and cyclic intervals of a sequence of vectors, exactly.

    Floats are treated as the dyadic rationals that they are; arithmetic is modulo two primes that must
    agree.  A rank mod p never exceeds the true one, so a full rank is proven; a deficiency rests on
    two primes (an error would need both to divide a non-zero minor), or, with `confirm="rational"`, is
    proven too.  Time O(n d^2), memory O(n d).

    Args:
        vectors: Rows [n, d], finite.
        confirm: ``"prime"``, or ``"rational"`` to prove the deficient intervals by python-flint.

    Raises:
        ValueError: If `vectors` is not a finite matrix or `confirm` is unknown.
        ImportError: If `confirm="rational"` and python-flint is missing.
        ArithmeticError: If no two primes agree.

    Example:
        >>> m = IntervalMatroid([[1, 0], [2, 0], [0, 1], [1, 1]])
        >>> m.bounded_affine_permutation.tolist()
        [1, 3, 4, 6]
        >>> m.interval_rank(0, 1), m.interval_rank(0, 2), m.window_ranks(2).tolist()
        (1, 2, [1, 2, 2])
    """

    def __init__(self, vectors: ArrayLike, confirm: Confirm = "prime") -> None:
        """Compute the bounded affine permutation."""
        if confirm not in ("prime", "rational"):
            raise ValueError(f"confirm must be 'prime' or 'rational'; got {confirm!r}")
        rows = as_rows(vectors)
        if confirm == "rational":
            flint()
        self.size = rows.shape[0]
        self.bounded_affine_permutation: Ints = _vote_over_primes(rows)
        if confirm == "rational":
            self._prove_deficiencies(rows)

    @property
    def rank(self) -> int:
        """Rank of all vectors: the mean of f(i) - i."""
        return int((self.bounded_affine_permutation - np.arange(self.size)).sum()) // self.size

    @cached_property
    def decorated_permutation(self) -> Decorated:
        """The permutation f mod n, with its two kinds of fixed points."""
        f, i = self.bounded_affine_permutation, np.arange(self.size)
        loops, coloops = i[f == i].tolist(), i[f == i + self.size].tolist()
        return Decorated(tuple((f % self.size).tolist()), frozenset(loops), frozenset(coloops))

    @property
    def grassmann_necklace(self) -> tuple[frozenset[int], ...]:
        """I_i: the first basis in the order i, i + 1, .., i - 1, for every i.

        I_0 holds the values in [n, 2n) that f takes left of n, less n; then I_(i+1) = I_i - {i} + {f(i)}.
        """
        n, f = self.size, self.bounded_affine_permutation
        current = {int(x) - n for x in f if x >= n}
        necklace = []
        for i in range(n):
            necklace.append(frozenset(current))
            if f[i] > i:
                current = (current - {i}) | {int(f[i]) % n}
        return tuple(necklace)

    def interval_rank(self, start: int, stop: int) -> int:
        """Return the rank of v_start .. v_stop, both included; cyclic where stop < start.

        Raises:
            ValueError: If an index is outside 0 .. n-1.
        """
        n = self.size
        if not (0 <= start < n and 0 <= stop < n):
            raise ValueError(f"interval ends must be in 0 .. {n - 1}; got {start} and {stop}")
        return self._rank_between(start, stop if stop >= start else stop + n)

    def window_ranks(self, size: int, cyclic: bool = False) -> Ints:
        """Return the ranks of all windows of `size` neighbours, in O(n).

        A window [i, i + size) loses one for every a with i <= a and f(a) < i + size.

        Args:
            size: Vectors in a window, 1 .. n.
            cyclic: Whether windows may wrap.

        Returns:
            Integers [n - size + 1], or [n] if cyclic.

        Raises:
            ValueError: If `size` is out of range.
        """
        n = self.size
        check_window(size, n)
        a = np.arange(2 * n)
        f = self._lift(a)
        # a costs a rank in the windows that hold both a and f(a): those that start in (f(a) - size, a].
        inside = f - a < size
        first, last = np.maximum(f[inside] - size + 1, 0), a[inside]
        change = np.zeros(2 * n + 1, dtype=np.int64)
        np.add.at(change, first, 1)
        np.add.at(change, last + 1, -1)
        return size - np.cumsum(change)[: n if cyclic else n - size + 1]

    def _lift(self, a: Ints) -> Ints:
        """Return f at any integers: f(a + n) = f(a) + n."""
        return self.bounded_affine_permutation[a % self.size] + a // self.size * self.size

    def _prove_deficiencies(self, rows: np.ndarray) -> None:
        """Prove every relation that is not implied by a full rank.

        f mod p has the mean of the rank mod p; if rational ranks agree on [a+1 .. f(a)] and [a .. f(a)]
        for all a, the true f is nowhere above it, and equal sums make them equal.
        """
        n, rank = self.size, self.rank
        if rank_rational(rows) != rank:
            raise ArithmeticError(
                f"the rank modulo two primes is {rank}, but over the rationals it is larger"
            )
        for a, end in enumerate(self.bounded_affine_permutation.tolist()):
            span = rows[np.arange(a + 1, end + 1) % n]
            lower = min(self._rank_between(a + 1, end), rank)
            if lower < rank and rank_rational(np.vstack([rows[a : a + 1], span])) != lower:
                raise ArithmeticError(f"row {a} is in the span of rows {a + 1}..{end} modulo two primes only")

    def _rank_between(self, start: int, end: int) -> int:
        """Return the rank of v_start .. v_end, `end` possibly beyond n."""
        a = np.arange(start, end + 1)
        return int(a.size - (self._lift(a) <= end).sum())


def _vote_over_primes(rows: np.ndarray) -> Ints:
    """Return the permutation that two primes agree on; unlucky primes are outvoted."""
    votes: Counter[bytes] = Counter()
    for p in PRIMES:
        f = affine_permutation_mod(residues(rows, p), p)
        votes[f.tobytes()] += 1
        if votes[f.tobytes()] == 2:
            return f
    raise ArithmeticError(f"no two of the primes {PRIMES} agree: the entries share factors with them")


def check_window(size: int, n: int) -> None:
    """Raise ValueError unless 1 <= size <= n."""
    if not 1 <= size <= n:
        raise ValueError(f"a window must hold 1 to {n} of the {n} vectors; got {size}")
