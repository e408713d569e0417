"""The HTML page: one file with its scripts, styles and data, and a table behind every plot."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markdown_it import MarkdownIt
from markupsafe import Markup

from secateur.core.jsonable import versions
from secateur.core.paths import write_text
from secateur.html.files import GENERATOR
from secateur.html.page_data import page_data
from secateur.html.rows import (
    Row,
    Run,
    SavedRuns,
    as_dicts,
    column_label,
    flatten,
    has_several_values,
    is_report,
    key_before,
    metric_of,
    network_of,
    run_label,
)
from secateur.html.section import Section, chapters, diagnostic_sections

__all__ = ["page_content", "write_html"]

DETAILED_RUNS = 100
LONGEST_NOTE = 4000
FILTERS = ("method", "repair", "budget")
DETAILS = {
    "notes": "Reasons, by group",
    "folds": "Fold",
    "steps": "Steps",
    "finetune": "Fine-tuning",
    "warnings": "Warnings",
    "exactness": "Exactness check",
    "seconds": "Seconds",
}


def write_html(
    runs: Run | Iterable[Run],
    path: str | Path,
    *,
    title: str = "What pruning changed",
    sections: Sequence[Section] = (),
) -> Path:
    """Write one HTML page about one or many runs; the page makes no network requests.

    Args:
        runs: Reports, their dictionaries, or flat dictionaries. Files that `read_runs` skipped are listed
            on the page. Runs that differ only in "seed" are drawn as their mean with a 95 % interval.
        path: The file; written completely or not at all.
        title: Heading of the page.
        sections: Further sections, shown after the runs.

    Returns:
        The path.

    Raises:
        InputError: If there are no runs and no sections.
        StoreError: If the file cannot be written.
    """
    from plotly.offline import get_plotlyjs

    values = as_dicts(runs, allow_none=bool(sections))
    page = _template().render(
        title=title,
        generator=Markup(GENERATOR),
        skipped=runs.skipped if isinstance(runs, SavedRuns) else {},
        footer="Made by " + ", ".join(f"{name} {version}" for name, version in versions().items()) + ".",
        css=Markup(_file("report.css")),
        js=Markup(_file("report.js")),
        plotly=Markup(get_plotlyjs()),
        **page_content(values, sections),
    )
    return write_text(path, page)


def page_content(runs: Sequence[Row], sections: Sequence[Section] = ()) -> dict[str, Any]:
    """Return what the template needs to know about runs and sections."""
    rows = [flatten(run) for run in runs]
    overview = _before_and_after(rows)
    every = [*overview, *_predictions(runs), *sections, *diagnostic_sections(runs)]
    reports = [(row, run) for row, run in zip(rows, runs, strict=True) if is_report(run)]
    details = [(run_label(row), _details(run)) for row, run in reports]
    return {
        "data": page_data(runs, every),
        "summary": _summary(rows),
        "networks": list(dict.fromkeys(map(network_of, rows))),
        "filters": {key: _values(rows, key) for key in FILTERS if has_several_values(rows, key)},
        "methods": _values(rows, "method"),
        "overview": overview,
        "chapters": chapters(every)[len(overview) :],
        "details": details[:DETAILED_RUNS],
        "omitted": max(0, len(details) - DETAILED_RUNS),
    }


def _file(name: str) -> str:
    return (resources.files("secateur.html") / "templates" / name).read_text("utf-8")


def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters["inline"] = _inline
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment.from_string(_file("report.html.j2"))


@cache
def _markdown() -> MarkdownIt:
    return MarkdownIt("zero").enable(["emphasis", "backticks", "link"])


def _inline(text: str) -> Markup:
    """Return a paragraph as HTML: emphasis, code and links are marked up, everything else is escaped."""
    return Markup(_markdown().renderInline(text))


def _values(rows: Sequence[Row], key: str) -> list[str]:
    return list(dict.fromkeys(str(row[key]) for row in rows if row.get(key) is not None))


def _before_and_after(rows: Sequence[Row]) -> list[Section]:
    """Return the section that a page of one report shows instead of a plot."""
    metric = metric_of(rows)
    table = [
        {
            "measured": metric if key == "after" else column_label(key),
            "before": row[key_before(key)],
            "after": value,
            "after / before": value / row[key_before(key)] if row[key_before(key)] else None,
        }
        for row in rows
        for key, value in row.items()
        if value is not None and row.get(key_before(key)) is not None
    ]
    return [Section("Before and after", rows=table)] if len(rows) == 1 and table else []


def _predictions(runs: Sequence[Row]) -> list[Section]:
    """Return the section on what plans predicted, of losses and milliseconds, beside what was measured."""
    table: list[dict[str, Any]] = []
    for run in runs:
        notes = run.get("notes")
        if not isinstance(notes, Mapping):
            continue
        label = run_label(flatten(run))
        if {"predicted loss", "measured loss"} <= notes.keys():
            losses = {"predicted": notes["predicted loss"], "measured": notes["measured loss"]}
            table.append({"run": label, "what": "divergence of the outputs", "before": 0.0, **losses})
        for note in notes.get("latency", ()):
            times = {key: note[key] for key in ("predicted", "measured")}
            what = {"what": f"ms at batch {note['batch']}", "before": note["original"]}
            table.append({"run": label, **what, "budget": note["target"], **times})
    text = (
        "A loss is predicted as the sum over groups that were pruned alone, a time by a table of measured "
        "layers. Where a time differs, the plan was corrected by measuring the pruned network."
    )
    return [Section("Predicted and measured", text, rows=table)] if table else []


def _details(run: Row) -> list[tuple[str, str]]:
    frozen = [f"{f['tensor']}[{f['axis']}]: {f['reason']} {f.get('source', '')}" for f in run["frozen"]]
    details = [("Axes that were not pruned", "\n".join(frozen))] if frozen else []
    return details + [(heading, _shorten(run[key])) for key, heading in DETAILS.items() if run.get(key)]


def _shorten(value: Any) -> str:
    text = json.dumps(value, indent=1)
    if len(text) <= LONGEST_NOTE:
        return text
    return f"{text[:LONGEST_NOTE]}\n... {len(text) - LONGEST_NOTE:,} more characters in the JSON download"


def _summary(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    if len(rows) == 1 and "method" in rows[0]:
        return run_label(rows[0]) + "."
    networks = {network_of(row) for row in rows if row.get("model") is not None}
    counts = {"run": len(rows), "network": len(networks)}
    counts |= {key: len(_values(rows, key)) for key in ("method", "seed")}
    words = [f"{n} {name}{'s' if n > 1 else ''}" for name, n in counts.items() if n > 1 or name == "run"]
    failed = sum(row.get("status") not in (None, "", "ok") for row in rows)
    return ", ".join(words) + (f"; {failed} failed, with the reason in the table" if failed else "") + "."
