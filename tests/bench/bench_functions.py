"""Functions of trials that answer, take time, fail or crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def echo(rows: Any) -> Any:
    return rows


def draw(seed: int, count: int = 3) -> list[dict[str, Any]]:
    import torch

    values = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    return [{"seed": seed, "at": at, "value": float(value)} for at, value in enumerate(values)]


def threads() -> list[dict[str, Any]]:
    import torch

    return [
        {"threads": torch.get_num_threads(), "omp": os.environ["OMP_NUM_THREADS"], "stdin": sys.stdin.read()}
    ]


def spin(seconds: float, **row: Any) -> list[dict[str, Any]]:
    """Compute for a time that the processor counts."""
    start, total = time.process_time(), 0
    while time.process_time() - start < seconds:
        total += sum(range(1000))
    return [{**row, "total": total > 0}]


def fail(text: str) -> list[dict[str, Any]]:
    raise ValueError(text)


def sleep(seconds: float) -> list[dict[str, Any]]:
    time.sleep(seconds)
    return [{"slept": seconds}]


def kill() -> None:
    """End the process as the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_parent() -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


def leave(code: int) -> None:
    os._exit(code)


def segfault() -> None:
    import ctypes

    ctypes.string_at(0)


def leave_a_child(file: str, then: str) -> None:
    """Start a process, write its number, and crash or wait."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(f"{file}.new").write_text(str(child.pid))
    Path(f"{file}.new").rename(file)
    if then == "crash":
        os._exit(7)
    time.sleep(600)
