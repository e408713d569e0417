"""What a decision costs: processor seconds and the memory that it takes beyond what was there."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Cost", "measured"]

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Cost:
    """Seconds and memory of a stretch of work, known when it is over.

    Attributes:
        seconds: Processor time of this process, all its threads.
        memory: Largest resident memory above what there was at the start, in MiB; None where the system does
            not tell (other than Linux).
    """

    seconds: float = 0.0
    memory: float | None = None


@contextmanager
def measured() -> Iterator[Cost]:
    """Measure what is done inside.

    Example:
        >>> with measured() as cost:
        ...     numbers = sum(range(1000))
        >>> cost.seconds >= 0
        True
    """
    found = Cost()
    before = _start()
    start = time.process_time()
    try:
        yield found
    finally:
        found.seconds = time.process_time() - start
        found.memory = None if before is None else max(0.0, _resident("VmHWM") - before)


def _start() -> float | None:
    """Give free memory back, forget the peak, and return what is resident."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        RESET.write_text("5")
    except (OSError, AttributeError):
        return None
    return _resident("VmRSS")


def _resident(key: str) -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024
