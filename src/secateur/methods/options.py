"""Options of a method: read from a text, and checked against the types of the fields."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from secateur.core import InputError, brief

__all__ = ["check_options", "parse_options"]

LARGEST = 2**63 - 1  # that torch and numpy take

_WORDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", NoneType: "None"}


def check_options(method: Any) -> None:
    """Check that the value of every field of a dataclass has the type of its annotation.

    Whole numbers are numbers, numpy's too; True, False and NaN are not.

    Args:
        method: An instance of a dataclass.

    Raises:
        InputError: If a value has another type.  The message names option, value and what is allowed.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Best:
        ...     share: float | None = 0.5
        ...     order: Literal["first", "last"] = "first"
        >>> check_options(Best(1))
        >>> check_options(Best("half"))
        Traceback (most recent call last):
        secateur.core.errors.InputError: Best.share is a number or None; got 'half'
    """
    hints = get_type_hints(type(method))
    for field in fields(method):
        value, hint = getattr(method, field.name), hints[field.name]
        if isinstance(value, Integral) and abs(int(value)) > LARGEST:
            raise InputError(f"{type(method).__name__}.{field.name} has at most 63 bits; got {brief(value)}")
        if not _fits(value, hint):
            example = _example(field) if get_origin(hint) is tuple else ""
            option = f"{type(method).__name__}.{field.name}"
            raise InputError(f"{option} is {_join(_allowed(hint))}{example}; got {brief(value)}")


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value has a type."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in inner)
    if origin is Literal:
        return any(_fits(value, type(choice)) and value == choice for choice in inner)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        parts = inner[:1] * len(value) if inner[1:] == (...,) else inner
        return len(value) == len(parts) and all(map(_fits, value, parts))
    if hint in (int, float):
        number = isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
        return number and value == value  # NaN differs from itself
    return isinstance(value, origin or hint)


def _allowed(hint: Any) -> list[str]:
    """Return what a type allows, as text."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return [repr(choice) for choice in inner]
    if origin in (Union, UnionType):
        return [words for part in inner for words in _allowed(part)]
    if origin is tuple:
        return ["a tuple" if inner[1:] == (...,) else f"a tuple of {len(inner)} values"]
    kind = origin or hint
    return [_WORDS.get(kind) or f"a {getattr(kind, '__name__', kind)}"]


def _example(field: Field[Any]) -> str:
    """Return the default as an example."""
    return "" if field.default in (MISSING, ()) else f" such as {field.default!r}"


def _join(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def parse_options(text: str) -> dict[str, Any]:
    """Return the options of a text ``option=value,option=value``; tuples are in parentheses.

    Example:
        >>> parse_options("ground=rows,box=(-1,2.5),time_limit=inf")
        {'ground': 'rows', 'box': (-1, 2.5), 'time_limit': inf}
    """
    chosen: dict[str, Any] = {}
    for part in filter(None, re.split(r",(?![^(]*\))", text)):  # not at commas in parentheses
        key, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"an option is written name=value; got {brief(part)}")
        try:
            chosen[key.strip()] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            chosen[key.strip()] = math.inf if value == "inf" else value
    return chosen
