"""Permutation audit: how much of a plan depends on the order of the units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from secateur.core import Budget, InputError, IntArray, NothingToPrune, Plan, PruningGraph, Statistics
from secateur.methods.base import Method
from secateur.methods.matroid.permuted import permuted_statistics

__all__ = ["PermutationAudit", "permutation_audit"]


@dataclass(frozen=True, eq=False)
class PermutationAudit:
    """A plan, and the plans for the same network with permuted units.

    Attributes:
        plan: The plan for the original order.
        permuted: Plans for random orders, in the original unit numbers; None if nothing could be removed.
        overlap: For each of them, the share of the units removed by either plan that both remove.
        value: `measure` of `plan`; NaN without a measure.
        values: `measure` of the permuted plans; NaN where there is none.
    """

    plan: Plan
    permuted: tuple[Plan | None, ...]
    overlap: tuple[float, ...]
    value: float
    values: tuple[float, ...]

    @property
    def order_free(self) -> bool:
        """Whether every order gives the same plan."""
        return all(o == 1.0 for o in self.overlap)

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of removed units: in the original order, then in each permuted one.

        Of units that are multiples of one another any may stay, so exact merges agree in this number
        rather than in `overlap`.
        """
        return tuple(_count(p) for p in (self.plan, *self.permuted))

    def summary(self) -> str:
        """Return a one-line summary."""
        shares, (first, *others) = np.array(self.overlap), self.counts
        text = f"{len(shares)} orders: {shares.mean():.0%} of the removed units agree"
        text += f", at least {shares.min():.0%}; "
        text += f"{first} go in the original order, {min(others)} to {max(others)} permuted"
        known = [v for v in self.values if v == v]
        if known:
            spread = f"{np.mean(known):.4g} ({min(known):.4g} to {max(known):.4g})"
            text += f"; {self.value:.4g} in the original order, {spread} permuted"
        return text


def permutation_audit(
    method: Method,
    graph: PruningGraph,
    statistics: Statistics,
    budget: Budget,
    *,
    draws: int = 20,
    seed: int = 0,
    measure: Callable[[Plan], float] | None = None,
) -> PermutationAudit:
    """Repeat a plan under random permutations of the units of every group.

    Permuting hidden units leaves the function unchanged, so whatever depends on their order is an artefact.
    All statistics are permuted; the plans come back in the original unit numbers and can be measured on the
    original model.

    Args:
        method: The method to audit.
        graph: The traced network.
        statistics: What the method requires.
        budget: The budget of every plan.
        draws: Number of permutations.
        seed: Their seed.
        measure: Plan -> a number, for instance the accuracy of the shrunk model.

    Raises:
        InputError: If `draws` is below 1, or if the statistics have a flow, which cannot be permuted.
    """
    if draws < 1:
        raise InputError(f"an audit needs at least one permutation; got draws={draws}")
    plan = method.plan(graph, statistics, budget)
    generator = np.random.default_rng(seed)
    permuted = []
    for _ in range(draws):
        orders = {g.name: generator.permutation(g.size) for g in graph.groups}
        other = permuted_statistics(graph, statistics, orders)
        permuted.append(_plan_permuted(method, graph, other, budget, orders))
    evaluate = measure or (lambda _: float("nan"))
    values = tuple(float("nan") if p is None else evaluate(p) for p in permuted)
    overlap = tuple(_overlap(plan, p) for p in permuted)
    return PermutationAudit(plan, tuple(permuted), overlap, evaluate(plan), values)


def _plan_permuted(
    method: Method,
    graph: PruningGraph,
    statistics: Statistics,
    budget: Budget,
    orders: Mapping[str, IntArray],
) -> Plan | None:
    """Plan with permuted statistics, in which unit u is unit orders[u] of the original."""
    try:
        plan = method.plan(graph, statistics, budget)
    except NothingToPrune:
        return None
    keep = {name: np.sort(orders[name][kept]) if name in orders else kept for name, kept in plan.keep.items()}
    return replace(plan, keep=keep, merges={}, masks={})


def _count(plan: Plan | None) -> int:
    return sum(len(plan.removed(name)) for name in plan.keep) if plan else 0


def _overlap(a: Plan, b: Plan | None) -> float:
    if b is None:
        return 0.0
    both = either = 0
    for name in {*a.keep, *b.keep}:
        first, second = set(a.removed(name).tolist()), set(b.removed(name).tolist())
        both, either = both + len(first & second), either + len(first | second)
    return both / either if either else 1.0
