"""Means over seeds, and paired differences of two ways with a bootstrap interval."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from secateur.bench.statistics import bootstrap

__all__ = ["Difference", "difference", "order", "part", "spread", "values"]

Row = Mapping[str, Any]
Rows = Sequence[Row]
_SAME = ("net", "seed", "score", "what", "density", "kept")


@dataclass(frozen=True)
class Difference:
    """A mean paired difference in points, and its 95 % interval.

    Attributes:
        mean: Mean over the pairs.
        low: Lower end; not a number for one pair.
        high: Upper end; not a number for one pair.
        pairs: Number of pairs: networks, or the seeds of one.
    """

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def verdict(self) -> str:
        """``"ahead"``, ``"behind"``, ``"tie"`` where the interval contains 0, or ``"one pair"``."""
        if self.pairs == 1:
            return "one pair"
        return "ahead" if self.low > 0 else "behind" if self.high < 0 else "tie"

    def __str__(self) -> str:
        """Word it: mean, interval, verdict."""
        interval = f" [{self.low:+.1f}, {self.high:+.1f}]" if self.pairs > 1 else ","
        return f"{self.mean:+.1f}{interval} {self.verdict}"


def part(rows: Rows, *names: str) -> list[Row]:
    """Return the rows of some parts."""
    return [row for row in rows if row["part"] in names]


def order(rows: Rows, key: str) -> list[Any]:
    """Return the values of a column in the order of their appearance."""
    return list(dict.fromkeys(row[key] for row in rows if key in row))


def values(rows: Rows, key: str = "accuracy", **wanted: Any) -> list[float]:
    """Return a column of the rows that have the wanted values; a set stands for any of its members."""
    return [row[key] for row in rows if _fits(row, wanted)]


def _fits(row: Row, wanted: Mapping[str, Any]) -> bool:
    return all(row.get(k) in v if isinstance(v, set) else row.get(k) == v for k, v in wanted.items())


def spread(found: Iterable[float]) -> str:
    """Word the mean and standard deviation.

    Example:
        >>> spread([80.0, 82.0]), spread([])
        ('81.0 ± 1.4', '')
    """
    found = list(found)
    if not found:
        return ""
    return f"{mean(found):.1f}" + (f" ± {stdev(found):.1f}" if len(found) > 1 else "")


def difference(rows: Rows, first: Row, second: Row, /, **wanted: Any) -> Difference | None:
    """Pair what two ways reached on the same network, seed and budget; None where there are no pairs.

    What is pooled besides seeds is averaged first: pairs of one network and seed count once, and where there
    are several networks, the pairs are these.  The interval is that of
    `secateur.bench.statistics.bootstrap` over what is left.

    Args:
        rows: Rows with "accuracy".
        first: Columns that say which rows are the first way's, such as ``{"way": "sparsify"}``.
        second: The second way's.
        wanted: What both have in common; a set stands for any of its members.
    """
    own = [row for row in rows if _fits(row, {**wanted, **first})]
    theirs = {_key(row, second): row["accuracy"] for row in rows if _fits(row, {**wanted, **second})}
    paired = [(row, row["accuracy"] - theirs[_key(row, first)]) for row in own if _key(row, first) in theirs]
    if not paired:
        return None
    several = len({row["net"] for row, _ in paired}) > 1
    met: dict[Any, list[float]] = defaultdict(list)
    for row, value in paired:
        met[row["net"] if several else row["seed"]].append(value)
    found = bootstrap([mean(values) for values in met.values()])
    return Difference(found.estimate, found.low, found.high, found.count)


def _key(row: Row, without: Row) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in _SAME if key not in without)
