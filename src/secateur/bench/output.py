"""Write a comparison into a folder: runs, tables, and a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from secateur.bench.compare import Comparison
from secateur.bench.trial import Row
from secateur.core import StoreError
from secateur.core.markdown import markdown_table
from secateur.html import Section, method_styles, metric_of, write_csv, write_html, write_json, write_text

__all__ = ["comparison_page", "report_sections", "write_comparison"]

TITLES = {
    "rankings": "Who wins where",
    "curves": "Over all ratios",
    "means": "Every method in every setting",
    "differences": "All pairs",
    "failures": "Failed runs",
}
NOTES = {
    "rankings": "A method wins if it is significantly better than every other one (paired t-test over seeds, "
    "Holm's correction for all pairs in that setting, 5 %). Otherwise it ties with those from which it does "
    "not differ significantly. A method that is alone in its setting has nothing to win against.",
    "curves": "The area is the mean of the metric over the share of the parameters removed, from the whole "
    "model to the share that all methods reached. 'Removed' is the largest share up to which the metric "
    "falls by no more than the loss.",
    "means": "Intervals are 95 % bootstrap intervals over seeds; with fewer than five seeds they are the "
    "range of the seeds' values and cover less.",
    "differences": "Intervals are for each pair alone; verdicts are corrected for all pairs, so a pair whose "
    "interval does not contain 0 may still be a tie.",
    "failures": "",
}
BARS = (
    "Bars are 95 % bootstrap intervals over seeds, those of the tables; the plot at the top of the page has "
    "Student's t over the same runs, which differs a little. Marks of one ratio are drawn side by side."
)


def write_comparison(comparison: Comparison, folder: str | Path, title: str) -> Path:
    """Write ``runs.json`` and ``runs.csv``, each table as CSV and JSON, ``table.md`` and ``report.html``.

    Files of an earlier run whose tables are now empty are removed.

    Returns:
        The path of the report.

    Raises:
        StoreError: If the folder cannot be written.
    """
    folder = Path(folder)
    write_json(comparison.runs, folder / "runs.json")
    write_csv(comparison.runs, folder / "runs.csv")
    for name in TITLES:
        if rows := getattr(comparison, name):
            write_csv(rows, folder / f"{name}.csv")
            write_json(rows, folder / f"{name}.json")
        else:
            _remove(folder / f"{name}.csv")
            _remove(folder / f"{name}.json")
    write_text(folder / "table.md", comparison_page(comparison, title))
    return write_html(
        comparison.runs, folder / "report.html", title=title, sections=report_sections(comparison)
    )


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"cannot remove {path}, of an earlier run: {error.strerror or error}") from error


def comparison_page(comparison: Comparison, title: str) -> str:
    """Return the tables as Markdown."""
    parts = [f"# {title}", comparison.seed_note]
    for name, heading in TITLES.items():
        if rows := getattr(comparison, name):
            parts += [f"## {heading}", markdown_table(rows), NOTES[name]]
    return "\n\n".join(filter(None, parts)) + "\n"


def report_sections(comparison: Comparison) -> list[Section]:
    """Return the tables and figures as sections of the report."""
    sections = []
    for name, heading in TITLES.items():
        if rows := getattr(comparison, name):
            note = comparison.seed_note if name == "rankings" else ""
            sections.append(Section(heading, "\n\n".join(filter(None, [note, NOTES[name]])), rows))
        if name == "curves":
            repairs = dict.fromkeys(row["repair"] for row in comparison.means)
            sections += [_curve_section(comparison, repair) for repair in repairs]
    return sections


def _curve_section(comparison: Comparison, repair: str) -> Section:
    """Draw the metric over the ratio that stays, one line for each method."""
    rows = [row for row in comparison.means if row["repair"] == repair]
    looks, metric = method_styles(comparison.runs), metric_of(comparison.runs)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    ratios = sorted({row["ratio"] for row in rows})
    shifts = _shifts(methods, ratios)
    lines = [_line([r for r in rows if r["method"] == m], looks[m], shifts[m]) for m in methods]
    axes = {"xaxis": "ratio that stays", "yaxis": f"{metric} after"}
    layout = {**{axis: {"title": {"text": name}} for axis, name in axes.items()}, "hovermode": "closest"}
    alternative = (
        f"{metric.capitalize()} after pruning with repair {repair}, for {len(methods)} methods at ratios "
        f"{ratios[0]:g} to {ratios[-1]:g}, each with its interval. Best at "
        f"{ratios[0]:g}: {_best(rows, ratios[0])}; at {ratios[-1]:g}: {_best(rows, ratios[-1])}."
    )
    figure = {"data": lines, "layout": layout}
    return Section(f"After pruning, repair: {repair}", BARS, rows, figure, alternative)


def _shifts(methods: Sequence[str], ratios: Sequence[float]) -> dict[str, float]:
    """Return how far each method's marks are shifted, so that intervals at one ratio do not overlap."""
    gap = min((b - a for a, b in pairwise(ratios)), default=0.1)
    step = min(0.012, 0.5 * gap / max(1, len(methods)))
    return {method: (at - (len(methods) - 1) / 2) * step for at, method in enumerate(methods)}


def _line(rows: Sequence[Row], look: Mapping[str, str], shift: float) -> dict[str, Any]:
    rows = sorted(rows, key=lambda row: row["ratio"])
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": rows[0]["method"],
        "x": [row["ratio"] + shift for row in rows],
        "y": [row["after"] for row in rows],
        "text": [f"{row['method']} at {row['ratio']:g}" for row in rows],
        "hovertemplate": "%{text}: %{y:.5g}<extra></extra>",
        "line": {"color": look["colour"]},
        "marker": {"color": look["colour"], "symbol": look["symbol"], "size": 8},
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [_length(row, "high") for row in rows],
            "arrayminus": [_length(row, "low") for row in rows],
            "thickness": 1,
        },
    }


def _length(row: Row, end: str) -> float:
    limit = row[f"after, {end}"]
    return 0.0 if limit is None else abs(limit - row["after"])


def _best(rows: Sequence[Row], ratio: float) -> str:
    best = max((row for row in rows if row["ratio"] == ratio), key=lambda row: row["after"])
    return f"{best['method']} ({best['after']:.3f})"
