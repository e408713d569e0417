"""The interface of a pruning method: statistics in, plan out.

Two base classes do the arithmetic of budgets.  A `ScoreMethod` gives each unit (or weight) a score, and the
highest stay.  A `SetMethod` gets the number of units that each group keeps and chooses them as a set.  Both
leave the counts to `secateur.allocation`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from secateur.allocation import Allocation, allocate, prunable, ranked, reached, top, with_shares
from secateur.core import (
    Budget,
    InputError,
    IntArray,
    Merge,
    NothingToPrune,
    Plan,
    PlanError,
    PruningGraph,
    Statistics,
    Weights,
    brief,
)
from secateur.core.budget import as_budget
from secateur.core.indices import check_units
from secateur.methods.options import check_options

__all__ = ["Choice", "Method", "ScoreMethod", "Scores", "SetMethod", "best", "normalize_scores", "required"]

Scores = Mapping[str, Tensor]


@runtime_checkable
class Method(Protocol):
    """Decides what to remove.  Implementations are frozen dataclasses whose fields are the options."""

    @property
    def name(self) -> str:
        """Key in `METHODS`."""
        ...

    def needs(self, budget: Budget) -> frozenset[str]:
        """Return the statistics that the method requires.

        Any of "moments", "gram", "gradients", "taylor", "activations", "flow", "chain", "images".
        """
        ...

    def plan(self, graph: PruningGraph, statistics: Statistics, budget: Budget) -> Plan:
        """Decide what to remove."""
        ...


@dataclass(frozen=True, eq=False)
class Choice:
    """The units that stay, with notes.

    Attributes:
        keep: Group name -> numbers of the units that stay.
        merges: Group name -> exact merges, for the consumers of the group.
        notes: JSON-able notes, by group name or about the whole.
    """

    keep: Mapping[str, IntArray]
    merges: Mapping[str, Merge] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


class SetMethod(ABC):
    """A method that chooses the units of each group as a set.

    Subclasses are frozen dataclasses with a `name`, `needs` and `choose`.  The types of their fields are
    checked; a `__post_init__` of their own starts with ``super().__post_init__()``.  With `unit_scores`,
    budgets of global scope can rank groups against each other.  With `weight_scores`, `Weights` budgets
    keep the weights of highest score.
    """

    name: ClassVar[str]

    def __post_init__(self) -> None:
        """Check the types of the options."""
        check_options(self)

    @abstractmethod
    def needs(self, budget: Budget) -> frozenset[str]:
        """Return the statistics that the method requires for this budget."""

    @abstractmethod
    def choose(
        self, graph: PruningGraph, statistics: Statistics, counts: Mapping[str, int]
    ) -> Mapping[str, IntArray] | Choice:
        """Return, for each group in `counts`, that many distinct units that stay."""

    def unit_scores(self, graph: PruningGraph, statistics: Statistics) -> Scores:
        """Return scores [size] per group, higher stays, comparable across groups."""
        raise InputError(
            f"{self.name!r} judges units as sets within their group and gives no scores to rank groups by; "
            f"use scope='layer' or 'erk'"
        )

    def orders_units(self) -> bool:
        """Return whether `unit_scores` gives an order of the units."""
        return type(self).unit_scores is not SetMethod.unit_scores

    def weight_scores(self, graph: PruningGraph, statistics: Statistics) -> Scores:
        """Return scores of each prunable weight, of its shape, higher stays."""
        raise InputError(
            f"{self.name!r} removes whole units and is not defined for single weights; "
            f"use Units, Params or Macs"
        )

    def plan(self, graph: PruningGraph, statistics: Statistics, budget: Budget) -> Plan:
        """Decide how many units or weights stay, then which."""
        budget = as_budget(budget)
        if isinstance(budget, Weights):
            return self.plan_weights(graph, statistics, budget)
        return self.plan_units(graph, statistics, with_shares(graph, budget))

    def plan_units(self, graph: PruningGraph, statistics: Statistics, budget: Budget) -> Plan:
        """Decide which units stay."""
        prunable(graph)
        scores = self.unit_scores(graph, statistics) if budget.scope == "global" else None
        allocation = allocate(graph, budget, scores, statistics.losses)
        choice = self.choose(graph, statistics, allocation.counts)
        if not isinstance(choice, Choice):
            choice = Choice(choice)
        if not isinstance(choice.keep, Mapping):
            raise InputError(
                f"choose() of {self.name!r} must return group name -> units that stay; got "
                f"{brief(choice.keep)}"
            )
        return unit_plan(self.name, graph, budget, allocation, choice, statistics.seed)

    def plan_weights(self, graph: PruningGraph, statistics: Statistics, budget: Weights) -> Plan:
        """Decide which single weights stay."""
        scores = self.weight_scores(graph, statistics)
        allocation = allocate(graph, budget, scores)
        return weight_plan(self.name, graph, budget, allocation, scores, statistics.seed)


@dataclass(frozen=True, kw_only=True)
class ScoreMethod(SetMethod):
    """A method that ranks: subclasses define `unit_scores`, and `weight_scores` if weights have scores.

    Args:
        normalize: Under a global scope, divide the unit scores of each group by their mean, so that
            groups of different width and depth are comparable; single weights are compared as they are.
    """

    normalize: bool = False

    @abstractmethod
    def unit_scores(self, graph: PruningGraph, statistics: Statistics) -> Scores:
        """Return scores [size] per prunable group, higher stays."""

    def choose(
        self, graph: PruningGraph, statistics: Statistics, counts: Mapping[str, int]
    ) -> Mapping[str, IntArray] | Choice:
        """Keep the highest-scoring units; ties go to the lower index."""
        return best(self.unit_scores(graph, statistics), counts)

    def plan_units(self, graph: PruningGraph, statistics: Statistics, budget: Budget) -> Plan:
        """Score once, decide how many units stay, keep the highest."""
        scores = self.comparable(self.unit_scores(graph, statistics), budget)
        allocation = allocate(graph, budget, scores, statistics.losses)
        choice = best(scores, allocation.counts)
        return unit_plan(self.name, graph, budget, allocation, choice, statistics.seed)

    def comparable(self, scores: Scores, budget: Budget) -> Scores:
        """Return scores that a global scope may rank together."""
        return normalize_scores(scores) if self.normalize and budget.scope == "global" else scores


def best(scores: Scores, counts: Mapping[str, int]) -> Choice:
    """Keep the highest-scoring units of each group (ties: lower index), and note the threshold."""
    keep, notes = {}, {}
    for name, count in counts.items():
        order = ranked(scores[name])
        keep[name] = np.sort(order[:count])
        falling = scores[name].detach().double().cpu().numpy()[order]
        if count < len(falling):
            notes[name] = _threshold_note(falling[:count], falling[count:])
    return Choice(keep, notes=notes)


def _threshold_note(kept: np.ndarray, removed: np.ndarray) -> dict[str, Any]:
    return {"threshold": float(kept.min()), "kept scores": _range(kept), "removed scores": _range(removed)}


def _range(scores: np.ndarray) -> list[float]:
    finite = scores[np.isfinite(scores)]
    return [float(finite.min()), float(finite.max())] if len(finite) else []


def normalize_scores(scores: Scores) -> Scores:
    """Divide the scores of each group by the mean of their absolute values.

    Example:
        >>> import torch
        >>> normalize_scores({"a": torch.tensor([1.0, 3.0]), "b": torch.zeros(2)})
        {'a': tensor([0.5000, 1.5000], dtype=torch.float64), 'b': tensor([0., 0.], dtype=torch.float64)}
    """

    def scaled(s: Tensor) -> Tensor:
        s = s.double()
        sizes = s[s.isfinite()].abs()
        return s / sizes.mean() if sizes.any() else s

    return {name: scaled(s) for name, s in scores.items()}


def required(statistics: Mapping[str, Any], name: str, what: str, method: str) -> Any:
    """Return one of the statistics.

    Raises:
        InputError: If it is missing.
    """
    if name not in statistics:
        raise InputError(
            f"{method!r} needs {what!r} for {name!r}, which the statistics lack: collect them with "
            f"needs={{{what!r}}}, on data that reaches this layer"
        )
    return statistics[name]


def unit_plan(
    method: str, graph: PruningGraph, budget: Budget, allocation: Allocation, choice: Choice, seed: int
) -> Plan:
    """Check a choice against the counts and return it as a plan, with the shares that it leaves.

    Raises:
        PlanError: If the choice does not fit the counts.
        NothingToPrune: If rounding and floors leave nothing to remove.
    """
    keep = {}
    for name, count in allocation.counts.items():
        kept = np.unique(np.asarray(choice.keep.get(name, ()), dtype=np.int64))
        size = graph.group(name).size
        if len(kept) != count:
            raise PlanError(
                f"{method!r} was to keep {count} of {size} units of {name!r}; it chose {kept.tolist()}"
            )
        check_units(name, size, kept)
        if count < size:
            keep[name] = kept
    _check_removes(bool(keep), allocation, budget)
    plan = Plan(graph, method, keep, {}, choice.merges, repr(budget), seed)
    loss = {} if allocation.loss is None else {"predicted loss": allocation.loss}
    return replace(plan, notes={**choice.notes, **loss, **allocation.notes, "reached": reached(plan)})


def weight_plan(
    method: str,
    graph: PruningGraph,
    budget: Weights,
    allocation: Allocation,
    scores: Scores,
    seed: int,
    order: Scores | None = None,
) -> Plan:
    """Keep the highest-scoring weights of each layer; ties go to the lower index.

    Args:
        method: The name of the method.
        graph: The traced network.
        budget: The budget.
        allocation: How many weights each layer keeps.
        scores: Scores of each weight tensor.
        seed: The seed, for the plan.
        order: Scores to select by instead, if a layer's weights do not all compete with one another.

    Raises:
        NothingToPrune: If rounding and floors leave nothing to remove.
    """
    masks: dict[str, Any] = {}
    notes: dict[str, Any] = {}
    for name, count in allocation.counts.items():
        if count < scores[name].numel():
            mask = top((order or scores)[name], count)
            masks[name] = mask.reshape(graph.shapes[name]).cpu().numpy()
            notes[name] = {"threshold": float(scores[name][mask].min())}
    _check_removes(bool(masks), allocation, budget)
    plan = Plan(graph, method, {}, masks, {}, repr(budget), seed)
    return replace(plan, notes={**notes, "reached": reached(plan)})


def _check_removes(removes: bool, allocation: Allocation, budget: Budget) -> None:
    if not removes and allocation.target < 1:
        raise NothingToPrune(
            f"{budget} removes nothing: the counts round to the whole of every group, "
            f"{dict(allocation.counts)}; keep less"
        )
