"""What a user sees of the time: a progress bar on a terminal's standard error, and seconds by stage."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Stopwatch", "progress_bar"]


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


class Stopwatch:
    """Adds up the seconds that stages take.

    Example:
        >>> stopwatch = Stopwatch()
        >>> with stopwatch("plan"): pass
        >>> list(stopwatch.seconds)
        ['plan']
    """

    def __init__(self) -> None:
        """Start with no stages."""
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start
