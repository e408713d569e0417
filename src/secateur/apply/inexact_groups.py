"""Find the groups whose removal is not exact, so that the others can still go."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from secateur.apply.shrink import check_shrunk, shrink
from secateur.core import ExactnessError, IntArray, Plan

__all__ = ["find_inexact_groups"]

COMPARISONS = 40  # each takes a few forward passes
IN_VAIN = 12  # after so many without a success, every group counts as inexact


def find_inexact_groups(
    model: nn.Module, plan: Plan, exact: Mapping[str, IntArray] | None = None, check_device: Any = None
) -> tuple[str, ...]:
    """Return the groups that must stay whole so that the rest of a plan is exact.

    A set of exact groups grows: a block of groups that fails together with it is halved, and each half is
    tried, the largest blocks first.  Groups that must keep equal counts count as one.  With k failures among
    n groups this takes about 2 k log2(n / k) comparisons.  After 40 comparisons, the groups that are not
    settled count as inexact.

    Args:
        model: The traced model.
        plan: A plan that fails the exactness check.
        exact: What was already removed exactly: group name -> units that stay.
        check_device: Device of the comparisons; by default the model's.

    Returns:
        Names of groups of the plan, in its order.
    """
    exact = exact or {}
    changed = [name for name in plan.keep if len(plan.keep[name]) != len(exact.get(name, ()))]
    sets = [[g.name for g in groups if g.name in changed] for groups in plan.graph.counted_together()]
    good: list[str] = []
    # Groups with the same place in several layers tend to pass or fail together: let them be neighbours.
    failing = deque([sorted(filter(None, sets), key=lambda names: re.sub(r"\d+", "", names[0]))])
    comparisons = 0
    while failing and comparisons < (COMPARISONS if good else IN_VAIN):
        block = failing.popleft()
        middle = len(block) // 2
        known = False  # the block fails: if its first half passes, the second fails
        for half in (block[:middle], block[middle:]) if middle else ():
            comparisons += not known
            names = [name for names in half for name in names]
            part = {**exact, **{name: plan.keep[name] for name in (*good, *names)}}
            if not known and _is_exact(model, replace(plan, keep=part, merges={}), check_device):
                good += names
                known = True
            else:
                failing.append(half)
    return tuple(name for name in changed if name not in good)


def _is_exact(model: nn.Module, plan: Plan, check_device: Any) -> bool:
    """Return whether a plan passes the check, without a search for the cause if it does not."""
    try:
        check_shrunk(model, shrink(model, plan, check=False), plan, check_device, explain=False)
    except ExactnessError:
        return False
    return True
