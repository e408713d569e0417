"""How a pruning proceeds: in one shot, in several steps, or until a metric has lost too much.

A schedule is a value.  It turns the budget into goals, each a budget of the original model, and decides after
each step whether to go on.  `prune` works through the goals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from numbers import Integral, Real
from typing import Any, Protocol, runtime_checkable

from torch import nn

from secateur.batches import as_batches
from secateur.core import Budget, InputError, NothingToPrune, Plan, PruningGraph, brief
from secateur.measure.metrics import Metric, evaluate, metric_named, more_is_better

__all__ = [
    "Judge",
    "OneShot",
    "Schedule",
    "Steps",
    "Tolerance",
    "count_left",
    "describe_step",
    "nothing_accepted",
]

Judge = Callable[[nn.Module], Mapping[str, Any]]


@runtime_checkable
class Schedule(Protocol):
    """What `prune` asks of a schedule."""

    @property
    def restarts(self) -> bool:
        """Whether each step decides on the original model again, instead of on what the last one left."""
        ...

    def goals(self, budget: Budget) -> Iterator[Budget]:
        """Yield the budget of each step, counted on the original model."""
        ...

    def judge(self, model: nn.Module) -> Judge | None:
        """Return a function that judges the model after a step, or None if every step is accepted.

        Its result holds "metric" and "accepted"; the first step that is not accepted ends the pruning.
        """
        ...


@dataclass(frozen=True)
class Steps:
    """Reach the budget in several steps; each keeps the same share of what is left and is repaired.

    Attributes:
        count: Number of steps, 1 or more.

    Example:
        >>> from secateur.core import Units
        >>> [round(goal.keep, 3) for goal in Steps(2).goals(Units(0.25))]
        [0.5, 0.25]
    """

    count: int
    restarts = False

    def __post_init__(self) -> None:
        """Check the count."""
        whole = isinstance(self.count, Integral) and not isinstance(self.count, bool)
        if not (whole and self.count >= 1):
            raise InputError(f"the number of steps must be an integer of at least 1; got {brief(self.count)}")

    def goals(self, budget: Budget) -> Iterator[Budget]:
        """Yield keep ** (1 / count), keep ** (2 / count), ..., keep."""
        for number in range(1, self.count + 1):
            yield budget.after(number / self.count)

    def judge(self, model: nn.Module) -> None:
        """Return None: every step is accepted."""


@dataclass(frozen=True)
class OneShot(Steps):
    """Reach the budget at once."""

    count: int = field(default=1, init=False, repr=False)


@dataclass(frozen=True)
class Tolerance:
    """Prune more and more, at most to the budget, while a held-out metric falls by no more than `drop`.

    Each step decides again, on the original model.  The result is the last accepted step.

    Attributes:
        drop: Largest accepted fall of the metric (0.01: one point of accuracy), or rise of a perplexity.
        holdout: Batches that neither the method nor the repair looks at.
        metric: Name of a metric, or a callable (model, batches) -> float; more is better.
        step: Share of what the budget counts that goes at each step.

    Example:
        >>> import torch
        >>> from secateur.core import Units
        >>> batches = [(torch.ones(2, 3), torch.zeros(2, dtype=torch.long))]
        >>> [goal.keep for goal in Tolerance(0.01, batches, step=0.3).goals(Units(0.2))]
        [0.7, 0.4, 0.2]
    """

    drop: float
    holdout: Iterable[Any] = field(repr=False)
    metric: str | Metric = "accuracy"
    step: float = 0.05
    restarts = True

    def __post_init__(self) -> None:
        """Check the numbers, the metric and the batches."""
        if not (_is_number(self.drop) and self.drop >= 0):
            raise InputError(f"Tolerance.drop must be a number, 0 or more; got {brief(self.drop)}")
        if not (_is_number(self.step) and 0 < self.step < 1):
            raise InputError(f"Tolerance.step must be a number in (0, 1); got {brief(self.step)}")
        metric_named(self.metric)
        if self.holdout is None:
            raise InputError("a Tolerance needs held-out batches: give holdout=")
        object.__setattr__(self, "holdout", as_batches(self.holdout))

    def goals(self, budget: Budget) -> Iterator[Budget]:
        """Yield the shares 1 - step, 1 - 2 step, ... and, last, the budget itself."""
        if isinstance(budget.keep, Mapping):
            raise InputError("a Tolerance needs one share for all groups: give Units(0.5), not a mapping")
        for count in range(1, ceil(1 / self.step)):
            goal = budget.at_least(round(1 - count * self.step, 12))
            if goal == budget:
                break
            yield goal
        yield budget

    def judge(self, model: nn.Module) -> Judge:
        """Measure the original model; return a function that compares others with it."""
        before = evaluate(model, self.holdout, self.metric, original=model)
        sign = 1 if more_is_better(self.metric) else -1

        def compare(pruned: nn.Module) -> Mapping[str, Any]:
            value = evaluate(pruned, self.holdout, self.metric, original=model)
            return {"metric": value, "before": before, "accepted": sign * (before - value) <= self.drop}

        return compare

    def __repr__(self) -> str:
        """Name the metric instead of showing a function's address."""
        return f"Tolerance(drop={self.drop}, metric={metric_named(self.metric)[0]!r}, step={self.step})"


def describe_step(
    number: int, budget: Budget, model: nn.Module, plan: Plan, judge: Judge | None = None
) -> dict[str, Any]:
    """Describe a step: its budget, the units that are left, the masked weights, the judge's verdict."""
    verdict = {} if judge is None else judge(model)
    return {"step": number, "budget": repr(budget), **count_left(plan.graph, plan), **verdict}


def count_left(graph: PruningGraph, plan: Plan) -> dict[str, int]:
    """Count the units that a plan leaves, and the single weights that it masks."""
    units = sum(len(plan.keep.get(group.name, range(group.size))) for group in graph.groups)
    return {"units": units, "masked": sum(int((~mask).sum()) for mask in plan.masks.values())}


def nothing_accepted(
    schedule: Schedule, notes: Sequence[Mapping[str, Any]], graph: PruningGraph
) -> NothingToPrune:
    """Return the error of a tolerance that not even the first step meets."""
    budget, before, metric = (notes[0][key] for key in ("budget", "before", "metric"))
    return NothingToPrune(
        f"no step stays within {schedule!r}: the metric is {before:.4g}; {budget} takes it to {metric:.4g}. "
        f"Allow more, or take smaller steps.\n{graph.describe_frozen()}"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
