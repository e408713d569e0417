"""The modular law of a lattice, with a counterexample where it fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from secateur.structures.order.poset import Poset

__all__ = ["Violation", "modular_violation"]


@dataclass(frozen=True)
class Violation:
    """Three elements for which the law fails, with the values of both sides."""

    a: int
    b: int
    c: int
    left: int
    right: int


def modular_violation(lattice: Poset) -> Violation | None:
    """Return a, b, c with a <= c and a v (b ^ c) != (a v b) ^ c, or None if the lattice is modular.

    The left side is then strictly below the right one, and both with b, b ^ c and a v b form N5.

    Raises:
        ValueError: If two elements have no meet or no join.
    """
    meets, joins = lattice.meet_table(), lattice.join_table()
    for name, table in (("meet", meets), ("join", joins)):
        if table.min() < 0:
            a, b = map(int, np.argwhere(table < 0)[0])
            raise ValueError(
                f"not a lattice: elements {a} and {b} have no {name}; its `completion().lattice` is one"
            )
    violation = _find_violation(meets, joins)
    return Violation(*map(int, violation)) if violation[0] >= 0 else None


@njit(cache=True, nogil=True)
def _find_violation(meets: Any, joins: Any) -> Any:
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
