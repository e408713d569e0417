"""Counts: how many units of each group, or weights of each layer, stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd, lcm
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.allocation.amounts import Amounts, widths_step, with_shares
from secateur.allocation.counts import (
    AllowedCounts,
    apportion,
    one_by_one,
    one_step_more,
    ranked_counts,
    round_half_up,
    search,
    shared_counts,
)
from secateur.allocation.erk import erk_densities, fill, unit_factors
from secateur.allocation.layer_shares import layer_shares
from secateur.allocation.least_loss import counts_of_least_loss, predicted_losses
from secateur.allocation.ranking import comparable, ranked, top
from secateur.allocation.terms import counted_terms
from secateur.core import (
    Budget,
    Group,
    InputError,
    LossCurve,
    NothingToPrune,
    PruningGraph,
    Units,
    Weights,
    shorten,
)
from secateur.core.budget import BY_LOSS, as_budget

__all__ = [
    "Allocation",
    "allocate",
    "allowed_counts",
    "loss_by_count",
    "make_equal",
    "prunable",
    "weight_sizes",
]

ROW_BYTES = 16  # grouped products of torch take rows of multiples of these

Scores = Mapping[str, Tensor]


@dataclass(frozen=True)
class Allocation:
    """Numbers of units or weights that stay.

    Attributes:
        counts: Group name -> number of units, or weight name -> number of weights, that stay.
        what: What the budget counts: ``"units"``, ``"weights"``, ``"params"``, ``"macs"``, ``"bytes"``,
            or, of several budgets, the one that binds.
        target: The requested share.
        reached: The share that the counts reach.
        loss: The predicted loss, for scopes "loss" and "program".
        notes: What the integer program proved, for scope "program".
    """

    counts: Mapping[str, int]
    what: str
    target: float
    reached: float
    loss: float | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


def prunable(graph: PruningGraph) -> tuple[Group, ...]:
    """Return the groups of a graph.

    Raises:
        NothingToPrune: If there are none.  The message lists the frozen axes and the reasons.
    """
    if not graph.groups:
        message = "no group of units can be removed\n" + graph.describe_frozen()
        raise NothingToPrune(message + _parametrized(graph))
    return graph.groups


def _parametrized(graph: PruningGraph) -> str:
    """Return how to make parametrized tensors ordinary ones, or "" if there are none."""
    parts = [name.split(".") for name in graph.shapes]
    found = {
        (".".join(p[: p.index("parametrizations")]), p[p.index("parametrizations") + 1])
        for p in parts
        if "parametrizations" in p[:-1]
    }
    lines = [
        f"\n  torch.nn.utils.parametrize.remove_parametrizations(model.get_submodule({module!r}), {tensor!r})"
        for module, tensor in sorted(found)
    ]
    head = "\nUnits of parametrized weights cannot go; make them ordinary weights first:"
    return "".join([head, *lines]) if lines else ""


def weight_sizes(graph: PruningGraph) -> dict[str, int]:
    """Return the number of entries of each weight that a mask may zero, tied weights once, no empty ones.

    Raises:
        NothingToPrune: If there are none.
    """
    sizes = {x.weight: int(np.prod(graph.shapes[x.weight])) for x in graph.prunable_weights()}
    if not any(sizes.values()):
        raise NothingToPrune("no layer has a weight matrix to mask\n" + graph.describe_frozen())
    return {name: size for name, size in sizes.items() if size}


def make_equal(graph: PruningGraph, counts: Mapping[str, int]) -> dict[str, int]:
    """Return counts in which each set of `PruningGraph.equal_counts` keeps the largest of its counts.

    Example:
        >>> groups = (Group("a", 4, ()), Group("b", 4, ()))
        >>> graph = PruningGraph(groups, (), (), {}, (), equal_counts=(("a", "b"),))
        >>> make_equal(graph, {"a": 2, "b": 3})
        {'a': 3, 'b': 3}
    """
    equal = dict(counts)
    for names in graph.equal_counts:
        equal |= dict.fromkeys(names, max(counts[name] for name in names))
    return equal


def allocate(
    graph: PruningGraph,
    budget: Budget | Sequence[Budget],
    scores: Scores | None = None,
    losses: Mapping[str, LossCurve] | None = None,
) -> Allocation:
    """Decide how many units of each group, or weights of each layer, stay.

    Args:
        graph: A traced network.
        budget: `Units`, `Params`, `Macs`, `Bytes`, or a list of these, which must all hold: groups lose
            units.  `Weights`: the weights of `PruningGraph.prunable_weights` lose entries.
        scores: Group or weight name -> scores, higher stays; required, and comparable across groups, for
            scope ``"global"``.  Units scored -inf stay only if the floor requires it.
        losses: Group name -> what removing its units costs; required for the scopes ``"loss"`` and
            ``"program"``.

    Returns:
        Exact counts.  ``Units`` and ``Weights`` are met up to rounding; the others as closely as possible
        from below.

    Raises:
        InputError: If the budget cannot be met; the message gives one that can.
        NothingToPrune: If nothing can be removed.
    """
    budget = as_budget(budget)
    if budget.scope == "global" and scores is None:
        raise InputError("scope='global' ranks everything together and needs scores; use 'layer' or 'erk'")
    if budget.scope == "auto":
        budget = budget.with_scope("loss" if losses else "layer")
    if budget.scope in BY_LOSS and not losses:
        raise InputError(
            f"scope={budget.scope!r} needs the measured losses of the groups: use prune() or plan() with "
            "data, and a method that orders units; or scope='layer'"
        )
    if isinstance(budget, Weights):
        return _allocate_weights(graph, budget, scores)
    if isinstance(budget.keep, Mapping):
        return _allocate_layers(graph, budget)
    prunable(graph)
    return _allocate_units(graph, with_shares(graph, budget), scores, losses or {})


def _allocate_layers(graph: PruningGraph, budget: Budget) -> Allocation:
    """Keep in each group the share that the budget names for it; the others stay whole."""
    sizes = {g.name: g.size for g in prunable(graph)}
    shares, aligned = layer_shares(graph, budget.keep), _aligned_groups(graph)
    _check_floor(budget.floor, {name: sizes[name] for name in shares}, "units")
    counts = dict(sizes)
    for name, share in shares.items():
        allowed = AllowedCounts(sizes[name], budget.floor, lcm(budget.round_to, aligned.get(name, 1)))
        counts[name] = allowed.nearest(share * sizes[name])
    total = sum(sizes.values())
    target = sum(shares.get(name, 1.0) * size for name, size in sizes.items()) / total
    return Allocation(counts, budget.unit, target, sum(counts.values()) / total)


def _allocate_weights(graph: PruningGraph, budget: Weights, scores: Scores | None) -> Allocation:
    sizes = weight_sizes(graph)
    allowed = [AllowedCounts(n, budget.floor) for n in sizes.values()]
    total, least = sum(sizes.values()), len(sizes) * budget.floor
    _check_floor(budget.floor, sizes, "weights")
    wanted = round_half_up(budget.keep * total)
    if wanted == 0 or (budget.scope != "layer" and wanted < least):
        raise InputError(
            f"density {budget.keep:g} keeps {wanted} of {total} weights, and a floor of {budget.floor} in "
            f"{len(sizes)} layers keeps {least}: a density of {least / total:.3g} or more is possible"
        )
    if budget.scope == "layer":
        counts = [a.nearest(budget.keep * a.size) for a in allowed]
    elif budget.scope == "erk":
        shares = erk_densities({k: graph.shapes[k] for k in sizes}, budget.keep, floor=budget.floor)
        counts = apportion(allowed, [shares[k] * n for k, n in sizes.items()], wanted)
    else:
        counts = _ranked_weights(sizes, _checked(scores or {}, sizes), wanted, budget.floor)
    return Allocation(dict(zip(sizes, counts, strict=True)), "weights", budget.keep, sum(counts) / total)


def _ranked_weights(sizes: Mapping[str, int], scores: Scores, wanted: int, floor: int) -> list[int]:
    forced = {name: top(scores[name], floor) for name in sizes}
    others = [comparable(scores[name])[~forced[name]] for name in sizes]
    marks = top(torch.cat([x.to(others[0].device) for x in others]), wanted - floor * len(sizes))
    return [floor + int(mark.sum()) for mark in marks.split([x.numel() for x in others])]


def _allocate_units(
    graph: PruningGraph, budget: Budget, scores: Scores | None, losses: Mapping[str, LossCurve]
) -> Allocation:
    sizes = {g.name: g.size for g in prunable(graph)}
    _check_floor(budget.floor, sizes, "units")
    sets = [[g.name for g in groups] for groups in graph.counted_together()]
    allowed = allowed_counts(graph, budget)
    scores = None if scores is None else _checked(scores, sizes)
    vectors = None if scores is None else [_joined([scores[n] for n in names]) for names in sets]
    amounts, loss = _amounts(graph, budget, sets, scores), None
    notes: dict[str, Any] = {}
    total = amounts([a.size for a in allowed])
    if isinstance(budget, Units) and budget.scope == "layer":
        counts = [a.nearest(budget.keep * a.size) for a in allowed]
    else:
        targets = _targets(budget, total)
        _check_reachable(amounts([a.first for a in allowed]), targets, total, budget)

        def excess(counts: list[int]) -> float:
            """Return the largest ratio of an amount to its target: all budgets hold at 1."""
            return float((amounts(counts) / targets).max())

        if budget.scope in BY_LOSS:
            curves = [loss_by_count(losses, names) for names in sets]
            counts = counts_of_least_loss(allowed, curves, excess, 1.0)
            if budget.scope == "program":
                from secateur.allocation.program import counts_of_program  # loads scipy: half a second

                costs = [counted_terms(graph, part) for part in budget.parts]
                budgets = list(zip(costs, targets.tolist(), strict=True))
                counts, notes = counts_of_program(sets, allowed, curves, budgets, amounts, counts)
            loss = float(sum(curve[n] for curve, n in zip(curves, counts, strict=True)))
        else:
            counts = _counts_within(graph, budget, allowed, vectors, excess, targets)
    each = {n: count // len(names) for names, count in zip(sets, counts, strict=True) for n in names}
    shares = amounts(counts) / total
    binding = int(np.argmax(shares / [part.keep for part in budget.parts]))
    part = budget.parts[binding]
    return Allocation({n: each[n] for n in sizes}, part.unit, part.keep, float(shares[binding]), loss, notes)


def allowed_counts(graph: PruningGraph, budget: Budget) -> list[AllowedCounts]:
    """Return the counts that each set of `PruningGraph.counted_together` may keep.

    m groups that must keep equal counts are one entry, of m times the units, the floor and the step.
    """
    allowed, step, aligned = [], widths_step(budget), _aligned_groups(graph)
    for groups in graph.counted_together():
        needed = [aligned.get(group.name, 1) for group in groups]
        multiple = lcm(budget.round_to or 1, _units_of_step(groups[0], step), *needed)
        allowed.append(AllowedCounts(*(len(groups) * n for n in (groups[0].size, budget.floor, multiple))))
    return allowed


def _aligned_groups(graph: PruningGraph) -> dict[str, int]:
    """Return by name the multiples that groups on the matrices of experts keep."""
    experts = {layer.weight for layer in graph.layers if layer.kind == "experts"}
    aligned: dict[str, int] = {}
    for group in graph.groups:
        sizes = [graph.element_sizes.get(s.tensor, 4) for s in group.slots if s.tensor in experts]
        if sizes:
            aligned[group.name] = max(1, ROW_BYTES // min(sizes))
    return aligned


def _units_of_step(group: Group, step: int) -> int:
    """Return the number of units whose multiples make widths multiples of a step; less in small groups."""
    # A head owns a block of neighbours.  Where a unit's indices are apart (the same position in every
    # head), other groups decide how many there are.
    runs = [s.index.shape[1] for s in group.slots if s.index.size and (np.diff(s.index, axis=1) == 1).all()]
    units = step // gcd(step, min(runs, default=1))
    while units > 1 and group.size < 2 * units:
        units //= 2
    return units


def _targets(budget: Budget, total: np.ndarray) -> np.ndarray:
    """Return the amount of each part of a budget that may stay."""
    targets = [part.keep * x for part, x in zip(budget.parts, total, strict=True)]
    units = [isinstance(part, Units) for part in budget.parts]
    return np.array([round_half_up(x) if unit else x for unit, x in zip(units, targets, strict=True)], float)


def loss_by_count(losses: Mapping[str, LossCurve], names: list[str]) -> np.ndarray:
    """Return the loss by the number of units that groups of equal counts keep together."""
    if names[0] not in losses:
        raise InputError(f"no measured loss of {names[0]!r}; given: {shorten(map(repr, losses))}")
    curve = losses[names[0]]
    ruin = max((loss for other in losses.values() for loss in other.losses), default=0.0)
    return predicted_losses(curve, ruin).repeat(len(names))[: len(names) * curve.size + 1]


def _joined(scores: list[Tensor]) -> Tensor:
    """Return one vector for groups that keep equal counts: the mean score of their best units, and so on."""
    if len(scores) == 1:
        return scores[0]
    falling = torch.stack([x.detach().double().cpu().sort(descending=True).values for x in scores])
    means = falling.mean(0)
    return torch.where(means.isnan(), -torch.inf, means).repeat_interleave(len(scores))


def _counts_within(
    graph: PruningGraph,
    budget: Budget,
    allowed: list[AllowedCounts],
    scores: list[Tensor] | None,
    excess: Callable[[list[int]], float],
    targets: np.ndarray,
) -> list[int]:
    if budget.scope == "global":
        return search(ranked_counts(allowed, scores or []), excess, 1.0)
    layer = budget.scope == "layer"
    factors = np.ones(len(allowed)) if layer else unit_factors(graph, graph.counted_together())
    if not isinstance(budget, Units):
        path = shared_counts(allowed, factors)
        if widths_step(budget) == 1:
            return search(path, excess, 1.0)
        return one_step_more(allowed, search(one_by_one(path), excess, 1.0), excess, 1.0)
    first, size = (np.array(x, dtype=float) for x in zip(*((a.first, a.size) for a in allowed), strict=True))
    target = float(targets[0])
    return apportion(allowed, fill(factors * size, first, size, target).tolist(), int(target))


def _amounts(
    graph: PruningGraph, budget: Budget, sets: list[list[str]], scores: Scores | None
) -> Callable[[list[int]], np.ndarray]:
    """Return the function from counts to the amounts that the budget limits; the highest scores stay.

    A count is shared evenly by the groups of a set.
    """
    model = Amounts(graph, budget)
    orders = {
        n: np.arange(group.size) if scores is None else ranked(scores[n]) for n, group in model.groups.items()
    }

    def amounts(counts: list[int]) -> np.ndarray:
        pairs = zip(sets, counts, strict=True)
        return model({n: orders[n][: count // len(names)] for names, count in pairs for n in names})

    return amounts


def _checked(scores: Scores, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    for name, size in sizes.items():
        if name not in scores:
            raise InputError(f"no scores for {name!r}; given: {shorten(map(repr, scores)) or 'none'}")
        if scores[name].numel() != size:
            raise InputError(f"{name!r} has {size} entries to rank, but {scores[name].numel()} scores")
        if torch.isnan(scores[name]).any():
            raise InputError(f"the scores of {name!r} hold NaN: check its weights, and the data")
    return {name: scores[name] for name in sizes}


def _check_floor(floor: int, sizes: Mapping[str, int], what: str) -> None:
    name = min(sizes, key=lambda k: sizes[k])
    if floor > sizes[name]:
        raise InputError(f"floor {floor} is more than the {sizes[name]} {what} of {name!r}: at most that")


def _check_reachable(least: np.ndarray, targets: np.ndarray, total: np.ndarray, budget: Budget) -> None:
    for part, low, target, whole in zip(budget.parts, least, targets, total, strict=True):
        if low > target:
            raise InputError(
                f"{part} cannot be reached: with floor {budget.floor} and multiples of "
                f"{budget.round_to or widths_step(budget)} in each group at least {low:.6g} of {whole:.6g} "
                f"{part.unit} stay, a share "
                f"of {np.ceil(1e4 * low / whole) / 1e4:g}"
            )
