"""Read saved runs from a folder; skip damaged files with a warning."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from secateur.core import StoreError
from secateur.core.paths import read_bounded, to_path
from secateur.formats.store import DOCUMENT, REPORT, read_report
from secateur.html.page import page_content
from secateur.html.rows import Row, SavedRuns
from secateur.html.section import Section

__all__ = ["RUNS", "SENSITIVITY", "read_runs", "read_sections"]

RUNS = "runs.json"
SENSITIVITY = "sensitivity.json"
LONGEST_REASON = 300
DAMAGED = (
    *(ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError),
    StoreError,
)


def read_runs(folder: str | Path) -> SavedRuns:
    """Return the runs in a folder and below: saved results with a report, and lists of runs.

    A damaged or foreign file is skipped: a warning names it with the reason, and so does the page that
    `write_html` makes of the returned runs.

    Raises:
        InputError: If `folder` is not a path.
        StoreError: If the folder is missing, or has no readable runs.
    """
    folder = to_path(folder)
    if not folder.is_dir():
        raise StoreError(f"there is no folder {folder}")
    runs = SavedRuns()
    for path in [x for name in (DOCUMENT, REPORT, RUNS) for x in sorted(folder.rglob(name))]:
        try:
            runs += _read(path)
        except StoreError as error:
            runs.skipped[str(path)] = str(error).removeprefix(f"{path} ")[:LONGEST_REASON]
        except DAMAGED as error:
            runs.skipped[str(path)] = f"it is damaged ({type(error).__name__}: {error})"[:LONGEST_REASON]
    if not runs and not runs.skipped:
        raise StoreError(f"no {DOCUMENT} with a report and no {RUNS} in {folder} or below")
    if not runs:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in runs.skipped.items())
        raise StoreError(f"nothing in {folder} or below can be drawn: {reasons}")
    for name, reason in runs.skipped.items():
        warnings.warn(f"skipped {name}: {reason}", stacklevel=2)
    return runs


def read_sections(folder: str | Path) -> list[Section]:
    """Return the sections of what `secateur inspect --sensitivity` wrote in a folder and below."""
    sections = []
    for path in sorted(Path(folder).rglob(SENSITIVITY)):
        try:
            stored = json.loads(read_bounded(path))
            if "section" in stored:  # else it was interrupted
                sections.append(Section(**stored["section"]))
        except DAMAGED as error:
            warnings.warn(f"skipped {path}: it is damaged ({type(error).__name__}: {error})", stacklevel=2)
    return sections


def _read(path: Path) -> list[Row]:
    """Return the runs of one file. Drawing them here finds damaged runs before they are on a page."""
    runs: Any
    if path.name in (DOCUMENT, REPORT):
        report = read_report(path.parent)
        runs = [] if report is None else [report]
    else:
        runs = json.loads(read_bounded(path))
    if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
        raise StoreError("it is not a list of runs")
    if runs:
        page_content(runs)
    json.dumps(runs, ensure_ascii=False).encode()  # a lone surrogate cannot be written
    return runs
