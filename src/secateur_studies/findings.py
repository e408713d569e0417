"""Findings of a study: tables, figures, verdicts on published numbers, and the files they are written to."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from secateur.core import InputError
from secateur.core.jsonable import versions
from secateur.core.markdown import markdown_table
from secateur.html import Section, write_csv, write_html, write_json, write_text

__all__ = [
    "Figure",
    "Findings",
    "Table",
    "Verdict",
    "compare_published",
    "count_verdicts",
    "page",
    "sections",
    "verdict",
    "write_findings",
]

Row = Mapping[str, Any]
Verdict = Literal["reproduced", "differs", "cannot be run here", ""]
VERDICTS: tuple[Verdict, ...] = ("reproduced", "differs", "cannot be run here")
LONGEST = 60  # rows of a figure that a page still shows
BY_HAND = "Conclusions from the run at the default size, written by hand. All tables are generated."


@dataclass(frozen=True)
class Table:
    """A table of a study.

    Attributes:
        name: File name without an ending: letters, digits, hyphens.
        title: Heading.
        rows: Flat dictionaries. Columns appear in the order of their first use.
        note: Text below the table.
    """

    name: str
    title: str
    rows: Sequence[Row]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A figure of a study with its numbers.

    Attributes:
        name: File name without an ending.
        title: Heading.
        figure: Plotly's JSON: a dictionary with "data" and "layout".
        text: Description, also for readers who cannot see the figure.
        rows: The numbers of the figure as flat dictionaries.
    """

    name: str
    title: str
    figure: Mapping[str, Any]
    text: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Findings:
    """All results of a study.

    Attributes:
        study: Name of the study, as in ``secateur study NAME``.
        title: Heading.
        source: The publication: an arXiv number or an address.
        tables: Tables.
        figures: Figures.
        paragraph: The conclusion in Markdown, written by hand and without numbers.

    Raises:
        InputError: If two parts have the same name, or a name is not a file name.
    """

    study: str
    title: str
    source: str = ""
    tables: Sequence[Table] = field(default_factory=tuple)
    figures: Sequence[Figure] = field(default_factory=tuple)
    paragraph: str = ""

    def __post_init__(self) -> None:
        """Check the names, which become file names."""
        names = [*(table.name for table in self.tables), *(figure.name for figure in self.figures)]
        if len(set(names)) < len(names):
            raise InputError(f"the tables and figures of {self.study} need different names; got {names}")
        for name in names:
            if not name or not name.replace("-", "").replace("_", "").isalnum():
                raise InputError(
                    f"a name consists of letters, digits and hyphens; got {name!r} in {self.study}"
                )


def verdict(ours: float | None, published: float | None, tolerance: float) -> Verdict:
    """Compare our number with a published one.

    Args:
        ours: Our number, or None if it cannot be computed here.
        published: The published number, or None if there is none. Then there is no verdict.
        tolerance: Largest difference that counts as the same.

    Raises:
        InputError: If the tolerance is negative.

    Example:
        >>> verdict(0.913, 0.91, 0.01), verdict(0.7, 0.91, 0.01), verdict(None, 0.91, 0.01)
        ('reproduced', 'differs', 'cannot be run here')
    """
    if not tolerance >= 0:
        raise InputError(f"a tolerance is 0 or more; got {tolerance}")
    if published is None:
        return ""
    if ours is None:
        return "cannot be run here"
    return "reproduced" if abs(ours - published) <= tolerance and math.isfinite(ours) else "differs"


def compare_published(ours: float | None, published: float | None, tolerance: float = 1e-9) -> dict[str, Any]:
    """Return the three columns of a comparison: ours, published, verdict."""
    return {"ours": ours, "published": published, "verdict": verdict(ours, published, tolerance)}


def count_verdicts(tables: Sequence[Table]) -> dict[str, int]:
    """Count the rows by verdict: reproduced, differs, not run here for lack of data."""
    counts = Counter(row["verdict"] for table in tables for row in table.rows if row.get("verdict"))
    return {word: counts[word] for word in VERDICTS}


def write_findings(findings: Findings, out: str | Path) -> None:
    """Write all findings into a folder.

    ``findings.md`` is the page for docs, ``tables.md`` has the tables alone, ``NAME.csv`` and ``NAME.json``
    the numbers of each table and figure, and ``report.html`` everything with the figures drawn.

    Raises:
        StoreError: If the folder cannot be written.
    """
    folder = Path(out)
    parts: list[Table | Figure] = [*findings.tables, *findings.figures]
    for part in parts:
        if part.rows:
            write_csv(part.rows, folder / f"{part.name}.csv")
            write_json(part.rows, folder / f"{part.name}.json")
    write_text(folder / "tables.md", "\n".join(_table_lines(findings)) + "\n")
    write_text(folder / "findings.md", page(findings))
    write_html([], folder / "report.html", title=findings.title, sections=sections(findings))


def page(findings: Findings) -> str:
    """Return the page for docs as Markdown."""
    source = [f"Source: {findings.source}.\n"] if findings.source else []
    conclusion = [f"{BY_HAND}\n", f"{findings.paragraph.strip()}\n"] if findings.paragraph else []
    counts = _verdict_rows(findings)
    verdicts = ["## Verdicts beside published numbers\n", f"{markdown_table(counts)}\n"] if counts else []
    used = ", ".join(f"{name} {version}" for name, version in versions().items())
    parts = [
        f"<!-- Written by `secateur study {findings.study}`; changes by hand are lost. -->",
        f"# {findings.title}\n",
        *source,
        *conclusion,
        *verdicts,
        *_table_lines(findings),
        *(line for figure in findings.figures for line in _figure_lines(figure)),
        f"Run with {used}. `secateur study {findings.study}` writes these tables as CSV and JSON and draws "
        "the figures in `report.html`.",
    ]
    return "\n".join(parts) + "\n"


def sections(findings: Findings) -> list[Section]:
    """Return the parts of the HTML report."""
    first = [Section("Findings", f"{BY_HAND}\n\n{findings.paragraph}")] if findings.paragraph else []
    counts = _verdict_rows(findings)
    verdicts = [Section("Verdicts beside published numbers", "", counts)] if counts else []
    drawn = [
        Section(f.title, rows=f.rows, figure=f.figure, alternative=f.text, text=f.text)
        for f in findings.figures
    ]
    return [*first, *verdicts, *drawn, *(Section(t.title, t.note, t.rows) for t in findings.tables)]


def _verdict_rows(findings: Findings) -> list[dict[str, Any]]:
    """Return one row for each table with verdicts, and their sum if there are several."""
    counts = {table.title: count_verdicts([table]) for table in findings.tables}
    rows = [{"table": title, **count} for title, count in counts.items() if any(count.values())]
    return rows if len(rows) < 2 else [*rows, {"table": "all", **count_verdicts(findings.tables)}]


def _table_lines(findings: Findings) -> Iterator[str]:
    for table in findings.tables:
        yield f"## {table.title}\n"
        yield f"{markdown_table(table.rows)}\n" if table.rows else "No rows.\n"
        if table.note:
            yield f"{table.note}\n"


def _figure_lines(figure: Figure) -> Iterator[str]:
    yield f"## {figure.title}\n"
    yield f"{figure.text}\n"
    if len(figure.rows) > LONGEST:
        yield f"Its {len(figure.rows)} rows are in `{figure.name}.csv`.\n"
    elif figure.rows:
        yield f"{markdown_table(figure.rows)}\n"
