"""JSON, CSV and text files, written completely or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from uuid import uuid4

from secateur.core import StoreError
from secateur.core.paths import check_replaceable, to_path
from secateur.html.rows import Run, as_dicts, columns_of, flatten

__all__ = ["GENERATOR", "is_own_page", "write_csv", "write_json", "write_text"]

GENERATOR = '<meta name="generator" content="Secateur">'  # near the start of every page


def write_json(runs: Run | Iterable[Run], path: str | Path) -> Path:
    """Write runs as one JSON list; `read_runs` reads a ``runs.json``."""
    return write_text(path, json.dumps(as_dicts(runs), indent=1, allow_nan=False))


def write_csv(runs: Run | Iterable[Run], path: str | Path) -> Path:
    """Write the numbers of runs as CSV, one line a run."""
    rows = [{key: _as_cell(value) for key, value in flatten(run).items()} for run in as_dicts(runs)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns_of(rows), restval="")
    writer.writeheader()
    writer.writerows(rows)
    return write_text(path, text.getvalue())


def _as_cell(value: Any) -> Any:
    """Return a value of a CSV file; a text that a spreadsheet would run as a formula gets a quote before."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value


def is_own_page(path: Path) -> bool:
    """Return whether a file is an HTML page that Secateur wrote."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return GENERATOR.encode() in file.read(1000)
    except OSError:
        return False


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file to a temporary name next to its place and rename it.

    Raises:
        StoreError: If it cannot be written.
    """
    path = to_path(path)
    if not path.name:
        raise StoreError(f"cannot write {str(path)!r}: it is a folder; give the name of a file")
    check_replaceable(path)
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
