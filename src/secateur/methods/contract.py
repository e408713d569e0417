"""Check what a method returns, to report mistakes in a user's method."""

from __future__ import annotations

from collections.abc import Iterable

from secateur.core import Budget, InputError, Plan, brief
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
            f"frozenset({{'gram'}}), or an empty one; got {brief(needs)}"
        )
    return frozenset(needs)


def check_step(method: Method, step: Plan) -> None:
    """Check the plan that a method made.

    Raises:
        InputError: If it is not a plan, or it empties a group.
    """
    if not isinstance(step, Plan):
        raise InputError(f"the method {method.name!r} must return a Plan; got {type(step).__name__}")
    for name, kept in step.keep.items():
        if not len(kept):
            raise InputError(f"the method {method.name!r} keeps no unit of {name!r}; at least one must stay")
