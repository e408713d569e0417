"""Depth: which whole blocks go before units do, and what the budget then leaves for the units."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from torch import nn

from secateur.allocation.amounts import with_shares
from secateur.allocation.schedule import remaining_budget
from secateur.apply.blocks import drop_blocks, find_blocks
from secateur.core import Budget, InputError, Latency, PruningGraph, Units
from secateur.execution import tensors_by_name
from secateur.latency_budget import with_tables
from secateur.repair.loss_curves import Divergence
from secateur.tracing.trace import trace
from secateur.views import view

__all__ = ["find_least_needed_blocks", "trace_without_blocks"]


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
    shared = {id(tensor): tensor for tensor in tensors_by_name(model).values()}
    left = list(find_blocks(model))
    while len(found) < count:
        losses = {}
        for name in left:
            try:
                losses[name] = divergence(drop_blocks(model, [*found, name], replaced=shared))
            except (InputError, RuntimeError):
                continue  # the last of its stack, or others need it
        if not losses:
            total = len(find_blocks(model))
            raise InputError(f"blocks={count} is too many: {len(found)} of the {total} blocks can go")
        found.append(min(losses, key=losses.__getitem__))
        left.remove(found[-1])
    return tuple(found)


def trace_without_blocks(
    model: nn.Module,
    blocks: int | Sequence[str],
    budget: Budget,
    batches: Sequence[Any] | None,
    call: tuple[Any, ...],
    check: bool = True,
) -> tuple[nn.Module, PruningGraph, Budget, tuple[str, ...]]:
    """Take out blocks, and trace what is left.

    Args:
        model: The model; it is not changed.
        blocks: Names of blocks, or how many; 0 or an empty list for none.
        budget: What stays of the whole model.
        batches: Batches to find the least needed blocks on, if `blocks` is a number.
        call: Example inputs and what follows them, as `trace` takes them.
        check: Whether to compare what is left with the model whose blocks are zero.

    Returns:
        The model without the blocks, its graph, the budget as shares of what it has, and the blocks' names.

    Raises:
        InputError: If `blocks` names no blocks, or is a number and there are no batches.
        ExactnessError: If leaving out a block is not exact.
    """
    count = _count(blocks)
    whole = trace(model, *call).with_even_layers(budget.even)
    if not blocks:
        return model, whole, with_shares(whole, with_tables(budget, model, whole)), ()
    if any(isinstance(part, Latency) for part in budget.parts):
        raise InputError(f"{budget!r} measures layers: give prune the model that drop_blocks leaves")
    shares = with_shares(whole, budget)
    if count and batches is None:
        raise InputError(f"blocks={count} finds the least needed blocks by trial: pass data=batches")
    seen = view(model, whole.interface)
    names = find_least_needed_blocks(seen, batches or (), count) if count else tuple(blocks)  # type: ignore[arg-type]
    left = drop_blocks(model, names, *((whole.example_inputs, whole.example_kwargs) if check else ()))
    graph = trace(left, *call).with_even_layers(budget.even)
    # Units are counted without the blocks' own.
    return left, graph, shares if isinstance(shares, Units) else remaining_budget(whole, graph, shares), names


def _count(blocks: Any) -> int:
    """Return the number of blocks if it is given, or 0 if names are."""
    if isinstance(blocks, Integral) and not isinstance(blocks, bool) and int(blocks) >= 0:
        return int(blocks)
    if not isinstance(blocks, Sequence) or isinstance(blocks, str):
        raise InputError(f"blocks must be a number of blocks or a list of their names; got {blocks!r}")
    return 0
