"""The HTML page: it holds its scripts, styles and data, and shows every number that it plots in a table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markdown_it import MarkdownIt
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from secateur.core.jsonable import versions
from secateur.core.markdown import format_value
from secateur.html.diagnostics import diagnostic_sections
from secateur.html.files import write_text
from secateur.html.payload import payload
from secateur.html.rows import Found, Row, Run, as_dicts, flatten, is_report, network_of, varies
from secateur.html.section import Section, chapters

DETAILED_RUNS = 100
LONGEST_NOTE = 4000
Draft = tuple[list[Row], list[Section], Row, list[tuple[str, list[tuple[str, str]]]]]
SCRIPTS = ("base", "plots", "tables", "sections", "main")
STAGES = {
    "notes": "Why, by group",
    "folds": "Fold",
    "steps": "Steps",
    "finetune": "Fine-tuning",
    "warnings": "Warnings",
    "seconds": "Seconds",
}


def write_html(
    runs: Run | Iterable[Run],
    path: str | Path,
    *,
    title: str = "What pruning changed",
    sections: Sequence[Section] = (),
) -> Path:
    """Write one HTML page about one or many runs; it asks the network for nothing.

    Each run with diagnostics (`secateur.diagnose`) gets sections on the structure behind its method.

    Args:
        runs: Reports, their dictionaries, or flat dictionaries; the page of what `read_runs` returns names
            the files that were skipped.  Runs that differ in "seed" alone are drawn as their mean, with a
            95 % interval.
        path: The file; written whole or not at all.
        title: Heading of the page.
        sections: Further parts, shown after the runs.

    Returns:
        The path.

    Raises:
        InputError: If there are no runs and no sections.
        StoreError: If the file cannot be written.
    """
    values = as_dicts(runs, some=not sections)
    rows, parts, data, detailed = draft(values, sections)
    page = _template().render(
        title=title,
        summary=_summary(rows),
        skipped=runs.skipped if isinstance(runs, Found) else {},
        payload=data,
        boxes=[(key, f"{key.capitalize()}s") for key in ("method", "repair", "budget") if varies(rows, key)],
        chapters=chapters(parts),
        details=detailed[:DETAILED_RUNS],
        omitted=max(0, len(detailed) - DETAILED_RUNS),
        footer="Made by " + ", ".join(f"{name} {version}" for name, version in versions().items()) + ".",
        css=Markup(_file("report.css")),
        js=Markup("\n".join(_file(f"report-{name}.js") for name in SCRIPTS)),
        plotly=Markup(get_plotlyjs()),
    )
    return write_text(path, page)


def draft(values: list[Row], sections: Sequence[Section] = ()) -> Draft:
    """Return what the page is made of: flat rows, parts, what its script works with, details of each run."""
    rows = [flatten(run) for run in values]
    parts = [*sections, *diagnostic_sections(values)]
    data = payload(rows, values, parts)
    detailed = [
        (name, _details(run)) for name, run in zip(data["names"], values, strict=True) if is_report(run)
    ]
    return rows, parts, data, detailed


def _file(name: str) -> str:
    return (resources.files("secateur.html") / "templates" / name).read_text("utf-8")


def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters["text"] = format_value
    environment.filters["inline"] = _inline
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment.from_string(_file("report.html.j2"))


@cache
def _words() -> MarkdownIt:
    return MarkdownIt("zero").enable(["emphasis", "backticks", "link"])


def _inline(text: str) -> Markup:
    """Return a paragraph with its emphasis, code and links marked up; everything else stands as it is."""
    return Markup(_words().renderInline(text))


def _details(values: Row) -> list[tuple[str, str]]:
    frozen = [f"{f['tensor']}[{f['axis']}]: {f['reason']} {f.get('source', '')}" for f in values["frozen"]]
    parts = [("Axes from which nothing was removed", "\n".join(frozen))]
    parts += [(title, _short(values[key])) for key, title in STAGES.items() if values.get(key)]
    return [(heading, text) for heading, text in parts if text]


def _short(value: Any) -> str:
    text = json.dumps(value, indent=1)
    if len(text) <= LONGEST_NOTE:
        return text
    return f"{text[:LONGEST_NOTE]}\n... {len(text) - LONGEST_NOTE:,} more characters in the JSON download"


def _summary(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    failed = sum(row.get("status") not in (None, "", "ok") for row in rows)
    words = [_count(len(rows), "run")]
    networks = {network_of(row) for row in rows if row.get("model") is not None}
    words += [_count(len(networks), "network")] if len(networks) > 1 else []
    words += [
        _count(len({row[k] for row in rows if k in row}), k) for k in ("method", "seed") if varies(rows, k)
    ]
    return ", ".join(words) + (f"; {failed} could not run, and say why" if failed else "") + "."


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' if number != 1 else ''}"


__all__ = ["draft", "write_html"]
