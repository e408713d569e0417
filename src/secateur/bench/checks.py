"""Jobs that show what a grid does with cells: answer, take time, fail, crash.

They serve the tests and the benchmark of the grid's own cost.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from secateur.bench.trial import Row


def echo(rows: list[Row]) -> list[Row]:
    """Return the rows that it is given."""
    return rows


def spin(seconds: float, **row: Any) -> list[Row]:
    """Compute for a time that the processor counts, and return one row."""
    start, total = time.process_time(), 0
    while time.process_time() - start < seconds:
        total += sum(range(1000))
    return [{**row, "total": total > 0}]


def draw(seed: int, count: int = 3) -> list[Row]:
    """Return numbers that depend on the seed only."""
    import torch

    values = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    return [{"seed": seed, "at": at, "value": float(value)} for at, value in enumerate(values)]


def fail(text: str) -> list[Row]:
    """Raise a ValueError."""
    raise ValueError(text)


def sleep(seconds: float) -> list[Row]:
    """Wait for a time on the clock."""
    time.sleep(seconds)
    return [{"slept": seconds}]


def crash_all() -> list[Row]:
    """End the process that started this one."""
    os.kill(os.getppid(), signal.SIGKILL)
    return sleep(60.0)


def crash() -> list[Row]:
    """End the process as the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)
    return []


__all__ = ["crash", "crash_all", "draw", "echo", "fail", "sleep", "spin"]
