"""The HTML page: it holds its scripts, styles and data, and shows every number that it plots in a table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from secateur.analysis.summary import plain, versions
from secateur.report.files import write_text
from secateur.report.rows import (
    IDENTITY,
    Row,
    Run,
    as_dicts,
    flatten,
    is_report,
    keys_of,
    label,
    show,
    varies,
)

DETAILED_RUNS = 100
LONGEST_NOTE = 4000
LONG_TEXT = 40
STAGES = {
    "notes": "Why, by group",
    "folds": "Fold",
    "steps": "Steps",
    "finetune": "Fine-tuning",
    "warnings": "Warnings",
    "seconds": "Seconds",
}


@dataclass(frozen=True, eq=False)
class Section:
    """A part of the page beside the runs: words, a figure, and the table behind it.

    Attributes:
        title: Heading.
        text: Paragraphs, separated by blank lines.
        rows: The table, flat dictionaries.
        figure: A plotly figure as a dictionary with "data" and "layout", or None.
        alternative: What the figure shows, for those who cannot see it.
    """

    title: str
    text: str = ""
    rows: Sequence[Mapping[str, Any]] = ()
    figure: Mapping[str, Any] | None = None
    alternative: str = ""

    @property
    def columns(self) -> list[str]:
        """Names of the table's columns, in the order of their appearance."""
        return list(dict.fromkeys(key for row in self.rows for key in row))


def write_html(
    runs: Run | Iterable[Run],
    path: str | Path,
    *,
    title: str = "What pruning changed",
    sections: Sequence[Section] = (),
) -> Path:
    """Write one HTML page about one or many runs; it asks the network for nothing.

    Args:
        runs: Reports, their dictionaries, or flat dictionaries.
        path: The file; written whole or not at all.
        title: Heading of the page.
        sections: Further parts, shown after the runs.

    Returns:
        The path.

    Raises:
        InputError: If there are no runs.
        StoreError: If the file cannot be written.
    """
    values = as_dicts(runs)
    rows = [flatten(run) for run in values]
    payload = _payload(rows, values, sections)
    detailed = [
        (name, _details(run)) for name, run in zip(payload["names"], values, strict=True) if is_report(run)
    ]
    page = _template().render(
        title=title,
        summary=_summary(rows),
        payload=payload,
        boxes=[(key, f"{key.capitalize()}s") for key in ("method", "repair", "budget") if varies(rows, key)],
        sections=sections,
        details=detailed[:DETAILED_RUNS],
        omitted=max(0, len(detailed) - DETAILED_RUNS),
        footer="Made by " + ", ".join(f"{name} {version}" for name, version in versions().items()) + ".",
        css=Markup(_file("report.css")),
        js=Markup(_file("report.js")),
        plotly=Markup(get_plotlyjs()),
    )
    return write_text(path, page)


def _file(name: str) -> str:
    return (resources.files("secateur") / "templates" / name).read_text("utf-8")


def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["show"] = show
    return environment.from_string(_file("report.html.j2"))


def _payload(rows: list[Row], values: list[Row], sections: Sequence[Section]) -> Row:
    """Return what the page's script works with."""
    keys = keys_of(rows)
    full = [{key: row.get(key) for key in keys} for row in rows]
    numbers = [key for key in keys if key != "seed" and any(_is_number(row[key]) for row in full)]
    axes = [key for key in numbers if not key.endswith("_before") and key != "before"]
    names = [_name(row, rows) for row in rows]
    return {
        "rows": full,
        "columns": [
            {"key": key, "label": label(key), "css": _css(key in numbers, key, full)} for key in keys
        ],
        "identity": [key for key in IDENTITY if key in keys],
        "axes": axes if len(axes) > 1 else [],
        "start": {
            "x": "method" if _one_budget(rows) else _first(("parameters", *axes), axes),
            "y": _first(("after", "accuracy", *axes[1:]), axes),
        },
        "before": {key: twin for key in axes if (twin := _twin(key)) in numbers},
        "names": names,
        "networks": list(dict.fromkeys(_network(row) for row in rows)),
        "cells": [cell for at, run in enumerate(values) for cell in _cells(at, run)],
        "figures": [plain(section.figure) for section in sections],
        "source": values,
    }


def _name(row: Row, rows: list[Row]) -> str:
    telling = [key for key in IDENTITY if varies(rows, key)] or ["method"]
    return ", ".join(str(row[key]) for key in telling if row.get(key) is not None)


def _one_budget(rows: list[Row]) -> bool:
    return varies(rows, "method") and not varies(rows, "budget")


def _network(row: Row) -> str:
    return ", ".join(str(row[key]) for key in ("data", "model") if row.get(key) is not None)


def _twin(key: str) -> str:
    return "before" if key == "after" else f"{key}_before"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _first(wanted: Sequence[str], axes: Sequence[str]) -> str | None:
    return next((key for key in wanted if key in axes), None)


def _css(number: bool, key: str, rows: Sequence[Row]) -> str:
    if number:
        return "number"
    return "long" if max(len(str(row[key])) for row in rows) > LONG_TEXT else "word"


def _cells(at: int, values: Row) -> list[Row]:
    if not is_report(values):
        return []
    units = [(name, x["units"], x["kept"]) for name, x in values["groups"].items()]
    weights = [(name, x["weights"], x["kept"]) for name, x in values["masks"].items()]
    kept = [*units, *weights]
    return [{"row": at, "where": name, "had": had, "kept": stays} for name, had, stays in kept if had]


def _details(values: Row) -> list[tuple[str, str]]:
    frozen = [f"{f['tensor']}[{f['axis']}]: {f['reason']} {f.get('source', '')}" for f in values["frozen"]]
    parts = [("Axes from which nothing was removed", "\n".join(frozen))]
    parts += [
        (title, _short(json.dumps(values[key], indent=1))) for key, title in STAGES.items() if values.get(key)
    ]
    return [(heading, text) for heading, text in parts if text]


def _short(text: str) -> str:
    if len(text) <= LONGEST_NOTE:
        return text
    return f"{text[:LONGEST_NOTE]}\n... {len(text) - LONGEST_NOTE:,} more characters in the JSON download"


def _summary(rows: Sequence[Row]) -> str:
    failed = sum(row.get("status") not in (None, "", "ok") for row in rows)
    words = [_count(len(rows), "run")]
    words += [
        _count(len({row[k] for row in rows if k in row}), k) for k in ("model", "method") if varies(rows, k)
    ]
    return ", ".join(words) + (f"; {failed} could not run, and say why" if failed else "") + "."


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' if number != 1 else ''}"


__all__ = ["Section", "write_html"]
