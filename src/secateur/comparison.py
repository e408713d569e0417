"""Compare the pruned model with the original, and fill in the report."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor, nn

from secateur.allocation.schedule import removed_by_kind
from secateur.batches import few_tokens, split_batch
from secateur.core import InputError, Plan, PruningGraph
from secateur.core.indices import kept_states
from secateur.execution import device_and_dtype
from secateur.measure.cost import cost
from secateur.measure.generation import TokenRates, token_rates
from secateur.measure.latency import Timing, latency, try_sizes
from secateur.measure.metrics import Agreement, Metric, agreement, evaluate, metric_named
from secateur.report import Measurement, Report
from secateur.views import as_called, narrow_example, view

__all__ = ["peak_memory", "start_report", "with_measurements"]

METRIC_BY_DEFAULT = "accuracy"


def start_report(
    model: nn.Module,
    pruned: nn.Module,
    plan: Plan,
    folds: Mapping[str, Any],
    training: Mapping[str, Any],
    **how: Any,
) -> Report:
    """Return the report of a pruning, with the sizes of both models and nothing else measured.

    Args:
        model: The original model.
        pruned: The pruned model.
        plan: What went.
        folds: What fold and refit report.
        training: What the fine-tuning reports.
        how: More fields of the report: repair, schedule, steps, seconds, seed.
    """
    graph = plan.graph
    device, dtype = device_and_dtype(model)
    return Report(
        model=type(model).__name__,
        method=plan.method,
        budget=plan.budget,
        metric=None,
        before=Measurement(cost(model, graph.example_inputs, graph.example_kwargs, graph.embeddings())),
        after=Measurement(cost(pruned, *narrow_example(graph, plan.keep), graph.embeddings())),
        groups={
            g.name: {"units": g.size, "kept": len(plan.keep.get(g.name, range(g.size)))} for g in graph.groups
        },
        kinds=removed_by_kind(plan),
        masks={name: {"weights": m.size, "kept": int(m.sum())} for name, m in plan.masks.items()},
        interface=graph.interface.summary(kept_states(graph, plan.keep)),
        frozen=[asdict(axis) for axis in graph.frozen],
        notes={key: note for key, note in plan.notes.items() if key != "steps"},
        folds=folds,
        finetune=training,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        peak_memory=peak_memory(),
        **how,
    )


def with_measurements(
    report: Report,
    model: nn.Module,
    pruned: nn.Module,
    plan: Plan,
    holdout: Sequence[Any] | None = None,
    metric: str | Metric | None = None,
    *,
    batch_sizes: Sequence[int] = (),
    batch_axis: int = 0,
    name: str | None = None,
    prompt: Tensor | None = None,
) -> Report:
    """Return the report with a metric, the agreement and latencies of both models; see `Result.measure`."""
    started = time.perf_counter()
    graph = plan.graph
    args, kwargs = graph.example_inputs, graph.example_kwargs
    seen, small = view(model, graph.interface), view(pruned, graph.interface, plan)
    both = {"before": model, "after": as_called(pruned, plan)}
    try_sizes(model, args, kwargs, batch_sizes, batch_axis)
    metric = _choose_metric(metric, holdout, name)
    values = [
        None if holdout is None or metric is None else evaluate(x, holdout, metric, original=seen)
        for x in (seen, small)
    ]
    times: Mapping[str, tuple[Timing, ...]] = {"before": (), "after": ()}
    if batch_sizes:
        times = latency(
            both, args, kwargs, batch_sizes=batch_sizes, batch_axis=batch_axis, limit=10.0, seed=report.seed
        )
    rates: Mapping[str, TokenRates] = {} if prompt is None else token_rates(both, prompt)
    compared = _compare_outputs(seen, small, graph, holdout, name)
    earlier = 0.0 if name is None else report.seconds.get("measure", 0.0)
    return replace(
        report,
        metric=None if metric is None else metric_named(metric)[0],
        before=_updated(report.before, values[0], times["before"], rates.get("before"), name),
        after=_updated(report.after, values[1], times["after"], rates.get("after"), name),
        agreement=compared,
        seconds={**report.seconds, "measure": earlier + time.perf_counter() - started},
        peak_memory=peak_memory(),
    )


def _choose_metric(
    metric: str | Metric | None, holdout: Sequence[Any] | None, name: str | None
) -> str | Metric | None:
    """Return the metric: by default the accuracy, if the targets are class numbers."""
    if holdout is None and metric is not None:
        what = metric_named(metric)[0]
        raise InputError(f"the metric {what!r} needs batches: give measure(holdout, metric)")
    if holdout is None:
        if name is not None:
            raise InputError(f"{name!r} names batches, and there are none: give measure(holdout, name=...)")
        return None
    return METRIC_BY_DEFAULT if metric is None and _has_classes(holdout) else metric


def _has_classes(batches: Iterable[Any]) -> bool:
    """Return whether the targets of the first batch are class numbers."""
    targets = split_batch(next(iter(batches), None))[2]
    return isinstance(targets, Tensor) and not targets.is_floating_point()


def _compare_outputs(
    model: nn.Module, pruned: nn.Module, graph: PruningGraph, holdout: Sequence[Any] | None, name: str | None
) -> Agreement:
    """Compare the outputs on held-out batches, else on the example inputs."""
    if holdout is None:
        return agreement(model, pruned, [(graph.example_inputs, None)], graph.example_kwargs)
    # Another pass over all tokens of a text would cost as much as its perplexity.
    return agreement(model, pruned, holdout if name is None else few_tokens(holdout))


def _updated(
    before: Measurement,
    value: float | None,
    times: tuple[Timing, ...],
    rates: TokenRates | None,
    name: str | None,
) -> Measurement:
    """Return a model's measurement with new values; metrics of other names and token rates stay."""
    metrics = before.metrics if name is None or value is None else {**before.metrics, name: value}
    return replace(before, metric=value, latency=times, metrics=metrics, rates=rates or before.rates)


def peak_memory() -> int | None:
    """Return the peak resident memory of this process in bytes, or None where the system does not give it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
