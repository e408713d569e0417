"""Plan for milliseconds, measure the pruned network, and correct the plan.

The pruned network and the original are measured in alternation.  If the budget does not hold within 5 %, the
table of layers is scaled so that it is right about both, and the plan is made again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import log
from typing import Any

import numpy as np
from torch import nn

from secateur.allocation.amounts import measured_table, predicted_latency
from secateur.allocation.cost import CostModel
from secateur.core import Budget, InputError, IntArray, Latency, NothingToPrune, Plan, PruningGraph
from secateur.core.budget import as_budget
from secateur.latency_budget import TOLERANCE, RelativeTime, latencies_in, smallest_network, time_models
from secateur.repair.sequence import Pruned
from secateur.views import as_called

__all__ = ["remove_within"]

CLOSE = 0.025  # distance from the budget at which the plan stays: a second measurement differs as much
CORRECTIONS = 4
LISTED = 5  # layers that stand in the way


@dataclass(frozen=True, eq=False)
class _Attempt:
    """A plan for a budget, and how long its network takes."""

    goal: Budget
    step: Plan
    after: Pruned
    predicted: tuple[float, ...]
    whole: tuple[float, ...]
    times: tuple[RelativeTime, ...]

    @property
    def parts(self) -> tuple[Latency, ...]:
        return latencies_in(self.goal)

    @property
    def excess(self) -> float:
        """The measured share of the time divided by the one that may stay, for the budget that binds."""
        return max(x.ratio / part.keep for x, part in zip(self.times, self.parts, strict=True))

    @property
    def noisy(self) -> bool:
        return any(x.noisy for x in self.times)

    @property
    def close(self) -> bool:
        """Whether the time is so near to the budget that a correction cannot improve it."""
        return abs(log(self.excess)) <= log(1 + CLOSE)

    @property
    def faster(self) -> bool:
        """Whether the network is faster than the original, as measured and by the tables."""
        predicted = all(a < b for a, b in zip(self.predicted, self.whole, strict=True))
        return predicted and all(x.ratio < 1 for x in self.times)

    def corrected(self) -> Budget:
        """Return the budget with tables that are right about this network, too."""
        values = zip(self.parts, self.whole, self.predicted, self.times, strict=True)
        tables = {
            part: replace(part, table=measured_table(part).through(whole, predicted, whole * x.ratio))
            for part, whole, predicted, x in values
        }
        return as_budget([tables[x] if isinstance(x, Latency) else x for x in self.goal.parts])


def remove_within(
    goal: Budget,
    remove: Callable[[Budget], tuple[Plan | NothingToPrune, Pruned]],
    original: Pruned,
    *,
    timed: bool = True,
) -> tuple[Plan | NothingToPrune, Pruned]:
    """Plan and remove until the measured network keeps the budget within 5 %, or as closely as it can.

    Args:
        goal: The budget of a step, with tables.
        remove: Decides by a budget and removes.
        original: The original model and its graph.
        timed: Whether to measure; otherwise, as in steps on the way to a budget, the tables decide alone.

    Returns:
        What the best of the attempts removes, and what it leaves, with a note on the latency.

    Raises:
        InputError: If the pruned network is not faster than the original.
    """
    if not (timed and latencies_in(goal)):
        return remove(goal)
    attempts: list[_Attempt] = []
    while len(attempts) <= CORRECTIONS:
        try:
            step, after = remove(goal)
        except InputError:  # the corrected table finds no plan
            if not attempts:
                raise
            break
        if isinstance(step, NothingToPrune):
            if not attempts:
                return step, after
            break
        if any(_same(after.plan, x.after.plan) for x in attempts):
            break
        attempts.append(_attempt(goal, step, after, original.model, original.graph))
        if attempts[-1].noisy or attempts[-1].close or not attempts[-1].faster:
            break
        goal = attempts[-1].corrected()
    holding = [x for x in attempts if x.excess <= 1 + TOLERANCE]
    near = min(holding, key=lambda x: abs(log(x.excess)), default=None)
    best = near or min(attempts, key=lambda x: x.excess)
    _check_faster(best, original.graph)
    notes = {**best.after.plan.notes, "latency": [*_notes(best, len(attempts), original.graph)]}
    return best.step, replace(best.after, plan=replace(best.after.plan, notes=notes))


def _attempt(goal: Budget, step: Plan, after: Pruned, model: nn.Module, graph: PruningGraph) -> _Attempt:
    parts = latencies_in(goal)
    amounts = [predicted_latency(graph, part) for part in parts]
    times = tuple(time_models(model, as_called(after.model, after.plan), graph, part) for part in parts)
    predicted, whole = (tuple(amount(keep) for amount in amounts) for keep in (after.plan.keep, {}))
    return _Attempt(goal, step, after, predicted, whole, times)


def _same(a: Plan, b: Plan) -> bool:
    return {n: len(units) for n, units in a.keep.items()} == {n: len(units) for n, units in b.keep.items()}


def _check_faster(attempt: _Attempt, graph: PruningGraph) -> None:
    """Raise `InputError` if a plan makes the network slower; warn if the machine is too noisy to know."""
    for part, x in zip(attempt.parts, attempt.times, strict=True):
        figures = f"{x.original:.3g} ms before, {x.milliseconds:.3g} ms after"
        if x.noisy:
            warnings.warn(
                f"{part}: this machine is too noisy to measure: the quartiles of the ratio to the original "
                f"lie {x.spread:.0%} apart in {x.rounds} rounds ({figures}). The plan rests on the table of "
                f"layers and is not corrected; try again on an idle machine",
                stacklevel=2,
            )
        elif x.ratio >= 1:
            slowest = ", ".join(_slowest(graph, part, attempt.after.plan.keep))
            raise InputError(
                f"{part}: the plan would make the network slower: {figures}. Most of the time is spent in "
                f"{slowest}. Keep less, set a larger round_to than {measured_table(part).step}, or measure a "
                f"larger batch than {part.batch}"
            )


def _slowest(graph: PruningGraph, budget: Latency, keep: Mapping[str, IntArray]) -> list[str]:
    """Return the layers that take longest by the table, and what is spent outside of them."""
    table, counts = measured_table(budget), CostModel(graph)
    lengths = counts.lengths(keep)
    rows = np.array([[counts.rows[x.weight, axis] for axis in x.axes] for x in table.layers]).reshape(-1, 2)
    times = table.scale * table.by_layer(*lengths[rows].T)
    order = np.argsort(-times, kind="stable")[:LISTED]
    listed = [f"{table.layers[i].weight} {times[i]:.3g} ms" for i in order]
    return [*listed, *([f"outside of layers {table.constant:.3g} ms"] if table.constant > 0 else [])]


def _notes(attempt: _Attempt, count: int, graph: PruningGraph) -> Iterator[dict[str, Any]]:
    values = zip(attempt.parts, attempt.whole, attempt.predicted, attempt.times, strict=True)
    for part, whole, predicted, x in values:
        holds = x.ratio <= part.keep * (1 + TOLERANCE)
        note: dict[str, Any] = {
            "batch": part.batch,
            "original": x.original,
            "target": part.keep * x.original,
            "predicted": predicted / whole * x.original,
            "measured": x.milliseconds,
            "spread": x.spread,
            "step": measured_table(part).step,
            "plans": count,
            "holds": holds,
        }
        if not holds:
            note["in the way"] = _slowest(graph, part, smallest_network(graph, attempt.goal))
        yield note
