"""Check what a method returns, so that a mistake in a method of one's own is named."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from secateur.core import Budget, InputError, Plan, unknown
from secateur.methods.base import Method

__all__ = ["check_step", "needs_of"]


def needs_of(method: Method, budget: Budget) -> frozenset[str]:
    """Return the statistics that a method asks for.

    Raises:
        InputError: If `needs` does not return a set of names.
    """
    needs = method.needs(budget)
    if isinstance(needs, str) or not isinstance(needs, Iterable):
        raise InputError(
            f"needs() of the method {method.name!r} must return a set of names, for instance "
            f"frozenset({{'gram'}}), or an empty one; got {needs!r}"
        )
    return frozenset(needs)


def check_step(method: Method, step: Plan) -> None:
    """Check the plan that a method made.

    Raises:
        InputError: If it is not a plan, it empties a group, or a mask does not fit its weight.
    """
    if not isinstance(step, Plan):
        raise InputError(f"the method {method.name!r} must return a Plan; got {type(step).__name__}")
    for name, kept in step.keep.items():
        if not len(kept):
            raise InputError(f"the method {method.name!r} keeps no unit of {name!r}; at least one must stay")
    for name, mask in step.masks.items():
        shape = step.graph.shapes.get(name)
        if shape is None:
            raise InputError(unknown("weight", name, list(step.graph.shapes)))
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != tuple(shape):
            got = (
                f"{mask.dtype} of shape {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
            )
            raise InputError(
                f"the method {method.name!r} must give a boolean numpy array of shape {tuple(shape)}, True "
                f"where a weight stays, as the mask of {name!r}; got {got}"
            )
