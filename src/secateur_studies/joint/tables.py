"""The tables and figures of the joint study, from its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from secateur_studies.figures import bars, heatmap, with_title
from secateur_studies.findings import Figure, Table
from secateur_studies.joint.blocks import STRUCTURES, Block, list_methods, make_blocks, mean_differences
from secateur_studies.joint.experiments import COST, DENSE, REFUSED, REPAIRS
from secateur_studies.rows import Column, Row, Rows, distinct, group, mean, percent, pivot, select
from secateur_studies.statistics import Comparison, compare, correct

__all__ = ["compare_structures", "figures", "list_leaders", "list_standings", "tables"]

WORDS = {"none": "no repair", "fold": "with the fold", "finetune": "after a short fine-tuning"}

_STANDINGS = (
    "A block is a network on a data set at a ratio. `best` counts the blocks in which a method loses least, "
    "alone or with others. `tied` counts those in which the best is not significantly better (paired "
    "t-tests over the seeds, Holm-corrected for all pairs, 5 %: with three seeds hardly any difference is "
    "significant, and most methods count as tied). `behind` is the mean distance to the best of each block, "
    "`lost` the mean loss, in points of test accuracy. Means of a method that is not defined everywhere are "
    "over its own blocks and cannot be compared with the others."
)
_LEADERS = (
    "The two methods with the least mean loss, of those that are defined everywhere: how many points fewer "
    "the first loses, with the 95 % bootstrap interval over kinds of network. `beats random`: blocks in "
    "which the best method is significantly better than random removal."
)
_STRUCTURES = (
    "Points by which the structure loses less than the baseline, averaged over seeds, ratios and data sets "
    "within each kind of network. 95 % bootstrap intervals over these are for the pair alone. P-values are "
    "of paired t-tests, Holm-corrected for all rows with the same repair; the verdict follows them."
)
_WINNERS = "Points lost on average over the seeds; ties as above."
_LOST = "Mean points of test accuracy lost over the seeds; random also over its draws."
_COST = (
    "Collecting the statistics and deciding at one ratio: median over the seeds of processor seconds and of "
    "the resident memory above that before, in MiB; and the largest relative gap that a solver left."
)
_NETWORKS = (
    "Accuracy of the trained networks in percent, mean over seeds; parameters; and units in groups that can "
    "be pruned. Every group keeps the same share of its units. In the default size, networks train on 6,000 "
    "to 8,000 images of Fashion-MNIST or 900 digits; VGG and ResNet-20 use Fashion-MNIST averaged to 14 x "
    "14 pixels, LeNet-5 digits doubled to 16 x 16. Statistics and fold use 1,000 calibration images (179 "
    "digits), of which a fifth judges the fold. Accuracy is that on 2,000 test images (539 digits). A "
    "fine-tuning has 32 steps of 64 training images at the learning rate of training. Random is the mean of "
    "two draws a seed. The integer program of VGG is solved layer by layer, with auxiliary networks that "
    "are trained on the images of the fine-tuning."
)
_REFUSED = "The beginning of the method's own message."


def tables(rows: Rows) -> list[Table]:
    """Return the tables that have rows."""
    blocks = make_blocks(rows)
    built = [
        Table("standings", "Standings of all methods", list(list_standings(blocks)), _STANDINGS),
        Table("leaders", "The two best methods for each repair", list(list_leaders(blocks)), _LEADERS),
        Table(
            "structures", "The structures and the baselines", list(compare_structures(blocks)), _STRUCTURES
        ),
        *(
            Table(f"winners-{r}", f"Winners by block, {WORDS[r]}", list(_winner_rows(blocks, r)), _WINNERS)
            for r in REPAIRS
        ),
        *(
            Table(f"lost-{r}", f"Points lost, {WORDS[r]}", list(_loss_rows(blocks, r)), _LOST)
            for r in REPAIRS
        ),
        Table("cost", "Cost of deciding", list(_cost_rows(rows)), _COST),
        Table("networks", "The networks", _network_rows(rows), _NETWORKS),
        Table("refused", "Networks for which a method is not defined", list(_refusal_rows(rows)), _REFUSED),
    ]
    return [table for table in built if table.rows]


def _with_repair(blocks: Sequence[Block], repair: str) -> list[Block]:
    return [block for block in blocks if block.repair == repair]


def list_standings(blocks: Sequence[Block]) -> Iterator[dict[str, Any]]:
    """Yield one row for each repair and method, the best first."""
    for repair in REPAIRS:
        same = _with_repair(blocks, repair)
        best = Counter(name for block in same for name in block.firsts)
        tied = Counter(name for block in same for name in block.tied)
        rows: list[dict[str, Any]] = []
        for name in list_methods(same):
            defined = [block for block in same if name in block.lost]
            values: dict[str, list[float]] = {
                "behind": [block.means[name] - block.means[block.best] for block in defined],
                "lost": [block.means[name] for block in defined],
                "mean rank": [list(block.means).index(name) + 1 for block in defined],
            }
            means = {column: float(np.mean(numbers)) for column, numbers in values.items()}
            counts = {"best": best[name], "tied": tied[name], "blocks": len(defined)}
            rows.append({"repair": repair, "method": name, **means, **counts})
        yield from sorted(rows, key=lambda row: row["behind"])


def list_leaders(blocks: Sequence[Block]) -> Iterator[dict[str, Any]]:
    """Yield for each repair the two best methods of those that are defined in all blocks."""
    standings = list(list_standings(blocks))
    for repair in REPAIRS:
        same = _with_repair(blocks, repair)
        whole = select(standings, repair=repair, blocks=len(same))
        if len(whole) < 2:
            continue
        first, second = (row["method"] for row in whole[:2])
        comparison = compare(mean_differences(same, first, second))
        if comparison is not None:
            row = {"repair": repair, "first": first, "second": second, **_interval_columns(comparison)}
            row |= {"outcome": comparison.outcome, "networks": comparison.count}
            yield {**row, "beats random": sum(b.beats_random for b in same), "blocks": len(same)}


def _interval_columns(comparison: Comparison) -> dict[str, float | None]:
    return {"ahead by": comparison.mean, "low": comparison.low, "high": comparison.high}


def compare_structures(blocks: Sequence[Block]) -> Iterator[dict[str, Any]]:
    """Yield the comparison of each structure with each baseline."""
    for repair in REPAIRS:
        same = _with_repair(blocks, repair)
        baselines = [name for name in list_methods(same) if name not in STRUCTURES]
        pairs = [(structure, baseline) for structure in STRUCTURES for baseline in baselines]
        compared = {pair: compare(mean_differences(same, *pair)) for pair in pairs}
        several = {pair: c for pair, c in compared.items() if c is not None and c.count > 1}
        for (structure, baseline), comparison in zip(several, correct(list(several.values())), strict=True):
            pair = {"repair": repair, "structure": structure, "baseline": baseline}
            row = {**pair, **_interval_columns(comparison), "p": comparison.p}
            yield {**row, "verdict": comparison.outcome, "networks": comparison.count}


def _winner_rows(blocks: Sequence[Block], repair: str) -> Iterator[dict[str, Any]]:
    for block in _with_repair(blocks, repair):
        yield {
            "data": block.data,
            "network": block.network,
            "units kept": percent(block.keep),
            "best": block.best,
            "lost": block.means[block.best],
            "tied with it": ", ".join(block.tied) or "none",
            "beaten": len(block.means) - 1 - len(block.tied),
        }


def _loss_rows(blocks: Sequence[Block], repair: str) -> Iterator[dict[str, Any]]:
    order = list_methods(blocks)
    for block in _with_repair(blocks, repair):
        means = block.means
        row = {"data": block.data, "network": block.network, "kept": percent(block.keep)}
        yield row | {name: round(means[name], 2) if name in means else None for name in order}


def _median(rows: Rows, key: str) -> float | None:
    values = [row[key] for row in rows if row.get(key) is not None]
    return float(np.median(values)) if values else None


def _cost_rows(rows: Rows) -> Iterator[dict[str, Any]]:
    costs = select(rows, part=COST)
    columns: dict[str, Column] = {
        f"{network}, s": ("seconds", {"network": network}) for network in distinct(costs, "network")
    }
    columns["MiB"] = "memory"
    for line in pivot(costs, ["method"], columns, _median):
        gaps = [row["gap"] for row in select(costs, method=line["method"]) if row.get("gap") is not None]
        yield line | {"largest gap": max(gaps) if gaps else None}


def _network_rows(rows: Rows) -> list[dict[str, Any]]:
    dense = select(rows, part=DENSE)
    return [
        {
            "data": data,
            "network": network,
            "accuracy": 100 * (mean(same, "accuracy") or 0.0),
            "parameters": same[0]["parameters"],
            "units": same[0]["units"],
            "seeds": len(same),
        }
        for (data, network), same in group(dense, "data", "network").items()
    ]


def _refusal_rows(rows: Rows) -> Iterator[Row]:
    for (method, network), same in group(select(rows, part=REFUSED), "method", "network").items():
        why = same[0]["why"]
        yield {
            "method": method,
            "network": network,
            "data": ", ".join(distinct(same, "data")),
            "seeds": len(distinct(same, "seed")),
            "why": why if len(why) <= 120 else why[:117] + "...",
        }


def figures(rows: Rows) -> list[Figure]:
    """Return the standings as bars, and a map of points behind the best for each repair."""
    blocks = make_blocks(rows)
    if not blocks:
        return []
    return [_standings_figure(blocks), *(_distance_map(blocks, repair) for repair in REPAIRS)]


def _standings_figure(blocks: Sequence[Block]) -> Figure:
    standings = list(list_standings(blocks))
    order = [row["method"] for row in standings if row["repair"] == "fold"]
    series = {}
    for repair in REPAIRS:
        behind = {row["method"]: row["behind"] for row in select(standings, repair=repair)}
        series[WORDS[repair]] = [(method, behind.get(method)) for method in order]
    plot = bars(series, with_title("points behind the best, on average"))
    shown = [{k: row[k] for k in ("repair", "method", "behind", "blocks")} for row in standings]
    text = "Mean distance to the best method of each block, for each repair. Lower is better."
    return Figure("behind", "Points behind the best", plot, text, shown)


def _distance_map(blocks: Sequence[Block], repair: str) -> Figure:
    same = _with_repair(blocks, repair)
    order = list_methods(same)
    behind = {
        f"{b.network}, {b.data}, {b.keep:.0%} kept": {
            name: b.means[name] - b.means[b.best] for name in b.lost
        }
        for b in same
    }
    shown = [
        {"block": block, "method": name, "behind": values[name]}
        for block, values in behind.items()
        for name in order
        if name in values
    ]
    z = [[values.get(name) for name in order] for values in behind.values()]
    style = {"colorscale": "Viridis", "reversescale": True, "colorbar": with_title("points")}
    layout = {"yaxis": {"automargin": True, "autorange": "reversed"}, "height": 200 + 16 * len(behind)}
    plot = {"data": [heatmap(order, list(behind), z, **style)], "layout": layout}
    text = f"Points behind the best method of each block, {WORDS[repair]}. Light is near the best."
    return Figure(f"map-{repair}", f"Distance to the best, {WORDS[repair]}", plot, text, shown)
