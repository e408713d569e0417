"""Mixtures: which whole experts go before units do, and what the budget then leaves for the units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.allocation.amounts import with_shares
from secateur.apply.experts import Mixture, check_count, drop_experts, find_mixtures
from secateur.core import Budget, InputError, IntArray, PruningGraph, unknown
from secateur.core.indices import check_units
from secateur.depth import trace_rest
from secateur.execution import check_module
from secateur.latency_budget import with_tables
from secateur.measure.cost import parameters
from secateur.measure.expert_saliency import measure_expert_saliency
from secateur.tracing.trace import trace
from secateur.views import view, without_view

__all__ = ["Experts", "choose_experts", "trace_without_experts"]

Experts = int | Mapping[str, int | Sequence[int]]


def choose_experts(saliency: Tensor, mixture: Mixture, count: int) -> IntArray:
    """Return the numbers of the experts of the largest saliency, rising; of each group equally many.

    Args:
        saliency: Of each expert [experts]; of equals, the first stay.
        mixture: The mixture.
        count: How many stay.

    Example:
        >>> choose_experts(torch.tensor([1.0, 4.0, 3.0, 2.0]), Mixture("experts", "gate", 4, 1), 2)
        array([1, 2])
        >>> choose_experts(torch.tensor([1.0, 4.0, 3.0, 2.0]), Mixture("experts", "gate", 4, 1, 2, 1), 2)
        array([1, 2])
        >>> choose_experts(torch.tensor([2.0, 4.0, 1.0, 0.0]), Mixture("experts", "gate", 4, 1, 2, 1), 2)
        array([1, 2])
    """
    grouped = saliency.reshape(mixture.groups, -1)
    best = grouped.argsort(dim=1, descending=True, stable=True)[:, : count // mixture.groups]
    return (best + grouped.shape[1] * torch.arange(mixture.groups)[:, None]).flatten().sort().values.numpy()


def trace_without_experts(
    model: nn.Module,
    experts: Experts | None,
    budget: Budget,
    batches: Sequence[Any] | None,
    call: tuple[Any, ...],
    check: bool = True,
) -> tuple[nn.Module, PruningGraph, Budget, dict[str, IntArray], dict[str, Any]]:
    """Trace a model; take out experts, and trace what is left.

    Args:
        model: The model; it is not changed.
        experts: How many experts stay in each mixture, or by name of a mixture how many or which; None for
            all.
        budget: What stays of the whole model.
        batches: Batches to measure the saliency of experts on, unless `experts` has all numbers.
        call: Example inputs and what follows them, as `trace` takes them.
        check: Whether to compare what is left with the model whose routers never choose the other experts.

    Returns:
        The model without the experts, its graph, the budget as shares of what it has, the experts that stay,
        and for each mixture a note: the numbers that went ("gone"), of how many ("of"), the "parameters" that
        went with them, and the "saliency" of all, if it was measured.

    Raises:
        InputError: If `experts` is invalid, needs batches that are missing, or the saliency of the experts of
            a mixture cannot be measured.
        PlanError: If numbers of experts are invalid.
        ExactnessError: If the router would choose otherwise.
    """
    wanted = _wanted(model, experts, batches)
    graph = trace(model, *call).with_even_layers(budget.even)
    shares = with_shares(graph, with_tables(budget, model, graph))
    if not wanted:
        return model, graph, shares, {}, {}
    mixtures = find_mixtures(model)
    counted = [name for name, x in wanted.items() if isinstance(x, int)]
    seen = view(model, graph.interface)
    saliency = measure_expert_saliency(seen, batches or (), counted) if counted else {}
    kept = {
        name: choose_experts(saliency[name], mixtures[name], x) if isinstance(x, int) else x
        for name, x in wanted.items()
    }
    example = (graph.example_inputs, graph.example_kwargs) if check else ()
    left = without_view(drop_experts(seen, kept, *example))
    notes: dict[str, Any] = {}
    for name, numbers in kept.items():
        before, after = (parameters(m.get_submodule(name)) for m in (model, left))
        gone = np.setdiff1d(np.arange(mixtures[name].count), numbers).tolist()
        notes[name] = {"gone": gone, "of": mixtures[name].count, "parameters": before - after}
        notes[name] |= {"saliency": saliency[name].tolist()} if name in saliency else {}
    return left, *trace_rest(left, call, shares, model, graph), kept, notes


def _wanted(model: nn.Module, experts: Any, batches: Any) -> dict[str, int | IntArray]:
    """Return by name of a mixture how many experts stay, or which; without mixtures that stay whole."""
    if experts is None:
        return {}
    check_module(model)
    mixtures = find_mixtures(model)
    if not mixtures:
        raise InputError(
            f"experts={experts!r}, but {type(model).__name__} has no mixture: a module with experts (in an "
            "nn.ModuleList, or stacked in tensors) and a router, whose weight has a row for each"
        )
    given = experts if isinstance(experts, Mapping) else dict.fromkeys(mixtures, experts)
    wanted: dict[str, int | IntArray] = {}
    for name, x in given.items():
        if name not in mixtures:
            raise InputError(unknown("mixture", str(name), list(mixtures)))
        if given is not experts and not isinstance(x, Integral):
            raise _not_experts(experts)
        count, stays = mixtures[name].count, _stays(name, mixtures[name], x)
        if isinstance(stays, int) and batches is None:
            raise InputError(
                f"experts={experts!r} keeps the experts of the largest saliency on data: pass data=batches, "
                "or give the numbers of those that stay"
            )
        if (stays if isinstance(stays, int) else len(stays)) < count:
            wanted[name] = stays
    return wanted


def _stays(name: str, mixture: Mixture, given: Any) -> int | IntArray:
    """Return how many experts of a mixture stay, or which, after checking them."""
    if isinstance(given, Integral) and not isinstance(given, bool):
        check_count(name, mixture, int(given))
        return int(given)
    if isinstance(given, (list, tuple, range, np.ndarray)):
        return check_units(name, mixture.count, list(given) if isinstance(given, range) else given)
    raise _not_experts(given)


def _not_experts(given: Any) -> InputError:
    return InputError(
        "experts must be how many stay in each mixture, or map names of mixtures to how many or to the "
        f"numbers of those that stay; got {given!r}"
    )
