"""Mixtures: which whole experts go before units do, and what the budget then leaves for the units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from secateur.allocation.amounts import with_shares
from secateur.apply.experts import Mixture, check_count, check_numbers, drop_experts, find_mixtures
from secateur.core import Budget, InputError, IntArray, PruningGraph, brief, unknown
from secateur.depth import trace_rest
from secateur.execution import check_module
from secateur.latency_budget import with_tables
from secateur.measure.cost import parameters
from secateur.measure.expert_use import measure_expert_use
from secateur.tracing.trace import trace
from secateur.views import view, without_view

__all__ = ["Experts", "choose_experts", "trace_without_experts"]

Saliency = Literal["total", "mean", "tokens"]


@dataclass(frozen=True)
class Experts:
    """How many whole experts stay in each mixture, and by what they are chosen.

    Attributes:
        keep: How many in each; or by name of a mixture how many, or the numbers of those that stay.
        by: ``"total"``: the largest sums, over the tokens that are routed to an expert, of the weight that
            the router gives it times the norm of its output; ``"mean"``: the largest means of that (REAP,
            Lasby et al. 2025, arXiv:2510.13999); ``"tokens"``: the most tokens.

    Raises:
        InputError: If `keep` or `by` is none of these.
    """

    keep: int | Mapping[str, int | Sequence[int]]
    by: Saliency = "total"

    def __post_init__(self) -> None:
        """Check what does not need the model."""
        if self.by not in get_args(Saliency):
            raise InputError(unknown("saliency of experts", str(self.by), list(get_args(Saliency))))
        named = isinstance(self.keep, Mapping)
        given = self.keep.values() if isinstance(self.keep, Mapping) else [self.keep]
        listed = (list, tuple, range, np.ndarray) if named else ()
        if not all(isinstance(x, listed) or _is_count(x) for x in given):
            raise InputError(
                "experts must be how many stay in each mixture, or map names of mixtures to how many or to "
                f"the numbers of those that stay; got {brief(self.keep)}"
            )


def _is_count(x: Any) -> bool:
    return isinstance(x, Integral) and not isinstance(x, bool)


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
    experts: Experts | int | Mapping[str, Any] | None,
    budget: Budget,
    batches: Sequence[Any] | None,
    call: tuple[Any, ...],
    check: bool = True,
) -> tuple[nn.Module, PruningGraph, Budget, dict[str, IntArray], dict[str, Any]]:
    """Trace a model; take out experts, and trace what is left.

    Args:
        model: The model; it is not changed.
        experts: Which experts stay, or what `Experts` takes; None for all.
        budget: What stays of the whole model.
        batches: Batches to measure the saliency of experts on, unless `experts` has all numbers.
        call: Example inputs and what follows them, as `trace` takes them.
        check: Whether to compare what is left with the model whose routers never choose the other experts.

    Returns:
        The model without the experts, its graph, the budget as shares of what it has, the experts that stay,
        and for each mixture a note: the numbers that went ("gone"), of how many ("of"), the "parameters" that
        went with them, and, if it was measured, the "saliency" of all and what it is ("by").

    Raises:
        InputError: If `experts` is invalid, needs batches that are missing, or the saliency of the experts of
            a mixture cannot be measured.
        PlanError: If numbers of experts are invalid.
        ExactnessError: If the router would choose otherwise.
    """
    asked = experts if experts is None or isinstance(experts, Experts) else Experts(experts)
    wanted = {} if asked is None else _wanted(model, asked, batches)
    graph = trace(model, *call).with_even_layers(budget.even)
    shares = with_shares(graph, with_tables(budget, model, graph))
    if asked is None or not wanted:
        return model, graph, shares, {}, {}
    mixtures = find_mixtures(model)
    counted = [name for name, x in wanted.items() if isinstance(x, int)]
    seen = view(model, graph.interface)
    use = measure_expert_use(seen, batches or (), counted) if counted else {}
    saliency: dict[str, Tensor] = {name: getattr(x, asked.by) for name, x in use.items()}
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
        notes[name] |= {"saliency": saliency[name].tolist(), "by": asked.by} if name in saliency else {}
    return left, *trace_rest(left, call, shares, model, graph), kept, notes


def _wanted(model: nn.Module, experts: Experts, batches: Any) -> dict[str, int | IntArray]:
    """Return by name of a mixture how many experts stay, or which; without mixtures that stay whole."""
    check_module(model)
    mixtures, keep = find_mixtures(model), experts.keep
    if not mixtures:
        raise InputError(
            f"experts={keep!r}, but {type(model).__name__} has no mixture: a module with experts (in an "
            "nn.ModuleList, or stacked in tensors) and a router, whose weight has a row for each"
        )
    wanted: dict[str, int | IntArray] = {}
    for name, x in (keep if isinstance(keep, Mapping) else dict.fromkeys(mixtures, keep)).items():
        if isinstance(x, Integral):
            count = check_count(mixtures, name, int(x))
            if batches is None:
                raise InputError(
                    f"experts={keep!r} keeps the experts that add most on data: pass data=batches, "
                    "or give the numbers of those that stay"
                )
            wanted[name] = count
        else:
            wanted[name] = check_numbers(mixtures, name, list(x) if isinstance(x, range) else x)
    counts = {name: x if isinstance(x, int) else len(x) for name, x in wanted.items()}
    return {name: x for name, x in wanted.items() if counts[name] < mixtures[name].count}
