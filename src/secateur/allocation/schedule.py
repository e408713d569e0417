"""Budgets of single steps, and the shares that a plan leaves."""

from __future__ import annotations

from dataclasses import replace

from secateur.allocation.allocation import allocate, prunable, weight_sizes
from secateur.allocation.amounts import Amounts
from secateur.allocation.cost import CostModel, graph_cost
from secateur.core import Budget, Plan, PruningGraph, Units, Weights
from secateur.core.budget import as_budget

__all__ = ["reached", "remaining_budget", "removed_by_kind"]


def reached(plan: Plan) -> dict[str, float]:
    """Return the shares of units, parameters, MACs, bytes or single weights that a plan leaves."""
    graph = plan.graph
    if plan.masks:
        sizes = weight_sizes(graph)
        total = sum(sizes.values())
        return {"weights": (total - sum(int((~m).sum()) for m in plan.masks.values())) / total}
    before, after = graph_cost(graph), graph_cost(graph, plan.keep)
    had = {group.name: group.size for group in prunable(graph)}
    units = sum(len(plan.keep[name]) if name in plan.keep else n for name, n in had.items())
    macs = after.macs / before.macs if before.macs else 1.0
    shares = {"units": units / sum(had.values()), "params": after.params / before.params, "macs": macs}
    return {**shares, **({"bytes": after.bytes / before.bytes} if before.bytes else {})}


def removed_by_kind(plan: Plan) -> dict[str, dict[str, int]]:
    """Return, by kind of group, what a plan removes: "groups", "units", "kept" units, and "parameters".

    The parameters are those that go if only the units of this kind go, so a weight between two kinds counts
    in both.  Whole experts are the first kind, "experts" of so many mixtures ("groups").  A plan that removes
    neither units nor experts gives an empty mapping.
    """
    kinds = _removed_experts(plan)
    if not plan.keep:
        return kinds
    model = CostModel(plan.graph)
    for kind, groups in plan.graph.by_kind().items():
        keep = {group.name: plan.keep[group.name] for group in groups if group.name in plan.keep}
        kinds[kind] = {
            "groups": len(groups),
            "units": sum(group.size for group in groups),
            "kept": sum(len(keep.get(group.name, range(group.size))) for group in groups),
            "parameters": model({}).params - model(keep).params,
        }
    return kinds


def _removed_experts(plan: Plan) -> dict[str, dict[str, int]]:
    """Return what whole experts give, which the notes of a plan of `prune` say."""
    notes = plan.notes.get("experts gone") if plan.experts else None
    if not notes:
        return {}
    had, gone = sum(note["of"] for note in notes.values()), sum(len(note["gone"]) for note in notes.values())
    parameters = sum(note["parameters"] for note in notes.values())
    return {"experts": {"groups": len(notes), "units": had, "kept": had - gone, "parameters": parameters}}


def remaining_budget(original: PruningGraph, left: PruningGraph, goal: Budget) -> Budget:
    """Return the budget on what is left that leaves `goal` of the original.

    Args:
        original: The graph that was traced.
        left: What the steps before have left of it.
        goal: What shall stay, as a share of the original.

    Example:
        >>> import numpy as np
        >>> from secateur.core import Group, Slot
        >>> def hidden(n):
        ...     return Group("0", n, (Slot("w", 0, np.arange(n)[:, None], "out"),))
        >>> whole, half = (PruningGraph((hidden(n),), (), (), {"w": (n, 1)}, ("w",)) for n in (10, 5))
        >>> remaining_budget(whole, half, Units(0.3)).keep
        {'0': 0.6}
    """
    if left.shapes == original.shapes or isinstance(goal, Weights):
        return goal
    if isinstance(goal, Units) and goal.scope == "layer":
        # One share would round differently in groups of different sizes: ask for the exact counts.
        counts = allocate(original, goal).counts
        return replace(goal, keep={g.name: min(1.0, counts[g.name] / g.size) for g in left.groups})
    before, now = (Amounts(graph, goal).whole for graph in (original, left))
    triples = zip(goal.parts, before, now, strict=True)
    return as_budget(
        [replace(part, keep=min(1.0, part.keep * a / b)) if b else part for part, a, b in triples]
    )
