"""The table of rules, and the decorator that adds one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from secateur.tracing.propagate import TensorAxes

__all__ = ["RULES", "Rule", "axes_of", "rule", "words"]

Rule = Callable[..., TensorAxes | list[TensorAxes]]
R = TypeVar("R", bound=Rule)
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[R], R]:
    """Return a decorator that adds a function to the table under these operation names."""

    def enter(function: R) -> R:
        for name in names:
            RULES[name] = function
        return function

    return enter


def axes_of(dim: Any, ndim: int) -> list[int]:
    """Return the axes that `dim` names (int, list, None for all), counted from 0."""
    if dim is None or ndim == 0 or (isinstance(dim, Sequence) and not dim):
        return list(range(ndim))
    return [a % ndim for a in (dim if isinstance(dim, Sequence) else [dim])]


def words(text: str) -> list[str]:
    """Return the names in a text."""
    return text.split()
