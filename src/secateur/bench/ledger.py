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

from secateur.bench.cells import Record, made_with
from secateur.core import InputError, StoreError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]


class Ledger:
    """Results on disk, open for one writer.

    Args:
        path: The file; made if it is missing.

    Attributes:
        said: What was found wrong and mended, in words; empty if nothing was.

    Raises:
        StoreError: The file cannot be read or written, another process writes it, or a line in its middle
            is no record.

    Example:
        >>> import tempfile
        >>> from secateur.bench import Cell
        >>> with Ledger(Path(tempfile.mkdtemp()) / "cells.jsonl") as ledger:
        ...     ledger.append(Record(Cell("a.b:c", {"seed": 0}), "ok", [{"accuracy": 0.5}]))
        ...     [record.rows for record in ledger.records.values()]
        [[{'accuracy': 0.5}]]
    """

    def __init__(self, path: str | Path) -> None:
        """Open the file, mend its end, and read it."""
        self.path = Path(path)
        self.said = ""
        self.strangers = 0
        self.records: dict[str, Record] = {}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = self.path.open("a+b", buffering=0)
        except OSError as error:
            raise StoreError(f"cannot write {self.path}: {error.strerror or error}") from error
        try:
            self._lock()
            for number, line in enumerate(self._lines(), 1):
                self._read(number, line)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Ledger:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file, which unlocks it."""
        self._file.close()

    def append(self, record: Record) -> None:
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
        self.records[record.cell.key] = record

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreError(
                f"another run is writing {self.path}: wait for it, or use another folder"
            ) from error

    def _lines(self) -> list[bytes]:
        try:
            self._file.seek(0)
            whole, _, rest = self._file.read().rpartition(b"\n")
            if rest:
                self._mend(rest, len(whole) + 1 if whole else 0)
                whole = whole + b"\n" + rest if _complete(rest) else whole
        except OSError as error:
            raise StoreError(f"cannot read {self.path}: {error.strerror or error}") from error
        return [line for line in whole.split(b"\n") if line.strip()]

    def _mend(self, rest: bytes, start: int) -> None:
        """End a whole last line properly; take off one that was cut short."""
        if _complete(rest):
            self._file.write(b"\n")
            return
        self._file.truncate(start)
        self.said = f"the last line of {self.path} was cut short; it was taken off, its cell runs again"

    def _read(self, number: int, line: bytes) -> None:
        try:
            values: dict[str, Any] = json.loads(line)
            versions, key = values["versions"], values["key"]
            record = Record.from_dict(values)
        except (ValueError, KeyError, TypeError, InputError) as error:
            raise StoreError(
                f"line {number} of {self.path} is no record of a cell ({type(error).__name__}: {error}): "
                "take the line out, or use another folder"
            ) from error
        if versions == made_with() and key == record.cell.key:
            self.records[key] = record
        else:
            self.strangers += 1


def _complete(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


__all__ = ["Ledger"]
