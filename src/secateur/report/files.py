"""Runs on disk: JSON and CSV, written whole or not at all, and found again below a folder."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from uuid import uuid4

from secateur.core import StoreError
from secateur.network.store import DOCUMENT, load_report
from secateur.report.rows import Row, Run, as_dicts, flatten, is_report, keys_of

RUNS = "runs.json"


def write_json(runs: Run | Iterable[Run], path: str | Path) -> Path:
    """Write runs whole as one JSON list; `read_runs` reads a ``runs.json`` back."""
    return write_text(path, json.dumps(as_dicts(runs), indent=1, allow_nan=False))


def write_csv(runs: Run | Iterable[Run], path: str | Path) -> Path:
    """Write the numbers of runs as CSV, one line a run."""
    rows = [flatten(run) for run in as_dicts(runs)]
    text = io.StringIO()
    writer = csv.DictWriter(text, keys_of(rows), restval="")
    writer.writeheader()
    writer.writerows(rows)
    return write_text(path, text.getvalue())


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file whole or not at all: under another name beside its place, then renamed.

    Raises:
        StoreError: If it cannot be written.
    """
    path = Path(path)
    if not path.name:
        raise StoreError(f"cannot write {str(path)!r}: it names a folder; give the name of a file")
    draft = path.with_name(f".{path.name}-{uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def read_runs(folder: str | Path) -> list[Row]:
    """Return the runs in a folder and below: saved results that hold a report, and lists of runs.

    Raises:
        StoreError: If the folder is missing, holds no runs, or a file of it is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise StoreError(f"there is no folder {folder}")
    saved = [load_report(path.parent) for path in sorted(folder.rglob(DOCUMENT))]
    runs = [report for report in saved if report is not None]
    runs += [run for path in sorted(folder.rglob(RUNS)) for run in _read(path)]
    if not runs:
        raise StoreError(f"no {DOCUMENT} with a report and no {RUNS} in {folder} or below")
    return runs


def _read(path: Path) -> list[Row]:
    try:
        runs = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is damaged or cannot be read: {error}") from error
    if not (isinstance(runs, list) and all(isinstance(run, dict) for run in runs)):
        raise StoreError(f"{path} holds no list of runs")
    for run in filter(is_report, runs):
        try:
            flatten(run)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{path} holds a damaged run: {type(error).__name__}: {error}") from error
    return runs


__all__ = ["RUNS", "read_runs", "write_csv", "write_json", "write_text"]
