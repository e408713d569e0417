"""A progress bar on a terminal's standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(what: str, total: float, shown: bool = True) -> Iterator[Callable[..., None]]:
    """Show a bar, if standard error is a terminal.

    Args:
        what: What is being done.
        total: How much there is to do.
        shown: Whether to show it at all.

    Yields:
        show(done, note=""), which shows how much is done, and a note.
    """
    if not (shown and sys.stderr.isatty()):
        yield lambda done, note="": None
        return
    from rich.console import Console  # slow to import
    from rich.errors import LiveError
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), transient=True)
    try:
        bar.start()
    except LiveError:  # another bar is shown already, and this rich allows only one
        yield lambda done, note="": None
        return
    task = bar.add_task(what, total=total)
    try:
        yield lambda done, note="": bar.update(
            task, completed=done, description=f"{what}, {note}" if note else what
        )
    finally:
        bar.stop()
