"""Depth: which whole blocks go before units do, and what the budget then leaves for the units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from numbers import Integral
from typing import Any

from torch import nn

from secateur.allocation.block_choice import choose_blocks
from secateur.allocation.schedule import remaining_budget
from secateur.apply.blocks import drop_blocks, find_blocks
from secateur.core import (
    Budget,
    ExactnessError,
    InputError,
    Latency,
    LossCurve,
    Plan,
    PruningGraph,
    Units,
    brief,
)
from secateur.core.budget import as_budget
from secateur.execution import tensors_by_name
from secateur.latency_budget import TOLERANCE, time_models, with_tables
from secateur.repair.loss_curves import Divergence
from secateur.tracing.trace import trace
from secateur.views import as_called, view

__all__ = [
    "find_least_needed_blocks",
    "latency_notes",
    "measure_blocks",
    "trace_rest",
    "trace_without_blocks",
]


def find_least_needed_blocks(model: nn.Module, batches: Sequence[Any], count: int) -> tuple[str, ...]:
    """Return blocks whose removal changes the outputs least, found by trial, one after the other.

    Each trial runs the model without a block, and without those found before, on the batches.

    Args:
        model: The model; it is not changed.
        batches: Batches of inputs; no labels are needed.
        count: How many blocks.

    Returns:
        Names of blocks, the least needed first.

    Raises:
        InputError: If there are no more than `count` blocks that can go.
    """
    divergence = Divergence(model, batches)
    found: list[str] = []
    left = list(find_blocks(model))
    while len(found) < count:
        losses = _losses_without(model, divergence, left, found)
        if not losses:
            total = len(find_blocks(model))
            raise InputError(f"blocks={count} is too many: {len(found)} of the {total} blocks can go")
        found.append(min(losses, key=losses.__getitem__))
        left.remove(found[-1])
    return tuple(found)


def _losses_without(
    model: nn.Module,
    divergence: Divergence,
    blocks: Sequence[str],
    gone: Sequence[str] = (),
    example: tuple[Any, ...] = (),
) -> dict[str, float]:
    """Return the divergence without each of these blocks, and those that have gone; of those that can go."""
    shared = {id(tensor): tensor for tensor in tensors_by_name(model).values()}
    losses = {}
    for name in blocks:
        try:
            losses[name] = divergence(drop_blocks(model, [*gone, name], *example, replaced=shared))
        except (ExactnessError, InputError, RuntimeError):
            continue  # the last of its stack, or others need it
    return losses


def measure_blocks(
    model: nn.Module, batches: Sequence[Any], example: tuple[Any, ...] = ()
) -> dict[str, float]:
    """Return, for every block that may go, the divergence of the network without it.

    The block of each stack that is needed most is not among them, because one must stay, nor are blocks that
    do more than add to their input.

    Args:
        model: The model; it is not changed.
        batches: Batches of inputs; no labels are needed.
        example: Example inputs and keyword arguments, as `drop_blocks` checks them; () for no check.
    """
    losses = _losses_without(model, Divergence(model, batches), find_blocks(model), example=example)
    for _, names in groupby(list(losses), key=lambda name: name.rpartition(".")[0]):
        del losses[max(names, key=losses.__getitem__)]
    return losses


def trace_without_blocks(
    model: nn.Module,
    graph: PruningGraph,
    budget: Budget,
    blocks: int | str | Sequence[str],
    batches: Sequence[Any] | None,
    call: tuple[Any, ...],
    measure_losses: Callable[[nn.Module, PruningGraph], Mapping[str, LossCurve]],
    check: bool = True,
) -> tuple[nn.Module, PruningGraph, Budget, tuple[str, ...]]:
    """Take out blocks, and trace what is left.

    Args:
        model: The model; it is not changed.
        graph: Its graph.
        budget: What stays of it, as shares.
        blocks: Names of blocks, or how many, or ``"auto"``; 0 or an empty list for none.
        batches: Batches to find the least needed blocks on, unless `blocks` has names.
        call: Example inputs and what follows them, as `trace` takes them.
        measure_losses: A model and its graph -> what removing units of its groups costs; for "auto".
        check: Whether to compare what is left with the model whose blocks are zero.

    Returns:
        The model without the blocks, its graph, the budget as shares of what it has, and the blocks' names.

    Raises:
        InputError: If `blocks` is invalid, or has no names and there are no batches.
        ExactnessError: If leaving out a block is not exact.
    """
    _check(blocks, batches)
    if not blocks:
        return model, graph, budget, ()
    seen = view(model, graph.interface)
    example = (graph.example_inputs, graph.example_kwargs) if check else ()
    if blocks == "auto":
        found = measure_blocks(seen, batches or (), example)
        names = choose_blocks(graph, budget, measure_losses(model, graph), found)
    elif isinstance(blocks, Integral):
        names = find_least_needed_blocks(seen, batches or (), int(blocks))
    else:
        names = tuple(blocks)  # type: ignore[arg-type]
    if not names:
        return model, graph, budget, ()
    left = drop_blocks(model, names, *example)
    return left, *trace_rest(left, call, budget, model, graph), names


def trace_rest(
    left: nn.Module, call: tuple[Any, ...], budget: Budget, model: nn.Module, graph: PruningGraph
) -> tuple[PruningGraph, Budget]:
    """Trace what is left of a model; return its graph and the budget as shares of what it has.

    Args:
        left: The model without experts or blocks.
        call: Example inputs and what follows them, as `trace` takes them.
        budget: What stays of the model with them.
        model: The model with them.
        graph: Its graph.
    """
    rest = trace(left, *call).with_even_layers(budget.even)
    parts = [_remaining(part, model, left, graph, rest) for part in budget.parts]
    return rest, with_tables(as_budget(parts), left, rest)


def _remaining(
    part: Budget, model: nn.Module, left: nn.Module, whole: PruningGraph, graph: PruningGraph
) -> Budget:
    """Return what a budget on the whole model asks of the model that is left."""
    if isinstance(part, Latency):
        keep = min(1.0, part.keep / time_models(model, left, whole, part).ratio)
        return replace(part, keep=keep, table=None)
    # Units are counted without the blocks' own.
    return part if isinstance(part, Units) else remaining_budget(whole, graph, part)


def latency_notes(
    notes: Sequence[Mapping[str, Any]], budget: Budget, original: nn.Module, small: nn.Module, plan: Plan
) -> list[dict[str, Any]]:
    """Return the notes on a budget of milliseconds with the times of the original model.

    Args:
        notes: What `remove_within` noted, beside the model without the experts and blocks.
        budget: The user's budget.
        original: The user's model.
        small: The pruned model.
        plan: The plan, with the experts and blocks.
    """
    latencies = [part for part in budget.parts if isinstance(part, Latency)]
    told = []
    for note, part in zip(notes, latencies, strict=True):
        times = time_models(original, as_called(small, plan), plan.graph, part)
        target = part.keep * times.original if part.milliseconds is None else part.milliseconds
        holds = times.milliseconds <= target * (1 + TOLERANCE)
        figures = {"original": times.original, "target": target, "measured": times.milliseconds}
        reasons = {} if holds else {"in the way": note.get("in the way", ["two measurements differ"])}
        told.append({**note, **figures, "holds": holds, **reasons})
    return told


def _check(blocks: Any, batches: Sequence[Any] | None) -> None:
    """Raise `InputError` if `blocks` is not a number, a list or "auto", or if it needs batches."""
    number = isinstance(blocks, Integral) and not isinstance(blocks, bool) and int(blocks) >= 0
    listed = isinstance(blocks, Sequence) and not isinstance(blocks, str)
    if not (number or listed or (isinstance(blocks, str) and blocks == "auto")):
        raise InputError(
            f"blocks must be a number of blocks, a list of their names, or 'auto'; got {brief(blocks)}"
        )
    if batches is None and not listed and blocks != 0:
        raise InputError(f"blocks={blocks!r} finds the least needed blocks by trial: pass data=batches")
