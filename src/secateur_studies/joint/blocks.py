"""Blocks of comparable results, and comparisons of methods over them.

A block is a network on a data set at a ratio with a repair. Every method that is defined there has one
accuracy for each seed, on the same trained networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from secateur.bench.statistics import Ranking, rank
from secateur_studies.joint.experiments import DENSE, PRUNED
from secateur_studies.rows import Rows, group, mean, select

__all__ = ["STRUCTURES", "Block", "list_methods", "make_blocks", "mean_differences"]

SAME = 1e-9  # points: accuracies are counts, and equal means differ by rounding alone
STRUCTURES = ("matroid", "spectral", "mip", "lattice")


@dataclass(frozen=True, eq=False)
class Block:
    """All methods on one network, data set, ratio and repair.

    Attributes:
        data: Data set.
        network: Network.
        keep: Share of the units that stays.
        repair: Repair.
        lost: Method -> seed -> lost points of test accuracy; random averaged over its draws.
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
        """The method with the least mean loss, or one of several."""
        return next(iter(self.means))

    @property
    def firsts(self) -> tuple[str, ...]:
        """All methods with the least mean loss."""
        least = self.means[self.best]
        return tuple(name for name, loss in self.means.items() if loss <= least + SAME)

    @cached_property
    def ranking(self) -> Ranking:
        """The winner, and the methods that are not significantly worse."""
        shares = {name: {s: -x / 100 for s, x in self.lost[name].items()} for name in self.means}
        seeds = max(len(by_seed) for by_seed in shares.values())  # all are judged on the same examples
        return rank(shares, examples=self.examples / seeds)

    @property
    def tied(self) -> tuple[str, ...]:
        """Methods that are not significantly worse than the best."""
        return self.ranking.tied[1:]

    @property
    def beats_random(self) -> bool:
        """Whether the best method is significantly better than random removal."""
        return "random" in self.lost and "random" not in (self.best, *self.tied)


def make_blocks(rows: Rows) -> list[Block]:
    """Return the blocks of the rows `DENSE` and `PRUNED`. Methods that lack a seed are left out."""
    dense = group(select(rows, part=DENSE), "data", "network")
    blocks = []
    for (data, network, keep, repair), same in group(
        select(rows, part=PRUNED), "data", "network", "keep", "repair"
    ).items():
        before = {row["seed"]: row["accuracy"] for row in dense[data, network]}
        lost = {}
        for (method,), members in group(same, "method").items():
            after = {
                seed: mean(drawn, "accuracy") or 0.0 for (seed,), drawn in group(members, "seed").items()
            }
            if set(after) == set(before):
                lost[method] = {seed: 100 * (before[seed] - after[seed]) for seed in sorted(before)}
        if lost:
            blocks.append(Block(data, network, keep, repair, lost, dense[data, network][0]["examples"]))
    return sorted(blocks, key=lambda b: (b.data, b.network, -b.keep, b.repair))


def list_methods(blocks: Sequence[Block]) -> list[str]:
    """Return the methods of the blocks: structures first, random last."""
    names = dict.fromkeys(name for block in blocks for name in block.lost)
    return sorted(names, key=lambda n: (n not in STRUCTURES, n == "random"))


def mean_differences(blocks: Sequence[Block], first: str, second: str) -> list[float]:
    """Return how many points fewer one method loses than another, one number for each kind of network.

    Each is the mean over data sets, ratios and seeds of the blocks in which both are defined. Results on
    several data sets are not independent, so they are averaged.
    """
    differences: dict[str, list[float]] = {}
    for block in blocks:
        if first in block.lost and second in block.lost:
            difference = block.means[second] - block.means[first]
            differences.setdefault(block.network, []).append(difference)
    return [float(np.mean(values)) for values in differences.values()]
