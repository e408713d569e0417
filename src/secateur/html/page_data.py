"""The data of the page's script: runs as rows, intervals, kept units, sections, and the whole runs."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from typing import Any

from secateur.core.jsonable import plain
from secateur.html.confidence_intervals import seed_intervals
from secateur.html.plot_styles import method_styles, repair_fills
from secateur.html.rows import (
    IDENTITY,
    Row,
    column_label,
    columns_of,
    flatten,
    has_several_values,
    is_report,
    key_before,
    metric_of,
)
from secateur.html.section import Section

__all__ = ["pack_runs", "page_data"]

COUNTERS = ("seed", "draw")
COSTS = ("parameters", "macs", "bytes", "nonzero")


def page_data(runs: Sequence[Row], sections: Sequence[Section] = ()) -> Row:
    """Return the data of the page's script, as JSON can hold it.

    Args:
        runs: Runs as dictionaries.
        sections: Sections with their figures and tables.
    """
    rows = [flatten(run) for run in runs]
    keys = [key for key in columns_of(rows) if any(row.get(key) is not None for row in rows)]
    numeric = [key for key in keys if key not in COUNTERS and any(_is_number(row.get(key)) for row in rows)]
    after = [key for key in numeric if key != "before" and not key.endswith("_before")]
    axes = after if len(rows) > 1 and len(after) > 1 and any(map(_is_cost, after)) else []
    metric = metric_of(rows)
    return {
        "keys": keys,
        "labels": {key: column_label(key, metric) for key in keys},
        "rows": [[row.get(key) for key in keys] for row in rows],
        "identity": [key for key in IDENTITY if key in keys],
        "axes": axes,
        "start": _first_axes(rows, axes),
        "before": {key: before for key in axes if (before := key_before(key)) in numeric},
        "intervals": seed_intervals(rows, axes),
        "styles": method_styles(rows),
        "fills": repair_fills(rows),
        "kept": [line for number, run in enumerate(runs) for line in _kept(number, run)],
        "sections": [_section_data(section) for section in sections],
        "runs": pack_runs(runs),
    }


def pack_runs(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the whole runs as JSON, compressed, in base 64; the page unpacks them for the download.

    Example:
        >>> gzip.decompress(base64.b64decode(pack_runs([{"a": [1, 2.0]}]))).decode()
        '[{"a":[1,2.0]}]'
    """
    text = json.dumps(runs, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _first_axes(rows: Sequence[Row], axes: Sequence[str]) -> dict[str, str | None]:
    """Return the axes that the page starts with: of one budget, the methods side by side."""
    one_budget = has_several_values(rows, "method") and not has_several_values(rows, "budget")
    x = "method" if one_budget else next((key for key in ("parameters", *axes) if key in axes), None)
    y = next((key for key in ("after", "accuracy", *axes[1:]) if key in axes), None)
    return {"x": x, "y": y}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_cost(key: str) -> bool:
    return key in COSTS or key.startswith("latency_")


def _kept(number: int, run: Row) -> list[list[Any]]:
    """Return [run, group or weight, size, kept] for every group and masked weight of a run."""
    if not is_report(run):
        return []
    units = [[number, name, x["units"], x["kept"]] for name, x in run["groups"].items()]
    weights = [[number, name, x["weights"], x["kept"]] for name, x in run["masks"].items()]
    return [line for line in [*units, *weights] if line[2]]


def _section_data(section: Section) -> Row:
    columns = list(dict.fromkeys(key for row in section.rows for key in row))
    rows = [[plain(row.get(column)) for column in columns] for row in section.rows]
    return {"title": section.title, "columns": columns, "rows": rows, "figure": plain(section.figure)}
