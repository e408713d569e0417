"""The partition of a sequence of rows into essential and tail by rank-deficient windows.

"Matroid-Guided Pruning: Removing 70% of Neurons for Free" (blog post): slide a window of k neighbours, k the
rank of all rows, along the rows of [W1 | b1]; rows in a window of smaller rank are the tail.  Windows are
contiguous, not cyclic; rows are scaled to length 1 before the numerical rank, which follows numpy's rule.
The partition depends on the order of the rows: it is one of a sequence, not of a set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from secateur.structures.matroid.interval import IntervalMatroid
from secateur.structures.matroid.modular import Ints, as_rows
from secateur.structures.matroid.sliding import normalized_rows, window_ranks

__all__ = ["Order", "Tail", "tail_partition"]

Order = Literal["outermost", "most-windows", "index"]


@dataclass(frozen=True, eq=False)
class Tail:
    """Essential and tail rows.

    Attributes:
        rank: Rank k of all rows, and the size of the windows.
        essential: Rows in no deficient window.
        tail: The others, ascending.
        windows: Number of deficient windows that hold each row, [n].
        deficient: Number of deficient windows.
        gap: Smallest gap among the numerical verdicts (1 is a coin toss); inf in exact mode.
    """

    rank: int
    essential: Ints
    tail: Ints
    windows: Ints
    deficient: int
    gap: float

    def removal_order(self, order: Order = "most-windows") -> Ints:
        """Return the tail in the order of removal.

        The post asks for "the outermost tail neurons inward (those participating in the most rank-deficient
        windows first)"; the code behind its figures removes the lowest index first.

        Args:
            order: ``"index"``: lowest first; ``"most-windows"``: by `windows`, then lowest; ``"outermost"``:
                alternately from both ends of the tail towards its middle.

        Raises:
            ValueError: If the order is unknown.
        """
        place = np.arange(len(self.tail))
        keys = {
            "index": place,
            "most-windows": -self.windows[self.tail],
            "outermost": np.minimum(place, place[::-1]),
        }
        if order not in keys:
            raise ValueError(f"order must be one of {', '.join(map(repr, keys))}; got {order!r}")
        return self.tail[np.argsort(keys[order], kind="stable")]


def tail_partition(vectors: ArrayLike, *, exact: bool = False, rtol: float | None = None) -> Tail:
    """Partition rows into essential and tail.

    Args:
        vectors: Rows [n, d], in the order of the units.
        exact: Compute ranks over the rationals (see `IntervalMatroid`) instead of numerically.
        rtol: Numerical tolerance; None: numpy's.

    Raises:
        ValueError: If `vectors` is not a finite matrix, or `rtol` is out of range or given in exact mode.

    Example:
        >>> tail = tail_partition([[1, 0], [1, 1], [2, 2], [0, 1]])
        >>> tail.rank, tail.essential.tolist(), tail.tail.tolist()
        (2, [0, 3], [1, 2])
    """
    if exact and rtol is not None:
        raise ValueError("exact ranks have no tolerance: omit rtol")
    rows = as_rows(vectors)
    n = len(rows)
    if exact:
        matroid = IntervalMatroid(rows)
        rank, gap = matroid.rank, float("inf")
        ranks = matroid.window_ranks(rank) if rank else np.zeros(0, dtype=np.int64)
    else:
        units = normalized_rows(rows)
        rank = int(np.linalg.matrix_rank(units, rtol=rtol))
        verdicts = window_ranks(units, rank, rtol=rtol) if rank else None
        ranks = np.zeros(0, dtype=np.int64) if verdicts is None else verdicts.ranks
        gap = float("inf") if verdicts is None else float(verdicts.gap.min())
    # +1 where a deficient window starts, -1 behind its end: the running sum counts windows for each row.
    change = np.zeros(n + 1, dtype=np.int64)
    deficient = np.flatnonzero(ranks < rank)
    np.add.at(change, deficient, 1)
    np.add.at(change, deficient + rank, -1)
    windows = np.cumsum(change)[:n]
    return Tail(rank, np.flatnonzero(windows == 0), np.flatnonzero(windows), windows, len(deficient), gap)
