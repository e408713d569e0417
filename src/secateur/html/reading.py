"""Runs found again below a folder; a file that cannot be drawn is skipped, and named with its reason."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from secateur.core import StoreError
from secateur.formats.store import DOCUMENT, load_report
from secateur.html.page import draft
from secateur.html.rows import Found, Row, is_report

RUNS = "runs.json"
DEEPEST = 60
LONGEST = 300
PARTS = {"groups": ("units", "kept"), "masks": ("weights", "kept")}
BROKEN = (ArithmeticError, AttributeError, LookupError, RecursionError, StoreError, TypeError, ValueError)


def read_runs(folder: str | Path) -> Found:
    """Return the runs in a folder and below: saved results that hold a report, and lists of runs.

    A file that is damaged, or of another program, is skipped: a warning names it with the reason, and so
    does the page that `write_html` makes of what is returned.

    Raises:
        StoreError: If the folder is missing, or nothing in it can be drawn.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise StoreError(f"there is no folder {folder}")
    found = Found()
    sources = [(path, partial(_saved, path)) for path in sorted(folder.rglob(DOCUMENT))]
    sources += [(path, partial(_listed, path)) for path in sorted(folder.rglob(RUNS))]
    for path, read in sources:
        _gather(found, path, read)
    told = "; ".join(f"{name}: {reason}" for name, reason in found.skipped.items())
    if not found:
        if told:
            raise StoreError(f"nothing in {folder} or below can be drawn: {told}")
        raise StoreError(f"no {DOCUMENT} with a report and no {RUNS} in {folder} or below")
    for name, reason in found.skipped.items():
        warnings.warn(f"skipped {name}: {reason}", stacklevel=2)
    return found


def _gather(found: Found, path: Path, read: Callable[[], list[Row]]) -> None:
    try:
        runs = read()
        for run in runs:
            _check(run)
    except BROKEN as error:
        found.skipped[_clean(str(path))] = _clean(_reason(error).removeprefix(f"{path} "))
    else:
        found += runs


def _saved(path: Path) -> list[Row]:
    report = load_report(path.parent)
    return [] if report is None else _runs([report])


def _listed(path: Path) -> list[Row]:
    try:
        return _runs(json.loads(path.read_text("utf-8")))
    except OSError as error:
        raise StoreError(f"it cannot be read: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        raise StoreError(f"it is no JSON: {error}") from error


def _runs(values: Any) -> list[Row]:
    if not (isinstance(values, list) and all(isinstance(run, dict) for run in values)):
        raise StoreError("it holds no list of runs")
    return values


def _check(run: Row) -> None:
    """Raise one of `BROKEN` if a run cannot stand on a page: draw it, alone."""
    _check_values(run)
    if is_report(run):
        for part, keys in PARTS.items():
            if not isinstance(run.get(part), Mapping):
                raise StoreError(f"a run has no dictionary {part!r}, but {_named(run, part)}")
            for name, counts in run[part].items():
                if any(not isinstance(counts[key], int) for key in keys):
                    raise StoreError(f"{part} {name!r} of a run has no whole numbers {' and '.join(keys)}")
        if not isinstance(run.get("frozen"), list):
            raise StoreError(f"a run has no list 'frozen', but {_named(run, 'frozen')}")
    if not isinstance(run.get("structure", {}), (Mapping, type(None))):
        raise StoreError(f"the structure of a run is no dictionary, but {_named(run, 'structure')}")
    draft([run])


def _check_values(value: Any, depth: int = 0) -> None:
    """Refuse what JSON can hold, but a page cannot."""
    if depth > DEEPEST:
        raise StoreError(f"a run is nested more than {DEEPEST} deep")
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, int):
        if not math.isfinite(value):  # an OverflowError beyond the range of floats
            raise StoreError("a number is infinite")
    elif isinstance(value, (dict, list)):
        for item in (*value, *value.values()) if isinstance(value, dict) else value:
            _check_values(item, depth + 1)


def _named(run: Row, part: str) -> str:
    return type(run[part]).__name__ if part in run else "none at all"


def _reason(error: Exception) -> str:
    if isinstance(error, StoreError):
        text = str(error)
    elif isinstance(error, UnicodeError):
        text = f"a text in it is no UTF-8: {error}"
    elif isinstance(error, RecursionError):
        text = "it is nested too deep"
    elif isinstance(error, OverflowError):
        text = "a number in it is larger than a float can be"
    else:
        text = f"a run in it is damaged ({type(error).__name__}: {error})"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


__all__ = ["RUNS", "read_runs"]
