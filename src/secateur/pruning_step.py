"""One step of a pruning: decide, shrink, and again without the groups that fail the check."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from secateur.allocation.schedule import remaining_budget
from secateur.apply.compose import compose, restrict
from secateur.apply.inexact_groups import find_inexact_groups
from secateur.apply.kept_tensors import check_shapes, copy_kept_tensors, shorten
from secateur.apply.shrink import check_shrunk, shrink
from secateur.core import (
    Budget,
    ExactnessError,
    InputError,
    NothingToPrune,
    Plan,
    PruningGraph,
    Statistics,
)
from secateur.core.indices import kept_shapes
from secateur.methods import Method
from secateur.methods.contract import check_step
from secateur.processes import check_same
from secateur.progress import Stopwatch
from secateur.repair.sequence import Pruned, zero_masked
from secateur.schedule import Schedule, count_left
from secateur.tracing.trace import freeze_groups

__all__ = ["Callback", "StepInfo", "call_back", "decide", "remove_units"]

INEXACT = "without its units the shrunk model fails the exactness check"


@dataclass(frozen=True, eq=False)
class StepInfo:
    """What a callback gets after each step.

    Attributes:
        number: Number of the step, from 1.
        of: Number of steps; None if the schedule decides on the way.
        model: The model now.
        plan: All that has gone so far, as one plan on the original model: ``shrink(initial, step.plan)``
            rewinds to an initial or early state of the original class.
    """

    number: int
    of: int | None
    model: nn.Module
    plan: Plan


Callback = Callable[[StepInfo], nn.Module | None]


def remove_units(
    decide: Callable[[Budget, PruningGraph, Mapping[str, str]], Plan | NothingToPrune],
    start: Pruned,
    before: Pruned,
    inexact: dict[str, str],
    clock: Stopwatch,
    check: bool,
    check_device: Any,
    goal: Budget,
) -> tuple[Plan | NothingToPrune, Pruned]:
    """Decide and shrink, again with fewer groups as long as some fail the check; `inexact` gets them."""
    while True:
        with clock("plan"):
            step = decide(goal, freeze_groups(before.graph, inexact, INEXACT), inexact)
        if isinstance(step, NothingToPrune):
            return step, before
        with clock("shrink"):
            try:
                return step, _shrink(start, before, step, check, check_device)
            except ExactnessError as error:
                inexact |= _inexact_groups(error, start, before, step, check_device)


def decide(
    method: Method,
    original: PruningGraph,
    statistics: Statistics,
    state: Pruned,
    schedule: Schedule,
    goal: Budget,
    graph: PruningGraph,
    inexact: Mapping[str, str],
) -> Plan | NothingToPrune:
    """Return what a step removes, or the reason why it removes nothing (more than the step before)."""
    budget = remaining_budget(freeze_groups(original, inexact, INEXACT), graph, goal)
    try:
        step = method.plan(graph, statistics, budget)
    except NothingToPrune as refusal:
        return refusal
    check_step(method, step)
    check_same("the plan", {name: kept.tolist() for name, kept in step.keep.items()})
    if not (step.keep or step.masks):
        return NothingToPrune(f"{budget} removes nothing.\n{graph.describe_frozen()}")
    if schedule.restarts and count_left(graph, step) == count_left(graph, state.plan):
        return NothingToPrune(f"{budget} removes no more than the step before")
    return step


def _shrink(start: Pruned, before: Pruned, step: Plan, check: bool, check_device: Any) -> Pruned:
    """Return the model without what a step removes.

    It is always made from the original, which knows its class and its sizes; then it gets the weights of
    the model before the step.
    """
    whole = _whole_plan(before, step)
    small = shrink(start.model, whole, check=False)
    found = check_shrunk(start.model, small, whole, check_device) if check else None
    if before.plan.removes:
        copy_kept_tensors(before.model, small, before.graph, step.keep)
        small = zero_masked(small, whole)
    return Pruned(small, restrict(whole.graph, whole.keep), whole, exactness=found)


def _whole_plan(before: Pruned, step: Plan) -> Plan:
    return compose(before.plan, step) if before.plan.removes else step


def _inexact_groups(
    error: ExactnessError, start: Pruned, before: Pruned, step: Plan, check_device: Any
) -> dict[str, str]:
    """Return the groups of a step that fail the check, each with the reason; raise the error if all do."""
    whole = _whole_plan(before, step)
    names = find_inexact_groups(start.model, whole, before.plan.keep, check_device)
    if len(names) in (0, len(step.keep)):
        raise error
    listed = shorten([repr(name) for name in names])
    warnings.warn(f"groups that fail the exactness check stay whole: {listed}. {error}", stacklevel=3)
    return dict.fromkeys(names, str(error))


def call_back(
    callback: Callback | None, after: Pruned, graph: PruningGraph, number: int, schedule: Schedule
) -> Pruned:
    """Return the state with the model that the callback changed or returned."""
    if callback is None:
        return after
    returned = callback(StepInfo(number, getattr(schedule, "count", None), after.model, after.plan))
    model = after.model if returned is None else returned
    if not isinstance(model, nn.Module):
        raise InputError(f"a callback must return a torch.nn.Module or None; got {type(model).__name__}")
    remedy = "Return the step's model, or shrink(initial, step.plan)"
    check_shapes(model, kept_shapes(graph, after.plan.keep), "the callback's model", remedy)
    return replace(after, model=zero_masked(model, after.plan))
