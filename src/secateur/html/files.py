"""Runs as JSON and CSV files, written completely or not at all; pages that are our own."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from secateur.core.paths import write_text
from secateur.html.rows import Run, as_dicts, columns_of, flatten

__all__ = ["GENERATOR", "is_own_page", "write_csv", "write_json"]

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
