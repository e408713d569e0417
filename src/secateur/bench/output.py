"""What a comparison leaves in its folder: runs, tables, and a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from secateur.bench.cells import Row
from secateur.bench.comparison import Comparison
from secateur.bench.words import markdown
from secateur.report import Section, write_csv, write_html, write_json, write_text

COLOURS = 12
TITLES = {
    "standings": "Who wins where",
    "curves": "Over all ratios",
    "means": "Every method at every place",
    "differences": "All pairs",
    "failures": "What did not go well",
}
NOTES = {
    "standings": "A method wins where it is better than every other one (paired t-test over seeds, Holm's "
    "correction for all pairs at that place, 5 %). Otherwise it ties with those that cannot be told from it.",
    "curves": "The area is the mean of the metric over the share of the parameters removed, from the whole "
    "model to the share that all methods reached. 'Removed' is the largest share up to which the metric "
    "falls by no more than the loss.",
    "means": "Intervals are 95 % bootstrap intervals over seeds; with fewer than five seeds they are the "
    "range of the seeds' values and cover less.",
    "differences": "Intervals are for each pair alone; verdicts are corrected for all pairs, so that a pair "
    "whose interval does not contain 0 may still be a tie.",
    "failures": "",
}


def write_comparison(found: Comparison, folder: str | Path, title: str) -> Path:
    """Write ``runs.json`` and ``runs.csv``, each table as CSV and JSON, ``table.md`` and ``report.html``.

    Returns:
        The path of the report.

    Raises:
        StoreError: The folder cannot be written.
    """
    folder = Path(folder)
    write_json(found.runs, folder / "runs.json")
    write_csv(found.runs, folder / "runs.csv")
    for name in TITLES:
        if rows := getattr(found, name):
            write_csv(rows, folder / f"{name}.csv")
            write_json(rows, folder / f"{name}.json")
    write_text(folder / "table.md", page(found, title))
    return write_html(found.runs, folder / "report.html", title=title, sections=sections(found))


def page(found: Comparison, title: str) -> str:
    """Return the tables as Markdown."""
    parts = [f"# {title}", found.varies]
    for name, heading in TITLES.items():
        if rows := getattr(found, name):
            parts += [f"## {heading}", markdown(rows), NOTES[name]]
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
            parts += [_curves(found.means, repair) for repair in repairs]
    return parts


def _curves(means: Sequence[Row], repair: str) -> Section:
    """Draw the metric over the share that is left, one line a method."""
    here = [row for row in means if row["repair"] == repair]
    methods = list(dict.fromkeys(row["method"] for row in here))
    lines = [[row for row in here if row["method"] == method] for method in methods]
    data = [_line(rows, f"var(--c{at % COLOURS})") for at, rows in enumerate(lines)]
    layout = {"xaxis": {"title": {"text": "ratio that stays"}}, "yaxis": {"title": {"text": "after pruning"}},
              "hovermode": "closest"}  # fmt: skip
    ratios = sorted({row["ratio"] for row in here})
    text = (
        f"Metric after pruning with repair {repair}, for {len(methods)} methods at ratios {ratios[0]:g} to "
        f"{ratios[-1]:g}, each with its interval. Best at {ratios[0]:g}: {_best(here, ratios[0])}; at "
        f"{ratios[-1]:g}: {_best(here, ratios[-1])}."
    )
    return Section(f"After pruning, repair: {repair}", rows=here, figure={"data": data, "layout": layout},
                   alternative=text)  # fmt: skip


def _line(rows: Sequence[Row], colour: str) -> dict[str, Any]:
    ordered = sorted(rows, key=lambda row: row["ratio"])
    after = [row["after"] for row in ordered]
    ends = {end: [row[f"after, {end}"] for row in ordered] for end in ("low", "high")}
    up = [0 if end is None else end - y for end, y in zip(ends["high"], after, strict=True)]
    down = [0 if end is None else y - end for end, y in zip(ends["low"], after, strict=True)]
    return {
        "type": "scatter", "mode": "lines+markers", "name": ordered[0]["method"],
        "x": [row["ratio"] for row in ordered], "y": after,
        "line": {"color": colour}, "marker": {"color": colour},
        "error_y": {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1},
    }  # fmt: skip


def _best(rows: Sequence[Row], ratio: float) -> str:
    best = max((row for row in rows if row["ratio"] == ratio), key=lambda row: row["after"])
    return f"{best['method']} ({best['after']:.3f})"


__all__ = ["page", "sections", "write_comparison"]
