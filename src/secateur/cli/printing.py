"""What the command line prints: tables on standard output, words and progress on standard error."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from secateur.bench.compare import Comparison
from secateur.cli.demo import pivot, words
from secateur.core import PruningGraph
from secateur.core.markdown import format_value
from secateur.html import flatten
from secateur.html.rows import column_label
from secateur_studies.runner import Outcome

WIDE = 200  # columns where there is no terminal: a log or a pipe cuts no word
MINUTE = 60.0


def _console(**options: Any) -> Console:
    console = Console(**options)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDE
    return console


out, err = _console(), _console(stderr=True)


def say(text: str) -> None:
    """Print a line as it is, without wrapping it."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def complain(text: str) -> None:
    """Print a line on standard error as it is."""
    err.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def telling(first: str) -> Iterator[Callable[[str], None]]:
    """Show a line that says what goes on, and for how long; where there is no terminal, one a minute."""
    if not err.is_terminal:
        yield _minutely(first)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task(first, total=None)
        yield lambda text: progress.update(task, description=escape(text))


def _minutely(first: str) -> Callable[[str], None]:
    """Return what writes into a log: nothing in the first minute, then the newest words once a minute."""
    start = last = time.monotonic()

    def tell(text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= MINUTE:
            last = now
            complain(f"{first}, {(now - start) / MINUTE:.0f} min: {text}")

    return tell


def show_methods(methods: Mapping[str, type]) -> None:
    """Print methods, what each does, and its options with their defaults."""
    table = Table("method", "what it does", "options")
    for name, kind in methods.items():
        said = " ".join((kind.__doc__ or "").strip().split("\n\n")[0].split())
        options = [_option(f) for f in fields(kind) if f.init] if is_dataclass(kind) else []
        table.add_row(name, escape(said), escape(", ".join(options)))
    out.print(table)


def show_network(network: PruningGraph) -> None:
    """Print the groups of a network and its frozen axes."""
    groups = Table("group", "units", "where", title="Units that live and die together")
    for group in network.groups:
        where = ", ".join(f"{slot.tensor}[{slot.axis}]" for slot in group.slots)
        groups.add_row(escape(group.name), str(group.size), escape(where))
    frozen = Table("axis", "why nothing is removed", "source", title="Frozen axes")
    for axis in network.frozen:
        frozen.add_row(escape(f"{axis.tensor}[{axis.axis}]"), escape(axis.reason), escape(axis.source))
    out.print(groups, frozen)


def show_run(report: Mapping[str, Any]) -> None:
    """Print before and after of one pruning."""
    row = flatten(report)
    say(f"{row['model']}: {row['method']}, {row['budget']}, repair {row['repair']}")
    table = Table("")
    for head in ("before", "after"):
        table.add_column(head, justify="right")
    for key in (key for key in row if f"{key}_before" in row):
        table.add_row(column_label(key), format_value(row[f"{key}_before"]), format_value(row[key]))
    if row["metric"]:
        table.add_row(row["metric"], format_value(row["before"]), format_value(row["after"]))
    table.add_row("same top class", "", format_value(row["top1"]))
    out.print(table)


def show_demo(runs: Sequence[Mapping[str, Any]]) -> None:
    """Print a table for each network of the demonstration, and why methods could not run."""
    rows = pivot(runs)
    for data, model in dict.fromkeys((row["data"], row["model"]) for row in rows):
        mine = [row for row in rows if (row["data"], row["model"]) == (data, model)]
        done = [row for row in mine if "before" in row]
        if done:
            out.print(_comparison(f"{data}: {model}, accuracy {done[0]['before']:.3f} before", done))
        for row in mine:
            if "status" in row:
                complain(f"  {data}, {model}, {row['method']}: {row['status']}")


def show_study(outcome: Outcome) -> None:
    """Print what a study found: its tables, verdicts and conclusion."""
    if outcome.findings is None:
        complain(f"{outcome.study} failed: {outcome.error}")
        return
    table = Table("table", title=escape(outcome.findings.title), title_justify="left")
    table.add_column("rows", justify="right")
    for part in outcome.findings.tables:
        table.add_row(escape(part.title), str(len(part.rows)))
    out.print(table)
    said = [f"{count} {word}" for word, count in outcome.verdicts.items() if count]
    if said:
        say(f"beside published numbers: {', '.join(said)}")
    if outcome.findings.paragraph:
        say(outcome.findings.paragraph)


def show_comparison(found: Comparison) -> None:
    """Print who wins where: a table for each repair, a row a method, a column a ratio."""
    for repair in dict.fromkeys(row["repair"] for row in found.means):
        out.print(
            _ranking_table([row for row in found.means if row["repair"] == repair], found.curves, repair)
        )
    say("* wins; = ties with the best (no significant difference); ? too few seeds")
    for row in found.rankings:
        say(f"repair {row['repair']}, {row['ratio']:g}: {_ranking_line(row)}")
    for row in found.failures:
        where = f"{row['method']}, repair {row['repair']}, {row['ratios']}"
        complain(f"{where} ({row['runs']} {'run' if row['runs'] == 1 else 'runs'}): {row['why']}")
    say(found.seed_note)


def _ranking_line(row: Mapping[str, Any]) -> str:
    """Return who wins in a setting, as text.

    Example:
        >>> _ranking_line({"verdict": "tie", "best": "taylor", "tied with": "lattice"})
        'taylor ties with lattice'
    """
    if row["verdict"] == "alone":
        return "one method only, so there is nothing to compare it with"
    if row["verdict"] == "wins":
        return f"{row['best']} wins"
    if row["verdict"] == "tie":
        return f"{row['best']} ties with {row['tied with']}"
    return f"{row['best']} is first, with {row['verdict']} to tell it from {row['tied with']}"


def _ranking_table(
    rows: Sequence[Mapping[str, Any]], curves: Sequence[Mapping[str, Any]], repair: str
) -> Table:
    marks = {"wins": "*", "tie": "=", "tied": "=", "too few seeds": "?"}
    title = f"repair: {repair}, before {rows[0]['before']:.3f}"
    table = Table("method", title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    ratios = list(dict.fromkeys(row["ratio"] for row in rows))
    areas = {row["method"]: row for row in curves if row["repair"] == repair}
    removed = next((key for key in (curves[0] if curves else {}) if key.startswith("removed at")), None)
    for head in [f"{ratio:g}" for ratio in ratios] + ["area", *([removed] if removed else [])]:
        table.add_column(head, justify="right")
    means = {(row["method"], row["ratio"]): row for row in rows}
    for method in dict.fromkeys([*areas, *(row["method"] for row in rows)]):
        cells = [means.get((method, ratio)) for ratio in ratios]
        shown = [f"{cell['after']:.3f}{marks.get(cell['verdict'], ' ')}" if cell else "" for cell in cells]
        area = areas.get(method)
        if area and removed:
            shown += [f"{area['area']:.3f}{marks.get(area['verdict'], ' ')}", f"{area[removed]:.0%}"]
        table.add_row(escape(method), *shown)
    return table


def _comparison(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("method", title=escape(title), title_justify="left")
    for head in ("pruned", "pruned, folded", "parameters", "MACs", "speed"):
        table.add_column(head, justify="right")
    for row in rows:
        _, _, method, _, *rest = words(row)
        table.add_row(method, *rest)
    return table


def _option(option: Field[Any]) -> str:
    return option.name if option.default is MISSING else f"{option.name}={option.default!r}"


__all__ = [
    "complain",
    "out",
    "say",
    "show_comparison",
    "show_demo",
    "show_methods",
    "show_network",
    "show_run",
    "show_study",
    "telling",
]
