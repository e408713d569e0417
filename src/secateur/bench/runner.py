"""The process that runs cells, one after the other.

It reads one JSON line a cell from its standard input and answers with one JSON line each.  What the cells
print goes to standard error, and what they read is empty.  It ends at once when its input ends, and whatever
it started ends with it: nothing outlives the process that started it.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import json
import os
import platform
import queue
import random
import resource
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from secateur.bench.trial import Row, clean
from secateur.core import InputError, SecateurError, unknown
from secateur.core.jsonable import plain

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def find_job(name: str) -> Callable[..., Any]:
    """Return the function ``package.module:function``.

    Raises:
        InputError: There is no such module or function.

    Example:
        >>> find_job("secateur.zoo:lenet5").__name__
        'lenet5'
    """
    place, _, function = name.partition(":")
    try:
        module = importlib.import_module(place)
    except ImportError as error:
        raise InputError(f"cannot import {place}: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value) and key[0] != "_"]
        raise InputError(unknown(f"function in {place}", function, known))
    return found


def execute(job: str, params: Mapping[str, Any]) -> Row:
    """Run a cell in this process and return what `TrialResult` says of it beside the cell.

    Example:
        >>> done = execute("secateur.zoo:no_such_model", {})
        >>> done["status"], done["error"][:40]
        ('error', 'InputError: no function in secateur.zoo ')
    """
    gc.collect()
    with suppress(OSError):
        RESET.write_text("5")
    with _same_start():
        before, start = os.times(), time.perf_counter()
        try:
            rows, status, error = _rows(job, find_job(job)(**params)), "ok", ""
        except (Exception, SystemExit) as problem:
            rows, status, error = [], "error", clean(describe(problem))
        wall, after = time.perf_counter() - start, os.times()
    return {
        "status": status,
        "rows": rows,
        "seconds": sum(after[:4]) - sum(before[:4]),
        "wall": wall,
        "memory": _peak(),
        "error": error,
        "place": platform.node(),
    }


@contextmanager
def _same_start() -> Iterator[None]:
    """One thread, and generators that start alike, so that no cell depends on those before; all put back."""
    threads, states = torch.get_num_threads(), (random.getstate(), np.random.get_state())
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_num_threads(threads)


def describe(problem: BaseException) -> str:
    """Word an error: our own as they are, others with the line where they arose."""
    said = f"{type(problem).__name__}: {problem}"
    if isinstance(problem, SecateurError) or not problem.__traceback__:
        return said
    last = traceback.extract_tb(problem.__traceback__)[-1]
    return f"{said} ({last.filename}:{last.lineno})"


def _rows(job: str, found: Any) -> list[Row]:
    if not (isinstance(found, list) and all(isinstance(row, dict) for row in found)):
        raise InputError(f"{job} must return a list of rows (dictionaries); got {type(found).__name__}")
    return clean(plain(found))


def _peak() -> float:
    """Return the largest resident memory in MiB: since the last reset where Linux counts it, else ever."""
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def _listen(asked: TextIO, cells: queue.SimpleQueue[str]) -> None:
    for line in asked:
        cells.put(line)
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    """Answer until the input ends."""
    if os.getpgrp() != os.getpid():
        os.setpgrp()  # the group that ends with this process is its own, and nobody else's
    asked_by = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    cells: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(asked_by, cells), daemon=True).start()
    answer: Row = {"ready": os.getpid()}
    while True:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        asked = json.loads(cells.get())
        answer = execute(asked["job"], asked["params"])


__all__ = ["describe", "execute", "find_job", "main"]
