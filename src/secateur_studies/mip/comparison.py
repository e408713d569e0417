"""Printed numbers beside ours: verdicts, and what was measured about each that differs."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import stdev

from secateur_studies.findings import compare_published
from secateur_studies.mip import published
from secateur_studies.rows import Row, Rows, mean, select

__all__ = ["RULE", "compare_mean", "published_rows", "rounded_mean", "subtract", "with_lost"]

TOLERANCE = 3.0  # points; about the spread over initialisations that the paper states for pruned networks
SHARE = 10.0  # points of the share removed, beyond which two pruned networks are not compared
EXAMPLES = 48_000  # training examples of the paper: 80 % of 60,000
RULE = (
    f"reproduced: within {TOLERANCE:g} points, and for points lost within half of the printed number; no "
    f"verdict if the shares removed are more than {SHARE:g} points apart."
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
    for (data, net), numbers in published.PRUNING.items():
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


def subtract(a: float | None, b: float | None) -> float | None:
    """Return a - b, or None if one is missing."""
    return None if a is None or b is None else round(a - b, 3)


def with_lost(rows: Rows) -> list[Row]:
    """Return the rows with the points lost by ours."""
    return [{**row, "lost": row["ref"] - row["ours"]} for row in rows]


def compare_mean(
    rows: Rows, key: str, printed: float | None, share: float | None, whole: float | None
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
    tolerance = min(TOLERANCE, abs(printed) / 2) if key == "lost" and printed is not None else TOLERANCE
    line = compare_published(ours, printed, tolerance)
    too_far = share is not None and reached is not None and abs(reached - share) > SHARE
    if too_far and key not in ("ref", "pruned weights"):
        line["verdict"] = ""
    if printed is None or line["verdict"] != "differs":
        return {**line, "measured": ""}
    return {**line, "measured": _explain(rows, key, printed, share, whole)}


def _explain(rows: Rows, key: str, printed: float, share: float | None, whole: float | None) -> str:
    """Return what was measured about a number that differs."""
    ref, ours, reached = (mean(rows, name) or 0.0 for name in ("ref", key, "pruned weights"))
    examples = mean(rows, "training examples") or 0.0
    if key == "ref":
        few = examples < EXAMPLES / 2
        return (
            f"{examples:,.0f} training examples, paper {EXAMPLES:,}"
            if few
            else "trained alike; not explained"
        )
    if key == "pruned weights":
        dead = mean(rows, "dead weights") or 0.0
        return f"units that give 0 on all images: {dead:.1f} %; the program adds {reached - dead:.1f}"
    values = [row[key] for row in rows if row.get(key) is not None]
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    if abs(ours - printed) <= 2 * error:
        return f"within twice the standard error of our mean, {error:.2f}"
    apart = 0.0 if whole is None else ref - whole
    if key != "lost" and abs(ours - printed - apart) <= TOLERANCE:
        return f"the whole network is {apart:+.1f} points apart"
    maps, removed = mean(rows, "maps") or 0.0, mean(rows, "maps removed") or 0.0
    of_maps = f"{removed:.1f} of {maps:.0f} feature maps removed" if maps else ""
    shares = f"{reached:.1f} % of the weights removed, printed {share:.1f}" if share is not None else ""
    far = share is not None and abs(reached - share) > TOLERANCE
    return "; ".join(text for text in (of_maps, shares if far else "") if text) or "not explained"
