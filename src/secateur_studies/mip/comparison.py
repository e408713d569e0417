"""Printed numbers beside ours: verdicts, and what was measured about each that differs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean, stdev

from scipy.stats import t, ttest_ind_from_stats

from secateur_studies.findings import compare_published
from secateur_studies.mip.published import COUNT, PRUNING, Printed
from secateur_studies.rows import Row, Rows, mean, select

__all__ = [
    "CHANCE",
    "RULE",
    "compare_mean",
    "explain_chance",
    "explain_difference",
    "published_rows",
    "rounded_mean",
    "subtract",
    "with_lost",
]

TOLERANCE = 3.0  # points; about the spread over initialisations that the paper states for pruned networks
SHARE = 10.0  # points of the share removed, beyond which two pruned networks are not compared
LEVEL = 0.05
EXAMPLES = 48_000  # training examples of the paper: 80 % of 60,000
CHANCE = (
    "p: the printed mean and spread over three initialisations against ours, by Welch's t-test; against a "
    "single network of ours, by the t-distribution of one more draw. Spreads of printed differences are "
    f"those of independent accuracies. From {LEVEL:g} on, chance is not excluded."
)
RULE = (
    f"reproduced: within {TOLERANCE:g} points, and for points lost within half of the printed number; no "
    f"verdict if the shares removed are more than {SHARE:g} points apart. {CHANCE}"
)
_TITLES = {
    "ref": "REF",
    "random scored": "RP",
    "critical": "CP",
    "ours": "OURS",
    "ours + ft": "OURS + FT",
    "pruned weights": "pruned %",
}


def published_rows(rows: Rows) -> Iterator[Row]:
    """Yield a line for each number of Table 2, and for the points that the published form loses."""
    for (data, net), numbers in PRUNING.items():
        same = select(rows, net=net, data=data)
        share, whole = numbers.get("pruned weights"), numbers["ref"]
        for key, title in _TITLES.items():
            # the paper trained all pruned networks of VGG-16 for an epoch
            ours = f"{key} + ft" if net == "VGG-16" and key in ("random scored", "critical") else key
            if key in numbers:
                line = {"net": net, "data": data, "what": title}
                yield {**line, **compare_mean(same, ours, numbers[key], share, whole)}
        if "ours" in numbers:
            line, lost = {"net": net, "data": data, "what": "points lost"}, subtract(whole, numbers["ours"])
            yield {**line, **compare_mean(with_lost(same), "lost", lost, share, whole)}


def rounded_mean(rows: Rows, key: str) -> float | None:
    """Return the mean of a column to three digits, or None."""
    value = mean(rows, key)
    return None if value is None else round(value, 3) + 0.0  # no -0


def subtract(a: Printed | None, b: Printed | None) -> Printed | None:
    """Return a - b, or None if one is missing."""
    return None if a is None or b is None else a - b


def with_lost(rows: Rows) -> list[Row]:
    """Return the rows with the points lost by ours."""
    return [{**row, "lost": row["ref"] - row["ours"]} for row in rows]


def compare_mean(
    rows: Rows, key: str, printed: Printed | None, share: Printed | None, whole: Printed | None
) -> Row:
    """Compare our mean with a printed number.

    There is no verdict for a pruned network if the printed share removed is far from ours. Points lost are
    reproduced only within half of the printed number.

    Args:
        rows: Our rows.
        key: Column to compare.
        printed: The printed number.
        share: The printed share of the weights removed.
        whole: The printed accuracy of the whole network.
    """
    ours, reached = rounded_mean(rows, key), rounded_mean(rows, "pruned weights")
    theirs = None if printed is None else printed.mean
    tolerance = min(TOLERANCE, abs(theirs) / 2) if key == "lost" and theirs is not None else TOLERANCE
    line = compare_published(ours, theirs, tolerance)
    too_far = share is not None and reached is not None and abs(reached - share.mean) > SHARE
    if too_far and key not in ("ref", "pruned weights"):
        line["verdict"] = ""
    if printed is None or line["verdict"] != "differs":
        return {**line, "measured": ""}
    return {**line, "measured": _explain(rows, key, printed, share, whole)}


def explain_chance(values: Sequence[float], printed: Printed) -> str:
    """Return how likely chance makes the means as different as they are, or "" if it is excluded.

    Example:
        >>> explain_chance([80.0, 84.0, 85.0], Printed(76.0, 7.0)), explain_chance([80.0], Printed(10.0, 1.0))
        ('printed ± 7.0, ours ± 2.6: p = 0.22', '')
    """
    if not printed.spread or not values:
        return ""
    ours = stdev(values) if len(values) > 1 else None
    if ours is None:
        distance = abs(values[0] - printed.mean) / (printed.spread * math.sqrt(1 + 1 / COUNT))
        p = 2 * float(t.sf(distance, COUNT - 1))
    else:
        two = (fmean(values), ours, len(values), printed.mean, printed.spread, COUNT)
        p = float(ttest_ind_from_stats(*two, equal_var=False).pvalue)
    if p < LEVEL:
        return ""
    beside = "ours one network" if ours is None else f"ours ± {ours:.1f}"
    return f"printed ± {printed.spread:.1f}, {beside}: p = {p:.2f}"


def explain_difference(
    rows: Rows, differences: Sequence[float], printed: Printed, share: Printed | None
) -> str:
    """Return what was measured about a difference of two criteria that is not the printed one.

    Args:
        rows: Our rows.
        differences: Ours, one for each of them.
        printed: The printed difference.
        share: The printed share of the weights removed.
    """
    return _join(explain_chance(differences, printed), _explain_less(rows, share))


def _join(*facts: str) -> str:
    return "; ".join(fact for fact in facts if fact) or "not explained"


def _explain(rows: Rows, key: str, printed: Printed, share: Printed | None, whole: Printed | None) -> str:
    """Return what was measured about a number that differs."""
    chance = explain_chance([row[key] for row in rows if row.get(key) is not None], printed)
    if key == "ref":
        return _join(chance, _explain_training(rows))
    if key == "pruned weights":
        return _join(chance, _explain_share(rows))
    return _join(chance, *_explain_accuracy(rows, key, printed, share, whole))


def _explain_training(rows: Rows) -> str:
    examples = mean(rows, "training examples") or 0.0
    return f"{examples:,.0f} training examples, paper {EXAMPLES:,}" if examples < EXAMPLES / 2 else ""


def _explain_share(rows: Rows) -> str:
    reached, dead = (mean(rows, name) or 0.0 for name in ("pruned weights", "dead weights"))
    return f"units that give 0 on all images: {dead:.1f} %; the program adds {reached - dead:.1f}"


def _explain_accuracy(
    rows: Rows, key: str, printed: Printed, share: Printed | None, whole: Printed | None
) -> list[str]:
    ref, ours = (mean(rows, name) or 0.0 for name in ("ref", key))
    apart = 0.0 if whole is None else ref - whole.mean
    if key != "lost" and abs(ours - printed.mean - apart) <= TOLERANCE:
        return [f"the whole network is {apart:+.1f} points apart"]
    maps, removed = mean(rows, "maps") or 0.0, mean(rows, "maps removed") or 0.0
    control = mean(rows, "random everywhere")
    facts = []
    if key != "lost" and abs(apart) > TOLERANCE:
        facts.append(f"{apart:+.1f} of the points are the whole network's")
    if maps:
        facts.append(f"{removed:.1f} of {maps:.0f} feature maps removed")
    if control is not None and key in ("random scored", "critical") and share is not None:
        facts.append(f"random units, {share.mean:g} % of every layer: {control:.1f}")
    return [*facts, _explain_less(rows, share)]


def _explain_less(rows: Rows, share: Printed | None) -> str:
    """Return the shares of the weights removed, if they differ."""
    reached = mean(rows, "pruned weights")
    if share is None or reached is None or abs(reached - share.mean) <= TOLERANCE:
        return ""
    return f"{reached:.1f} % of the weights removed, printed {share.mean:.1f}"
