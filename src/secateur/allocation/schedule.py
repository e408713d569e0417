"""The budgets of single steps: what to ask of what is left, so that the whole comes to what was asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from secateur.allocation.allocate import allocate, prunable, weight_sizes
from secateur.allocation.cost import cost
from secateur.core import Budget, Plan, PruningGraph, Units, Weights

__all__ = ["reached", "shares", "step_budget"]


def shares(step: float) -> Iterator[float]:
    """Yield the falling shares 1 - step, 1 - 2 step, … above 0 that a tolerance tries.

    Example:
        >>> list(shares(0.3))
        [0.7, 0.4, 0.1]
    """
    count = 1
    while (keep := round(1 - count * step, 12)) > 0:
        yield keep
        count += 1


def reached(plan: Plan) -> dict[str, float]:
    """Return the shares of units, parameters, multiply-accumulates or single weights that a plan leaves."""
    graph = plan.graph
    if plan.masks:
        sizes = weight_sizes(graph)
        total = sum(sizes.values())
        return {"weights": (total - sum(int((~m).sum()) for m in plan.masks.values())) / total}
    before, after = cost(graph), cost(graph, plan.keep)
    had = {group.name: group.size for group in prunable(graph)}
    units = sum(len(plan.keep[name]) if name in plan.keep else n for name, n in had.items())
    macs = after.macs / before.macs if before.macs else 1.0
    return {"units": units / sum(had.values()), "params": after.params / before.params, "macs": macs}


def step_budget(original: PruningGraph, left: PruningGraph, budget: Budget, progress: float) -> Budget:
    """Return the budget on what is left after which `budget.after(progress)` of the original stays.

    Args:
        original: The network that was traced.
        left: What the steps before have left of it.
        budget: The budget of all steps together.
        progress: Part of the way that this step ends at, in (0, 1].

    Example:
        >>> import numpy as np
        >>> from secateur.core import Group, Slot
        >>> def hidden(n):
        ...     return Group("0", n, (Slot("w", 0, np.arange(n)[:, None], "out"),))
        >>> whole, half = (PruningGraph((hidden(n),), (), (), {"w": (n, 1)}, ("w",)) for n in (10, 5))
        >>> step_budget(whole, half, Units(0.3), 1)
        Units(keep=0.6, scope='layer', floor=1, round_to=1)
    """
    target = budget.after(progress)
    if isinstance(target, Weights):
        return target
    if isinstance(target.keep, Mapping):
        counts = allocate(original, target).counts
        return replace(target, keep={g.name: min(1.0, counts[g.name] / g.size) for g in left.groups})
    if isinstance(target, Units):
        return _relative_units(original, left, target)
    now, before = (getattr(cost(graph), target.unit) for graph in (left, original))
    return replace(target, keep=min(1.0, target.keep * before / now)) if now else target


def _relative_units(original: PruningGraph, left: PruningGraph, budget: Units) -> Units:
    """Choose the share by which most groups come to exactly the counts of one single step."""
    sizes = {group.name: group.size for group in prunable(left)}
    total = sum(group.size for group in prunable(original))
    plain = min(1.0, budget.keep * total / sum(sizes.values()))
    if budget.scope != "layer":
        return replace(budget, keep=plain)
    wanted = allocate(original, budget).counts
    shares = {plain, *(min(1.0, wanted[name] / size) for name, size in sizes.items() if wanted[name])}

    def missed(share: float) -> tuple[int, float]:
        counts = allocate(left, replace(budget, keep=share)).counts
        return sum(abs(counts[name] - wanted[name]) for name in sizes), abs(share - plain)

    return replace(budget, keep=min(shares, key=missed))
