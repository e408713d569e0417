"""Prune a model: trace, statistics, plan, shrink, repair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from secateur.allocation.amounts import with_shares
from secateur.allocation.schedule import reached
from secateur.batches import as_batches
from secateur.comparison import start_report
from secateur.core import (
    Budget,
    InputError,
    NothingToPrune,
    Plan,
    PruningGraph,
    Units,
    brief,
)
from secateur.core.budget import as_budget
from secateur.depth import latency_notes
from secateur.execution import check_calls, check_flags, check_module, check_seed, one_at_a_time
from secateur.latency_budget import note_prediction, with_tables
from secateur.latency_correction import remove_within
from secateur.methods import Method, find_method
from secateur.mixtures import Experts
from secateur.progress import Stopwatch
from secateur.pruning_step import Callback, Remover, call_back
from secateur.recipe import check_data, choose_defaults, make_recipe, split_repairs
from secateur.repair.base import Repair, repair_name
from secateur.repair.loss_curves import Divergence
from secateur.repair.sequence import Pruned, RepairSettings, apply_repairs
from secateur.result import Result
from secateur.schedule import OneShot, Schedule, Tolerance, describe_step, nothing_accepted
from secateur.statistics.loss import Loss
from secateur.tracing.trace import traced_model
from secateur.views import view

__all__ = ["Result", "plan", "prune"]


@one_at_a_time
def plan(
    graph: PruningGraph,
    method: str | Method | type,
    budget: Budget | Sequence[Budget],
    data: Iterable[Any] | None = None,
    seed: int = 0,
    *,
    loss: Loss | None = None,
    model: nn.Module | None = None,
) -> Plan:
    """Decide what goes; nothing is changed.

    Args:
        graph: What `trace` returned.
        method: Name in `METHODS`, a class, or an instance.
        budget: How much stays; of a list of budgets, all hold.
        data: Batches, if the method looks at data.
        seed: Seed of every random choice.
        loss: (outputs, targets) -> scalar, for methods that look at gradients.
        model: The model to look at; by default the one that was traced, as it is now.

    Raises:
        InputError: If an argument is invalid.
        NothingToPrune: If nothing can go; the message says what is frozen and why.

    Example:
        >>> from secateur.tracing.trace import trace
        >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> graph = trace(mlp, torch.ones(2, 4))
        >>> [len(kept) for kept in plan(graph, "magnitude", Units(0.5)).keep.values()]
        [4]
    """
    if not isinstance(graph, PruningGraph):
        raise InputError(f"graph must be what trace() returned; got {type(graph).__name__}")
    chosen = find_method(method)
    budget = as_budget(budget)
    model = traced_model(graph) if model is None else model
    if model is None:
        raise InputError("the model of this graph is not in memory: pass model=")
    check_module(model)
    graph = graph.with_even_layers(budget.even)
    batches = None if data is None else as_batches(data)
    recipe = make_recipe(model, chosen, budget, batches, (), loss, seed)
    if recipe.by_loss is not None:  # its trials are folded
        recipe = replace(recipe, needs=recipe.needs | {"gram"})
    check_data(chosen, recipe.needs, batches)
    budget = with_shares(graph, with_tables(budget, model, graph))
    statistics = recipe.collect(view(model, graph.interface), graph)
    return note_prediction(chosen.plan(graph, statistics, budget), budget)


@one_at_a_time
def prune(
    model: nn.Module,
    example_inputs: Any,
    budget: Budget | Sequence[Budget] | None = None,
    data: Iterable[Any] | None = None,
    *,
    method: str | Method | type | None = None,
    repair: str | Repair | Sequence[Repair] | None = "auto",
    schedule: Schedule = OneShot(),  # noqa: B008 (a frozen value)
    callback: Callback | None = None,
    loss: Loss | None = None,
    ignored_layers: Iterable[str | nn.Module] = (),
    blocks: int | str | Sequence[str] = 0,
    experts: Experts | int | Mapping[str, int | Sequence[int]] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    outputs: str | int | Iterable[str | int] | None = None,
    states: Mapping[str, str | int] | Iterable[tuple[str | int, str | int]] | None = None,
    inside: str | Iterable[str] | None = None,
    positions: bool = False,
    check: bool = True,
    check_device: str | torch.device | None = None,
    progress: bool = True,
    seed: int = 0,
) -> Result:
    """Prune a model: return a smaller model of the same classes; the original is not changed.

    With data, the default method is "matroid" and the default repair "refit"; for a causal language model
    they are "taylor" and "fold".  Budgets other than `Units` then measure what each group costs at the output
    to decide how many units it keeps.  Without data, or with a `Weights` budget, the default is "magnitude"
    without a repair.  docs/real-networks.md and docs/language-models.md show why.

    Args:
        model: Any module that `torch.export` can export, or parts of which it can (`inside`).
        example_inputs: What the model is called with: a tensor, a tuple, or a dict of keyword arguments.
        budget: How much stays: `Units`, `Params`, `Macs`, `Bytes`, `Latency` or `Weights`, or a list of them,
            which must all hold.  Optional with a `Tolerance`.
        data: Batches to calibrate, repair and fine-tune on: a DataLoader, pairs (inputs, targets), tensors
            or dicts.  A repair keeps a fifth of them apart to judge itself.
        method: Name in `METHODS`, a class, or an instance.
        repair: A name ("fold", "refit", "finetune", "fold+finetune", "refit+finetune"), a value such as
            ``Finetune(epochs=3)``, a tuple of values, or None.  "refit" folds first: ``(Fold(), Refit())``.
        schedule: `OneShot()`, `Steps(count)` or `Tolerance(drop, holdout)`.
        callback: Called after each step with a `StepInfo`; may change the model or return another one.
        loss: (outputs, targets) -> scalar, for gradients and fine-tuning; by default it fits the targets.
        ignored_layers: Modules, or names or patterns of modules, parameters or groups, or kinds of groups
            (``"kind:hidden"``), whose units all stay.
        blocks: Whole blocks that go first: names (see `drop_blocks`), or how many, the least needed by
            trial on the data, or "auto": those that the integer program drops, which weighs blocks against
            units.  What is left has other numbers, which `ignored_layers` refers to.
        experts: How many whole experts stay in each mixture, those that add most on the data (see
            `Experts` for more ways); or by name of a mixture (see `find_mixtures`) how many, or the numbers
            of those that stay.  The others go first, before blocks.
        example_kwargs: More keyword arguments of the model.
        outputs: The outputs that count, if not all do, as in ``"logits"``, ``0``, ``"past.0"``: see `trace`.
        states: Inputs whose next values the model returns, as in ``{"h": "hidden"}``: see `trace`.
        inside: Submodules to prune, or "auto", in a model that `torch.export` cannot export: see `trace`.
        positions: Whether positions within the heads of attention may go, too: see `trace`.  A repair then
            first turns the values of each head into their principal axes.  In several steps, heads that have
            lost positions stay from then on.
        check: Whether to compare every shrunk model with the masked one.
        check_device: Device of that comparison; by default the model's.
        progress: Whether to show progress on a terminal.
        seed: Seed of every random choice.

    Raises:
        CaptureError: If the model, or a submodule that `inside` names, cannot be exported.
        InputError: If an argument is invalid.
        NothingToPrune: If nothing would go; the message says what is frozen and why.
        ExactnessError: If no group can go so that the shrunk model computes what the masked one does.  A
            group that fails alone stays whole, with a warning; the report's notes name it.

    Example:
        >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> result = prune(mlp, torch.ones(2, 4), Units(0.5), method="magnitude")
        >>> result.report.before.cost.parameters, result.report.after.cost.parameters
        (67, 35)
    """
    batches = None if data is None else as_batches(data)
    budget = _check_arguments(budget, schedule, callback, loss, seed, check, progress, positions)
    chosen, repairs = choose_defaults(method, repair, batches, budget, model)
    recipe = make_recipe(model, chosen, budget, batches, repairs, loss, seed, progress)
    call = (example_inputs, ignored_layers, example_kwargs, outputs, states, inside, positions)
    with (clock := Stopwatch())("trace"):
        shares, start = recipe.trace(model, experts, blocks, call, check)
    settings = replace(recipe.settings, original=start.model)
    remover = Remover(chosen, schedule, start, clock, check, check_device)
    each_step, at_the_end = split_repairs(repairs, schedule)
    judge = schedule.judge(view(model, start.graph.interface))
    state, notes, refusal = start, list[dict[str, Any]](), NothingToPrune("the schedule has no steps")
    for number, goal in enumerate(schedule.goals(shares), 1):
        before = start if schedule.restarts else state
        with clock("statistics"):
            if number == 1 or not schedule.restarts:
                statistics = recipe.collect(before.view(), before.graph)
        remove = partial(remover.remove, before, state, statistics)
        step, after = remove_within(goal, remove, start, timed=schedule.restarts or goal == shares)
        if isinstance(step, NothingToPrune):
            refusal = step
            notes += [] if schedule.restarts else [describe_step(number, goal, start.model, state.plan)]
            continue
        with clock("repair"):
            after = apply_repairs(each_step, before, after, step, statistics, settings)
        after = call_back(callback, after, start.graph, number, schedule)
        notes.append(describe_step(number, goal, after.view(), after.plan, judge))
        if not notes[-1].get("accepted", True):
            break
        state = after
    if not state.plan.removes:
        raise nothing_accepted(schedule, notes, start.graph) if schedule.restarts and notes else refusal
    with clock("repair"):
        state = apply_repairs(at_the_end, state, state, replace(state.plan, merges={}), statistics, settings)
    how = {"repair": repair_name(repairs), "schedule": repr(schedule), "steps": notes}
    return _result(model, budget, state, remover, settings, how)


def _check_arguments(
    budget: Any,
    schedule: Any,
    callback: Any,
    loss: Any,
    seed: Any,
    check: Any,
    progress: Any,
    positions: Any,
) -> Budget:
    """Return the budget, or raise `InputError` if an argument is invalid."""
    if not isinstance(schedule, Schedule) or isinstance(schedule, type):
        kinds = "OneShot(), Steps(5) or Tolerance(0.1, batches)"
        raise InputError(f"schedule must be {kinds}; got {brief(schedule)}")
    if budget is None and isinstance(schedule, Tolerance):
        budget = Units(schedule.step)
    budget = as_budget(budget)
    check_seed(seed)
    check_flags(check=check, progress=progress, positions=positions)
    check_calls(callback=callback, loss=loss)
    return budget


def _result(
    original: nn.Module,
    budget: Budget,
    state: Pruned,
    remover: Remover,
    settings: RepairSettings,
    how: dict[str, Any],
) -> Result:
    """Return the result of a pruning, with notes and a report on how it came about.

    Args:
        original: The user's model.
        budget: The user's budget.
        state: What the last step left.
        remover: What removed it; it knows which groups stayed whole, and the seconds.
        settings: The batches, and the model without whole experts and blocks.
        how: Repair, schedule and steps, for the report.
    """
    notes = {**remover.start.plan.notes, **state.plan.notes, "schedule": how["schedule"]}
    whole = state.plan.experts or state.plan.blocks
    if whole and "latency" in notes:
        notes["latency"] = latency_notes(notes["latency"], budget, original, state.model, state.plan)
    if remover.inexact:
        notes["inexact groups"] = remover.inexact
    if "predicted loss" in notes:
        divergence = Divergence(
            view(original, state.graph.interface), settings.guard or settings.fitting or ()
        )
        if whole:  # the prediction is that of units alone
            notes["predicted loss"] += divergence(view(settings.original, state.graph.interface))
        notes["measured loss"] = how["steps"][-1]["loss"] = divergence(state.view())
    if len(how["steps"]) > 1:
        notes |= {"reached": reached(state.plan), "steps": how["steps"]}
    decided = replace(state.plan, budget=repr(budget), notes=notes)
    if state.exactness is not None:
        how["exactness"] = state.exactness.describe()
    how |= {"seed": settings.seed, "seconds": remover.clock.seconds}
    report = start_report(original, state.model, decided, state.folds, state.training, **how)
    return Result(state.model, decided, report, state.plan.graph, original)
