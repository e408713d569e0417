"""Pruning one step after the other: decide, take out, repair, hand over, and again.

In steps, each plan speaks of the network that the steps before left, and all of them are composed into
one plan on the original model.  By tolerance, each trial decides anew on the original model, from the same
evidence, and removes more, until the metric falls too far.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from secateur.allocation.schedule import shares, step_budget
from secateur.apply.compose import compose, narrow_masks, restrict
from secateur.apply.shrink import shrink
from secateur.core import (
    Budget,
    InputError,
    NothingToPrune,
    Plan,
    PruningGraph,
    Statistics,
    Tolerance,
    Units,
)
from secateur.core.indices import kept_shapes
from secateur.execution import duplicate
from secateur.formats import weights
from secateur.measure.metrics import distance_from, evaluate, metric_named
from secateur.methods import Method
from secateur.repair.finetune import finetune
from secateur.repair.fold import fold, merge
from secateur.repair.refit import refit
from secateur.statistics.collect import collect_statistics
from secateur.statistics.gradients import Loss


@dataclass(frozen=True, eq=False)
class Step:
    """What a callback sees between the steps.

    Attributes:
        number: Number of the step, from 1.
        of: How many there will be; None where a tolerance decides.
        model: The model as it is now; what the callback does to it counts.
        plan: All that went so far, as one plan on the original model: ``shrink(initial, step.plan)`` rewinds
            to an initial or early state of the original class.
    """

    number: int
    of: int | None
    model: nn.Module
    plan: Plan


Callback = Callable[[Step], nn.Module | None]


@dataclass(frozen=True, eq=False)
class State:
    """Where a pruning stands.

    Attributes:
        model: The model as it is now.
        graph: What it still has.
        plan: All that went, on the original model; None at the start.
        folds: What the last fold reported.
        tuning: What the last fine-tuning reported.
        steps: A note for each step.
    """

    model: nn.Module
    graph: PruningGraph
    plan: Plan | None = None
    folds: Mapping[str, Any] = field(default_factory=dict)
    tuning: Mapping[str, Any] = field(default_factory=dict)
    steps: tuple[Mapping[str, Any], ...] = ()


class Clock:
    """Adds up the seconds that stages take.

    Example:
        >>> clock = Clock()
        >>> with clock("plan"): pass
        >>> list(clock.seconds)
        ['plan']
    """

    def __init__(self) -> None:
        """Start at nothing."""
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start


@dataclass(frozen=True, eq=False)
class Work:
    """What stays the same through all steps.

    Attributes:
        model: The original model.
        graph: Its trace.
        method: The method that decides.
        fitting: Batches that evidence is gathered on.
        guard: Batches that a fold is judged on; none of `fitting`.
        tuning: Batches to fine-tune on.
        holdout: Batches that a tolerance is judged on.
        baseline: The metric of the original model on them.
        repair: Of "fold", "refit" and "finetune".
        seed: Seed of everything.
        loss: Loss for gradients and fine-tuning.
        callback: Called between the steps.
        epochs: Epochs of each fine-tuning.
        lr: Its learning rate.
        progress: Whether to show progress bars.
        check: Whether to check every shrink.
        check_device: Where.
        clock: Of the stages.
    """

    model: nn.Module
    graph: PruningGraph
    method: Method
    fitting: Sequence[Any] | None
    guard: Sequence[Any] | None
    tuning: Sequence[Any] | None
    holdout: Sequence[Any] | None
    baseline: float | None
    repair: frozenset[str]
    seed: int
    loss: Loss | None
    callback: Callback | None
    epochs: int
    lr: float
    progress: bool
    check: bool
    check_device: Any
    clock: Clock

    def gather(self, state: State, budget: Budget) -> Statistics:
        """Collect what the method and the fold want to know."""
        needs = self.method.needs(budget) | ({"gram"} if "fold" in self.repair else set())
        check_data(self.method.name, needs, self.fitting)
        with self.clock("collect"):
            return collect_statistics(
                state.model, state.graph, self.fitting, needs, self.seed, loss=self.loss
            )

    def decide(self, state: State, statistics: Statistics, budget: Budget) -> Plan | NothingToPrune:
        """Let the method decide; that nothing can go is an answer, which the caller may raise."""
        try:
            with self.clock("plan"):
                plan = self.method.plan(state.graph, statistics, budget)
        except NothingToPrune as nothing:
            return nothing
        if plan.keep or plan.masks:
            return plan
        return NothingToPrune(f"{budget} removes nothing.\n{state.graph.describe_frozen()}")

    def apply(self, state: State, plan: Plan, statistics: Statistics) -> State:
        """Take out what a plan of the state's network says, and fold."""
        whole = plan if state.plan is None else compose(state.plan, plan)
        with self.clock("shrink"):
            # Always from the original, which knows its class and its sizes; then the weights as they are now.
            small = shrink(self.model, whole, check=self.check, check_device=self.check_device)
            if state.plan is not None:
                weights.carry(state.model, small, state.graph, plan.keep)
                _zero(small, whole)
        folds: Mapping[str, Any] = {}
        if "fold" in self.repair:
            with self.clock("fold"):
                small, folds = self._fold(state, small, plan, statistics)
                if "refit" in self.repair:
                    small, folds = self._refit(small, whole, folds)
                _zero(small, whole)
        elif plan.merges:
            with self.clock("fold"):
                small = merge(state.model, small, plan)  # exact merges are the plan's, not a repair
        left = restrict(self.graph, whole.keep)
        return replace(state, model=small, graph=left, plan=whole, folds=folds)

    def _fold(
        self, state: State, small: nn.Module, plan: Plan, statistics: Statistics
    ) -> tuple[nn.Module, Mapping[str, Any]]:
        if not self.guard:
            return fold(state.model, small, plan, statistics)
        held_out = collect_statistics(state.model, state.graph, self.guard, {"gram"}, self.seed)
        return fold(state.model, small, plan, statistics, held_out, distance_from(state.model, self.guard))

    def _refit(
        self, small: nn.Module, whole: Plan, folds: Mapping[str, Any]
    ) -> tuple[nn.Module, Mapping[str, Any]]:
        judge = distance_from(self.model, self.guard) if self.guard else None
        small, found = refit(self.model, small, whole, self.fitting or (), self.guard, judge)
        return small, {**folds, **{key: {**folds.get(key, {}), "refit": note} for key, note in found.items()}}

    def tune(self, state: State) -> State:
        """Fine-tune, where that was asked for."""
        if "finetune" not in self.repair or state.plan is None:
            return state
        with self.clock("finetune"):
            model, history = finetune(
                state.model,
                self.tuning or (),
                epochs=self.epochs,
                lr=self.lr,
                loss=self.loss,
                masks=narrow_masks(state.plan),
                seed=self.seed,
                progress=self.progress,
            )
        ends = {"first loss": history.losses[0], "last loss": history.losses[-1]}
        tuned = {"epochs": self.epochs, "lr": self.lr, "steps": len(history.losses), **ends}
        return replace(state, model=model, tuning=tuned)

    def hand_over(self, state: State, number: int, of: int | None) -> State:
        """Let the callback see the model, and take what it gives back."""
        if self.callback is None or state.plan is None:
            return state
        with self.clock("callback"):
            given = self.callback(Step(number, of, state.model, state.plan))
        model = state.model if given is None else given
        if not isinstance(model, nn.Module):
            raise InputError(f"a callback returns a torch.nn.Module or None; got {type(model).__name__}")
        remedy = "Return the step's model, or shrink(initial, step.plan)"
        weights.check(model, kept_shapes(self.graph, state.plan.keep), "the callback's model", remedy)
        return replace(state, model=zero_masked(model, state.plan))


def in_steps(work: Work, budget: Budget, count: int) -> State:
    """Prune to a budget in `count` steps that each keep the same share of what there is.

    After each step come the repairs, then the callback.
    """
    state, refusal = State(work.model, work.graph), None
    for number in range(1, count + 1):
        now = step_budget(work.graph, state.graph, budget, number / count)
        statistics = work.gather(state, now)
        plan = work.decide(state, statistics, now)
        if isinstance(plan, NothingToPrune):
            refusal = plan
        else:
            state = work.hand_over(work.tune(work.apply(state, plan, statistics)), number, count)
        note = {"step": number, "budget": repr(now), **_left(work.graph, state.plan)}
        state = replace(state, steps=(*state.steps, note))
    if state.plan is None and refusal is not None:
        raise refusal
    return state


def by_tolerance(work: Work, budget: Tolerance) -> State:
    """Prune more and more while the metric on held-out batches falls by no more than the tolerance.

    Each trial decides on the original model, is folded and handed to the callback, and is then judged; the
    last that was accepted is fine-tuned, where that was asked for.
    """
    before = work.baseline
    if work.holdout is None or before is None:
        raise InputError("a Tolerance is judged on batches that nothing else sees: give holdout= (--holdout)")
    first = Units(0.5, budget.scope, budget.floor, budget.round_to)
    accepted = start = State(work.model, work.graph)
    statistics = work.gather(start, first)
    notes: list[Mapping[str, Any]] = [{"step": 0, "metric": before, **_left(work.graph, None)}]
    for number, keep in enumerate(shares(budget.step), 1):
        plan = work.decide(start, statistics, replace(first, keep=keep))
        if isinstance(plan, NothingToPrune) or _same(work.graph, plan, accepted.plan):
            continue
        trial = work.hand_over(work.apply(start, plan, statistics), number, None)
        value = evaluate(trial.model, work.holdout, budget.metric)
        good = before - value <= budget.drop
        said = {"step": number, "keep": keep, "metric": value, "accepted": good}
        notes.append({**said, **_left(work.graph, plan)})
        if not good:
            break
        accepted = trial
    if accepted.plan is None:
        raise NothingToPrune(_refusal(budget, notes, work.graph))
    return work.tune(replace(accepted, steps=tuple(notes)))


def _refusal(budget: Tolerance, notes: Sequence[Mapping[str, Any]], graph: PruningGraph) -> str:
    name, before = metric_named(budget.metric)[0], notes[0]["metric"]
    tried = "no unit can go"
    if len(notes) > 1:
        tried = f"keeping {notes[1]['keep']:.0%} of the units takes it to {notes[1]['metric']:.4g}"
    return (
        f"no step stays within the tolerance: {name} is {before:.4g} and may fall by {budget.drop:g}; "
        f"{tried}. Allow more, or take smaller steps.\n{graph.describe_frozen()}"
    )


def _same(graph: PruningGraph, a: Plan | None, b: Plan | None) -> bool:
    return _left(graph, a) == _left(graph, b)


def _left(graph: PruningGraph, plan: Plan | None) -> dict[str, int]:
    """Count the units that a plan on the original leaves, and the single weights that it masks."""
    keep, masks = (plan.keep, plan.masks) if plan else ({}, {})
    units = sum(len(keep.get(group.name, range(group.size))) for group in graph.groups)
    return {"units": units, "masked": sum(int((~mask).sum()) for mask in masks.values())}


def check_data(method: str, needs: frozenset[str] | set[str], data: Any) -> None:
    """Raise `InputError` if evidence needs data and there is none."""
    looked = sorted(set(needs) - {"flow", "chain"})
    if looked and data is None:
        raise InputError(
            f"{method!r} and its repair look at data ({', '.join(looked)}): pass data=, batches "
            "of (inputs, targets)"
        )


def zero_masked(model: nn.Module, plan: Plan) -> nn.Module:
    """Return the model with the plan's masked weights at zero: itself where they are, or a copy."""
    if not any(bool(weight[gone].any()) for weight, gone in _masked(model, plan)):
        return model
    held = duplicate(model)
    _zero(held, plan)
    return held


@torch.no_grad()
def _zero(model: nn.Module, plan: Plan) -> None:
    for weight, gone in _masked(model, plan):
        weight.masked_fill_(gone, 0)


def _masked(model: nn.Module, plan: Plan) -> list[tuple[nn.Parameter, torch.Tensor]]:
    have = dict(model.named_parameters(remove_duplicate=False))
    masks = narrow_masks(plan).items()
    return [(have[name], torch.from_numpy(~mask).to(have[name].device)) for name, mask in masks]


__all__ = [
    "Callback",
    "Clock",
    "State",
    "Step",
    "Work",
    "by_tolerance",
    "check_data",
    "in_steps",
    "zero_masked",
]
