"""Run a trial: in this process, or in a worker process that can be stopped alone."""

from __future__ import annotations

import gc
import os
import platform
import random
import re
import resource
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib.externals.loky import ProcessPoolExecutor

from secateur.bench.trial import Row, Status, Trial, TrialResult
from secateur.core import InputError, SecateurError
from secateur.core.jsonable import plain
from secateur.specs import find_function

__all__ = ["EngineError", "Worker", "run_here"]

ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
WATCH = 0.5  # seconds


class EngineError(SecateurError):
    """Trials cannot be run: no process starts, or no cluster answers."""


class Worker:
    """A process that runs trials with one thread; started when needed, and again after a crash or a timeout.

    The process is loky's, which needs no ``if __name__ == "__main__"`` in the caller's script, reports every
    way in which a process can end, and stops the processes that a trial started, too.

    Example:
        >>> with Worker() as worker:
        ...     worker.run(Trial("json:loads", {"s": '[{"accuracy": 0.5}]'})).rows
        [{'accuracy': 0.5}]
    """

    def __init__(self) -> None:
        """Start nothing yet."""
        self._lock = threading.Lock()
        self._executor: ProcessPoolExecutor | None = None
        self._group = 0
        self._closed = False

    def __enter__(self) -> Worker:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the process."""
        self.close()

    def run(self, trial: Trial, limit: float | None = None) -> TrialResult:
        """Run one trial; whatever happens to the process is the trial's result.

        Args:
            trial: The trial.
            limit: Seconds after which it is stopped, or None.

        Raises:
            EngineError: If no process starts, or the worker was closed meanwhile.
        """
        executor, start = self._started(), time.perf_counter()
        status: Status
        try:
            return executor.submit(_run_alone, trial).result(limit)
        except TimeoutError:
            status, error = "timeout", f"stopped after {limit:g} s"
        except BrokenProcessPool as problem:
            status, error = "error", _describe_crash(problem)
        if self._closed:
            raise EngineError("the worker was closed")
        self._stop()
        wall = time.perf_counter() - start
        return TrialResult(trial, status, wall=wall, error=error, machine=platform.node())

    def close(self) -> None:
        """Stop the process and what it started, at once."""
        with self._lock:
            self._closed = True
        self._stop()

    def _started(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._closed:
                raise EngineError("the worker was closed")
            if self._executor is not None:
                return self._executor
            self._executor = executor = ProcessPoolExecutor(
                1, timeout=None, initializer=_prepare_process, initargs=(os.getpid(),), env=ONE_THREAD
            )
        try:
            self._group = executor.submit(os.getpid).result()  # no trial's limit includes this start
        except BrokenProcessPool as problem:
            raise EngineError(f"no process can be started: {_describe_crash(problem)}") from problem
        return executor

    def _stop(self) -> None:
        with self._lock:
            executor, self._executor = self._executor, None
            group, self._group = self._group, 0
        if executor is not None:
            executor.shutdown(kill_workers=True)
        if group:  # it is 0 until the process has reported it, and 0 is our own group
            with suppress(OSError):  # what the trial started, even if the process ended before
                os.killpg(group, signal.SIGKILL)


def _prepare_process(parent: int) -> None:
    """Start a process group, which ends with the parent; print to standard error; use one thread."""
    os.setpgrp()
    os.dup2(2, 1)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH)
    os.killpg(0, signal.SIGKILL)


def _describe_crash(problem: BaseException) -> str:
    """Return the exit code or the signal that loky's message names."""
    found = re.search(r"exit codes? of the workers are \{(.*?)\}", str(problem))
    code = found[1] if found else str(problem)
    memory = " (out of memory?)" if "SIGKILL" in code else ""
    return f"the process ended with {code}{memory}"


def _run_alone(trial: Trial) -> TrialResult:
    """Run a trial in a process of its own: what the one before it left does not count as its memory."""
    gc.collect()
    return run_here(trial)


def run_here(trial: Trial) -> TrialResult:
    """Run a trial in this process, with one thread and seeded generators.

    Example:
        >>> run_here(Trial("secateur.zoo:no_such_model")).error[:40]
        'InputError: no function in secateur.zoo '
    """
    with suppress(OSError):
        RESET.write_text("5")  # Linux: reset the peak of the resident memory
    with _same_start():
        before, start = os.times(), time.perf_counter()
        try:
            returned = find_function(trial.function)(**trial.arguments)
            result = TrialResult(trial, "ok", _check_rows(trial.function, returned))
        except (Exception, SystemExit) as error:
            result = TrialResult(trial, "error", error=describe(error))
        wall, after = time.perf_counter() - start, os.times()
    seconds = sum(after[:4]) - sum(before[:4])
    return replace(result, seconds=seconds, wall=wall, memory=_peak_memory(), machine=platform.node())


@contextmanager
def _same_start() -> Iterator[None]:
    """Use one thread and seeded generators, so that no trial depends on earlier ones; restore them after."""
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


def describe(error: BaseException) -> str:
    """Return an error as text, with the line where it arose unless it is a `SecateurError`."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, SecateurError) or not error.__traceback__:
        return text
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{text} ({last.filename}:{last.lineno})"


def _check_rows(function: str, rows: Any) -> list[Row]:
    if not (isinstance(rows, list) and all(isinstance(row, Mapping) for row in rows)):
        raise InputError(f"{function} must return a list of rows (dictionaries); got {type(rows).__name__}")
    return plain(rows)


def _peak_memory() -> float:
    """Return the peak resident memory in MiB: since the last reset on Linux, else of the whole process."""
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
