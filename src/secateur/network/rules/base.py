"""The table of rules and the way to enter one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from secateur.network.flow import Axes

__all__ = ["RULES", "Rule", "aligned", "rule"]

Rule = Callable[..., Axes | list[Axes]]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enter a function in the table under these operation names."""

    def enter(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return enter


def aligned(axes: Any, ndim: int) -> list[int]:
    """Return a list of non-negative axes from what an operation takes as `dim`: int, list, or None for all."""
    if axes is None or (isinstance(axes, Sequence) and not axes):
        return list(range(ndim))
    return [a % ndim for a in (axes if isinstance(axes, Sequence) else [axes])]
