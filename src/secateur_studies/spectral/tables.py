"""Tables of the study, from its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean
from typing import Any

from secateur_studies.common import Table, verdict
from secateur_studies.spectral.paired import Difference, difference, order, part, spread, values
from secateur_studies.spectral.published import SLOWER, TABLE_1

__all__ = ["tables"]

Row = Mapping[str, Any]
Rows = Sequence[Row]
LOW = 0.05  # densities up to which a mask counts as of high sparsity
HIGH = 0.2  # densities from which the two ways are published as alike
COLLAPSED = 0.5  # share of its nodes that hang together, below which a layer counts as collapsed
ALIKE = 2.0  # points within which accuracies count as alike
SPARSIFY, GREEDY = {"way": "sparsify"}, {"way": "greedy"}

_TABLE_1 = (
    "Seconds of processor time for the mask of the network at full width, at the published density, on one "
    "core; the published ones are of another machine and of pseudo-inverses. Accuracies are printed for "
    "CIFAR; where the data are others, only their difference can be compared (within {alike:g} points)."
)
_STATEMENTS = (
    "The paper's figures are plots without numbers; these are its words. Differences are of test accuracy in "
    "points, paired by network and seed, with a 95 % bootstrap interval over networks. Low densities: up to "
    "{low:.0%}; high: from {high:.0%}. Reproduced: the interval lies on the side that the paper says; where "
    "it says alike, the mean is within {alike:g} points of 0. A layer counts as collapsed where less than "
    "{collapsed:.0%} of its nodes hang together, judged at the largest of the low densities: below it these "
    "narrow layers have fewer edges than nodes, and all fall apart."
)
_PAIRED = (
    "Accuracy of `sparsify` (one epsilon for the network, independent draws, topped up) less that of "
    "`greedy` (the largest scores of each layer, all layers alike), in points, with the 95 % bootstrap "
    "interval over seeds, in the row of all over networks; of three or four it is their range, which chance "
    "alone puts to one side of 0 in one of four or eight cases."
)
_CONTROLS = (
    "Magnitudes at initialisation, {net}. `sparsify` gives layers other sizes than `greedy` does: the "
    "controls with the sizes of `sparsify` show what that alone is worth. Random masks with those sizes are "
    "also what shuffling a mask within its layers gives; one draw a seed."
)
_ONE_SHOT = (
    "Weights are ranked over all layers together, but a tenth of the even share of the smallest layer stays "
    "in each; no fold, no fine-tuning. Units: the same share of every group, removed, no fold."
)
_CONNECTIVITY = (
    "lambda_2 is of the largest component and rises to 1 where that shrinks to a few nodes; so it stands "
    "beside the least share of the nodes that it has in any layer, units without an edge, components beyond "
    "one a layer, and the largest condition number of a layer's mask against the whole layer (infinite where "
    "a layer falls apart). Means over seeds of the layers' mean, least, sum or largest."
)


def tables(rows: Rows) -> list[Table]:
    """Return the tables of the parts that there are rows of."""
    said = {"low": LOW, "high": HIGH, "alike": ALIKE, "collapsed": COLLAPSED}
    net = next(iter(order(part(rows, "controls"), "net")), "")
    found = [
        Table(
            "table1",
            "Table 1: layer by layer against the whole network",
            list(_table1(rows)),
            _TABLE_1.format(**said),
        ),
        Table(
            "statements",
            "What the paper says of its figures, and what came out",
            list(_statements(rows)),
            _STATEMENTS.format(**said),
        ),
        Table(
            "paired",
            "Figure 2 in differences: sparsify less greedy, by score and density",
            list(_paired(rows)),
            _PAIRED,
        ),
        Table(
            "controls",
            "Controls: what the layers' sizes do",
            list(_controls(rows)),
            _CONTROLS.format(net=net),
        ),
        Table(
            "connectivity",
            "Figure 4 in short: connectivity after training",
            list(_connectivity(rows)),
            _CONNECTIVITY,
        ),
        Table("one-shot", "After training, without retraining", list(_oneshot(rows)), _ONE_SHOT),
        Table(
            "one-shot-paired",
            "After training, without retraining: less global magnitude",
            list(_oneshot_paired(rows)),
            "In points, paired over seeds.",
        ),
    ]
    return [table for table in found if table.rows]


def _table1(rows: Rows) -> Iterator[Row]:
    found = part(rows, "table 1")
    for net in order(found, "net"):
        seconds = {}
        for graph, title in (("layer", "layer by layer"), ("network", "whole network")):
            own = [row for row in found if (row["net"], row["graph"]) == (net, graph)]
            printed, accuracy, _, data, density = TABLE_1[net, graph]
            seconds[graph] = mean(values(own, "seconds"))
            what = f"seconds, {title}"  # of another machine, and of another way to compute
            yield {"network": net, "what": what, "ours": seconds[graph], "published": printed, "verdict": ""}
            if graph == "layer":
                cheap = mean(values(own, "seconds by series"))
                yield {"network": net, "what": f"seconds, {title}, series", "ours": cheap}
            there = own[0]["data"] == data and own[0]["density"] == density
            entry = _entry(net, f"accuracy in %, {title}", mean(values(own)), accuracy, ALIKE)
            yield entry if there else {**entry, "verdict": "cannot be run here"}
        ratio = seconds["network"] / seconds["layer"]
        yield _entry(net, "whole network / layer by layer, time", ratio, SLOWER[net], 0.1 * SLOWER[net])
        away = difference(found, {"graph": "network"}, {"graph": "layer"}, net=net)
        printed = TABLE_1[net, "network"][1] - TABLE_1[net, "layer"][1]
        if away is not None:
            yield _entry(net, "whole network - layer by layer, accuracy", away.mean, printed, ALIKE)


def _entry(net: str, what: str, ours: float, published: float, tolerance: float) -> Row:
    return {
        "network": net,
        "what": what,
        "ours": ours,
        "published": published,
        "verdict": verdict(ours, published, tolerance),
    }


def _statements(rows: Rows) -> Iterator[Row]:
    start = part(rows, "figure 2")
    low = {d for d in order(start, "density") if d <= LOW}
    high = {d for d in order(start, "density") if d >= HIGH}
    for score in order(start, "score"):
        ahead = difference(start, SPARSIFY, GREEDY, score=score, density=low)
        yield from _said(f"Figure 2, {score}: sparsify better than greedy at low densities", "ahead", ahead)
    alike = difference(start, SPARSIFY, GREEDY, score="magnitude", density=high)
    yield from _said("Figure 2, magnitude: alike at high densities", "alike", alike)
    for score in ("magnitude", "snip"):
        best = difference(start, {"score": "synflow"}, {"score": score}, way="sparsify", density=low)
        yield from _said(f"Figure 2: sparsify with SynFlow's scores better than with {score}", "ahead", best)
    for way in ("greedy", "sparsify"):
        fails = difference(start, {"score": "snip"}, {"score": "magnitude"}, way=way, density=low)
        title = f"Figure 2: SNIP collapses layers and does not do well (less magnitude, {way})"
        yield from _said(title, "behind", fails)
    if start and "tinyimagenet" not in order(start, "data"):
        yield {
            "statement": "Figure 2, Tiny ImageNet: greedy better at extreme sparsity",
            "ours": "",
            "published": "ahead",
            "verdict": "cannot be run here",
        }
    after = part(rows, "figure 3")
    for way in ("greedy", "greedy, global"):
        ahead = difference(after, SPARSIFY, {"way": way}, density=low)
        title = f"Figure 3: sparsify better than MagPrune ({way}) at low densities"
        yield from _said(title, "ahead", ahead)
    yield from _falls(part(rows, "figure 4"))


def _said(statement: str, published: str, ours: Difference | None) -> Iterator[Row]:
    if ours is None:
        return
    same = abs(ours.mean) <= ALIKE if published == "alike" else ours.verdict == published
    yield {
        "statement": statement,
        "ours": str(ours),
        "published": published,
        "verdict": "reproduced" if same else "differs",
    }


def _falls(layers: Rows) -> Iterator[Row]:
    """Connectivity falls for both ways; greedy collapses a layer, sparsify none."""
    densities = sorted({d for d in order(layers, "density") if d < 1})
    if not densities:
        return
    for way in (w for w in ("sparsify", "greedy") if w in order(layers, "way")):
        ends = [mean(values(layers, "lambda2", way=way, density=d)) for d in (densities[-1], densities[0])]
        yield {
            "statement": f"Figures 3 and 4: lambda_2 falls with the density, {way}",
            "ours": f"{ends[0]:.2f} at {densities[-1]:.0%}, {ends[1]:.2f} at {densities[0]:.0%}",
            "published": "falls",
            "verdict": "reproduced" if ends[1] < ends[0] else "differs",
        }
    for way, published in (
        ("greedy", "a layer collapses"),
        ("greedy, global", "a layer collapses"),
        ("sparsify", "no layer collapses"),
    ):
        at = max((d for d in densities if d <= LOW), default=densities[0])
        least = values(layers, "share", way=way, density=at)
        if least:
            collapsed = min(least) < COLLAPSED
            yield {
                "statement": f"Figures 3 and 4: {way} at {at:.0%}",
                "ours": f"{min(least):.0%} of a layer's nodes hang together, at the least",
                "published": published,
                "verdict": "reproduced" if collapsed == (published[0] == "a") else "differs",
            }


def _paired(rows: Rows) -> Iterator[Row]:
    found = part(rows, "figure 2")
    for score in order(found, "score"):
        for net in [*order(found, "net"), "all"]:
            where = {} if net == "all" else {"net": net}
            cells = {
                f"{d:.0%}": difference(found, SPARSIFY, GREEDY, score=score, density=d, **where)
                for d in order(found, "density")
            }
            if any(cells.values()):
                yield {"score": score, "network": net, **{k: str(v) if v else "" for k, v in cells.items()}}


def _controls(rows: Rows) -> Iterator[Row]:
    found = part(rows, "controls")
    nets = set(order(found, "net"))
    both = [*found, *(row for row in part(rows, "figure 2") if row["net"] in nets)]
    for way in ("sparsify", "greedy", *order(found, "way")):
        cells = [values(both, way=way, score="magnitude", density=d) for d in order(found, "density")]
        if any(cells):
            heads = (f"{d:.0%}" for d in order(found, "density"))
            yield {"way": way, "": "accuracy", **dict(zip(heads, map(spread, cells), strict=True))}
    for way in order(found, "way"):
        cells2 = {
            f"{d:.0%}": difference(both, SPARSIFY, {"way": way}, score="magnitude", density=d)
            for d in order(found, "density")
        }
        if any(cells2.values()):
            yield {"way": way, "": "sparsify less it", **{k: str(v) if v else "" for k, v in cells2.items()}}


def _connectivity(rows: Rows) -> Iterator[Row]:
    found = part(rows, "figure 4")
    for density in order(found, "density"):
        for way in order(found, "way"):
            own = [row for row in found if (row["density"], row["way"]) == (density, way)]
            seeds = [[row for row in own if row["seed"] == seed] for seed in order(own, "seed")]
            if not seeds:
                continue
            conditions = [max(_number(row["condition"]) for row in seed) for seed in seeds]
            yield {
                "density": f"{density:.0%}",
                "way": way,
                "mean lambda_2": mean(row["lambda2"] for row in own),
                "least share": mean(min(row["share"] for row in seed) for seed in seeds),
                "dead units": mean(sum(row["dead_inputs"] + row["dead_outputs"] for row in s) for s in seeds),
                "components too many": mean(sum(max(0, row["components"] - 1) for row in s) for s in seeds),
                "condition number": f"{mean(conditions):.3g}" if density < 1 else "1",
            }


def _number(condition: Any) -> float:
    return float("nan") if condition is None else float(condition)


def _oneshot(rows: Rows) -> Iterator[Row]:
    found = part(rows, "one shot")
    shares = sorted({row["kept"] for row in found if row["way"] != "dense"}, reverse=True)
    for net in order(found, "net"):
        own = [row for row in found if row["net"] == net]
        seeds = len(order(own, "seed"))
        whole = spread(values(own, way="dense"))
        yield {"network": net, "seeds": seeds, "what": "", "way": "dense", "whole": whole}
        for what in order(own, "what"):
            for way in _ways(own, what):
                cells = {f"{s:.0%}": spread(values(own, what=what, way=way, kept=s)) for s in shares}
                yield {"network": net, "seeds": seeds, "what": what, "way": way, **cells}


def _oneshot_paired(rows: Rows) -> Iterator[Row]:
    found = [row for row in part(rows, "one shot") if row["way"] != "dense"]
    shares = sorted(order(found, "kept"), reverse=True)
    for net in order(found, "net"):
        own = [row for row in found if row["net"] == net]
        for what, way in ((w, x) for w in order(own, "what") for x in _ways(own, w) if x != "magnitude"):
            cells = {
                f"{s:.0%}": difference(own, {"way": way}, {"way": "magnitude"}, what=what, kept=s)
                for s in shares
            }
            yield {
                "network": net,
                "what": what,
                "way": way,
                **{k: str(v) if v else "" for k, v in cells.items()},
            }


def _ways(rows: Rows, what: str) -> list[str]:
    return order([row for row in rows if row["what"] == what and row["way"] != "dense"], "way")
