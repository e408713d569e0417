"""A progress bar on a terminal's standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(what: str, total: int | None, shown: bool = True) -> Iterator[Callable[[str], None]]:
    """Show a bar, if standard error is a terminal; the function that it gives advances it by one.

    Args:
        what: What is being done.
        total: Number of steps, or None if it is not known.
        shown: Whether to show it at all.
    """
    if not (shown and sys.stderr.isatty()):
        yield lambda note: None
        return
    from rich.console import Console  # slow to import
    from rich.errors import LiveError
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), transient=True)
    try:
        bar.start()
    except LiveError:  # another bar is shown already, and this rich allows only one
        yield lambda note: None
        return
    task = bar.add_task(what, total=total)
    try:
        yield lambda note: bar.update(task, advance=1, description=f"{what}, {note}" if note else what)
    finally:
        bar.stop()
