"""What the page's script works with: runs as rows, what stayed in them, figures, and tables."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from typing import Any

from secateur.core.jsonable import plain
from secateur.html.rows import IDENTITY, Row, is_report, keys_of, label, metric_of, network_of, varies
from secateur.html.section import Section
from secateur.html.spread import spreads
from secateur.html.style import fills, styles

LONG_TEXT = 40
COUNTERS = ("seed", "draw")
COSTS = ("parameters", "macs", "bytes", "nonzero")


def payload(rows: list[Row], values: list[Row], sections: Sequence[Section]) -> Row:
    """Return what the page's script works with, as JSON can hold it.

    Args:
        rows: Flat runs.
        values: The same runs whole.
        sections: Further parts of the page.
    """
    keys, metric = keys_of(rows), metric_of(rows)
    full = [{key: row.get(key) for key in keys} for row in rows]
    numbers = [key for key in keys if key not in COUNTERS and any(_is_number(row[key]) for row in full)]
    axes = [key for key in numbers if not key.endswith("_before") and key != "before"]
    shown = axes if len(axes) > 1 and any(_is_cost(key) for key in axes) else []
    return {
        "rows": [[row[key] for key in keys] for row in full],
        "columns": [
            {"key": key, "label": label(key, metric), "css": _css(key in numbers, key, full)} for key in keys
        ],
        "identity": [key for key in IDENTITY if key in keys],
        "axes": shown,
        "start": {"x": _start(rows, axes), "y": _first(("after", "accuracy", *axes[1:]), axes)},
        "before": {key: twin for key in axes if (twin := _twin(key)) in numbers},
        "spreads": spreads(full, shown),
        "styles": styles(rows),
        "fills": fills(rows),
        "names": [name_of(row, rows) for row in rows],
        "networks": list(dict.fromkeys(network_of(row) for row in rows)),
        "cells": [cell for at, run in enumerate(values) for cell in _cells(at, run)],
        "figures": [plain(section.figure) for section in sections],
        "tables": [_table(section) for section in sections],
        "source": packed(values),
    }


def packed(values: Sequence[Mapping[str, Any]]) -> str:
    """Return the runs whole, as JSON, compressed, in base 64: the page unpacks them when they are downloaded.

    Example:
        >>> gzip.decompress(base64.b64decode(packed([{"a": [1, 2.0]}]))).decode()
        '[{"a":[1,2.0]}]'
    """
    text = json.dumps(values, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def name_of(row: Row, rows: Sequence[Row]) -> str:
    """Name a run by what tells it from the others."""
    telling = [key for key in IDENTITY if varies(rows, key)] or ["method"]
    return ", ".join(str(row[key]) for key in telling if row.get(key) is not None)


def _start(rows: list[Row], axes: list[str]) -> str | None:
    one_budget = varies(rows, "method") and not varies(rows, "budget")
    return "method" if one_budget else _first(("parameters", *axes), axes)


def _table(section: Section) -> Row:
    rows = [plain(dict(row)) for row in section.rows]
    columns = section.columns
    numeric = [c for c in columns if any(_is_number(row.get(c)) for row in rows)]
    return {
        "title": section.title,
        "columns": columns,
        "numeric": numeric,
        "rows": [[row.get(c) for c in columns] for row in rows],
    }


def _twin(key: str) -> str:
    return "before" if key == "after" else f"{key}_before"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_cost(key: str) -> bool:
    return key in COSTS or key.startswith("latency_")


def _first(wanted: Sequence[str], axes: Sequence[str]) -> str | None:
    return next((key for key in wanted if key in axes), None)


def _css(number: bool, key: str, rows: Sequence[Row]) -> str:
    if number:
        return "number"
    return "long" if max(len(str(row[key])) for row in rows) > LONG_TEXT else "word"


def _cells(at: int, values: Row) -> list[list[Any]]:
    """Return [run, where, had, kept] of every group and mask of a run that names any."""
    if not is_report(values):
        return []
    units = [[at, name, x["units"], x["kept"]] for name, x in values["groups"].items()]
    weights = [[at, name, x["weights"], x["kept"]] for name, x in values["masks"].items()]
    return [cell for cell in [*units, *weights] if cell[2]]


__all__ = ["name_of", "packed", "payload"]
