"""Tables of the joint study, from its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from secateur.bench.statistics import bootstrap, holm, paired_p
from secateur_studies.common import Table
from secateur_studies.joint.cells import REPAIRS
from secateur_studies.joint.standing import STRUCTURES, Block, blocks, meetings

__all__ = ["against", "names", "standings", "tables"]

Row = Mapping[str, Any]
Rows = Sequence[Row]
LEVEL = 0.05
WORDS = {"none": "no repair", "fold": "with the fold", "finetune": "after a short fine-tuning"}


def tables(rows: Rows) -> list[Table]:
    """Return all tables."""
    found = blocks(rows)
    return [
        Table("standings", "Where every method stands", list(standings(found)), _STANDINGS),
        Table("structures", "The structures against the baselines", list(against(found)), _STRUCTURES),
        *(
            Table(f"winners-{r}", f"Who wins where, {WORDS[r]}", list(_winners(found, r)), _WINNERS)
            for r in REPAIRS
        ),
        *(Table(f"lost-{r}", f"Points lost, {WORDS[r]}", list(_lost(found, r)), _LOST) for r in REPAIRS),
        Table("cost", "What deciding costs", list(_costs(rows)), _COST),
        Table("networks", "The networks", list(_networks(rows)), _NETWORKS),
        Table("refused", "Where a method is not defined", list(_refused(rows)), _REFUSED),
    ]


_STANDINGS = (
    "A block is a network on a data set at a ratio. `best` counts the blocks in which a method loses least, "
    "alone or with others, `tied` those in which the best does not beat it (paired t-tests over the seeds, "
    "Holm-corrected for all pairs, 5 %: with five seeds only differences of some eight standard deviations "
    "are told); `behind` is the mean distance to the best of each block, `lost` the mean loss, in points of "
    "test accuracy. Means of a method that is not defined everywhere are over its own blocks, and stand "
    "beside no other's."
)
_STRUCTURES = (
    "Points by which the structure loses less than the baseline, averaged over seeds, ratios and data sets "
    "within each kind of network; 95 % bootstrap intervals over these, for the pair alone, and p-values of "
    "paired t-tests, Holm-corrected for all rows with the same repair, by which the verdict goes."
)
_WINNERS = "Points lost on average over the seeds; ties as above."
_LOST = "Mean points of test accuracy lost over the seeds; random over its draws, too."
_COST = (
    "Gathering the evidence and deciding at one ratio: median over networks' seeds of processor seconds, and "
    "of the resident memory above what there was before, in MiB; the largest relative gap that a "
    "solver left."
)
_NETWORKS = (
    "Accuracy of the trained networks in per cent, mean over seeds; parameters, and units in groups that can "
    "be pruned. Every group keeps the same share of its units. In the default size networks train on 6,000 "
    "to 8,000 images of Fashion-MNIST or 900 digits, VGG and ResNet-20 on Fashion-MNIST averaged to 14 x 14 "
    "pixels, LeNet-5 on digits doubled to 16 x 16. Evidence and fold see 1,000 calibration images (179 "
    "digits), a fifth of which judges the fold; accuracy is that on 2,000 test images (539 digits). A "
    "fine-tuning is 32 steps of 64 training images at the learning rate of training; random is the mean of "
    "two draws a seed. The integer program of VGG is solved layer by layer, with auxiliary networks that are "
    "trained on the images of the fine-tuning."
)
_REFUSED = "Said by the method itself, the first words of it."


def names(found: Sequence[Block]) -> list[str]:
    """Return the methods of the blocks: structures first."""
    seen = dict.fromkeys(name for block in found for name in block.lost)
    return sorted(seen, key=lambda n: (n not in STRUCTURES, n == "random"))


def standings(found: Sequence[Block]) -> Iterator[dict[str, Any]]:
    """Yield one row a repair and method, the best first."""
    for repair in REPAIRS:
        mine = [block for block in found if block.repair == repair]
        best = Counter(name for block in mine for name in block.firsts)
        tied = Counter(name for block in mine for name in block.tied)
        rows: list[dict[str, Any]] = []
        for name in names(mine):
            there = [block for block in mine if name in block.lost]
            behind = [block.means[name] - block.means[block.best] for block in there]
            rank = [list(block.means).index(name) + 1 for block in there]
            lost = float(np.mean([block.means[name] for block in there]))
            rows.append(
                {
                    "repair": repair,
                    "method": name,
                    "behind": float(np.mean(behind)),
                    "lost": lost,
                    "mean rank": float(np.mean(rank)),
                    "best": best[name],
                    "tied": tied[name],
                    "blocks": len(there),
                }
            )
        yield from sorted(rows, key=lambda row: row["behind"])


def against(found: Sequence[Block]) -> Iterator[dict[str, Any]]:
    """Yield each structure beside each baseline."""
    for repair in REPAIRS:
        mine = [block for block in found if block.repair == repair]
        pairs = [(s, b) for s in STRUCTURES for b in names(mine) if b not in STRUCTURES]
        met = {pair: values for pair in pairs if len(values := meetings(mine, *pair)) > 1}
        adjusted = holm([paired_p(values) for values in met.values()])
        for ((structure, baseline), values), p in zip(met.items(), adjusted, strict=True):
            mean = bootstrap(values)
            yield {
                "repair": repair,
                "structure": structure,
                "baseline": baseline,
                "ahead by": mean.estimate,
                "low": mean.low,
                "high": mean.high,
                "p": p,
                "verdict": "tie" if p >= LEVEL else "ahead" if mean.estimate > 0 else "behind",
                "networks": mean.count,
            }


def _winners(found: Sequence[Block], repair: str) -> Iterator[dict[str, Any]]:
    for block in found:
        if block.repair == repair:
            means, tied = block.means, block.tied
            beaten = len(means) - 1 - len(tied)
            yield {
                "data": block.data,
                "network": block.network,
                "units kept": f"{block.keep:.0%}",
                "best": block.best,
                "lost": means[block.best],
                "tied with it": ", ".join(tied) or "none",
                "beaten": beaten,
            }


def _lost(found: Sequence[Block], repair: str) -> Iterator[dict[str, Any]]:
    order = names(found)
    for block in found:
        if block.repair == repair:
            place = {"data": block.data, "network": block.network, "kept": f"{block.keep:.0%}"}
            means = block.means
            yield place | {name: round(means[name], 2) if name in means else None for name in order}


def _costs(rows: Rows) -> Iterator[dict[str, Any]]:
    mine = [row for row in rows if row["part"] == "cost"]
    for method in dict.fromkeys(row["method"] for row in mine):
        cell = [row for row in mine if row["method"] == method]
        row: dict[str, Any] = {"method": method}
        for network in dict.fromkeys(r["network"] for r in mine):
            seconds = [r["seconds"] for r in cell if r["network"] == network]
            row[f"{network}, s"] = float(np.median(seconds)) if seconds else None
        memory = [r["memory"] for r in cell if r["memory"] is not None]
        gaps = [r["gap"] for r in cell if r.get("gap") is not None]
        row["MiB"] = float(np.median(memory)) if memory else None
        yield row | {"largest gap": max(gaps) if gaps else None}


def _networks(rows: Rows) -> Iterator[dict[str, Any]]:
    mine = [row for row in rows if row["part"] == "dense"]
    for data, network in dict.fromkeys((row["data"], row["network"]) for row in mine):
        cell = [row for row in mine if (row["data"], row["network"]) == (data, network)]
        yield {
            "data": data,
            "network": network,
            "accuracy": 100 * float(np.mean([r["accuracy"] for r in cell])),
            "parameters": cell[0]["parameters"],
            "units": cell[0]["units"],
            "seeds": len(cell),
        }


def _refused(rows: Rows) -> Iterator[dict[str, Any]]:
    mine = [row for row in rows if row["part"] == "refused"]
    for method, network in dict.fromkeys((row["method"], row["network"]) for row in mine):
        cell = [row for row in mine if (row["method"], row["network"]) == (method, network)]
        where = ", ".join(dict.fromkeys(row["data"] for row in cell))
        why = cell[0]["why"]
        yield {
            "method": method,
            "network": network,
            "data": where,
            "seeds": len({r["seed"] for r in cell}),
            "why": why if len(why) <= 120 else why[:117] + "...",
        }
