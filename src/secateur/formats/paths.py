"""Paths that the user gives."""

from __future__ import annotations

import os
from pathlib import Path

from secateur.core import InputError, StoreError

__all__ = ["check_replaceable", "flush", "to_path"]


def to_path(path: str | Path) -> Path:
    """Return the path as a `pathlib.Path`.

    Raises:
        InputError: If it is not a path.
    """
    if not isinstance(path, (str, Path)):
        raise InputError(f"a path must be a str or a pathlib.Path; got {type(path).__name__}")
    if "\0" in str(path):
        raise InputError(f"a path cannot hold a NUL character; got {str(path)!r}")
    try:
        Path(path).exists()
        Path(path).resolve()
    except (OSError, RuntimeError) as error:  # too long, a folder that cannot be entered, a loop of links
        raise InputError(f"{str(path)[:200]} cannot be used as a path: {error}") from error
    return Path(path)


def check_replaceable(path: Path) -> None:
    """Raise `StoreError` if a path is taken by a folder, a device or a pipe, which must not be replaced.

    A rename puts a file in the place of whatever has the name, for root even of ``/dev/null``.
    """
    if path.exists() and not path.is_file():
        raise StoreError(f"{path} is not a file and is not replaced: choose another path")


def flush(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())
