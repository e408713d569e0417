"""Studies: the tables and figures of publications, beside the published numbers.

Each study is a package here with a function ``run(full, out, seed, jobs, tell, folders)`` that returns
`Findings`, and with ``FOLDERS``, the data sets of which it can be given a folder.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from secateur.core import InputError, SecateurError, unknown
from secateur.core.markdown import markdown_table
from secateur.html import Section, write_html, write_text
from secateur_studies.common import Findings, named_folders, page, write_findings

STUDIES = ("matroid", "spectral", "mip", "lattice", "joint")


@dataclass(frozen=True)
class Outcome:
    """What came of one study.

    Attributes:
        study: Its name.
        findings: What it found, or None if it failed.
        error: Why, if it failed.
    """

    study: str
    findings: Findings | None = None
    error: str = ""

    @property
    def verdicts(self) -> dict[str, int]:
        """How many rows beside published numbers were reproduced, differ, or cannot be run here."""
        tables = self.findings.tables if self.findings else ()
        said = Counter(row["verdict"] for table in tables for row in table.rows if row.get("verdict"))
        return {word: said[word] for word in ("reproduced", "differs", "cannot be run here")}


def find_study(name: str) -> Callable[..., Findings]:
    """Return the function that runs a study.

    Raises:
        InputError: An unknown name, with the near matches.

    Example:
        >>> find_study("matroid").__name__
        'run'
    """
    return _package(name).run


def folders_of(name: str) -> tuple[str, ...]:
    """Return the data sets of which a study, or any of ``"all"``, can be given a folder.

    Example:
        >>> folders_of("joint")
        ('fashion',)
    """
    names = STUDIES if name == "all" else (name,)
    return tuple(dict.fromkeys(data for study in names for data in _package(study).FOLDERS))


def _package(name: str) -> Any:
    if name not in STUDIES:
        raise InputError(unknown("study", name, [*STUDIES, "all"]))
    return importlib.import_module(f"{__name__}.{name}")


def run_study(name: str, out: str | Path, docs: str | Path | None = None, **options: Any) -> Findings:
    """Run one study, and write what it found.

    Args:
        name: One of `STUDIES`.
        out: Folder for the cells, tables, figures and report; a run that was interrupted goes on from there.
        docs: Folder for the page ``NAME.md``, or None.
        options: ``full``, ``seed``, ``jobs``, ``tell``, and what else the study takes.

    Raises:
        InputError: An unknown study or option.
        StoreError: A folder cannot be written.
    """
    findings = find_study(name)(out=Path(out), **options)
    write_findings(findings, out)
    if docs is not None:
        write_text(Path(docs) / f"{name}.md", page(findings))
    return findings


def run_studies(
    names: Sequence[str],
    out: str | Path,
    docs: str | Path | None = None,
    folders: Mapping[str, str | Path] | None = None,
    tell: Callable[[str], None] | None = None,
    **options: Any,
) -> list[Outcome]:
    """Run several studies, each in its folder below `out`, and write an index of them.

    A study that fails is a line in the index with its reason; the others go on.  With `docs`, the index is
    ``README.md`` there; it is ``index.md`` and ``index.html`` in `out` in any case.

    Args:
        names: Of `STUDIES`.
        out: Folder for all.
        docs: Folder for the pages, or None.
        folders: Folders of data sets by name; each study gets those that it reads.
        tell: Called with a few words after each cell.
        options: As for `run_study`.

    Raises:
        InputError: An unknown study, or a data set that none of them reads from a folder.
        StoreError: A folder cannot be written.
    """
    named_folders(folders, [data for name in names for data in folders_of(name)])
    outcomes = []
    for name in names:
        read = {data: folder for data, folder in (folders or {}).items() if data in folders_of(name)}
        given = {**options, "folders": read, "tell": partial(_named, tell or (lambda _: None), name)}
        try:
            outcomes.append(Outcome(name, run_study(name, Path(out) / name, docs, **given)))
        except SecateurError as error:
            outcomes.append(Outcome(name, error=f"{type(error).__name__}: {error}"))
    write_text(Path(out) / "index.md", index(outcomes, lambda name: f"{name}/findings.md"))
    write_html([], Path(out) / "index.html", title="Studies", sections=list(_sections(outcomes)))
    if docs is not None:
        write_text(Path(docs) / "README.md", index(outcomes, lambda name: f"{name}.md"))
    return outcomes


def _named(tell: Callable[[str], None], name: str, text: str) -> None:
    tell(f"{name}: {text}")


def index(outcomes: Sequence[Outcome], link: Callable[[str], str]) -> str:
    """Return the page that leads to the studies, as Markdown."""
    parts = [
        "<!-- Written by `secateur study all`; changes by hand are lost. -->",
        "# Studies\n",
        "How many numbers stand beside published ones, and how they compare:\n",
        markdown_table([_row(outcome) for outcome in outcomes]) + "\n",
    ]
    for outcome in outcomes:
        found = outcome.findings
        heading = f"[{found.title}]({link(outcome.study)})" if found else outcome.study
        words = found.paragraph.strip() if found else f"Failed: {outcome.error}"
        parts.append(f"## {heading}\n\n{words}\n")
    return "\n".join(parts)


def _sections(outcomes: Sequence[Outcome]) -> Iterator[Section]:
    """Yield the parts of the page that stands beside the folders of the studies."""
    pages = ", ".join(f"[{o.study}]({o.study}/report.html)" for o in outcomes if o.findings)
    text = f"Each study has a page of its own: {pages}." if pages else ""
    yield Section("How many numbers stand beside published ones", text, [_row(o) for o in outcomes])
    for outcome in outcomes:
        found = outcome.findings
        yield Section(found.title, found.paragraph) if found else Section(outcome.study, outcome.error)


def _row(outcome: Outcome) -> Mapping[str, Any]:
    tables = len(outcome.findings.tables) if outcome.findings else 0
    return {
        "study": outcome.study,
        "tables": tables,
        **outcome.verdicts,
        "status": "failed" if outcome.error else "ok",
    }


__all__ = ["STUDIES", "Outcome", "find_study", "folders_of", "index", "run_studies", "run_study"]
