"""Modular and distributive laws, and operators that keep meets and joins, each with a counterexample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from secateur.structures.order.poset import Poset

__all__ = [
    "OperatorViolation",
    "Violation",
    "distributive_violation",
    "is_lattice",
    "modular_violation",
    "operator_violation",
]


@dataclass(frozen=True)
class Violation:
    """Three elements at which a law fails, and its two sides."""

    a: int
    b: int
    c: int
    left: int
    right: int


@dataclass(frozen=True)
class OperatorViolation:
    """T(x, a op b) = `left` differs from T(x, a) op T(x, b) = `right`; `operation` is "meet" or "join"."""

    operation: str
    x: int
    a: int
    b: int
    left: int
    right: int


def is_lattice(poset: Poset) -> bool:
    """Tell whether all pairs of elements have a meet and a join."""
    return bool((poset.meet_table() >= 0).all() and (poset.join_table() >= 0).all())


def modular_violation(lattice: Poset) -> Violation | None:
    """Return a, b, c with a <= c and a v (b ^ c) != (a v b) ^ c, or None if the lattice is modular.

    The left side is then strictly below the right one, and both with b, b ^ c and a v b form N5.

    Raises:
        ValueError: If two elements have no meet or no join.
    """
    found = _modular(*_tables(lattice))
    return Violation(*map(int, found)) if found[0] >= 0 else None


def distributive_violation(lattice: Poset) -> Violation | None:
    """Return a, b, c with a ^ (b v c) != (a ^ b) v (a ^ c), or None if the lattice is distributive.

    Raises:
        ValueError: If two elements have no meet or no join.
    """
    found = _distributive(*_tables(lattice))
    return Violation(*map(int, found)) if found[0] >= 0 else None


def operator_violation(
    operator: ArrayLike | Callable[[int, int], int], upper: Poset, lower: Poset
) -> OperatorViolation | None:
    """Return where an operator T: upper x lower -> lower fails to keep meets or joins of `lower`, or None.

    This is the assumption of arXiv 2502.16525, Definition III.4, checked for every x, a and b.

    Args:
        operator: T as a table [len(upper), len(lower)] of elements of `lower`, or as a function.
        upper: Where x lives; only its size matters.
        lower: The lattice whose meets and joins T should keep.

    Raises:
        ValueError: If `lower` is no lattice, or the table has another shape or other values.
    """
    shape = (len(upper), len(lower))
    if callable(operator):
        operator = [[operator(x, a) for a in range(shape[1])] for x in range(shape[0])]
    table = np.asarray(operator)
    if table.shape != shape or table.dtype.kind not in "iu" or table.min() < 0 or table.max() >= shape[1]:
        raise ValueError(
            f"T must be integers in 0..{shape[1] - 1} of shape {shape}; got {table.dtype} "
            f"of shape {table.shape}"
        )
    for operation, bounds in zip(("meet", "join"), _tables(lower), strict=True):
        for x in range(shape[0]):
            left, right = table[x][bounds], bounds[np.ix_(table[x], table[x])]
            wrong = np.argwhere(left != right)
            if len(wrong):
                a, b = map(int, wrong[0])
                return OperatorViolation(operation, x, a, b, int(left[a, b]), int(right[a, b]))
    return None


def _tables(lattice: Poset) -> tuple[Any, Any]:
    meets, joins = lattice.meet_table(), lattice.join_table()
    for name, table in (("meet", meets), ("join", joins)):
        if table.min() < 0:
            a, b = map(int, np.argwhere(table < 0)[0])
            raise ValueError(
                f"not a lattice: elements {a} and {b} have no {name}; its `completion().lattice` is one"
            )
    return meets, joins


@njit(cache=True, nogil=True)
def _modular(meets: Any, joins: Any) -> Any:
    n = len(meets)
    for a in range(n):
        for c in range(n):
            if meets[a, c] != a:
                continue
            for b in range(n):
                left = joins[a, meets[b, c]]
                right = meets[joins[a, b], c]
                if left != right:
                    return a, b, c, left, right
    return -1, -1, -1, -1, -1


@njit(cache=True, nogil=True)
def _distributive(meets: Any, joins: Any) -> Any:
    n = len(meets)
    for a in range(n):
        for b in range(n):
            for c in range(b + 1, n):
                left = meets[a, joins[b, c]]
                right = joins[meets[a, b], meets[a, c]]
                if left != right:
                    return a, b, c, left, right
    return -1, -1, -1, -1, -1
