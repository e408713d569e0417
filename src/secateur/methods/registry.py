"""Methods by name: Secateur's own, those that `register` adds, and those of installed packages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from secateur.core import InputError, brief, unknown
from secateur.methods.base import Method
from secateur.methods.options import parse_options

__all__ = ["BUILT_IN", "ENTRY_POINTS", "METHODS", "configure", "find_method", "register"]

BUILT_IN = {
    "matroid": ("matroid", "Matroid"),
    "spectral": ("spectral", "Spectral"),
    "lattice": ("lattice.method", "Lattice"),
    "mip": ("mip.method", "MIP"),
    "random": ("baselines", "Random"),
    "magnitude": ("baselines", "Magnitude"),
    "activation": ("baselines", "Activation"),
    "sensitivity": ("baselines", "Sensitivity"),
    "wanda": ("baselines", "Wanda"),
    "flap": ("baselines", "FLAP"),
    "leverage": ("leverage", "RidgeLeverage"),
    "taylor": ("baselines", "Taylor"),
    "snip": ("baselines", "SNIP"),
    "synflow": ("synflow", "SynFlow"),
}
ENTRY_POINTS = "secateur.methods"

Kind = TypeVar("Kind", bound=type)
_registered: dict[str, type[Any]] = {}


class _Methods(Mapping[str, type[Any]]):
    """A read-only mapping from names to classes; a class is imported when it is asked for."""

    def __getitem__(self, name: str) -> type[Any]:
        if name in _registered:
            return _registered[name]
        if name in BUILT_IN:
            module, kind = BUILT_IN[name]
            return getattr(import_module(f"secateur.methods.{module}"), kind)
        points = _installed()[name]
        if len(points) > 1:
            places = " and ".join(point.value for point in points)
            raise InputError(f"several installed packages have a method {name!r}: {places}")
        return points[0].load()

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*BUILT_IN, *_registered, *_installed()]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __repr__(self) -> str:
        return f"METHODS({', '.join(self)})"


@cache
def _installed() -> dict[str, list[EntryPoint]]:
    points: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=ENTRY_POINTS):
        points.setdefault(point.name, []).append(point)
    return points


METHODS: Mapping[str, type[Any]] = _Methods()


def register(name: str) -> Callable[[Kind], Kind]:
    """Return a class decorator that adds a method to `METHODS`, under this name.

    A package can also name its methods in its pyproject.toml; they are then known wherever it is installed::

        [project.entry-points."secateur.methods"]
        spread = "my_package.spread:Spread"

    Args:
        name: The name; the decorator sets it as the class' `name`.

    Raises:
        InputError: If the name is taken or invalid, or if the class lacks `needs` or `plan`.

    Example::

        @register("magnitude-l2")
        @dataclass(frozen=True, kw_only=True)
        class L2(Magnitude):
            p: int = 2
    """
    if not isinstance(name, str) or not name or set(name) & set(":, \t\n"):
        raise InputError(f"a method's name is a word without spaces, colons and commas; got {brief(name)}")

    def decorate(kind: Kind) -> Kind:
        if not (isinstance(kind, type) and hasattr(kind, "needs") and hasattr(kind, "plan")):
            raise InputError(f"a method is a class with needs and plan; got {kind!r}")
        known = _registered.get(name)
        # The same class again, as when a cell of a notebook runs twice, replaces itself.
        again = known is not None and _source(known) == _source(kind)
        if name in METHODS and not again:
            raise InputError(f"there is a method {name!r} already: {_path(METHODS[name])}")
        kind.name = name  # type: ignore[attr-defined]
        _registered[name] = kind
        return kind

    return decorate


def find_method(method: str | Method | type) -> Method:
    """Return a method given by its name in `METHODS`, with options or without, as a class, or as an instance.

    Raises:
        InputError: If the name or an option is not valid, or the value is not a method.

    Example:
        >>> find_method("magnitude").name, find_method("matroid:ground=rows").ground
        ('magnitude', 'rows')
    """
    if isinstance(method, str):
        name, _, options = method.partition(":")
        if name not in METHODS:
            raise InputError(unknown("method", name, list(METHODS)))
        return configure(name, METHODS[name], options)
    chosen = method() if isinstance(method, type) else method
    if not isinstance(chosen, Method):
        raise InputError(
            f"method must be a name in METHODS, or have `needs` and `plan`; got {type(chosen).__name__}"
        )
    return chosen


def configure(name: str, kind: Callable[..., Any], options: str) -> Any:
    """Return an instance of a method's class, with options written ``option=value,option=value``.

    Raises:
        InputError: If an option is unknown or its value is not valid.
    """
    known = [f.name for f in fields(kind) if f.init] if is_dataclass(kind) else []
    chosen = parse_options(options)
    for key in chosen:
        if key not in known:
            raise InputError(unknown(f"option of {name}", key, known))
    try:
        return kind(**chosen)
    except TypeError as error:
        raise InputError(f"{name}:{options}: {error}" if options else f"{name}: {error}") from error


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _source(kind: type) -> tuple[str, str]:
    """Return where a class is defined: the command line imports a file under a name of its own."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return file or kind.__module__, kind.__qualname__
