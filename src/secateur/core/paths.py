"""Paths from the user, and files of unknown origin."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

from secateur.core import InputError, StoreError, brief

__all__ = ["check_replaceable", "flush", "read_bounded", "to_path", "write_text"]

LARGEST = 2**28  # bytes of a text file that is read whole; parsed JSON takes up to some 30 times as many


def to_path(path: str | Path) -> Path:
    """Return the path as a `pathlib.Path`.

    Raises:
        InputError: If it is not a path.
    """
    if not isinstance(path, (str, Path)):
        raise InputError(f"a path must be a str or a pathlib.Path; got {type(path).__name__}")
    if "\0" in str(path):
        raise InputError(f"a path cannot hold a NUL character; got {brief(str(path))}")
    try:
        Path(path).exists()
        Path(path).resolve()
    except (OSError, RuntimeError, UnicodeError) as error:
        # The path is too long, has an invalid character, or leads through a loop of links or a locked folder.
        name = str(path)[:200].encode("utf-8", "backslashreplace").decode()
        raise InputError(f"{name} cannot be used as a path: {str(error)[:200]}") from error
    return Path(path)


def check_replaceable(path: Path) -> None:
    """Raise `StoreError` if a path is taken by a folder, a device or a pipe, which must not be replaced.

    Renaming a file replaces whatever has the new name; for root even ``/dev/null``.
    """
    if path.exists() and not path.is_file():
        raise StoreError(f"{path} is not a file and is not replaced: choose another path")


def read_bounded(path: Path, largest: int = LARGEST) -> str:
    """Return the text of a file.

    Pipes and devices are refused before they are opened, because reading one may never end.

    Raises:
        StoreError: If the file is missing, is not a regular file, is too large, or cannot be read.
    """
    try:
        if not path.exists():
            raise StoreError(f"{path} does not exist")
        if not path.is_file():
            raise StoreError(f"{path} is not a file")
        if (size := path.stat().st_size) > largest:
            raise StoreError(f"{path} has {size} bytes; at most {largest} are read")
        with path.open("rb") as file:
            return file.read(largest).decode()  # bounded again: the file may be growing
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise StoreError(f"{path} is not a text file in UTF-8: {error.reason}") from error


def flush(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file to a temporary name next to its place and rename it.

    Raises:
        StoreError: If it cannot be written.
    """
    path = to_path(path)
    if not path.name:
        raise StoreError(f"cannot write {str(path)!r}: it is a folder; give the name of a file")
    check_replaceable(path)
    draft = path.with_name(f".{path.name}-{uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    return path
