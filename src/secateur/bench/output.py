"""What a comparison leaves in its folder: runs, tables, and a report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from secateur.bench.compare import Comparison
from secateur.bench.trial import Row
from secateur.core import StoreError
from secateur.core.markdown import markdown_table
from secateur.html import Section, method_styles, metric_of, write_csv, write_html, write_json, write_text

TITLES = {
    "standings": "Who wins where",
    "curves": "Over all ratios",
    "means": "Every method at every place",
    "differences": "All pairs",
    "failures": "What did not go well",
}
NOTES = {
    "standings": "A method wins where it is better than every other one (paired t-test over seeds, Holm's "
    "correction for all pairs at that place, 5 %). Otherwise it ties with those that cannot be told from it. "
    "A method that is alone at its place has nothing to win against.",
    "curves": "The area is the mean of the metric over the share of the parameters removed, from the whole "
    "model to the share that all methods reached. 'Removed' is the largest share up to which the metric "
    "falls by no more than the loss.",
    "means": "Intervals are 95 % bootstrap intervals over seeds; with fewer than five seeds they are the "
    "range of the seeds' values and cover less.",
    "differences": "Intervals are for each pair alone; verdicts are corrected for all pairs, so that a pair "
    "whose interval does not contain 0 may still be a tie.",
    "failures": "",
}


BARS = (
    "Bars are 95 % bootstrap intervals over seeds, those of the tables; the plot at the top of the page has "
    "Student's t over the same runs, which differs a little. Marks of one ratio stand side by side."
)
Looks = Mapping[str, Mapping[str, str]]


def write_comparison(found: Comparison, folder: str | Path, title: str) -> Path:
    """Write ``runs.json`` and ``runs.csv``, each table as CSV and JSON, ``table.md`` and ``report.html``.

    Files of tables that have no rows any more are removed.

    Returns:
        The path of the report.

    Raises:
        StoreError: The folder cannot be written.
    """
    folder = Path(folder)
    write_json(found.runs, folder / "runs.json")
    write_csv(found.runs, folder / "runs.csv")
    for name in TITLES:
        files = folder / f"{name}.csv", folder / f"{name}.json"
        if rows := getattr(found, name):
            write_csv(rows, files[0])
            write_json(rows, files[1])
        else:
            _remove(files)  # those of an earlier run
    write_text(folder / "table.md", page(found, title))
    return write_html(found.runs, folder / "report.html", title=title, sections=sections(found))


def _remove(files: Iterable[Path]) -> None:
    for path in files:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"cannot remove {path}, of an earlier run: {error.strerror or error}") from error


def page(found: Comparison, title: str) -> str:
    """Return the tables as Markdown."""
    parts = [f"# {title}", found.varies]
    for name, heading in TITLES.items():
        if rows := getattr(found, name):
            parts += [f"## {heading}", markdown_table(rows), NOTES[name]]
    return "\n\n".join(part for part in parts if part) + "\n"


def sections(found: Comparison) -> list[Section]:
    """Return the tables and figures as parts of the report."""
    parts = []
    for name, heading in TITLES.items():
        rows = getattr(found, name)
        if rows:
            words = "\n\n".join(filter(None, [found.varies if name == "standings" else "", NOTES[name]]))
            parts.append(Section(heading, words, rows))
        if name == "curves":
            repairs = dict.fromkeys(row["repair"] for row in found.means)
            looks = method_styles(found.runs)
            parts += [_curves(found.means, repair, looks, metric_of(found.runs)) for repair in repairs]
    return parts


def _curves(means: Sequence[Row], repair: str, looks: Looks, metric: str) -> Section:
    """Draw the metric over the share that is left, one line a method."""
    here = [row for row in means if row["repair"] == repair]
    methods = list(dict.fromkeys(row["method"] for row in here))
    ratios = sorted({row["ratio"] for row in here})
    aside = _offsets(methods, ratios)
    data = [_line([r for r in here if r["method"] == m], looks[m], aside[m]) for m in methods]
    names = {"xaxis": "ratio that stays", "yaxis": f"{metric} after"}
    layout = {**{axis: {"title": {"text": name}} for axis, name in names.items()}, "hovermode": "closest"}
    seen = (
        f"{metric.capitalize()} after pruning with repair {repair}, for {len(methods)} methods at ratios "
        f"{ratios[0]:g} to {ratios[-1]:g}, each with its interval. Best at "
        f"{ratios[0]:g}: {_best(here, ratios[0])}; at {ratios[-1]:g}: {_best(here, ratios[-1])}."
    )
    figure = {"data": data, "layout": layout}
    return Section(f"After pruning, repair: {repair}", BARS, here, figure, seen)


def _offsets(methods: Sequence[str], ratios: Sequence[float]) -> dict[str, float]:
    """Return how far aside each method's marks stand, so that bars at one ratio lie side by side."""
    gap = min((b - a for a, b in pairwise(ratios)), default=0.1)
    step = min(0.012, 0.5 * gap / max(1, len(methods)))
    return {method: (at - (len(methods) - 1) / 2) * step for at, method in enumerate(methods)}


def _line(rows: Sequence[Row], look: Mapping[str, str], aside: float) -> dict[str, Any]:
    ordered = sorted(rows, key=lambda row: row["ratio"])
    after = [row["after"] for row in ordered]
    ends = {end: [row[f"after, {end}"] for row in ordered] for end in ("low", "high")}
    up = [0 if end is None else end - y for end, y in zip(ends["high"], after, strict=True)]
    down = [0 if end is None else y - end for end, y in zip(ends["low"], after, strict=True)]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": ordered[0]["method"],
        "x": [row["ratio"] + aside for row in ordered],
        "y": after,
        "text": [f"{row['method']} at {row['ratio']:g}" for row in ordered],
        "hovertemplate": "%{text}: %{y:.5g}<extra></extra>",
        "line": {"color": look["colour"]},
        "marker": {"color": look["colour"], "symbol": look["symbol"], "size": 8},
        "error_y": {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1},
    }


def _best(rows: Sequence[Row], ratio: float) -> str:
    best = max((row for row in rows if row["ratio"] == ratio), key=lambda row: row["after"])
    return f"{best['method']} ({best['after']:.3f})"


__all__ = ["page", "sections", "write_comparison"]
