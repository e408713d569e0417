"""What the studies share: findings as values, verdicts beside published numbers, and how both are written.

A study makes cells, runs them as a grid, and turns the records into `Findings` by pure functions.
Everything that is written comes from there: the page in docs, the tables, the figures, the report.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from secateur.bench.trial import Trial, TrialResult
from secateur.core import InputError, unknown
from secateur.core.jsonable import versions
from secateur.core.markdown import markdown_table
from secateur.html import Section, write_csv, write_html, write_json, write_text

Row = Mapping[str, Any]
Verdict = Literal["reproduced", "differs", "cannot be run here", ""]
LONGEST = 60


@dataclass(frozen=True)
class Table:
    """A table of a study.

    Attributes:
        name: File name, without an ending: letters, digits, hyphens.
        title: Heading.
        rows: Flat dictionaries; columns stand in the order of their first appearance.
        note: What has to be said under it.
    """

    name: str
    title: str
    rows: Sequence[Row]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A figure of a study, with the numbers behind it.

    Attributes:
        name: File name, without an ending.
        title: Heading.
        figure: Plotly's JSON: a dictionary with "data" and "layout".
        text: What it shows, for those who cannot see it.
        rows: The numbers behind it, flat dictionaries.
    """

    name: str
    title: str
    figure: Mapping[str, Any]
    text: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Findings:
    """What a study found.

    Attributes:
        study: Its name, as in ``secateur study NAME``.
        title: Heading.
        source: What it speaks of: an arXiv number or an address.
        tables: Its tables.
        figures: Its figures.
        paragraph: What came out, in Markdown, a paragraph a statement; its numbers formatted from rows.

    Raises:
        InputError: Two parts of the same name, or a name that is no file name.
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
                raise InputError(f"a name is of letters, digits and hyphens; got {name!r} in {self.study}")


def verdict(ours: float | None, published: float | None, tolerance: float) -> Verdict:
    """Say how our number stands beside a published one.

    Args:
        ours: Ours; None if it cannot be had here.
        published: The published one; None if there is none, which gives no verdict.
        tolerance: Largest difference that still counts as the same.

    Raises:
        InputError: A negative tolerance.

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


def named_folders(folders: Mapping[str, str | Path] | None, known: Sequence[str]) -> dict[str, str]:
    """Return the folders of data sets by name, as words.

    Raises:
        InputError: A data set that the study does not read from a folder, with the near matches.
    """
    for name in folders or {}:
        if name not in known:
            raise InputError(unknown("data set of this study", name, list(known)))
    return {name: str(folder) for name, folder in (folders or {}).items()}


def marked(cells: Sequence[Trial], folders: Mapping[str, str]) -> list[Trial]:
    """Return cells that are told apart by what lies in the folders of data sets, too."""
    marks = {name: folder_hash(folder) for name, folder in folders.items()}
    return [replace(cell, extra_key={**cell.extra_key, **marks}) for cell in cells] if marks else list(cells)


def folder_hash(folder: str | Path) -> str:
    """Return what tells a folder's contents from another's: SHA-256 of its files and their names.

    Raises:
        InputError: There is no such folder, or a file in it cannot be read.
    """
    root, digest = Path(folder), hashlib.sha256()
    if not root.is_dir():
        raise InputError(f"there is no folder {folder}")
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        try:
            contents = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
        digest.update(f"{path.relative_to(root).as_posix()} {len(contents)}\n".encode())
        digest.update(contents)
    return digest.hexdigest()


def rows_of(records: Sequence[TrialResult], job: str | None = None) -> list[dict[str, Any]]:
    """Return the rows of the records that went well, in order; of one job only, if it is named.

    Args:
        records: What `run_trials` returned.
        job: The end of a job's name, such as ``"table1"`` for ``"secateur_studies.spectral.cells:table1"``.
    """
    good = [record for record in records if record.status == "ok"]
    return [
        row for record in good if job is None or record.trial.function.endswith(job) for row in record.rows
    ]


def failures(records: Sequence[TrialResult]) -> Table | None:
    """Return the table of the cells that failed or took too long, or None if all went well."""
    bad = [record for record in records if record.status != "ok"]
    rows = [
        {
            "job": r.trial.function.rpartition(":")[2],
            **_flat(r.trial.params),
            "status": r.status,
            "why": r.error,
        }
        for r in bad
    ]
    return Table("failures", f"{len(bad)} of {len(records)} cells without a result", rows) if bad else None


def write_findings(findings: Findings, out: str | Path) -> None:
    """Write everything that a study found into a folder.

    ``findings.md`` is the page for docs; ``tables.md`` the tables alone; ``NAME.csv`` and ``NAME.json`` the
    numbers of each table and figure; ``report.html`` all of it with the figures drawn.

    Raises:
        StoreError: The folder cannot be written.
    """
    folder = Path(out)
    parts: list[Table | Figure] = [*findings.tables, *findings.figures]
    for part in parts:
        if part.rows:
            write_csv(part.rows, folder / f"{part.name}.csv")
            write_json(part.rows, folder / f"{part.name}.json")
    write_text(folder / "tables.md", "\n".join(_tables(findings)) + "\n")
    write_text(folder / "findings.md", page(findings))
    write_html([], folder / "report.html", title=findings.title, sections=sections(findings))


def page(findings: Findings) -> str:
    """Return the page for docs as Markdown; nothing in it is written by hand."""
    made = ", ".join(f"{name} {version}" for name, version in versions().items())
    head = [
        f"<!-- Written by `secateur study {findings.study}`; changes by hand are lost. -->",
        f"# {findings.title}\n",
    ]
    source = [f"Source: {findings.source}.\n"] if findings.source else []
    words = [findings.paragraph.strip() + "\n"] if findings.paragraph else []
    figures = [line for figure in findings.figures for line in _figure(figure)]
    foot = [
        f"Run with {made}. `secateur study {findings.study}` writes these tables as CSV and JSON, and "
        "draws the figures in `report.html`."
    ]
    return "\n".join([*head, *source, *words, *_tables(findings), *figures, *foot]) + "\n"


def sections(findings: Findings) -> list[Section]:
    """Return the parts of the HTML report."""
    first = [Section("Findings", findings.paragraph)] if findings.paragraph else []
    drawn = [
        Section(f.title, rows=f.rows, figure=f.figure, alternative=f.text, text=f.text)
        for f in findings.figures
    ]
    return [*first, *drawn, *(Section(t.title, t.note, t.rows) for t in findings.tables)]


def _tables(findings: Findings) -> Iterator[str]:
    for table in findings.tables:
        yield f"## {table.title}\n"
        yield f"{markdown_table(table.rows)}\n" if table.rows else "No rows.\n"
        if table.note:
            yield f"{table.note}\n"


def _figure(figure: Figure) -> Iterator[str]:
    yield f"## {figure.title}\n"
    yield f"{figure.text}\n"
    if len(figure.rows) > LONGEST:
        yield f"Its {len(figure.rows)} rows are in `{figure.name}.csv`.\n"
    elif figure.rows:
        yield f"{markdown_table(figure.rows)}\n"


def _flat(params: Row) -> dict[str, Any]:
    return {key: value for key, value in params.items() if not isinstance(value, (dict, list))}


__all__ = [
    "Figure",
    "Findings",
    "Table",
    "Verdict",
    "failures",
    "folder_hash",
    "marked",
    "named_folders",
    "page",
    "rows_of",
    "sections",
    "verdict",
    "write_findings",
]
