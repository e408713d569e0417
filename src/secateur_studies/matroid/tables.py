"""The tables and figures of the matroid study, from its rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from secateur_studies.figures import bars, curves, grid, heatmap, with_title
from secateur_studies.findings import Figure, Table, compare_published
from secateur_studies.matroid.controls import FRESH, MERGED, PARTITION, PERMUTED, REAL, UNTRAINED, WITHIN
from secateur_studies.matroid.experiments import EXTENT, FIGURE_1, FIGURE_2, LINES, PANELS, POST, SIDE
from secateur_studies.matroid.harder import CHANGES, HARDER
from secateur_studies.matroid.ordinary import ORDINARY, PAIRED, PLANTED
from secateur_studies.matroid.post import CRITERIA, FRACTIONS, moons
from secateur_studies.matroid.published import AT_75, AT_100, CURVES_200, FACTS
from secateur_studies.rows import Row, Rows, across, distinct, group, mean, percent, pivot, select
from secateur_studies.statistics import Comparison, compare, correct

__all__ = ["compare_best", "figures", "tables"]

# Tolerances where the post says "about".
ABOUT = {"H=200: essential (about)": 0.5, "H=200: kept (about)": 5.0}
POSTS = "tp_exponential"  # the parametrization of the published numbers
BASIS, CHANCE = "matroid", "random"
ESSENTIAL, TAIL = "#2e7d5b", "#c2553f"

_PUBLISHED = (
    "tp_exponential, mean of five seeds, in points: the post's Table 1 with Figure 4 (75 % of the tail), "
    "Figure 3 (H = 200), and the means of its Table 2 (the whole tail). Reproduced means equal to the "
    "printed digit."
)
_WHOLE = (
    "The post's best seed is the best of the networks that have a tail and gain nothing. Where the post "
    "says about, ours may differ by 0.5 units (essential) or 5 (kept)."
)
_POST = "Networks without a tail count as 0, as in the post. Random is the mean of 20 draws a network."
_PARTITION = (
    "Means over the seeds. The exact tail counts deficient windows over the rationals. At a gap of 1 the "
    "choice between two ranks is arbitrary. Cauchy and unconstrained networks are controls. In `untrained` "
    "all biases are 0."
)
_PERMUTED = (
    "Change of accuracy in points. Permuting the hidden units (20 times) does not change the function. "
    "`fresh test set`: the post's data drawn again. `real moons`: scikit-learn's moons, which interlock, "
    "with a test set of 1,000."
)
_WITHIN = (
    "Change of accuracy in points when 75 % of the tail goes, in each order of the method, smallest norm "
    "first, or at random (20 draws, from the tail only). The partition scales rows to length 1; the last "
    "columns are rank and tail without that."
)
_MERGED = "relu(c z) = c relu(z) for c > 0, so rows of [W1 | b1] that are positive multiples merge exactly."
_ORDINARY = (
    "No fine-tuning. Calibration, training and test images are disjoint. `matroid` measures the error of the "
    "output of the next layer, `matroid, units` that of the units; the method's default, between the two, is "
    "in the joint study. All groups of a network lose the same share. Accuracy is that of the trained "
    "network, in percent."
)
_PAIRED = (
    "The best baseline is the one with the least mean test loss, a choice in its favour. The 95 % bootstrap "
    "intervals over networks are for one comparison. P-values are of paired t-tests, Holm-corrected for all "
    "rows; the verdict follows them."
)
_HARDER = (
    "50 units, 100 epochs; moons with further inputs of noise, rotated, and the digits. Accuracy is "
    "on test examples, in percent. Changes in points when 75 % of the numerical tail goes, with a 95 % "
    "bootstrap interval over the seeds. Networks without a tail, or with overflow, are left out. The "
    "fold is least squares on the training data."
)
_PLANTED = "40 rows of the first layer become multiples or duplicates of others, in float64."


def tables(rows: Rows) -> list[Table]:
    """Return the tables that have rows."""
    planted = [{k: v for k, v in row.items() if k != "part"} for row in select(rows, part=PLANTED)]
    controls = [
        ("partition", "Exact and numerical tail, and controls", _PARTITION, {PARTITION, UNTRAINED}),
        (
            "permuted",
            "Permuted neurons and fresh test sets: 75 % of the tail removed",
            _PERMUTED,
            {PERMUTED, FRESH, REAL},
        ),
        ("within", "Which units of the tail go: 75 % of it", _WITHIN, {WITHIN}),
        ("merged", "Positive multiples merged, in any order", _MERGED, {MERGED}),
    ]
    built = [
        Table(
            "published", "Published changes of accuracy, and ours", list(_published_rows(rows)), _PUBLISHED
        ),
        Table(
            "whole-tail",
            "The whole tail removed (Table 2), and single statements",
            [*_whole_tail_rows(rows), *_fact_rows(rows)],
            _WHOLE,
        ),
        Table("post", "Change of accuracy in points, mean of the seeds", _change_rows(rows), _POST),
        *(
            Table(name, title, _control_rows(select(rows, part=part)), note)
            for name, title, note, part in controls
        ),
        Table("ordinary", "Ordinary networks: test accuracy lost", _ordinary_rows(rows), _ORDINARY),
        Table("paired", "Matroid and the best baseline, both with fold", compare_best(rows), _PAIRED),
        Table("harder", "Harder tasks: the tail of structured kernels", _harder_rows(rows), _HARDER),
        Table("planted", "Planted positive multiples and duplicates", planted, _PLANTED),
    ]
    return [table for table in built if table.rows]


def _harder_rows(rows: Rows) -> list[Row]:
    result: list[Row] = []
    for (task, mode), nets in group(select(rows, part=HARDER), "task", "mode").items():
        share = mean(nets, "accuracy")
        line: dict[str, Any] = {
            "task": task,
            "kernel": mode,
            "networks": sum("accuracy" in net for net in nets),
            "accuracy": None if share is None else 100 * share,
            "tail": mean(nets, "tail"),
            "exact tail": mean(nets, "exact tail"),
        }
        for name in (*CHANGES, *(f"{change} + fold" for change in CHANGES)):
            change = compare([net[name] for net in nets if name in net])
            line[name] = None if change is None else _interval(change)
        result.append(line)
    return result


def _interval(change: Comparison) -> str:
    interval = "" if change.low is None else f" [{change.low:+.1f}, {change.high:+.1f}]"
    return f"{change.mean:+.1f}{interval}"


def _mean_change(rows: Rows, units: int, criterion: str, fraction: float) -> float | None:
    return mean(
        select(rows, part=POST, mode=POSTS, units=units, criterion=criterion, fraction=fraction), "change"
    )


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 1) + 0.0  # no -0


def _list_widths(rows: Rows) -> list[int]:
    return sorted(distinct(select(rows, part=POST, mode=POSTS), "units"))


def _printed_mean(units: int, criterion: str, fraction: float) -> float | None:
    """Return the printed mean, or None where the post prints none."""
    if units == 200:
        return CURVES_200[criterion][FRACTIONS.index(fraction)]
    if fraction == 0.75:
        return AT_75.get(units, {}).get(criterion)
    whole = AT_100.get(units, {}) if fraction == 1 else {}
    return whole.get("mean" if criterion == BASIS else criterion)


def _published_rows(rows: Rows) -> Iterator[Row]:
    """Yield every published mean of which there are rows, with ours."""
    for units in _list_widths(rows):
        for criterion in CRITERIA:
            for fraction in FRACTIONS:
                printed = _printed_mean(units, criterion, fraction)
                if printed is not None:
                    ours = _round(_mean_change(rows, units, criterion, fraction))
                    line = {"H": units, "criterion": criterion, "of the tail": percent(fraction)}
                    yield {**line, **compare_published(ours, printed)}


def _whole_tail_rows(rows: Rows) -> Iterator[Row]:
    for units, published in AT_100.items():
        whole = select(rows, part=POST, mode=POSTS, units=units, criterion=BASIS, fraction=1.0)
        if not whole:
            continue
        worse = [r["change"] for r in whole if r["tail"] and r["change"] <= 0]
        best = _round(max(worse)) if worse else None
        worst = _round(min(r["change"] for r in whole))
        yield {"statement": f"H={units}: best", **compare_published(best, published["best"])}
        yield {"statement": f"H={units}: worst", **compare_published(worst, published["worst"])}


def _fact_rows(rows: Rows) -> Iterator[Row]:
    """Yield the numbers of Figures 1 and 2 and of the text at H = 200."""
    ours: dict[str, float | None] = {}
    kinds = [r["kind"] for r in select(rows, part=LINES)]
    if kinds:
        ours |= {f"figure 1: {kind}": kinds.count(kind) for kind in ("essential", "tail")}
    panels = {r["panel"]: r for r in select(rows, part=PANELS)}
    if panels:
        ours["figure 2: removed"] = panels["matroid"]["removed"]
        names = {"original": "before", "matroid": "by matroid", "worst of 20 random": "by random"}
        for panel, text in names.items():
            ours[f"figure 2: accuracy {text}"] = _round(100 * panels[panel]["accuracy"])
    wide = select(rows, part=PARTITION, mode=POSTS, units=200)
    essential, tail = mean(wide, "essential"), mean(wide, "tail")
    if essential is not None and tail is not None:
        ours |= {"H=200: essential (about)": essential, "H=200: kept (about)": 200 - 0.75 * tail}
    for statement, value in ours.items():
        yield {
            "statement": statement,
            **compare_published(value, FACTS[statement], ABOUT.get(statement, 1e-9)),
        }


def _change_rows(rows: Rows) -> list[dict[str, Any]]:
    posts = sorted(select(rows, part=POST), key=lambda r: (r["mode"] != POSTS, r["units"]))
    titles = {"mode": "parametrization", "units": "H", "criterion": "criterion"}
    columns = across(posts, "fraction", "change")
    return pivot(posts, titles, columns, lambda same, key: _round(mean(same, key)))


def _control_rows(rows: Rows) -> list[dict[str, Any]]:
    """Return the means of all columns, one row for each part, parametrization, size and tolerance."""
    skip = {"part", "mode", "units", "data seed", "tolerance"}
    lines = []
    for (name, mode, units, tolerance), same in group(rows, "part", "mode", "units", "tolerance").items():
        line = {"control": name, "parametrization": mode, "H": units, "networks": len(same)}
        line |= {} if tolerance is None else {"tolerance": tolerance}
        keys = dict.fromkeys(key for row in same for key in row if key not in skip)
        lines.append(line | {key: mean(same, key) for key in keys})
    return sorted(lines, key=lambda r: (r["control"], r["parametrization"], r.get("tolerance") or 0, r["H"]))


def _ordinary_rows(rows: Rows) -> list[dict[str, Any]]:
    lost = select(rows, part=ORDINARY)
    titles = {"model": "network", "data": "data", "criterion": "criterion", "repair": "repair"}
    lines = pivot(lost, titles, across(lost, "removed", "lost"))
    for line, same in zip(lines, group(lost, *titles).values(), strict=True):
        accuracy = 100 * (mean(same, "accuracy") or 0.0)
        line |= {"accuracy": accuracy, "seeds": len(distinct(same, "seed")), "draws": same[0]["draws"]}
    return lines


def compare_best(rows: Rows, repair: str = "fold") -> list[dict[str, Any]]:
    """Compare the matroid with the best baseline of each network and share, both with the same repair.

    All networks are judged on the same test examples, and no difference counts as more certain than these
    examples allow.
    """
    lines: list[dict[str, Any]] = []
    comparisons: list[Comparison] = []
    cells = group(select(rows, part={ORDINARY, PAIRED}, repair=repair), "model", "removed")
    for (model, removed), same in cells.items():
        lost = {
            name: mean(members, "lost") or 0.0
            for (name,), members in group(select(same, part=ORDINARY), "criterion").items()
        }
        baselines = {n: loss for n, loss in lost.items() if not n.startswith(BASIS) and n != CHANCE}
        best = min(baselines, key=lambda n: baselines[n])
        pairs = select(same, part=PAIRED, criterion=best)
        ahead = [(row["only matroid"] - row["only baseline"]) / row["tested"] for row in pairs]
        comparison = compare(ahead, min(row["tested"] for row in pairs) / len(pairs))
        if comparison is None:
            continue
        comparisons.append(comparison)
        line = {"network": model, "removed": removed, "matroid lost": lost[BASIS], "best baseline": best}
        lines.append({**line, "baseline lost": lost[best]})
    for line, comparison in zip(lines, correct(comparisons), strict=True):
        interval = [None if end is None else 100 * end for end in (comparison.low, comparison.high)]
        line |= {"ahead by": 100 * comparison.mean, "low": interval[0], "high": interval[1]}
        line |= {"p": comparison.p, "verdict": comparison.outcome, "seeds": comparison.count}
    return lines


def figures(rows: Rows) -> list[Figure]:
    """Return the post's five figures and one for each ordinary network, where there are rows."""
    built = [_hyperplanes(rows), _boundaries(rows), _curves(rows), _by_width(rows), _pipeline(rows)]
    return [figure for figure in built if figure is not None] + list(_loss_figures(rows))


def _data_trace(seed: int) -> dict[str, Any]:
    """Return the trace of the training data."""
    x, y = moons(np.random.default_rng(seed))
    marker = {"color": y.astype(int).tolist(), "size": 4, "colorscale": "Portland"}
    place = {"x": x[:, 0].round(3).tolist(), "y": x[:, 1].round(3).tolist()}
    hidden = {"showlegend": False, "hoverinfo": "skip"}
    return {"type": "scatter", "mode": "markers", "marker": marker, **place, **hidden}


def _hyperplanes(rows: Rows) -> Figure | None:
    """Figure 1: the lines on which the units switch."""
    lines = select(rows, part=LINES)
    if not lines:
        return None
    ends = EXTENT[0]
    series = {
        f"unit {r['unit']}, {r['kind']}": [(x, -(r["a"] * x + r["c"]) / r["b"]) for x in ends] for r in lines
    }
    colours = [TAIL if line["kind"] == "tail" else ESSENTIAL for line in lines]
    styles = {
        name: {"showlegend": False, "line": {"color": colour, "width": 1.5}}
        for name, colour in zip(series, colours, strict=True)
    }
    x, y = ({"range": list(extent)} for extent in EXTENT)
    plot = curves(series, x, y, mode="lines", styles=styles)
    plot["data"].insert(0, _data_trace(FIGURE_1[2]))
    shown = [{k: v for k, v in line.items() if k != "part"} for line in lines]
    text = "Essential units are green, units of the tail red."
    return Figure("figure1", "Figure 1: hyperplane arrangement, H = 20", plot, text, shown)


def _boundaries(rows: Rows) -> Figure | None:
    """Figure 2: decisions before and after."""
    panels = select(rows, part=PANELS)
    if not panels:
        return None
    xs, ys = (np.linspace(low, high, SIDE).round(3).tolist() for low, high in EXTENT)
    traces = {}
    for panel in panels:
        z = np.array([int(c) for c in panel["side"]]).reshape(SIDE, SIDE).tolist()
        regions = heatmap(xs, ys, z, showscale=False, opacity=0.4)
        traces[f"{panel['panel']}: {panel['accuracy']:.1%}"] = [regions, _data_trace(FIGURE_2[2])]
    shown = [{k: p[k] for k in ("panel", "removed", "accuracy")} for p in panels]
    text = "Decision regions of the original network and after two removals."
    return Figure("figure2", "Figure 2: decision boundaries, H = 50", grid(traces, 3), text, shown)


def _curves(rows: Rows) -> Figure | None:
    """Figure 3: every criterion along the tail, in the widest network."""
    widths = _list_widths(rows)
    if not widths:
        return None
    units, shown = widths[-1], []
    for criterion in CRITERIA:
        shown.append({"criterion": criterion, "of the tail": 0.0, "ours": 0.0, "published": 0.0})
        for fraction in FRACTIONS:
            numbers = {"ours": _mean_change(rows, units, criterion, fraction)}
            numbers["published"] = _printed_mean(units, criterion, fraction)
            shown.append({"criterion": criterion, "of the tail": fraction, **numbers})
    series, styles = {}, {}
    for (criterion,), same in group(shown, "criterion").items():
        series[criterion] = [(r["of the tail"], r["ours"]) for r in same]
        printed = f"{criterion}, published"
        series[printed] = [(r["of the tail"], r["published"]) for r in same]
        styles[printed] = {"mode": "markers", "marker": {"symbol": "circle-open", "size": 10}}
    plot = curves(series, with_title("share of the tail removed"), with_title("points"), styles=styles)
    title = f"Figure 3: change of accuracy along the tail, H = {units}"
    return Figure("figure3", title, plot, "Circles are the published points, lines are ours.", shown)


def _by_width(rows: Rows) -> Figure | None:
    """Figure 4: 75 % of the tail, by width."""
    shown = [
        {
            "H": units,
            "criterion": criterion,
            "ours": _mean_change(rows, units, criterion, 0.75),
            "published": AT_75.get(units, {}).get(criterion),
        }
        for units in _list_widths(rows)
        for criterion in CRITERIA
    ]
    series = {
        criterion: [(f"H = {r['H']}", r["ours"]) for r in same]
        for (criterion,), same in group(shown, "criterion").items()
    }
    text = "Change of accuracy for each criterion."
    plot = bars(series, with_title("points"))
    return Figure("figure4", "Figure 4: 75 % of the tail removed", plot, text, shown) if shown else None


def _pipeline(rows: Rows) -> Figure | None:
    """Figure 5: the steps, with the means of the widest networks."""
    units = max(_list_widths(rows), default=0)
    same = select(rows, part=PARTITION, mode=POSTS, units=units)
    tail, accuracy = mean(same, "tail"), mean(same, "accuracy")
    if tail is None or accuracy is None:
        return None
    change = _mean_change(rows, units, BASIS, 0.75) or 0.0
    steps = {
        "augmented matrix [W1 | b1]": units,
        "partition: tail": tail,
        "75 % of the tail removed: units left": units - 0.75 * tail,
        "accuracy in percent": 100 * accuracy,
        "accuracy after, in percent": 100 * accuracy + change,
    }
    funnel = {"type": "funnel", "y": list(steps)[:3], "x": list(steps.values())[:3]}
    title = f"Figure 5: the pipeline, means at H = {units}"
    shown = [{"step": step, "value": value} for step, value in steps.items()]
    return Figure("figure5", title, {"data": [funnel], "layout": {}}, "Units at each step.", shown)


def _loss_figures(rows: Rows) -> Iterator[Figure]:
    """Yield, for each ordinary network, the points lost with fold over the share removed."""
    folded = select(rows, part=ORDINARY, repair="fold")
    x, y = with_title("share of units removed"), with_title("points lost", rangemode="tozero")
    for model, data in group(folded, "model", "data"):
        same = select(folded, model=model)
        shown = pivot(same, ["criterion", "removed"], {"lost": "lost"})
        shown.sort(key=lambda r: (distinct(same, "criterion").index(r["criterion"]), r["removed"]))
        series = {
            name: [(r["removed"], r["lost"]) for r in points]
            for (name,), points in group(shown, "criterion").items()
        }
        text = f"Test accuracy lost with the fold, {model} on {data}. Lower is better."
        yield Figure(f"lost-{model}", f"{model}: points lost with fold", curves(series, x, y), text, shown)
