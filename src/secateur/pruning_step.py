"""One step of a pruning: decide, shrink, and repeat without the groups that fail the check."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from secateur.allocation.schedule import remaining_budget
from secateur.apply.compose import compose, restrict
from secateur.apply.inexact_groups import find_inexact_groups
from secateur.apply.kept_tensors import check_shapes, copy_kept_tensors
from secateur.apply.shrink import check_shrunk, shrink
from secateur.core import (
    Budget,
    ExactnessError,
    InputError,
    NothingToPrune,
    Plan,
    PruningGraph,
    Statistics,
    shorten,
)
from secateur.core.indices import kept_shapes
from secateur.methods import Method
from secateur.methods.contract import check_step
from secateur.processes import check_same
from secateur.progress import Stopwatch
from secateur.repair.sequence import Pruned, zero_masked
from secateur.schedule import Schedule, count_left
from secateur.tracing.trace import freeze_groups

__all__ = ["Callback", "Remover", "StepInfo", "call_back"]

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


@dataclass(frozen=True, eq=False)
class Remover:
    """Decides what the steps of a pruning remove, and shrinks the model.

    Attributes:
        method: What decides.
        schedule: Whether each step starts from the original again.
        start: The original model without whole experts and blocks.
        clock: Gets the seconds of deciding and of shrinking.
        check: Whether to compare every shrunk model with the masked one.
        check_device: Device of that comparison; by default the model's.
        inexact: Groups that failed the comparison, with the reason; they stay whole from then on.
    """

    method: Method
    schedule: Schedule
    start: Pruned
    clock: Stopwatch
    check: bool
    check_device: Any
    inexact: dict[str, str] = field(default_factory=dict)

    def remove(
        self, before: Pruned, last: Pruned, statistics: Statistics, goal: Budget
    ) -> tuple[Plan | NothingToPrune, Pruned]:
        """Return what a step removes and what it leaves, or why it removes nothing.

        Args:
            before: What the step starts from.
            last: What the step before left: the same, unless the schedule restarts.
            statistics: Those of `before`.
            goal: The budget of the step, counted on the original model.
        """
        while True:
            with self.clock("plan"):
                step = self._decide(before, last, statistics, goal)
            if isinstance(step, NothingToPrune):
                return step, before
            with self.clock("shrink"):
                try:
                    return step, self._shrink(before, step)
                except ExactnessError as error:
                    self.inexact.update(self._find_inexact(error, before, step))

    def _decide(
        self, before: Pruned, last: Pruned, statistics: Statistics, goal: Budget
    ) -> Plan | NothingToPrune:
        original, graph = (freeze_groups(x.graph, self.inexact, INEXACT) for x in (self.start, before))
        budget = remaining_budget(original, graph, goal)
        try:
            step = self.method.plan(graph, statistics, budget)
        except NothingToPrune as refusal:
            return refusal
        check_step(self.method, step)
        check_same("the plan", {name: kept.tolist() for name, kept in step.keep.items()})
        if not (step.keep or step.masks):
            return NothingToPrune(f"{budget} removes nothing.\n{graph.describe_frozen()}")
        if self.schedule.restarts and count_left(graph, step) == count_left(graph, last.plan):
            return NothingToPrune(f"{budget} removes no more than the step before")
        return step

    def _shrink(self, before: Pruned, step: Plan) -> Pruned:
        """Return the model without what a step removes.

        It is always made from the original, which knows its class and its sizes; then it gets the weights
        of the model before the step.
        """
        whole = _whole_plan(before, step)
        small = shrink(self.start.model, whole, check=False)
        found = check_shrunk(self.start.model, small, whole, self.check_device) if self.check else None
        if before.plan.removes:
            copy_kept_tensors(before.model, small, before.graph, step.keep)
            small = zero_masked(small, whole)
        return Pruned(small, restrict(whole.graph, whole.keep), whole, exactness=found)

    def _find_inexact(self, error: ExactnessError, before: Pruned, step: Plan) -> dict[str, str]:
        """Return the groups of a step that fail the check, with the reason; raise the error if all do."""
        whole = _whole_plan(before, step)
        names = find_inexact_groups(self.start.model, whole, before.plan.keep, self.check_device)
        if len(names) in (0, len(step.keep)):
            raise error
        listed = shorten([repr(name) for name in names])
        warnings.warn(f"groups that fail the exactness check stay whole: {listed}. {error}", stacklevel=3)
        return dict.fromkeys(names, str(error))


def _whole_plan(before: Pruned, step: Plan) -> Plan:
    return compose(before.plan, step) if before.plan.removes else step


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
