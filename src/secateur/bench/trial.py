"""A cell of a grid: a function named by words, and what it is called with; and the record of its run.

A cell is JSON: it can be sent to any process on any machine, and written beside its result.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache, cached_property
from importlib import metadata
from typing import Any, Literal, get_args

from secateur.core import InputError

Row = dict[str, Any]
Status = Literal["ok", "error", "timeout"]
COMPUTES = ("secateur", "torch", "numpy", "scipy", "highspy")
JOB = re.compile(r"[\w.]+:\w+")


@cache
def key_versions() -> dict[str, str]:
    """Return the versions that a cell's key contains: of what computes, and Python's minor version."""
    names = {name: metadata.version(name) for name in COMPUTES}
    return {**names, "python": f"{sys.version_info.major}.{sys.version_info.minor}"}


@dataclass(frozen=True)
class Trial:
    """One piece of work.

    Attributes:
        job: ``"package.module:function"``; the function returns a list of rows, flat dictionaries.
        params: What it is called with, by name: strings, numbers, booleans, None, lists, dictionaries.
        paths: What it is called with besides, and what tells no cell from another: where files lie.  Results
            stay good when a folder moves.
        extra_key: What tells it from others besides, without being given to the function: hashes of files.

    Raises:
        InputError: A job of another form, parameters that are not JSON, or a name among both.

    Example:
        >>> cell = Trial("secateur_studies.demo:cell", {"method": "random", "seed": 0})
        >>> cell.key == Trial("secateur_studies.demo:cell", {"seed": 0, "method": "random"}).key
        True
        >>> cell == Trial("secateur_studies.demo:cell", cell.params, {"cache": "/tmp"})
        True
    """

    function: str
    params: Mapping[str, Any] = field(default_factory=dict)
    paths: Mapping[str, Any] = field(default_factory=dict, compare=False)
    extra_key: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that the cell can be written down and read back as it is."""
        if not JOB.fullmatch(self.function):
            raise InputError(f"a job is written package.module:function; got {self.function!r}")
        for given in (dict(self.params), dict(self.paths), dict(self.extra_key)):
            try:
                back = json.loads(json.dumps(given, allow_nan=False))
            except (TypeError, ValueError) as error:
                raise InputError(f"the parameters of {self.function} are not JSON: {error}") from error
            if back != given:
                raise InputError(
                    f"the parameters of {self.function} change in JSON: write tuples as lists and use "
                    f"strings as keys; got {given}"
                )
        if both := set(self.params) & set(self.paths):
            raise InputError(f"{self.function}: {sorted(both)} cannot be a parameter and a path at once")

    @property
    def arguments(self) -> dict[str, Any]:
        """All that the function is called with."""
        return {**self.params, **self.paths}

    @cached_property
    def key(self) -> str:
        """What tells the cell from others: SHA-256 of job, parameters, marks and versions, in hexadecimal."""
        said = {"function": self.function, "params": dict(self.params), "versions": key_versions()}
        said |= {"extra_key": dict(self.extra_key)} if self.extra_key else {}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def __hash__(self) -> int:
        """Return a hash that agrees with equality."""
        return hash((self.function, json.dumps([dict(self.params), dict(self.extra_key)], sort_keys=True)))


@dataclass(frozen=True)
class TrialResult:
    """What became of a cell.

    Attributes:
        trial: The trial.
        status: ``"ok"``, ``"error"`` or ``"timeout"``.
        rows: What the function returned; empty unless ok.
        seconds: Processor time of the cell, its child processes included.
        wall: Time on the clock.
        memory: Largest resident memory of the process during the cell, in MiB.
        error: What went wrong; empty if ok.
        place: Machine that ran it.
    """

    trial: Trial
    status: Status
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    wall: float = 0.0
    memory: float = 0.0
    error: str = ""
    place: str = ""

    def to_dict(self) -> Row:
        """Return the record as one line of a ledger holds it."""
        return {
            "key": self.trial.key,
            "versions": key_versions(),
            "function": self.trial.function,
            "params": dict(self.trial.params),
            "paths": dict(self.trial.paths),
            "extra_key": dict(self.trial.extra_key),
            **self.outcome(),
        }

    def outcome(self) -> Row:
        """Return everything but the cell."""
        values = asdict(self)
        del values["trial"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrialResult:
        """Return the record that a line holds.

        Raises:
            InputError: The line holds no record; names the field.
        """
        given = {"paths": {}, "extra_key": {}, **values}
        for name, (holds, what) in FIELDS.items():
            if name not in given:
                raise InputError(f"{name!r} is missing")
            if not holds(given[name]):
                raise InputError(f"{name!r} must be {what}; got {ascii(given[name])[:60]}")
        named = {f.name: given[f.name] for f in fields(cls) if f.name != "trial"}
        return cls(Trial(given["function"], given["params"], given["paths"], given["extra_key"]), **named)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value == clean(value)


def _is_number(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 <= value <= sys.float_info.max


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _are_rows(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_mapping, value)) and value == clean(value)


def clean(value: Any) -> Any:
    r"""Return JSON whose texts can be written: halves of characters stand as the escapes that they are.

    Such a half comes from a file name that is no UTF-8, for one.

    Example:
        >>> clean([{"a": "b\udcff"}]) == [{"a": r"b\udcff"}]
        True
    """
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    return [clean(item) for item in value] if isinstance(value, list) else value


NUMBER, MAPPING, TEXT = (_is_number, "a number"), (_is_mapping, "a mapping"), (_is_text, "a text in Unicode")
FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "function": TEXT,
    "params": MAPPING,
    "paths": MAPPING,
    "extra_key": MAPPING,
    "status": (lambda value: value in get_args(Status), f"one of {', '.join(get_args(Status))}"),
    "rows": (_are_rows, "a list of mappings, with texts in Unicode"),
    "seconds": NUMBER,
    "wall": NUMBER,
    "memory": NUMBER,
    "error": TEXT,
    "place": TEXT,
}


__all__ = ["Row", "Status", "Trial", "TrialResult", "clean", "key_versions"]
