"""A process of our own that runs cells, and can be stopped in the middle of one without harm to others."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

from secateur.bench.cells import Row
from secateur.core import SecateurError

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
CODE = "from secateur.bench.runner import main; main()"
LAST_WORDS = 500


class EngineError(SecateurError):
    """Cells cannot be run: no process starts, or no cluster answers."""


class Worker:
    """One process with one thread, started when it is needed, and again after a cell that ended it.

    Example:
        >>> with Worker() as worker:
        ...     worker.run("secateur.bench.checks:echo", {"rows": [{"a": 1}]}, None)["rows"]
        [{'a': 1}]
    """

    def __init__(self) -> None:
        """Start nothing yet."""
        self._process: subprocess.Popen[str] | None = None
        self._said: IO[bytes] | None = None
        self._closed = False
        self._late = False
        self._lock = threading.Lock()

    def __enter__(self) -> Worker:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the process."""
        self.close()

    def run(self, job: str, params: dict[str, Any], limit: float | None) -> Row:
        """Run one cell and return what `Record` says of it beside the cell.

        Args:
            job: ``"package.module:function"``.
            params: What it is called with.
            limit: Seconds on the clock after which the cell is stopped, or None.

        Raises:
            EngineError: No process could be started, or the worker was closed meanwhile.
        """
        process = self._started()
        start = time.perf_counter()
        answer = self._ask(process, {"job": job, "params": params}, limit)
        if answer:
            return json.loads(answer)
        if self._closed:
            raise EngineError("the worker was stopped")
        wall, code = time.perf_counter() - start, process.wait()
        status, error = "error", f"the process {_ending(code)}{self._last_words()}"
        if self._late:
            status, error = "timeout", f"stopped after {limit:g} s"
        return {"status": status, "rows": [], "seconds": 0.0, "wall": wall, "memory": 0.0, "error": error,
                "place": platform.node()}  # fmt: skip

    def close(self) -> None:
        """Stop the process and whatever it started, at once."""
        with self._lock:
            self._closed = True
            process = self._process
        if process is not None:
            _kill(process)
            process.wait()

    def _started(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        with self._lock:
            if self._closed:
                raise EngineError("the worker was stopped")
            if self._said is not None:
                self._said.close()
            self._said = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=self._said, env=_environment(), text=True, encoding="utf-8", start_new_session=True,
            )  # fmt: skip
        if not self._read(self._process):
            raise EngineError(f"no process can be started for the cells{self._last_words()}")
        return self._process

    def _ask(self, process: subprocess.Popen[str], cell: Row, limit: float | None) -> str:
        """Send a cell and wait for the answer; an empty one if the process ended."""
        self._late = False
        timer = threading.Timer(limit, self._stop, [process]) if limit is not None else None
        try:
            if timer is not None:
                timer.start()
            if process.stdin is not None:
                process.stdin.write(json.dumps(cell) + "\n")
                process.stdin.flush()
            return self._read(process)
        except BrokenPipeError:
            return ""
        finally:
            if timer is not None:
                timer.cancel()

    def _read(self, process: subprocess.Popen[str]) -> str:
        line = process.stdout.readline() if process.stdout is not None else ""
        return line if line.endswith("\n") else ""

    def _stop(self, process: subprocess.Popen[str]) -> None:
        self._late = True
        _kill(process)

    def _last_words(self) -> str:
        if self._said is None:
            return ""
        size = self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, size - LAST_WORDS))
        words = self._said.read().decode("utf-8", "replace").strip()
        return f"; its last words: {words}" if words else ""


def _environment() -> dict[str, str]:
    """One thread, and modules from where this process finds them."""
    path = os.pathsep.join(place or str(Path.cwd()) for place in sys.path)
    return {**os.environ, **dict.fromkeys(THREADS, "1"), "PYTHONPATH": path}


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill the process and its children: they are a process group of their own."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            process.kill()


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    why = " (out of memory, perhaps)" if name == "SIGKILL" else ""
    return f"was ended by {name}{why}"


__all__ = ["EngineError", "Worker"]
