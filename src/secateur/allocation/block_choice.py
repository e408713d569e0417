"""Which whole blocks go, by the program that also chooses the counts of the groups.

A block is one more unknown, 1 or 0, and multiplies the terms of its tensors.  A block that goes costs nothing
whatever its groups keep, so these keep all their units, which loses nothing.  Its own loss is that of the
network without this block alone; as with groups, losses are taken to add up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.allocation.allocation import allocate, allowed_counts, loss_by_count
from secateur.allocation.amounts import measured_table
from secateur.allocation.counts import AllowedCounts
from secateur.allocation.terms import CostTerms, Term, counted_terms
from secateur.core import Budget, InputError, Latency, LossCurve, PruningGraph, Units

__all__ = ["choose_blocks"]


def choose_blocks(
    graph: PruningGraph, budget: Budget, losses: Mapping[str, LossCurve], blocks: Mapping[str, float]
) -> tuple[str, ...]:
    """Return the blocks without which the predicted loss is least under a budget.

    Args:
        graph: A traced network.
        budget: What stays, as shares: of parameters, bytes, MACs or milliseconds.
        losses: Group name -> what removing its units costs, as `allocate` takes them.
        blocks: Name of each block that may go -> the loss of the network without it.

    Raises:
        InputError: If the budget counts units, which blocks have none of, or if units alone cannot meet it.
    """
    if any(isinstance(part, Units) for part in budget.parts):
        raise InputError(f"{budget} counts units, not blocks: use Params, Macs, Bytes or Latency")
    sets = [[group.name for group in groups] for groups in graph.counted_together()]
    allowed = allowed_counts(graph, budget)
    by_units = allocate(graph, budget.with_scope("loss"), losses=losses).counts
    start = [by_units[names[0]] * len(names) for names in sets]
    costs = [_cost_with_blocks(graph, part, tuple(blocks)) for part in budget.parts]
    names = [*(names[0] for names in sets), *map(_unknown, blocks)]
    many = [*map(len, sets), *(1 for _ in blocks)]

    from secateur.allocation.program import counts_of_program  # loads scipy: half a second

    def amounts(counts: list[int]) -> NDArray[np.float64]:
        each = {name: n // m for name, n, m in zip(names, counts, many, strict=True)}
        return np.array([cost(each) for cost in costs])

    whole = amounts([*(a.size for a in allowed), *(1 for _ in blocks)])
    limits = whole * [part.keep for part in budget.parts]
    counts, _ = counts_of_program(
        [*sets, *([_unknown(name)] for name in blocks)],
        [*allowed, *(AllowedCounts(1, 0) for _ in blocks)],
        [*(loss_by_count(losses, names) for names in sets), *(np.array([x, 0.0]) for x in blocks.values())],
        list(zip(costs, limits.tolist(), strict=True)),
        amounts,
        [*start, *(1 for _ in blocks)],
    )
    return tuple(name for name, n in zip(blocks, counts[len(sets) :], strict=True) if n == 0)


def _unknown(block: str) -> str:
    """Return the name of a block's unknown, which is that of no group."""
    return f"block {block}"


def _cost_with_blocks(graph: PruningGraph, budget: Budget, blocks: tuple[str, ...]) -> CostTerms:
    """Return what a budget counts as a function of the counts of groups and blocks."""
    inside = {block: {name for name in graph.shapes if name.startswith(block + ".")} for block in blocks}
    outside = set(graph.shapes).difference(*inside.values())
    constant = measured_table(budget).constant if isinstance(budget, Latency) else 0.0
    cost = CostTerms(constant, ()) + counted_terms(graph, budget, outside)
    for block, tensors in inside.items():
        cost += _times(counted_terms(graph, budget, tensors), _unknown(block))
    return cost


def _times(cost: CostTerms, name: str) -> CostTerms:
    """Return a cost multiplied by one more count."""
    terms = [Term((*term.groups, name), partial(_product, term.function)) for term in cost.terms]
    return CostTerms(0.0, (Term((name,), lambda n: cost.constant * n), *terms), cost.exact)


def _product(function: Callable[..., Any], *counts: Any) -> Any:
    return function(*counts[:-1]) * counts[-1]
