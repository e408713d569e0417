"""The file of a grid's results: one JSON line a cell, appended as cells finish, never rewritten.

A line is on the disk, or it is not: a line that was cut short (the machine went down, the disk was full) is
taken off when the file is opened again.  Lines of other versions, and of cells that are not asked for, stay.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from secateur.bench.trial import TrialResult, key_versions
from secateur.core import InputError, StoreError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

BEGIN, SHOWN = b'{"key": "', 40


class ResultsFile:
    """Results on disk, open for one writer.

    Args:
        path: The file; made if it is missing.

    Attributes:
        said: What was found wrong and mended, in words; empty if nothing was.

    Raises:
        StoreError: The file cannot be read or written, another process writes it, or a line of it is no
            record.  The file is left as it was.

    Example:
        >>> import tempfile
        >>> from secateur.bench import Trial
        >>> with ResultsFile(Path(tempfile.mkdtemp()) / "cells.jsonl") as ledger:
        ...     ledger.append(TrialResult(Trial("a.b:c", {"seed": 0}), "ok", [{"accuracy": 0.5}]))
        ...     [record.rows for record in ledger.records.values()]
        [[{'accuracy': 0.5}]]
    """

    def __init__(self, path: str | Path) -> None:
        """Open the file, mend its end, and read it."""
        self.path = Path(path)
        self.said = ""
        self.strangers = 0
        self.records: dict[str, TrialResult] = {}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = self.path.open("a+b", buffering=0)
        except OSError as error:
            raise StoreError(f"cannot write {self.path}: {error.strerror or error}") from error
        try:
            self._lock()
            whole, rest = self._lines()
            for number, line in enumerate(whole, 1):
                if line.strip():
                    self._read(number, line)
            if rest:
                self._mend(len(whole) + 1, rest)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> ResultsFile:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file, which unlocks it."""
        self._file.close()

    def append(self, record: TrialResult) -> None:
        """Write one record; on the disk when this returns.

        Raises:
            StoreError: It could not be written; the file is as it was before.
        """
        line = json.dumps(record.to_dict(), allow_nan=False).encode() + b"\n"
        start = self._file.seek(0, os.SEEK_END)
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:])
            os.fsync(self._file.fileno())
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(start)
            raise StoreError(
                f"cannot write {self.path}: {error.strerror or error}. The cells written before are kept; "
                "make room and run the same again, which goes on from there"
            ) from error
        self.records[record.trial.key] = record

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreError(
                f"another run is writing {self.path}: wait for it, or use another folder"
            ) from error

    def _lines(self) -> tuple[list[bytes], bytes]:
        """Return the lines that have an end, and what stands after them."""
        try:
            self._file.seek(0)
            *whole, rest = self._file.read().split(b"\n")
        except OSError as error:
            raise StoreError(f"cannot read {self.path}: {error.strerror or error}") from error
        return whole, rest

    def _mend(self, number: int, rest: bytes) -> None:
        """End a whole last line properly; take off one of ours that was cut short, and nobody else's."""
        whole = _complete(rest)
        if whole:
            self._read(number, rest)
        elif not (self.records or self.strangers or _ours(rest)):
            raise StoreError(
                f"{self.path} is no file with results of cells (it begins with {_shown(rest)}) and was left "
                "as it is: use another folder"
            )
        try:
            if whole:
                self._file.write(b"\n")
                return
            self._file.truncate(self._file.seek(0, os.SEEK_END) - len(rest))
        except OSError as error:
            raise StoreError(f"cannot write {self.path}: {error.strerror or error}") from error
        self.said = f"the last line of {self.path} was cut short; it was taken off, its cell runs again"

    def _read(self, number: int, line: bytes) -> None:
        try:
            values: dict[str, Any] = json.loads(line, parse_constant=_refuse)
            versions, key = values["versions"], values["key"]
            record = TrialResult.from_dict(values)
            same = key == record.trial.key
        except (ValueError, KeyError, TypeError, RecursionError, InputError) as error:
            raise StoreError(
                f"line {number} of {self.path} is no record of a cell ({type(error).__name__}: {error}): "
                "take the line out, or use another folder"
            ) from error
        if versions == key_versions() and same:
            self.records[key] = record
        else:
            self.strangers += 1


def _complete(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _ours(rest: bytes) -> bool:
    """Say whether a line that was cut short can be one of ours: begins so, or the disk left it empty."""
    return rest.startswith(BEGIN) or BEGIN.startswith(rest) or not rest.strip(b"\0")


def _shown(start: bytes) -> str:
    return repr(start[:SHOWN].decode("utf-8", "replace"))


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number of ours")


__all__ = ["ResultsFile"]
