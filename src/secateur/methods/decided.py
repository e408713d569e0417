"""A plan that was made before, as a method: several repairs of one plan need one decision."""

from __future__ import annotations

from dataclasses import dataclass, replace

from secateur.core import Budget, InputError, NothingToPrune, Plan, PruningGraph, Statistics

__all__ = ["Decided"]


@dataclass(frozen=True, eq=False)
class Decided:
    """Remove what a plan says, without looking at data.

    The budget of `prune` then only appears in the report.

    Attributes:
        made: The plan, of the same model.

    Example:
        >>> import torch
        >>> from secateur import Units, prune
        >>> mlp = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> inputs, half = torch.randn(32, 4), Units(0.5)
        >>> bare = prune(mlp, inputs, half, [inputs], method="activation", repair=None)
        >>> folded = prune(mlp, inputs, half, [inputs], method=Decided(bare.plan), repair="fold")
        >>> (folded.plan.keep["0"] == bare.plan.keep["0"]).all()
        np.True_
    """

    made: Plan

    @property
    def name(self) -> str:
        """Name of the method that made the plan."""
        return self.made.method

    def needs(self, budget: Budget) -> frozenset[str]:
        """Return nothing."""
        return frozenset()

    def plan(self, graph: PruningGraph, statistics: Statistics, budget: Budget) -> Plan:
        """Return the plan without the groups that are frozen in this graph.

        Raises:
            InputError: If the plan is one of another model.
            NothingToPrune: If nothing of the plan is left.
        """
        if graph.shapes != self.made.graph.shapes:
            raise InputError(
                "the plan was made for a model with other tensors; decide again, for this model, with sc.plan"
            )
        free = {group.name for group in graph.groups}
        keep = {name: kept for name, kept in self.made.keep.items() if name in free}
        merges = {name: merge for name, merge in self.made.merges.items() if name in keep}
        if not (keep or self.made.masks):
            raise NothingToPrune(f"all groups of the plan are frozen.\n{graph.describe_frozen()}")
        return replace(self.made, graph=graph, keep=keep, merges=merges)
