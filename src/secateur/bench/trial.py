"""A trial: a function named as text with its JSON parameters; and the result of running it.

A trial can be sent to a process on any machine, and its key tells whether a stored result is still good.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from importlib import metadata
from typing import Any, Literal

from secateur.core import InputError

__all__ = ["Row", "Status", "Trial", "TrialResult", "key_versions"]

Row = dict[str, Any]
Status = Literal["ok", "error", "timeout"]
FUNCTION = re.compile(r"[\w.]+:\w+")


@cache
def key_versions() -> dict[str, str]:
    """Return the versions in every key: of the packages that compute, and Python's minor version."""
    names = ("secateur", "torch", "numpy", "scipy", "highspy")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return {**{name: metadata.version(name) for name in names}, "python": python}


@dataclass(frozen=True)
class Trial:
    """One piece of work.

    Attributes:
        function: ``"package.module:function"``; it returns a list of rows (dictionaries).
        params: Its keyword arguments, as JSON.
        paths: Further keyword arguments that do not enter the key: where files lie. Results stay good when a
            folder moves.
        extra_key: What enters the key without being an argument, as hashes of files.

    Raises:
        InputError: If the function is not written as above, the parameters are not JSON, or a name is in both
            `params` and `paths`.

    Example:
        >>> trial = Trial("mine:measure", {"method": "random", "seed": 0})
        >>> trial.key == Trial("mine:measure", {"seed": 0, "method": "random"}).key
        True
        >>> trial == Trial("mine:measure", trial.params, {"cache": "/tmp"})
        True
    """

    function: str
    params: Mapping[str, Any] = field(default_factory=dict)
    paths: Mapping[str, Any] = field(default_factory=dict, compare=False)
    extra_key: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that JSON gives the trial back unchanged."""
        if not FUNCTION.fullmatch(self.function):
            raise InputError(f"a function is written package.module:function; got {self.function!r}")
        given = [dict(self.params), dict(self.paths), dict(self.extra_key)]
        try:
            copied = json.loads(json.dumps(given, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise InputError(f"the parameters of {self.function} are not JSON: {error}") from error
        if copied != given:
            raise InputError(
                f"the parameters of {self.function} change in JSON: write tuples as lists and use strings as "
                f"keys; got {given}"
            )
        if both := set(self.params) & set(self.paths):
            raise InputError(f"{self.function}: {sorted(both)} cannot be both a parameter and a path")

    @property
    def arguments(self) -> dict[str, Any]:
        """All keyword arguments of the function."""
        return {**self.params, **self.paths}

    @cached_property
    def key(self) -> str:
        """SHA-256 of the function's name, the parameters, the extra key and the versions."""
        parts = [self.function, dict(self.params), dict(self.extra_key), key_versions()]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class TrialResult:
    """The result of a trial.

    Attributes:
        trial: The trial.
        status: ``"ok"``, ``"error"`` or ``"timeout"``.
        rows: What the function returned; empty unless ok.
        seconds: Processor time, child processes included.
        wall: Wall-clock time in seconds.
        memory: Peak resident memory of the process during the trial, in MiB.
        error: The error message; empty if ok.
        machine: Name of the machine that ran it.
    """

    trial: Trial
    status: Status
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    wall: float = 0.0
    memory: float = 0.0
    error: str = ""
    machine: str = ""

    def to_dict(self) -> Row:
        """Return the result as one line of a results file holds it."""
        values = asdict(self)
        return {"key": self.trial.key, "versions": key_versions(), **values.pop("trial"), **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrialResult:
        """Return the result that `to_dict` wrote.

        Raises:
            KeyError: If a field is missing.
            InputError: If a field of the trial is invalid.
        """
        trial = Trial(*(values[name] for name in ("function", "params", "paths", "extra_key")))
        names = ("status", "rows", "seconds", "wall", "memory", "error", "machine")
        return cls(trial, **{name: values[name] for name in names})
