"""Measure the cost of a decision: processor seconds and additional memory."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Cost", "measure_cost"]

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Cost:
    """Seconds and memory of some work, known at its end.

    Attributes:
        seconds: Processor time of this process, with all its threads.
        memory: Largest resident memory above that at the start, in MiB; None on systems other than Linux.
    """

    seconds: float = 0.0
    memory: float | None = None


@contextmanager
def measure_cost() -> Iterator[Cost]:
    """Measure the cost of a block of code.

    Example:
        >>> with measure_cost() as cost:
        ...     numbers = sum(range(1000))
        >>> cost.seconds >= 0
        True
    """
    cost = Cost()
    before = _reset_peak()
    start = time.process_time()
    try:
        yield cost
    finally:
        cost.seconds = time.process_time() - start
        cost.memory = None if before is None else max(0.0, _read_memory("VmHWM") - before)


def _reset_peak() -> float | None:
    """Release free memory, reset the peak, and return the resident memory."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        RESET.write_text("5")
    except (OSError, AttributeError):
        return None
    return _read_memory("VmRSS")


def _read_memory(key: str) -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024
