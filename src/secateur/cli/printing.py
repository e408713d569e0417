"""What the commands print: results on standard output; errors, warnings and progress on standard error.

Of several processes that share a pruning, only the first one prints.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from secateur.core.markdown import format_value
from secateur.processes import current_processes

__all__ = ["out", "print_line", "print_table", "progress", "warn"]

WIDTH = 200  # columns if there is no terminal, so that a log or a pipe cuts no word
MINUTE = 60.0


def _console(**options: Any) -> Console:
    console = Console(**options)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDTH
    return console


out, err = _console(), _console(stderr=True)


def print_line(text: str) -> None:
    """Print text as it is, without wrapping it."""
    if current_processes().number == 0:
        out.print(text, markup=False, highlight=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print text on standard error as it is."""
    if current_processes().number == 0:
        err.print(text, markup=False, highlight=False, soft_wrap=True)


def print_table(rows: Sequence[Mapping[str, Any]], title: str | None = None) -> None:
    """Print rows as a table, numbers to the right; print nothing if there is neither a row nor a title.

    Args:
        rows: Rows, each from column name to value; the first row has all columns.
        title: Heading, or None.
    """
    if not rows or current_processes().number:
        if title:
            print_line(title)
        return
    table = Table(title=title and escape(title), title_justify="left", box=box.SIMPLE_HEAD)
    for name, value in rows[0].items():
        number = isinstance(value, (int, float)) or str(value)[:1].isdigit()
        table.add_column(escape(name), justify="right" if number else "left")
    for row in rows:
        table.add_row(*(escape(format_value(row.get(name))) for name in rows[0]))
    out.print(table)


@contextmanager
def progress(task: str) -> Iterator[Callable[[str], None]]:
    """Show what is going on and for how long; without a terminal, print a line a minute.

    Yields:
        A function that takes the newest message.
    """
    if not err.is_terminal:
        yield _log_each_minute(task)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        number = bar.add_task(task, total=None)
        yield lambda text: bar.update(number, description=escape(text))


def _log_each_minute(task: str) -> Callable[[str], None]:
    """Return a function that prints the newest message once a minute, and nothing in the first minute."""
    start = last = time.monotonic()

    def log(text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= MINUTE:
            last = now
            warn(f"{task}, {(now - start) / MINUTE:.0f} min: {text}")

    return log
