"""Prune a model: trace, statistics, plan, shrink, repair."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from secateur.allocation.amounts import with_shares
from secateur.allocation.schedule import reached
from secateur.batches import as_batches, split_off_guard
from secateur.comparison import start_report
from secateur.core import (
    Budget,
    InputError,
    LossCurve,
    NothingToPrune,
    Plan,
    PruningGraph,
    Statistics,
    Units,
    Weights,
    brief,
)
from secateur.core.budget import BY_LOSS, as_budget
from secateur.depth import latency_notes, trace_without_blocks
from secateur.execution import check_flags, check_module, check_seed, one_at_a_time
from secateur.latency_budget import note_prediction, with_tables
from secateur.latency_correction import remove_within
from secateur.methods import Method, find_method
from secateur.methods.base import SetMethod
from secateur.methods.contract import needs_of
from secateur.mixtures import Experts, trace_without_experts
from secateur.progress import Stopwatch
from secateur.pruning_step import Callback, call_back, decide, remove_units
from secateur.repair.base import Finetune, Repair, parse_repair, repair_name, repair_needs
from secateur.repair.loss_curves import Divergence, with_loss_curves
from secateur.repair.principal_values import turn_values
from secateur.repair.sequence import Pruned, RepairSettings, apply_repairs
from secateur.result import Result
from secateur.schedule import OneShot, Schedule, Tolerance, describe_step, nothing_accepted
from secateur.statistics.collect import collect_statistics
from secateur.statistics.loss import Loss
from secateur.statistics.token_gates import takes_token_gates
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
    recipe = _recipe(model, chosen, budget, batches, (), loss, seed)
    if recipe.by_loss is not None:  # its trials are folded
        recipe = replace(recipe, needs=recipe.needs | {"gram"})
    _check_data(chosen, recipe.needs, batches)
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
    experts: Experts | None = None,
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

    With data, the default is the method "matroid" and the repair "refit", for a causal language model
    "taylor" and "fold", and under every budget but `Units` the measured losses of the groups decide which
    gives how much; without data, or with a `Weights` budget, it is "magnitude" and no repair.
    docs/real-networks.md and docs/language-models.md show why.

    Args:
        model: Any module that `torch.export` can export, or parts of which it can (`inside`).
        example_inputs: What the model is called with: a tensor, a tuple, or a dict of keyword arguments.
        budget: How much stays: `Units`, `Params`, `Macs`, `Bytes`, `Latency` or `Weights`, or a list of them,
            which must all hold.  Optional with a `Tolerance`.
        data: Batches to calibrate, repair and fine-tune on: a DataLoader, pairs (inputs, targets), tensors
            or dicts.  A repair keeps a fifth of them apart to judge itself.
        method: Name in `METHODS`, a class, or an instance.
        repair: A name ("fold", "refit", "finetune", "fold+finetune", "refit+finetune"), a value such as
            ``Finetune(epochs=3)``, a tuple of values, or None.
        schedule: `OneShot()`, `Steps(count)` or `Tolerance(drop, holdout)`.
        callback: Called after each step with a `StepInfo`; may change the model or return another one.
        loss: (outputs, targets) -> scalar, for gradients and fine-tuning; by default it fits the targets.
        ignored_layers: Modules, or names or patterns of modules, parameters or groups, or kinds of groups
            (``"kind:hidden"``), whose units all stay.
        blocks: Whole blocks that go first: names (see `drop_blocks`), or how many, the least needed by
            trial on the data, or "auto": those that the integer program drops, which weighs blocks against
            units.  What is left has other numbers, which `ignored_layers` refers to.
        experts: How many whole experts stay in each mixture, those of the largest saliency on the data
            (Lasby et al. 2025); or by name of a mixture (see `find_mixtures`) how many, or the numbers of
            those that stay.  The others go first, before blocks.
        example_kwargs: More keyword arguments of the model.
        outputs: The outputs that count, if not all do, as in ``"logits"``, ``0``, ``"past.0"``: see `trace`.
        states: Inputs whose next values the model returns, as in ``{"h": "hidden"}``: see `trace`.
        inside: Submodules to prune, or "auto", in a model that `torch.export` cannot export: see `trace`.
        positions: Whether positions within the heads of attention may go, too: see `trace`.  A repair then
            first turns the values of each head into their principal axes.
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
    chosen, repairs = _defaults(method, repair, batches, budget, model)
    recipe = _recipe(model, chosen, budget, batches, repairs, loss, seed, progress)
    each_step, at_the_end = _split_repairs(repairs, schedule)
    call = (example_inputs, ignored_layers, example_kwargs, outputs, states, inside, positions)
    with (clock := Stopwatch())("trace"):
        shares, start = recipe.trace(model, experts, blocks, call, check, bool(repairs))
    settings, graph, state = replace(recipe.settings, original=start.model), start.graph, start
    inexact, notes = dict[str, str](), list[dict[str, Any]]()
    judge, refusal = schedule.judge(view(model, graph.interface)), NothingToPrune("the schedule has no steps")
    for number, goal in enumerate(schedule.goals(shares), 1):
        before = start if schedule.restarts else state
        with clock("statistics"):
            if number == 1 or not schedule.restarts:
                statistics = recipe.collect(before.view(), before.graph)
        decide_now = partial(decide, chosen, graph, statistics, state, schedule)
        remove = partial(remove_units, decide_now, start, before, inexact, clock, check, check_device)
        step_plan, after = remove_within(goal, remove, start, timed=schedule.restarts or goal == shares)
        if isinstance(step_plan, NothingToPrune):
            refusal = step_plan
            notes += [] if schedule.restarts else [describe_step(number, goal, start.model, state.plan)]
            continue
        with clock("repair"):
            after = apply_repairs(each_step, before, after, step_plan, statistics, settings)
        after = call_back(callback, after, graph, number, schedule)
        notes.append(describe_step(number, goal, after.view(), after.plan, judge))
        if not notes[-1].get("accepted", True):
            break
        state = after
    if not state.plan.removes:
        raise nothing_accepted(schedule, notes, graph) if schedule.restarts and notes else refusal
    with clock("repair"):
        state = apply_repairs(at_the_end, state, state, replace(state.plan, merges={}), statistics, settings)
    how = {"repair": repair_name(repairs), "schedule": repr(schedule), "steps": notes}
    return _result(model, start.plan, state, budget, inexact, settings, {**how, "seconds": clock.seconds})


def _defaults(
    method: str | Method | type | None, repair: Any, batches: Any, budget: Budget, model: Any
) -> tuple[Method, tuple[Repair, ...]]:
    """Return the method and the repairs, checked; where the user chose none, the best for what there is."""
    plain = batches is None or isinstance(budget, Weights)
    if method is None and batches is None:
        warnings.warn(
            "without data, units are chosen by magnitude and nothing is repaired; with data=batches the "
            "default looks at activations and repairs, which loses much less",
            stacklevel=4,
        )
    best = ("taylor", "fold") if takes_token_gates(model) else ("matroid", "refit")
    default_method, default_repair = ("magnitude", None) if plain else best
    chosen = find_method(default_method if method is None else method)
    if isinstance(repair, str) and repair == "auto":
        repair = default_repair
    repairs = parse_repair(repair)
    _check_data(chosen, needs_of(chosen, budget), batches, repairs)
    return chosen, repairs


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
        raise InputError(
            f"schedule must be OneShot(), Steps(5) or Tolerance(0.1, batches); got {brief(schedule)}"
        )
    if budget is None and isinstance(schedule, Tolerance):
        budget = Units(schedule.step)
    budget = as_budget(budget)
    check_seed(seed)
    check_flags(check=check, progress=progress, positions=positions)
    if positions and getattr(schedule, "count", 1) > 1:
        raise InputError("positions within heads go in one step: use OneShot() or Tolerance(...)")
    for name, given in (("callback", callback), ("loss", loss)):
        if given is not None and not callable(given):
            raise InputError(f"{name} must be a callable; got {type(given).__name__}")
    return budget


def _check_data(method: Method, needs: Iterable[str], batches: Any, repairs: Sequence[Repair] = ()) -> None:
    """Raise `InputError` if the method or a repair looks at data and there is none."""
    looks_at = sorted(set(needs) - {"flow", "chain"})
    if batches is not None or not (looks_at or repairs):
        return
    if looks_at:
        raise InputError(f"{method.name!r} looks at data ({', '.join(looks_at)}): pass data=batches")
    raise InputError(f"the repair {repair_name(repairs)!r} needs data: pass data=batches")


def _by_loss(method: Method, budget: Budget, batches: Any) -> SetMethod | None:
    """Return the method if the losses of the groups decide the counts: it orders the units for the trials."""
    orders = method if isinstance(method, SetMethod) and method.orders_units() else None
    if budget.scope in BY_LOSS and batches is None:
        raise InputError(f"scope={budget.scope!r} measures what groups cost at the output: pass data=batches")
    if budget.scope in BY_LOSS and orders is None:
        raise InputError(f"{method.name!r} gives no order of units to measure losses by: use scope='layer'")
    return orders if budget.scope in ("auto", *BY_LOSS) and batches is not None else None


@dataclass(frozen=True, eq=False)
class _Recipe:
    """What a pruning looks at and on which batches.

    Attributes:
        method: The method's name.
        budget: The user's budget.
        needs: What the method and the repairs look at.
        by_loss: The method that orders the units, if the losses of the groups decide the counts.
        settings: The model and the batches; some are kept apart to judge a fold and measure losses.
    """

    method: str
    budget: Budget
    needs: frozenset[str]
    by_loss: SetMethod | None
    settings: RepairSettings

    def collect(self, model: nn.Module, graph: PruningGraph) -> Statistics:
        """Collect what the method and the repairs look at."""
        x = self.settings
        statistics = collect_statistics(model, graph, x.fitting, self.needs, x.seed, loss=x.loss)
        if self.by_loss is None:
            return statistics
        scores = self.by_loss.unit_scores(graph, statistics)
        return with_loss_curves(statistics, scores, model, graph, x.fitting or (), x.guard, x.progress)

    def trace(
        self, model: nn.Module, experts: Any, blocks: Any, call: tuple[Any, ...], check: bool, turn: bool
    ) -> tuple[Budget, Pruned]:
        """Trace what is left without experts and blocks; if `turn`, turn values to principal axes.

        Returns:
            The budget as shares of what is left; what is left, with the plan that drops experts and blocks.
        """
        x = self.settings
        left, graph, shares, kept, notes = trace_without_experts(
            model, experts, self.budget, x.tuning, call, check
        )
        left, graph, shares, gone = trace_without_blocks(
            left, graph, shares, blocks, x.tuning, call, self.group_losses, check
        )
        reasons: dict[str, Any] = {"experts gone": notes, "blocks gone": gone}
        reasons = {what: note for what, note in reasons.items() if note}
        plan = Plan(graph, self.method, blocks=gone, experts=kept, notes=reasons)
        left = turn_values(left, graph, x.fitting if turn else None, x.seed)
        return shares, Pruned(left, graph, plan)

    def group_losses(self, model: nn.Module, graph: PruningGraph) -> Mapping[str, LossCurve]:
        """Measure what removing units of each group costs; raise `InputError` if nothing orders units."""
        if self.by_loss is None:
            raise InputError(f"blocks='auto' weighs blocks against units: {self.budget} needs scope='loss'")
        return self.collect(view(model, graph.interface), graph).losses


def _recipe(
    model: nn.Module,
    method: Method,
    budget: Budget,
    batches: Any,
    repairs: Sequence[Repair],
    loss: Loss | None,
    seed: int,
    progress: bool = False,
) -> _Recipe:
    by_loss = _by_loss(method, budget, batches)
    needs = needs_of(method, budget) | repair_needs(repairs)
    fitting, guard = batches, None
    if batches and (by_loss or repair_needs(repairs)):
        fitting, guard = split_off_guard(batches)
    settings = RepairSettings(model, fitting, guard, batches, loss, seed, progress)
    return _Recipe(method.name, budget, frozenset(needs), by_loss, settings)


def _split_repairs(
    repairs: Sequence[Repair], schedule: Schedule
) -> tuple[tuple[Repair, ...], tuple[Repair, ...]]:
    """Return the repairs after each step, and those at the end.

    The trials of a tolerance are judged without training; only the accepted one is fine-tuned.  The repairs
    at the end get a plan without merges, because each step has folded its own.
    """
    late = tuple(x for x in repairs if schedule.restarts and isinstance(x, Finetune))
    return tuple(x for x in repairs if x not in late), late


def _result(
    original: nn.Module,
    first: Plan,
    state: Pruned,
    budget: Budget,
    inexact: Any,
    settings: RepairSettings,
    how: Any,
) -> Result:
    """Return the result of a pruning, with what its report says about how it came about."""
    notes = {**first.notes, **state.plan.notes, "schedule": how["schedule"]}
    whole = state.plan.experts or state.plan.blocks
    if whole and "latency" in notes:
        notes["latency"] = latency_notes(notes["latency"], budget, original, state.model, state.plan)
    if inexact:
        notes["inexact groups"] = inexact
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
    report = start_report(
        original, state.model, decided, state.folds, state.training, seed=settings.seed, **how
    )
    return Result(state.model, decided, report, state.plan.graph, original)
