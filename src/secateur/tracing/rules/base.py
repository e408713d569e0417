"""The table of rules and the way to enter one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from secateur.tracing.propagate import TensorAxes

__all__ = ["RULES", "Rule", "aligned", "rule", "words"]

Rule = Callable[..., TensorAxes | list[TensorAxes]]
R = TypeVar("R", bound=Rule)
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[R], R]:
    """Enter a function in the table under these operation names."""

    def enter(function: R) -> R:
        for name in names:
            RULES[name] = function
        return function

    return enter


def aligned(axes: Any, ndim: int) -> list[int]:
    """Return the axes that an operation takes as `dim` (int, list, None for all), from 0 on."""
    if axes is None or (isinstance(axes, Sequence) and not axes):
        return list(range(ndim))
    return [a % ndim for a in (axes if isinstance(axes, Sequence) else [axes])]


def words(text: str) -> list[str]:
    """Split a text into the names in it."""
    return text.split()
