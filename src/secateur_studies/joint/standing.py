"""Who stands where: pure functions from the rows of the cells to blocks, ties and paired comparisons.

A block is a network on a data set at a ratio with a repair; every method that is defined there has one
accuracy a seed, on the same trained networks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from secateur.bench.statistics import Ranking, rank

__all__ = ["STRUCTURES", "Block", "blocks", "meetings"]

Row = Mapping[str, Any]
SAME = 1e-9  # points: accuracies are counts, and their means differ by rounding alone
STRUCTURES = ("matroid", "spectral", "mip", "lattice")


@dataclass(frozen=True, eq=False)
class Block:
    """All methods on one network, data set, ratio and repair.

    Attributes:
        data: Data set.
        network: Network.
        keep: Share of the units that stays.
        repair: Repair.
        lost: Method -> seed -> points of test accuracy lost; random averaged over its draws.
        examples: Test examples behind each accuracy.
    """

    data: str
    network: str
    keep: float
    repair: str
    lost: Mapping[str, Mapping[int, float]]
    examples: int

    @cached_property
    def means(self) -> dict[str, float]:
        """Mean points lost by method, the best first."""
        means = {name: float(np.mean(list(seeds.values()))) for name, seeds in self.lost.items()}
        return dict(sorted(means.items(), key=lambda item: item[1]))

    @property
    def best(self) -> str:
        """The method that loses least on average, or one of those that do."""
        return next(iter(self.means))

    @property
    def firsts(self) -> tuple[str, ...]:
        """All methods that lose least on average."""
        least = self.means[self.best]
        return tuple(name for name, mean in self.means.items() if mean <= least + SAME)

    @cached_property
    def standing(self) -> Ranking:
        """Who wins, and who cannot be told from the winner."""
        shares = {name: {s: -x / 100 for s, x in self.lost[name].items()} for name in self.means}
        seeds = max(len(by_seed) for by_seed in shares.values())  # all are judged on the same examples
        return rank(shares, examples=self.examples / seeds)

    @property
    def tied(self) -> tuple[str, ...]:
        """Methods that the best does not beat."""
        return self.standing.tied[1:]


def blocks(rows: Iterable[Row]) -> list[Block]:
    """Gather the rows ``dense`` and ``pruned`` into blocks; methods that lack a seed are left out."""
    dense: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    examples: dict[tuple[str, str], int] = {}
    cells: dict[tuple[str, str, float, str], dict[str, dict[int, list[float]]]] = defaultdict(dict)
    for row in rows:
        place = (row["data"], row["network"])
        if row["part"] == "dense":
            dense[place][row["seed"]] = row["accuracy"]
            examples[place] = row["examples"]
        elif row["part"] == "pruned":
            seeds = cells[*place, row["keep"], row["repair"]].setdefault(row["method"], defaultdict(list))
            seeds[row["seed"]].append(row["accuracy"])
    found = []
    for (data, network, keep, repair), methods in cells.items():
        before = dense[data, network]
        lost = {
            name: {s: float(100 * (before[s] - np.mean(seeds[s]))) for s in sorted(before)}
            for name, seeds in methods.items()
            if set(seeds) == set(before)
        }
        if lost:
            found.append(Block(data, network, keep, repair, lost, examples[data, network]))
    return sorted(found, key=lambda b: (b.data, b.network, -b.keep, b.repair))


def meetings(found: Iterable[Block], first: str, second: str) -> list[float]:
    """Return how many points fewer one method loses than another, one number a kind of network.

    Each is the mean over data sets, ratios and seeds of the blocks in which both are defined: what a method
    gains on one data set, it tends to gain on the other, so that the two are not independent.
    """
    met: dict[str, list[float]] = defaultdict(list)
    for block in found:
        if first in block.lost and second in block.lost:
            met[block.network].append(block.means[second] - block.means[first])
    return [float(np.mean(values)) for values in met.values()]
