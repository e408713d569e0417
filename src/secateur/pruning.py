"""The whole way in one call: trace, collect, decide, shrink, repair, measure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from secateur.allocation.schedule import reached
from secateur.core import Budget, InputError, Plan, PruningGraph, StoreError, Tolerance, unknown
from secateur.execution import check_seed, place
from secateur.formats import store
from secateur.measure.cost import cost
from secateur.measure.latency import Latency, latency, try_sizes
from secateur.measure.metrics import Agreement, Metric, agreement, evaluate, metric_named
from secateur.methods import METHODS, Method
from secateur.repair.finetune import check_training
from secateur.report import Measurement, Report
from secateur.schedule import Callback, Clock, State, Step, Work, by_tolerance, check_data, in_steps
from secateur.statistics.collect import collect_statistics
from secateur.statistics.gradients import Loss
from secateur.tracing.trace import trace, traced_model

Repair = Literal["fold", "refit", "finetune", "fold+finetune", "refit+finetune"]
REPAIRS: dict[str | None, frozenset[str]] = {
    None: frozenset(),
    "fold": frozenset({"fold"}),
    "refit": frozenset({"fold", "refit"}),
    "finetune": frozenset({"finetune"}),
    "fold+finetune": frozenset({"fold", "finetune"}),
    "refit+finetune": frozenset({"fold", "refit", "finetune"}),
}


@dataclass(frozen=True, eq=False)
class Result:
    """What a pruning gives.

    Attributes:
        model: The pruned model, a new module.
        plan: What went, and why: one plan on the original model, whatever the number of steps.
        report: Before and after of everything.
        graph: What tracing found in the original model.
    """

    model: nn.Module
    plan: Plan
    report: Report
    graph: PruningGraph

    def save(self, folder: str | Path) -> None:
        """Write model, plan and report to a folder, which is the old one or the new one at any time.

        Raises:
            StoreError: The folder cannot be written; it is as it was.
        """
        store.save(folder, self.model, self.plan, self.report.to_dict(), self.report.versions)


def load_report(folder: str | Path) -> Report:
    """Return the report of a saved result.

    Raises:
        StoreError: The folder is missing, damaged, of a newer version, or holds no report.
    """
    found = store.load_report(folder)
    if found is None:
        raise StoreError(f"{folder} was saved without a report")
    return Report.from_dict(found)


def find_method(method: str | Method | type) -> Method:
    """Return a method that is given by its name in `METHODS`, as a class, or as an instance.

    Raises:
        InputError: An unknown name, with the near matches; or no method at all.

    Example:
        >>> find_method("magnitude").name
        'magnitude'
    """
    if isinstance(method, str):
        if method not in METHODS:
            raise InputError(unknown("method", method, list(METHODS)))
        return METHODS[method]()
    found = method() if isinstance(method, type) else method
    if not isinstance(found, Method):
        raise InputError(f"a method is a name in METHODS or has needs and plan; got {type(found).__name__}")
    return found


def plan(
    graph: PruningGraph,
    method: str | Method | type,
    budget: Budget,
    data: Iterable[Any] | None = None,
    seed: int = 0,
    *,
    loss: Loss | None = None,
    model: nn.Module | None = None,
) -> Plan:
    """Decide what goes from a traced network; nothing is changed.

    Args:
        graph: What `trace` returned.
        method: Name in `METHODS`, or an instance.
        budget: How much stays.  A `Tolerance` is for `prune`, which can try and measure.
        data: Batches of (inputs, targets), where the method needs any.
        seed: Seed of every random choice.
        loss: (outputs, targets) -> scalar, where gradients are needed; the cross-entropy by default.
        model: The model to look at; the one that was traced, as it is now, by default.

    Raises:
        InputError: Arguments that cannot be.
        NothingToPrune: Nothing can go; the message lists what is frozen and why.

    Example:
        >>> from secateur.core import Units
        >>> net = trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.ones(2, 4))
        >>> [len(kept) for kept in plan(net, "magnitude", Units(0.5)).keep.values()]
        [4]
    """
    if not isinstance(graph, PruningGraph):
        raise InputError(f"network is what trace() returns; got {type(graph).__name__}")
    chosen = find_method(method)
    _check_budget(budget)
    if isinstance(budget, Tolerance):
        raise InputError("a Tolerance needs trials that are measured: use prune(), with holdout=")
    looked = model if model is not None else traced_model(graph)
    if looked is None:
        raise InputError(
            "the traced model is not in memory (another process, or deleted): pass model=, the traced model"
        )
    if not isinstance(looked, nn.Module):
        raise InputError(f"model must be a torch.nn.Module; got {type(looked).__name__}")
    needs = chosen.needs(budget)
    check_data(chosen.name, needs, data)
    statistics = collect_statistics(looked, graph, data, needs, seed, loss=loss)
    return chosen.plan(graph, statistics, budget)


def prune(
    model: nn.Module,
    example_inputs: Any,
    method: str | Method | type,
    budget: Budget,
    data: Iterable[Any] | None = None,
    *,
    holdout: Iterable[Any] | None = None,
    repair: Repair | None = None,
    steps: int = 1,
    callback: Callback | None = None,
    metric: str | Metric = "accuracy",
    loss: Loss | None = None,
    epochs: int = 1,
    lr: float = 1e-3,
    batch_sizes: Sequence[int] = (1, 64),
    batch_axis: int = 0,
    ignored_layers: Iterable[str | nn.Module] = (),
    example_kwargs: Mapping[str, Any] | None = None,
    check: bool = True,
    check_device: str | torch.device | None = None,
    progress: bool = True,
    seed: int = 0,
) -> Result:
    """Prune a model, and say what that changed; the model itself is left as it is.

    Args:
        model: Any module that `torch.export` can capture.
        example_inputs: What it is called with: a tensor, a tuple, or a dict of keywords.
        method: Name in `METHODS`, or an instance.
        budget: `Units`, `Weights`, `Params`, `Macs`; or `Tolerance`, which prunes further while its metric on
            `holdout` falls by no more than its drop, each trial deciding anew on the original model.
        data: Batches of (inputs, targets) to calibrate, repair and fine-tune on.  With a fold, a fifth of
            them is kept apart and undoes what hurts there.
        holdout: Batches that nothing looks at but the metric.
        repair: None, ``"fold"`` (the removed units' contribution into what read them), ``"refit"`` (the fold,
            then each reader solved anew from what reaches it in the pruned model), ``"finetune"``,
            ``"fold+finetune"``, or ``"refit+finetune"``.
        steps: Number of steps, each keeping the same share of what there is and followed by the repair.
        callback: Called after each step with a `Step`; it may change the model or return another.
        metric: ``"accuracy"``, ``"log_likelihood"``, or (model, batches) -> float, more being better.  A
            `Tolerance` brings its own.
        loss: (outputs, targets) -> scalar; the cross-entropy by default.
        epochs: Epochs of each fine-tuning.
        lr: Its learning rate.
        batch_sizes: Batch sizes to measure the latency at, ten seconds for each at most; none if empty.
        batch_axis: Where the batch is in the example inputs.
        ignored_layers: Modules, or names of modules or parameters, whose own units all stay.
        example_kwargs: Keyword inputs.
        check: Compare every shrunk model with the masked one in float64.
        check_device: Where; the model's own device by default.
        progress: Whether to show progress bars on a terminal's standard error.
        seed: Seed of every random choice.

    Raises:
        CaptureError: The model cannot be captured.
        InputError: Arguments that cannot be.
        NothingToPrune: Nothing would go; the message lists what is frozen and why.
        ExactnessError: A shrunk model does not compute what the masked one does.

    Example:
        >>> from secateur.core import Units
        >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> result = prune(mlp, torch.ones(2, 4), "magnitude", Units(0.5), batch_sizes=())
        >>> result.report.before.cost.parameters, result.report.after.cost.parameters
        (67, 35)
    """
    chosen, repairs = find_method(method), _repairs(repair)
    _check_budget(budget)
    _check_steps(steps, budget)
    metric = budget.metric if isinstance(budget, Tolerance) else metric
    metric_named(metric)
    check_seed(seed)
    if "finetune" in repairs:
        check_training(epochs, lr)
    for name, given in (("callback", callback), ("loss", loss)):
        if given is not None and not callable(given):
            raise InputError(f"{name} must be a callable; got {type(given).__name__}")
    batches, kept = _listed(data), _listed(holdout)
    check_data(chosen.name, repairs, batches)
    fitting, guard = apart(batches) if "fold" in repairs else (batches, None)
    clock = Clock()
    with clock("measure"):
        baseline = None if kept is None else evaluate(model, kept, metric)
    with clock("trace"):
        graph = trace(model, example_inputs, ignored_layers, example_kwargs)
    with clock("measure"):
        try_sizes(model, graph.example_inputs, graph.example_kwargs, batch_sizes, batch_axis)
    work = Work(
        model,
        graph,
        chosen,
        fitting,
        guard,
        batches,
        kept,
        baseline,
        repairs,
        seed,
        loss,
        callback,
        epochs,
        lr,
        progress,
        check,
        check_device,
        clock,
    )
    state = by_tolerance(work, budget) if isinstance(budget, Tolerance) else in_steps(work, budget, steps)
    decided = _described(state, budget, metric)
    with clock("measure"):
        slow, fast = _latencies(work, state, batch_sizes, batch_axis)
        before = _measured(model, work, baseline, slow)
        value = None if kept is None else evaluate(state.model, kept, metric)
        after = _measured(state.model, work, value, fast)
        compared = _compared(work, state)
    report = _report(work, state, decided, repair, before, after, compared, None if kept is None else metric)
    return Result(state.model, decided, report, graph)


def _check_budget(budget: Budget) -> None:
    if not isinstance(budget, (Budget, Tolerance)):
        hint = f", for instance Units({budget!r})" if isinstance(budget, float) else ""
        kinds = "Units, Weights, Params, Macs or Tolerance"
        raise InputError(f"a budget says what it counts: {kinds}{hint}; got {type(budget).__name__}")


def _check_steps(steps: Any, budget: Budget) -> None:
    whole = isinstance(steps, Integral) and not isinstance(steps, bool)
    if not (whole and steps >= 1) or (steps > 1 and isinstance(budget, Tolerance)):
        said = "steps must be an integer of at least 1, and a Tolerance makes its own"
        raise InputError(f"{said}; got {steps!r}")


def _repairs(repair: str | None) -> frozenset[str]:
    if not isinstance(repair, (str, type(None))) or repair not in REPAIRS:
        raise InputError(unknown("repair", str(repair), [name for name in REPAIRS if name]))
    return REPAIRS[repair]


def _listed(data: Iterable[Any] | None) -> list[Any] | None:
    if data is None or isinstance(data, list):
        return data
    if isinstance(data, (Tensor, Mapping, str)) or not isinstance(data, Iterable):
        raise InputError(f"data is an iterable of batches (inputs, targets); got a {type(data).__name__}")
    return list(data)


def apart(batches: list[Any] | None) -> tuple[list[Any] | None, list[Any] | None]:
    """Keep a fifth of the batches apart; of a single batch a fifth of its rows."""
    if not batches:
        return batches, None
    if len(batches) > 1:
        count = max(1, len(batches) // 5)
        return batches[:-count], batches[-count:]
    leaves = [x for x in tree_leaves(batches[0]) if isinstance(x, Tensor)]
    rows = {x.shape[0] if x.ndim else 0 for x in leaves}
    if len(rows) != 1 or min(rows) < 5:
        return batches, None
    cut = min(rows) - min(rows) // 5
    first, rest = (
        tree_map(lambda x, at=at: x[at] if isinstance(x, Tensor) else x, batches[0])
        for at in (slice(cut), slice(cut, None))
    )
    return [first], [rest]


def _described(state: State, budget: Budget, metric: str | Metric) -> Plan:
    if state.plan is None:
        raise AssertionError("a pruning without a plan must have raised NothingToPrune")
    words: Any = budget
    if isinstance(words, Tolerance):
        words = replace(words, metric=metric_named(metric)[0])
    notes = dict(state.plan.notes)
    if len(state.steps) > 1:
        notes |= {"reached": reached(state.plan), "steps": list(state.steps)}
    return replace(state.plan, budget=repr(words), notes=notes)


def _latencies(
    work: Work, state: State, batch_sizes: Sequence[int], batch_axis: int
) -> tuple[tuple[Latency, ...], tuple[Latency, ...]]:
    if not batch_sizes:
        return (), ()
    graph, models = work.graph, {"before": work.model, "after": state.model}
    found = latency(
        models,
        graph.example_inputs,
        graph.example_kwargs,
        batch_sizes=batch_sizes,
        batch_axis=batch_axis,
        limit=10.0,
        seed=work.seed,
    )
    return found["before"], found["after"]


def _measured(model: nn.Module, work: Work, value: float | None, times: tuple[Latency, ...]) -> Measurement:
    return Measurement(cost(model, work.graph.example_inputs, work.graph.example_kwargs), value, times)


def _compared(work: Work, state: State) -> Agreement:
    """Compare outputs on the held-out batches, else on the data, else on the example inputs."""
    if batches := work.holdout or work.tuning:
        return agreement(work.model, state.model, batches)
    args, kwargs = work.graph.example_inputs, work.graph.example_kwargs
    return agreement(work.model, state.model, [(args, None)], kwargs)


def _report(
    work: Work,
    state: State,
    decided: Plan,
    repair: str | None,
    before: Measurement,
    after: Measurement,
    compared: Agreement,
    metric: str | Metric | None,
) -> Report:
    device, dtype = place(work.model)
    said = None if metric is None else metric_named(metric)[0]
    frozen = [
        {"tensor": f.tensor, "axis": f.axis, "reason": f.reason, "source": f.source}
        for f in work.graph.frozen
    ]
    return Report(
        model=type(work.model).__name__,
        method=decided.method,
        budget=decided.budget,
        repair=repair,
        seed=work.seed,
        metric=said,
        before=before,
        after=after,
        agreement=compared,
        frozen=frozen,
        folds=state.folds,
        steps=state.steps,
        notes={key: note for key, note in decided.notes.items() if key != "steps"},
        groups={
            g.name: {"units": g.size, "kept": len(decided.keep.get(g.name, range(g.size)))}
            for g in work.graph.groups
        },
        masks={name: {"weights": m.size, "kept": int(m.sum())} for name, m in decided.masks.items()},
        finetune=state.tuning,
        seconds=work.clock.seconds,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
    )


__all__ = ["Repair", "Result", "Step", "apart", "find_method", "load_report", "plan", "prune"]
