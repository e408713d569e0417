"""The file of results: one JSON line a trial, appended as trials finish, never rewritten."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

from secateur.bench.trial import TrialResult, key_versions
from secateur.core import InputError, StoreError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

__all__ = ["ResultsFile"]


class ResultsFile:
    """Results on disk, open for one writer.

    A damaged line (the machine went down while writing it) is skipped with a warning, and its trial runs
    again. Lines of other versions stay in the file and do not count.

    Args:
        path: The file; it is created if missing.

    Attributes:
        results: Key of a trial -> its newest result.
        other_versions: Number of results of other versions.

    Raises:
        StoreError: If the file cannot be read or written, or another process writes it.

    Example:
        >>> import tempfile
        >>> from secateur.bench import Trial
        >>> with ResultsFile(Path(tempfile.mkdtemp()) / "trials.jsonl") as file:
        ...     file.append(TrialResult(Trial("a.b:c", {"seed": 0}), "ok", [{"accuracy": 0.5}]))
        ...     [result.rows for result in file.results.values()]
        [[{'accuracy': 0.5}]]
    """

    def __init__(self, path: str | Path) -> None:
        """Open, lock and read the file."""
        self.path = Path(path)
        self.results: dict[str, TrialResult] = {}
        self.other_versions = 0
        self._separator = b""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b", buffering=0)
        except OSError as error:
            raise StoreError(f"cannot write {self.path}: {error.strerror or error}") from error
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> ResultsFile:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close and unlock the file."""
        self._file.close()

    def append(self, result: TrialResult) -> None:
        """Write one result; it is on the disk when this returns.

        Raises:
            StoreError: If it cannot be written.
        """
        line = self._separator + json.dumps(result.to_dict(), allow_nan=False).encode() + b"\n"
        try:
            while line:
                written = self._file.write(line)
                self._separator, line = b"\n", line[written:]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise StoreError(
                f"cannot write {self.path}: {error.strerror or error}. The results written before are kept; "
                "make room and run the same command again, which continues from there"
            ) from error
        self._separator = b""
        self.results[result.trial.key] = result

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreError(
                f"another run is writing {self.path}: wait for it, or use another folder"
            ) from error

    def _read(self) -> None:
        try:
            self._file.seek(0)
            content = self._file.read()
        except OSError as error:
            raise StoreError(f"cannot read {self.path}: {error.strerror or error}") from error
        # An unfinished last line must not swallow the next result.
        self._separator = b"\n" if content and not content.endswith(b"\n") else b""
        for number, line in enumerate(content.split(b"\n"), 1):
            if line.strip():
                self._read_line(number, line)

    def _read_line(self, number: int, line: bytes) -> None:
        try:
            values = json.loads(line)
            if values["versions"] != key_versions():
                self.other_versions += 1
                return
            self.results[values["key"]] = TrialResult.from_dict(values)
        except (ValueError, KeyError, TypeError, RecursionError, InputError) as error:
            warnings.warn(
                f"line {number} of {self.path} is not a result and was skipped "
                f"({type(error).__name__}: {error}); its trial runs again",
                stacklevel=4,
            )
