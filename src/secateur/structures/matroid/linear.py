"""The matroid of the rows of a matrix, exact or numerical."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from secateur.structures.matroid.base import Circuit, FiniteMatroid
from secateur.structures.matroid.interval import Confirm
from secateur.structures.matroid.modular import (
    PRIMES,
    as_rows,
    flint,
    greedy_mod,
    rank_mod,
    rank_rational,
    residues,
)
from secateur.structures.matroid.parallel import parallel_rows
from secateur.structures.matroid.sliding import Floats, check_rtol, normalized_rows

__all__ = ["LinearMatroid", "RankVerdict"]


@dataclass(frozen=True)
class RankVerdict:
    """The rank of a set, with its evidence.

    Attributes:
        rank: The rank.
        above: Smallest singular value that counts; inf if none does, NaN in exact mode.
        below: Largest singular value that does not count; 0 if there is none, NaN in exact mode.
        tolerance: Values up to this count as zero; 0 in exact mode.
        reason: Short explanation.
    """

    rank: int
    above: float
    below: float
    tolerance: float
    reason: str

    @property
    def gap(self) -> float:
        """Above / max(below, tolerance): how clear a numerical verdict is (1 is a coin toss)."""
        floor = max(self.below, self.tolerance)
        return self.above / floor if floor > 0 else float("inf")


class LinearMatroid(FiniteMatroid):
    """The matroid of linear dependence of the rows of a matrix.

    Numerically, singular values of a set count where they exceed one absolute tolerance, `rtol` times the
    largest singular value of all rows.  One tolerance for all sets keeps the rank monotone with unit steps
    (interlacing); one relative to each set would not.
    Exactly, floats are dyadic rationals and elimination runs modulo a prime.  A rank mod p never exceeds
    the true rank, so independence is proven.  A deficiency is confirmed by a second
    prime, or with `confirm="rational"` by python-flint.

    Args:
        vectors: Rows [n, d], finite; row i is element i.
        exact: Whether to compute exactly.
        rtol: Numerical tolerance, None for max(n, d) * eps.
        normalize: Scale rows to length 1 first (after division by the largest entry, against overflow).
            Numerical mode only: it rounds.
        confirm: ``"prime"`` or ``"rational"``, for exact mode.

    Raises:
        ValueError: If `vectors` is not a finite matrix, `rtol` is outside [0, 1), or exact mode gets `rtol`
            or `normalize`.

    Example:
        >>> m = LinearMatroid([[1, 0], [2, 0], [0, 1], [1, 1]], exact=True)
        >>> m.rank(), m.is_independent([0, 1]), m.basis([1, 2, 3, 4])
        (2, False, (2, 3))
        >>> m.fundamental_circuit([1, 2], 3).coefficients
        {1: Fraction(1, 2), 2: Fraction(1, 1), 3: Fraction(-1, 1)}
    """

    def __init__(
        self,
        vectors: ArrayLike,
        exact: bool = False,
        rtol: float | None = None,
        normalize: bool = False,
        confirm: Confirm = "prime",
    ) -> None:
        """Check the vectors and fix the tolerance."""
        rows = as_rows(vectors)
        check_rtol(rtol)
        if exact and (normalize or rtol is not None):
            raise ValueError("exact=True takes no rtol (it has no tolerance) and no normalize (it rounds)")
        if confirm not in ("prime", "rational"):
            raise ValueError(f"confirm must be 'prime' or 'rational'; got {confirm!r}")
        if exact and confirm == "rational":
            flint()
        self.vectors: Floats = normalized_rows(rows) if normalize else rows
        self.exact, self.confirm = exact, confirm
        self.elements = tuple(range(rows.shape[0]))
        relative = max(rows.shape) * np.finfo(float).eps if rtol is None else rtol
        self.tolerance = 0.0 if exact else float(relative * np.linalg.norm(self.vectors, 2))

    def verdict(self, subset: Iterable[int] | None = None) -> RankVerdict:
        """Return the rank of `subset` (or the whole) with the evidence for it."""
        chosen = self.elements if subset is None else self._check_elements(subset)
        return self._exact_verdict(chosen) if self.exact else self._numerical_verdict(chosen)

    def basis(self, weights: Sequence[float] | None = None) -> tuple[int, ...]:
        """Return the basis of largest weight, by the greedy algorithm: see `FiniteMatroid.basis`."""
        if not self.exact:
            return super().basis(weights)
        order = np.array(self._order_by_weight(weights))
        # Ranks mod p never exceed the true one, so prefer the longer of two greedy bases.
        best = max((order[greedy_mod(residues(self.vectors[order], p), p)] for p in PRIMES[:2]), key=len)
        if self.confirm == "rational" and len(best) < self.rank():
            raise ArithmeticError("two primes understate the rank of this matrix")
        return tuple(sorted(best.tolist()))

    def fundamental_circuit(self, basis: Iterable[int], element: int) -> Circuit:
        """Return the circuit in `basis` and `element`, with coefficients that sum its vectors to zero.

        Coefficients are fractions in exact mode (by elimination over the rationals, so that the relation
        itself is proven), floats otherwise; that of `element` is -1.

        Raises:
            ValueError: As in `FiniteMatroid.fundamental_circuit`.
        """
        chosen = self._check_spanning(basis, element)
        support = [e for e in super().fundamental_circuit(chosen, element).elements if e != element]
        parts = self.vectors[support].T
        solve = _solve_exactly if self.exact else _solve_numerically
        values: list[Any] = [*solve(parts, self.vectors[element]), Fraction(-1) if self.exact else -1.0]
        coefficients = dict(sorted(zip([*support, element], values, strict=True)))
        return Circuit(tuple(coefficients), coefficients)

    def parallel_classes(self, signed: bool = False) -> tuple[tuple[int, ...], ...]:
        """Return the classes of rows that are multiples of one another, without rows of zeros.

        Args:
            signed: Distinguish positive from negative multiples.  relu(c z) = c relu(z) only for
                c > 0, so that only positive classes may be merged in a ReLU layer.

        Returns:
            Classes in the order of their first rows.
        """
        tolerance = 0.0 if self.exact else self.tolerance
        return parallel_rows(self.vectors, tolerance=tolerance, signed=signed).classes

    def _rank(self, subset: tuple[int, ...]) -> int:
        return self.verdict(subset).rank

    def _numerical_verdict(self, chosen: tuple[int, ...]) -> RankVerdict:
        if not chosen:
            return RankVerdict(0, float("inf"), 0.0, self.tolerance, "empty set")
        values = np.linalg.svd(self.vectors[list(chosen)], compute_uv=False)
        rank = int((values > self.tolerance).sum())
        above = float(values[rank - 1]) if rank else float("inf")
        below = float(values[rank]) if rank < values.size else 0.0
        return RankVerdict(rank, above, below, self.tolerance, "singular values")

    def _exact_verdict(self, chosen: tuple[int, ...]) -> RankVerdict:
        nan = float("nan")
        if not chosen:
            return RankVerdict(0, nan, nan, 0.0, "empty set")
        rows = self.vectors[list(chosen)]
        rank = rank_mod(rows, PRIMES[0])
        if rank == min(rows.shape):
            return RankVerdict(rank, nan, nan, 0.0, "full modulo a prime, hence proven")
        if self.confirm == "rational":
            return RankVerdict(rank_rational(rows), nan, nan, 0.0, "over the rationals")
        return RankVerdict(max(rank, rank_mod(rows, PRIMES[1])), nan, nan, 0.0, "deficient modulo two primes")


def _solve_numerically(parts: Floats, target: Floats) -> list[float]:
    return [float(c) for c in np.linalg.lstsq(parts, target, rcond=None)[0]]


def _solve_exactly(parts: Floats, target: Floats) -> list[Fraction]:
    """Solve parts @ c = target over the rationals, parts [d, m] of full column rank.

    Raises:
        ArithmeticError: If there is no solution: the relation holds only modulo the primes.
    """
    rows = [[Fraction(float(x)) for x in row] for row in np.column_stack([parts, target])]
    m = parts.shape[1]
    for c in range(m):
        lead = next(i for i in range(c, len(rows)) if rows[i][c])
        rows[c], rows[lead] = rows[lead], rows[c]
        rows[c] = [x / rows[c][c] for x in rows[c]]
        for i, row in enumerate(rows):
            if i != c and row[c]:
                rows[i] = [x - row[c] * y for x, y in zip(row, rows[c], strict=True)]
    if any(row[m] for row in rows[m:]):
        raise ArithmeticError("the vectors are dependent modulo the primes used, not over the rationals")
    return [row[m] for row in rows[:m]]
