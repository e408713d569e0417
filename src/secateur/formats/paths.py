"""Paths that the user gives."""

from __future__ import annotations

from pathlib import Path

from secateur.core import InputError

__all__ = ["to_path"]


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
