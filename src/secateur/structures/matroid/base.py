"""Matroids by their rank function: everything that follows from it, and minors and duals.

J. Oxley, "Matroid Theory", 2nd ed., 2011.  Names follow common usage.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import combinations

__all__ = ["Circuit", "Coefficient", "FiniteMatroid"]

Coefficient = float | Fraction


@dataclass(frozen=True)
class Circuit:
    """A minimal dependent set.

    Attributes:
        elements: The sorted elements.
        coefficients: If vectors are known, the coefficient of each element in a sum of vectors that is zero;
            the element to be expressed by the others has -1.
    """

    elements: tuple[int, ...]
    coefficients: Mapping[int, Coefficient] = field(default_factory=dict)


class FiniteMatroid(ABC):
    """A matroid on integer elements; subclasses give the rank of a set.

    Attributes:
        elements: The ground set, sorted.
    """

    elements: tuple[int, ...]

    @abstractmethod
    def _rank(self, subset: tuple[int, ...]) -> int:
        """Return the rank of sorted, distinct elements of the ground set."""

    def rank(self, subset: Iterable[int] | None = None) -> int:
        """Return the rank of `subset`, or of the ground set.

        Raises:
            ValueError: If an element is not in the ground set (also in every other method).
        """
        return self._rank(self.elements if subset is None else self._check_elements(subset))

    def is_independent(self, subset: Iterable[int]) -> bool:
        """Return whether the rank of `subset` is its size."""
        chosen = self._check_elements(subset)
        return self._rank(chosen) == len(chosen)

    def closure(self, subset: Iterable[int]) -> frozenset[int]:
        """Return all elements that do not raise the rank of `subset`."""
        chosen = self._check_elements(subset)
        rank, inside = self._rank(chosen), frozenset(chosen)
        return frozenset(e for e in self.elements if e in inside or self._rank(_with(chosen, e)) == rank)

    def basis(self, weights: Sequence[float] | None = None) -> tuple[int, ...]:
        """Return the basis of largest weight, by the greedy algorithm.

        Args:
            weights: A weight for each of `elements`; ties, and None, prefer the lower element.

        Returns:
            The sorted elements of the basis.

        Raises:
            ValueError: If the number of weights is wrong or one is NaN.
        """
        chosen: tuple[int, ...] = ()
        for e in self._order_by_weight(weights):
            grown = _with(chosen, e)
            if self._rank(grown) == len(grown):
                chosen = grown
        return chosen

    def circuit(self, subset: Iterable[int]) -> Circuit:
        """Return a circuit inside a dependent set: the one that closes first, in order of elements.

        Raises:
            ValueError: If `subset` is independent.
        """
        chosen: tuple[int, ...] = ()
        for e in self._check_elements(subset):
            grown = _with(chosen, e)
            if self._rank(grown) < len(grown):
                return self.fundamental_circuit(chosen, e)
            chosen = grown
        raise ValueError(f"{chosen} is independent and contains no circuit")

    def fundamental_circuit(self, basis: Iterable[int], element: int) -> Circuit:
        """Return the only circuit in `basis` (any independent set) and an element of its span.

        Raises:
            ValueError: If `basis` is dependent, holds `element` or does not span it.
        """
        chosen = self._check_spanning(basis, element)
        grown = _with(chosen, element)
        inside = (e for e in chosen if self._rank(_without(grown, e)) == len(chosen))
        return Circuit(tuple(sorted((*inside, element))))

    def loops(self) -> frozenset[int]:
        """Return the elements of rank 0."""
        return frozenset(e for e in self.elements if self._rank((e,)) == 0)

    def coloops(self) -> frozenset[int]:
        """Return the elements that are in every basis."""
        rank = self.rank()
        return frozenset(e for e in self.elements if self._rank(_without(self.elements, e)) < rank)

    def parallel_classes(self) -> tuple[tuple[int, ...], ...]:
        """Return the classes of elements that are pairwise of rank 1, without the loops."""
        classes: list[list[int]] = []
        loops = self.loops()
        for e in self.elements:
            if e not in loops:
                home = next((c for c in classes if self._rank(_with((c[0],), e)) == 1), None)
                classes.append([e]) if home is None else home.append(e)
        return tuple(tuple(c) for c in classes)

    def bases(self) -> Iterator[frozenset[int]]:
        """Generate all bases in lexicographic order; there may be binomially many."""
        rank = self.rank()
        yield from (frozenset(c) for c in combinations(self.elements, rank) if self._rank(c) == rank)

    def circuits(self) -> Iterator[frozenset[int]]:
        """Generate all circuits, small ones first; there may be exponentially many."""
        smaller: list[frozenset[int]] = []
        for size in range(1, self.rank() + 2):
            for candidate in combinations(self.elements, size):
                chosen = frozenset(candidate)
                if self._rank(candidate) < size and not any(c <= chosen for c in smaller):
                    smaller.append(chosen)
                    yield chosen

    def components(self) -> tuple[frozenset[int], ...]:
        """Return the connected components, by their smallest elements.

        They are those of the fundamental graph: e joined to the elements of C(B, e), for one basis B.
        """
        basis = self.basis()
        # `home` maps each element to its component so far; every fundamental circuit merges some.
        home = {e: {e} for e in self.elements}
        for e in sorted(set(self.elements) - set(basis)):
            merged = set().union(*(home[x] for x in self.fundamental_circuit(basis, e).elements))
            home.update(dict.fromkeys(merged, merged))
        return tuple(sorted({frozenset(group) for group in home.values()}, key=min))

    def dual(self) -> FiniteMatroid:
        """Return the dual: r*(X) = |X| - r(E) + r(E - X)."""
        return _Dual(self)

    def delete(self, subset: Iterable[int]) -> FiniteMatroid:
        """Return the matroid without `subset`; elements keep their numbers."""
        return _Minor(self, deleted=frozenset(self._check_elements(subset)))

    def contract(self, subset: Iterable[int]) -> FiniteMatroid:
        """Return the contraction by `subset`: r(X + S) - r(S); elements keep their numbers."""
        return _Minor(self, contracted=frozenset(self._check_elements(subset)))

    def _check_elements(self, subset: Iterable[int]) -> tuple[int, ...]:
        chosen = tuple(sorted({int(e) for e in subset}))
        unknown = set(chosen) - set(self.elements)
        if unknown:
            raise ValueError(
                f"{sorted(unknown)} are not among the {len(self.elements)} elements of this matroid"
            )
        return chosen

    def _check_spanning(self, basis: Iterable[int], element: int) -> tuple[int, ...]:
        chosen = self._check_elements(basis)
        if element in chosen or self._rank(chosen) < len(chosen):
            raise ValueError(f"the basis must be an independent set without element {element}; got {chosen}")
        if self._rank(_with(chosen, *self._check_elements([element]))) > len(chosen):
            raise ValueError(f"element {element} is not in the span of {chosen}")
        return chosen

    def _order_by_weight(self, weights: Sequence[float] | None) -> list[int]:
        if weights is None:
            return list(self.elements)
        given = [float(w) for w in weights]
        if len(given) != len(self.elements) or any(w != w for w in given):
            raise ValueError(f"basis needs {len(self.elements)} weights, one for each element, and no NaN")
        order = sorted(range(len(given)), key=lambda i: -given[i])
        return [self.elements[i] for i in order]


class _Dual(FiniteMatroid):
    def __init__(self, primal: FiniteMatroid) -> None:
        self.primal, self.elements = primal, primal.elements

    def _rank(self, subset: tuple[int, ...]) -> int:
        return len(subset) - self.primal.rank() + self.primal._rank(_without(self.elements, *subset))

    def dual(self) -> FiniteMatroid:
        return self.primal


class _Minor(FiniteMatroid):
    def __init__(
        self,
        whole: FiniteMatroid,
        deleted: frozenset[int] = frozenset(),
        contracted: frozenset[int] = frozenset(),
    ) -> None:
        self.whole, self.contracted = whole, tuple(sorted(contracted))
        self.elements = _without(whole.elements, *deleted, *contracted)
        self._base = whole._rank(self.contracted)

    def _rank(self, subset: tuple[int, ...]) -> int:
        return self.whole._rank(_with(subset, *self.contracted)) - self._base


def _with(subset: tuple[int, ...], *more: int) -> tuple[int, ...]:
    return tuple(sorted({*subset, *more}))


def _without(subset: tuple[int, ...], *fewer: int) -> tuple[int, ...]:
    removed = set(fewer)
    return tuple(e for e in subset if e not in removed)
