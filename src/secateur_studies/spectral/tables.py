"""The tables of the spectral study, from its rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from secateur_studies.findings import Table, compare_published
from secateur_studies.rows import (
    Column,
    Row,
    Rows,
    across,
    distinct,
    group,
    mean,
    percent,
    pivot,
    select,
    spread,
)
from secateur_studies.spectral.causes import explain_connected, explain_sizes, explain_time
from secateur_studies.spectral.experiments import (
    AT_START,
    CONNECTIVITY,
    CONTROL,
    ONE_SHOT,
    RETRAINED,
    TABLE,
)
from secateur_studies.spectral.mask_variants import (
    DENSE,
    GREEDY,
    GREEDY_ERK,
    GREEDY_GLOBAL,
    GREEDY_SIZES,
    MAIN,
    RANDOM_SIZES,
    SPARSIFY,
)
from secateur_studies.spectral.published import SLOWER, TABLE_1
from secateur_studies.statistics import Comparison, compare, paired_differences

__all__ = ["difference", "tables"]

PAIRED_BY = ("net", "seed", "score", "what", "density", "kept")
LOW = 0.05  # densities up to this count as low
HIGH = 0.2  # densities from this count as high
COLLAPSED = 0.5  # a layer counts as collapsed below this share of connected nodes
ALIKE = 2.0  # accuracies within these points count as alike

_TABLE_1 = (
    "Seconds of processor time for the mask of the network at full width and at the published density, on "
    "one core. The published seconds are of another machine and of pseudo-inverses. Accuracies are printed "
    f"for CIFAR. On other data only their difference is compared (within {ALIKE:g} points)."
)
_STATEMENTS = (
    "The paper's figures are plots without numbers, so its statements are compared. Differences are of "
    "test accuracy in points, paired by network and seed, with a 95 % bootstrap interval over networks. "
    f"Low densities: up to {LOW:.0%}; high: from {HIGH:.0%}. Reproduced: the interval lies on the side that "
    f"the paper states, or, for alike, the mean is within {ALIKE:g} points of 0. A layer counts as "
    f"collapsed if less than {COLLAPSED:.0%} of its nodes are connected. This is judged at the largest of "
    "the low densities; below it these narrow layers have fewer edges than nodes, and all fall apart."
)
_PAIRED = (
    "Accuracy of `sparsify` (one epsilon for the network, independent draws, filled up) less that of "
    "`greedy` (the largest scores of each layer, the same share in all layers), in points. The 95 % "
    "bootstrap interval is over seeds, in the row `all` over networks. With two, three or four of these it "
    "is their range, which lies on one side of 0 by chance in one of two, four or eight cases."
)
_CONTROLS = (
    "Magnitudes at initialisation, {net}. `sparsify` gives layers other sizes than `greedy` does. The "
    "controls with the sizes of `sparsify` show the effect of the sizes alone. Random masks with those "
    "sizes are the same as masks shuffled within their layers; one draw a seed."
)
_CONTROLS_LOW = (
    "The same differences, averaged over the low densities before the interval over seeds is taken."
)
_CONNECTIVITY = (
    "lambda_2 is that of the largest component and rises to 1 where this shrinks to a few nodes. The other "
    "columns therefore show the least share of the nodes that the component has in any layer, units without "
    "an edge, components beyond one a layer, and the largest condition number of a layer's mask relative to "
    "the whole layer (infinite where a layer falls apart). Means over seeds of the layers' mean, least, sum "
    "or largest."
)
_ONE_SHOT = (
    "Weights are ranked over all layers together, but each layer keeps at least a tenth of the even share "
    "of the smallest layer. No fold, no fine-tuning. Units: the same share of every group, removed, no fold."
)


def tables(rows: Rows) -> list[Table]:
    """Return the tables that have rows."""
    net = next(iter(distinct(select(rows, part=CONTROL), "net")), "")
    named = [
        ("table1", "Table 1: layer by layer against the whole network", _table1_rows, _TABLE_1),
        ("statements", "The paper's statements about its figures, and ours", _statement_rows, _STATEMENTS),
        (
            "paired",
            "Figure 2 in differences: sparsify less greedy, by score and density",
            _paired_rows,
            _PAIRED,
        ),
        (
            "controls",
            "Controls: the effect of the layer sizes",
            _control_comparisons,
            _CONTROLS.format(net=net),
        ),
        (
            "controls-low",
            "Controls at low densities: sparsify less the control",
            _low_density_rows,
            _CONTROLS_LOW,
        ),
        ("connectivity", "Figure 4 in short: connectivity after training", _connectivity_rows, _CONNECTIVITY),
        ("one-shot", "After training, without retraining", _oneshot_rows, _ONE_SHOT),
        (
            "one-shot-paired",
            "After training, without retraining: less global magnitude",
            _oneshot_paired_rows,
            "In points, paired over seeds.",
        ),
    ]
    built = [Table(name, title, list(make(rows)), note) for name, title, make, note in named]
    return [table for table in built if table.rows]


def difference(rows: Rows, first: Row, second: Row, /, **where: Any) -> Comparison | None:
    """Compare the accuracies of two kinds of rows, paired by network, seed and budget.

    Pairs of one network and seed are averaged. With several networks, they are averaged by network.

    Args:
        rows: Rows with "accuracy".
        first: Columns that select the first kind, such as ``{"variant": "sparsify"}``.
        second: Columns that select the second kind.
        where: Conditions on both.
    """
    ours, theirs = (select(rows, **{**where, **kind}) for kind in (first, second))
    on = [key for key in PAIRED_BY if key not in first]
    several = len(set(distinct(ours, "net")) & set(distinct(theirs, "net"))) > 1
    return compare(paired_differences(ours, theirs, "accuracy", on, "net" if several else "seed"))


def _compare_with(rows: Rows, variant: str, **where: Any) -> Comparison | None:
    """Compare `SPARSIFY` with another variant."""
    return difference(rows, {"variant": SPARSIFY}, {"variant": variant}, **where)


def _as_text(comparison: Comparison | None) -> str:
    return "" if comparison is None else str(comparison)


def _low_densities(rows: Rows) -> set[float]:
    return {density for density in distinct(rows, "density") if density <= LOW}


def _table1_rows(rows: Rows) -> Iterator[Row]:
    same = select(rows, part=TABLE)
    for net in distinct(same, "net"):
        seconds = {}
        for graph, title in (("layer", "layer by layer"), ("network", "whole network")):
            ours = select(same, net=net, graph=graph)
            printed = TABLE_1[net, graph]
            seconds[graph] = mean(ours, "seconds") or 0.0
            # seconds of another machine and of another algorithm: no verdict
            line = {"network": net, "what": f"seconds, {title}", "ours": seconds[graph]}
            yield {**line, "published": printed.seconds, "verdict": ""}
            if graph == "layer":
                cheap = mean(ours, "seconds by series")
                yield {"network": net, "what": f"seconds, {title}, series", "ours": cheap}
            comparable = (ours[0]["data"], ours[0]["density"]) == (printed.data, printed.density)
            line = {"network": net, "what": f"accuracy in %, {title}"}
            line |= compare_published(mean(ours, "accuracy"), printed.accuracy, ALIKE)
            yield line if comparable else {**line, "verdict": "cannot be run here"}
        ratio = seconds["network"] / seconds["layer"]
        line = {"network": net, "what": "whole network / layer by layer, time"}
        line |= compare_published(ratio, SLOWER[net], 0.1 * SLOWER[net])
        yield {**line, "measured": explain_time(net) if line["verdict"] == "differs" else ""}
        comparison = difference(same, {"graph": "network"}, {"graph": "layer"}, net=net)
        printed_difference = TABLE_1[net, "network"].accuracy - TABLE_1[net, "layer"].accuracy
        if comparison is not None:
            line = {"network": net, "what": "whole network - layer by layer, accuracy"}
            yield {**line, **compare_published(comparison.mean, printed_difference, ALIKE)}


def _statement_rows(rows: Rows) -> Iterator[Row]:
    start, after = select(rows, part=AT_START), select(rows, part=RETRAINED)
    low = _low_densities(start)
    high = {density for density in distinct(start, "density") if density >= HIGH}
    sizes = explain_sizes(lambda variant: _compare_with(_control_rows(rows), variant, density=low))
    for score in distinct(start, "score"):
        comparison = _compare_with(start, GREEDY, score=score, density=low)
        yield from _judge_statement(
            f"Figure 2, {score}: sparsify better than greedy at low densities", "ahead", comparison
        )
    comparison = _compare_with(start, GREEDY, score="magnitude", density=high)
    yield from _judge_statement("Figure 2, magnitude: alike at high densities", "alike", comparison)
    for score in ("magnitude", "snip"):
        comparison = difference(start, {"score": "synflow"}, {"score": score}, variant=SPARSIFY, density=low)
        title = f"Figure 2: sparsify with SynFlow's scores better than with {score}"
        yield from _judge_statement(title, "ahead", comparison, sizes)
    for variant in (GREEDY, SPARSIFY):
        comparison = difference(
            start, {"score": "snip"}, {"score": "magnitude"}, variant=variant, density=low
        )
        title = f"Figure 2: SNIP collapses layers and does not do well (less magnitude, {variant})"
        yield from _judge_statement(title, "behind", comparison, sizes)
    if start and "tinyimagenet" not in distinct(start, "data"):
        statement = "Figure 2, Tiny ImageNet: greedy better at extreme sparsity"
        yield {"statement": statement, "ours": "", "published": "ahead", "verdict": "cannot be run here"}
    layers = select(rows, part=CONNECTIVITY)
    for variant in (GREEDY, GREEDY_GLOBAL):
        comparison = _compare_with(after, variant, density=low)
        title = f"Figure 3: sparsify better than MagPrune ({variant}) at low densities"
        cause = explain_connected(layers, variant, COLLAPSED)
        yield from _judge_statement(title, "ahead", comparison, cause)
    yield from _judge_connectivity(layers)


def _judge_statement(
    statement: str, published: str, ours: Comparison | None, cause: str = ""
) -> Iterator[Row]:
    if ours is None:
        return
    same = abs(ours.mean) <= ALIKE if published == "alike" else ours.outcome == published
    yield _statement_row(statement, str(ours), published, same, cause)


def _statement_row(statement: str, ours: str, published: str, same: bool, cause: str = "") -> Row:
    verdict = "reproduced" if same else "differs"
    row = {"statement": statement, "ours": ours, "published": published, "verdict": verdict}
    return {**row, "measured": "" if same else cause or "not explained"}


def _judge_connectivity(layers: Rows) -> Iterator[Row]:
    """Connectivity falls for both variants; greedy masks collapse a layer, sparsify masks none."""
    densities = sorted(density for density in distinct(layers, "density") if density < 1)
    if not densities:
        return
    for variant in MAIN:
        ends = [
            mean(select(layers, variant=variant, density=d), "lambda2") for d in (densities[-1], densities[0])
        ]
        if ends[0] is not None and ends[1] is not None:
            ours = f"{ends[0]:.2f} at {densities[-1]:.0%}, {ends[1]:.2f} at {densities[0]:.0%}"
            title = f"Figures 3 and 4: lambda_2 falls with the density, {variant}"
            yield _statement_row(title, ours, "falls", ends[1] < ends[0])
    at = max((density for density in densities if density <= LOW), default=densities[0])
    for variant, collapses in ((GREEDY, True), (GREEDY_GLOBAL, True), (SPARSIFY, False)):
        shares = [row["share"] for row in select(layers, variant=variant, density=at)]
        if shares:
            ours = f"at least {min(shares):.0%} of a layer's nodes are connected"
            published = "a layer collapses" if collapses else "no layer collapses"
            same = (min(shares) < COLLAPSED) == collapses
            cause = explain_connected(layers, variant, COLLAPSED)
            yield _statement_row(f"Figures 3 and 4: {variant} at {at:.0%}", ours, published, same, cause)


def _paired_rows(rows: Rows) -> Iterator[Row]:
    start = select(rows, part=AT_START)
    densities = distinct(start, "density")
    for score in distinct(start, "score"):
        for net in [*distinct(start, "net"), "all"]:
            where = {"score": score} if net == "all" else {"score": score, "net": net}
            line = {percent(d): _as_text(_compare_with(start, GREEDY, density=d, **where)) for d in densities}
            if any(line.values()):
                yield {"score": score, "network": net, **line}


def _control_rows(rows: Rows) -> list[Row]:
    """Return the rows of the controls, and those of the two main variants on the same networks."""
    controls = select(rows, part=CONTROL)
    nets = set(distinct(controls, "net"))
    return [*select(rows, part=AT_START, net=nets, score="magnitude"), *controls]


def _control_comparisons(rows: Rows) -> Iterator[Row]:
    both, controls = _control_rows(rows), select(rows, part=CONTROL)
    densities = distinct(controls, "density")
    columns: dict[str, Column] = {percent(d): ("accuracy", {"density": d}) for d in densities}
    for line in pivot(both, ["variant"], columns, spread):
        yield {"variant": line.pop("variant"), "": "accuracy", **line}
    for variant in distinct(controls, "variant"):
        line = {percent(d): _as_text(_compare_with(both, variant, density=d)) for d in densities}
        if any(line.values()):
            yield {"variant": variant, "": "sparsify less it", **line}


def _low_density_rows(rows: Rows) -> Iterator[Row]:
    both = _control_rows(rows)
    for variant in (GREEDY_SIZES, RANDOM_SIZES, GREEDY_ERK):
        comparison = _compare_with(both, variant, density=_low_densities(both))
        if comparison is not None:
            yield {"variant": variant, f"up to {LOW:.0%}": str(comparison)}


def _connectivity_rows(rows: Rows) -> Iterator[Row]:
    layers = select(rows, part=CONNECTIVITY)
    for density in distinct(layers, "density"):
        for (variant,), same in group(select(layers, density=density), "variant").items():
            seeds = list(group(same, "seed").values())
            conditions = [max(_to_float(r["condition"]) for r in s) for s in seeds]
            dead = [sum(r["dead_inputs"] + r["dead_outputs"] for r in s) for s in seeds]
            yield {
                "density": percent(density),
                "variant": variant,
                "mean lambda_2": mean(same, "lambda2"),
                "least share": float(np.mean([min(r["share"] for r in s) for s in seeds])),
                "dead units": float(np.mean(dead)),
                "components too many": float(
                    np.mean([sum(max(0, r["components"] - 1) for r in s) for s in seeds])
                ),
                "condition number": f"{np.mean(conditions):.3g}" if density < 1 else "1",
            }


def _to_float(value: Any) -> float:
    return float("nan") if value is None else float(value)  # infinity is a string in JSON


def _oneshot_rows(rows: Rows) -> Iterator[Row]:
    pruned = select(rows, part=ONE_SHOT)
    columns = across([r for r in pruned if r["variant"] != DENSE], "kept", "accuracy", descending=True)
    for net in distinct(pruned, "net"):
        same = select(pruned, net=net)
        line = {"network": net, "seeds": len(distinct(same, "seed"))}
        whole = spread(select(same, variant=DENSE), "accuracy")
        yield {**line, "what": "", "variant": DENSE, "whole": whole}
        smaller = [row for row in same if row["variant"] != DENSE]
        yield from ({**line, **cells} for cells in pivot(smaller, ["what", "variant"], columns, spread))


def _oneshot_paired_rows(rows: Rows) -> Iterator[Row]:
    pruned = [row for row in select(rows, part=ONE_SHOT) if row["variant"] != DENSE]
    shares = sorted(distinct(pruned, "kept"), reverse=True)
    magnitude = {"variant": "magnitude"}
    for net in distinct(pruned, "net"):
        same = select(pruned, net=net)
        for what, variant in group(same, "what", "variant"):
            if variant != "magnitude":
                line = {
                    percent(s): _as_text(difference(same, {"variant": variant}, magnitude, what=what, kept=s))
                    for s in shares
                }
                yield {"network": net, "what": what, "variant": variant, **line}
