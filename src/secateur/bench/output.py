"""Write a comparison into a folder: runs, tables, and a report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from secateur.bench.compare import Comparison
from secateur.core import StoreError
from secateur.core.markdown import markdown_table
from secateur.html import Section, write_csv, write_html, write_json, write_text

__all__ = ["comparison_page", "output_files", "report_sections", "write_comparison"]

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


def output_files() -> list[str]:
    """Return the names of the files that `write_comparison` writes or removes."""
    tables = [f"{name}.{ending}" for name in TITLES for ending in ("csv", "json")]
    return ["runs.json", "runs.csv", *tables, "table.md", "report.html"]


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
    """Return the tables as sections of the report; the page itself draws the runs."""
    sections = [Section(title, NOTES[name], getattr(comparison, name)) for name, title in TITLES.items()]
    first, *others = [section for section in sections if section.rows]
    return [replace(first, text="\n\n".join(filter(None, [comparison.seed_note, first.text]))), *others]
