"""A process of our own that runs cells, and can be stopped in the middle of one without harm to others."""

from __future__ import annotations

import json
import os
import platform
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

from secateur.bench.trial import Row
from secateur.core import SecateurError

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
CODE = "from secateur.bench.runner import main; main()"
LAST_WORDS = 500
POLL, GRACE, PIECE = 0.2, 2.0, 1 << 16  # seconds, seconds, bytes


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
        """Run one cell and return what `TrialResult` says of it beside the cell.

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
        wall, code = time.perf_counter() - start, _end(process)
        status, error = "error", f"the process {_ending(code)}{self._last_words()}"
        if self._late:
            status, error = "timeout", f"stopped after {limit:g} s"
        return {
            "status": status,
            "rows": [],
            "seconds": 0.0,
            "wall": wall,
            "memory": 0.0,
            "error": error,
            "place": platform.node(),
        }

    def close(self) -> None:
        """Stop the process and whatever it started, at once."""
        with self._lock:
            self._closed = True
            process = self._process
        if process is not None:
            _kill(process)
            process.wait()

    def _started(self) -> subprocess.Popen[str]:
        if self._process is not None and not _ended(self._process):
            return self._process
        with self._lock:
            if self._closed:
                raise EngineError("the worker was stopped")
            if self._said is not None:
                self._said.close()
            self._said = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", CODE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                env=_environment(),
                text=True,
                encoding="utf-8",
                start_new_session=True,
            )
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
        """Wait for a line; an empty one if the process ended, even if what it started holds the pipe."""
        if process.stdout is None:
            return ""
        pipe, line = process.stdout.fileno(), bytearray()
        with selectors.DefaultSelector() as ready:
            ready.register(pipe, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if ready.select(POLL):
                    piece = os.read(pipe, PIECE)
                    if not piece:
                        return ""
                    line += piece
                elif _ended(process):
                    return ""
        return line.decode()

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
    if process.returncode is None:  # until then, the number is nobody else's
        _kill_group(process)


def _kill_group(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()


def _ended(process: subprocess.Popen[str]) -> bool:
    """Say whether the process ended; what it started is killed when that is first seen."""
    if process.returncode is None and process.poll() is not None:
        _kill_group(process)
    return process.returncode is not None


def _end(process: subprocess.Popen[str]) -> int:
    """Return the exit code of a process that answers no more, and leave nothing of it behind."""
    until = time.monotonic() + GRACE
    while not _ended(process) and time.monotonic() < until:
        time.sleep(POLL / 10)
    _kill(process)
    return process.wait()


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    why = " (out of memory, perhaps)" if name == "SIGKILL" else ""
    return f"was ended by {name}{why}"


__all__ = ["EngineError", "Worker"]
