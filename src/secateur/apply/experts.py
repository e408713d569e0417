"""Whole experts of a mixture: take them out with their rows of the router.

A mixture is a module with experts that are stacked in tensors [experts, ...] or listed in an `nn.ModuleList`,
and a router whose weight [experts, features] gives a logit for each.  Without some experts the router chooses
among the others: the result equals the model in which their logits are -inf.  This is checked on example
inputs, as every removal is; a mixture whose router may still choose an expert at -inf is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from secateur.apply.exactness import verify_call
from secateur.apply.kept_tensors import shorten
from secateur.core import InputError, unknown
from secateur.core.indices import check_units
from secateur.execution import check_module, duplicate
from secateur.tracing.trace import as_call

__all__ = ["Mixture", "drop_experts", "find_mixtures"]

COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "num_routed_experts")
CHOSEN = ("top_k", "num_experts_per_tok", "moe_top_k")


@dataclass(frozen=True)
class Mixture:
    """Where a mixture keeps its experts.

    Attributes:
        experts: Name of the module with the experts.
        router: Name of the module with the router's weight.
        count: Number of experts.
        chosen: How many the router chooses for each token, at least as far as a module states it.
    """

    experts: str
    router: str
    count: int
    chosen: int


def find_mixtures(model: nn.Module) -> dict[str, Mixture]:
    """Return the mixtures of a model by the name of the module that holds experts and router.

    Example:
        >>> class Mixing(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.gate, self.top_k = nn.Linear(3, 4, bias=False), 2
        ...         self.experts = nn.ModuleList([nn.Linear(3, 3) for _ in range(4)])
        >>> find_mixtures(nn.Sequential(Mixing()))
        {'0': Mixture(experts='0.experts', router='0.gate', count=4, chosen=2)}
    """
    found = {}
    for name, module in model.named_modules():
        counts = {child: _count_experts(experts) for child, experts in module.named_children()}
        for experts, count in counts.items():
            routers = [child for child, router in module.named_children() if _routes(router, count)]
            if count > 1 and len(routers) == 1 and routers[0] != experts:
                prefix = f"{name}." if name else ""
                found[name] = Mixture(prefix + experts, prefix + routers[0], count, _count_chosen(module))
    return found


def drop_experts(
    model: nn.Module,
    keep: Mapping[str, Sequence[int]],
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    check_device: str | torch.device | None = None,
) -> nn.Module:
    """Return a copy of the model with only these experts; the router chooses among them.

    A config of transformers follows if every mixture of the model keeps equally many.

    Args:
        model: Any module; it is not changed.
        keep: Name of a mixture (see `find_mixtures`) -> numbers of the experts that stay, rising.
        example_inputs: What the model is called with.  If given, the result is compared with the model whose
            router gives the other experts the logit -inf.
        example_kwargs: More keyword arguments of the model.
        check_device: Device of that comparison; by default the model's.

    Raises:
        InputError: If a name is no mixture, or fewer experts would stay than the router chooses.
        PlanError: If the numbers are not experts, each once, rising.
        ExactnessError: If the router would choose otherwise.
    """
    check_module(model)
    mixtures = find_mixtures(model)
    kept = _check_experts(mixtures, keep)
    small = duplicate(model)
    for name, numbers in kept.items():
        _select_experts(small, name, mixtures[name], numbers)
    counts = {len(kept.get(name, range(mixture.count))) for name, mixture in mixtures.items()}
    if len(counts) == 1:
        _set_counts([getattr(m, "config", None) for m in small.modules()], mixtures, counts.pop())
    if example_inputs is not None or example_kwargs is not None:
        args, kwargs = as_call({} if example_inputs is None else example_inputs, example_kwargs)
        what = f"the model without experts of {shorten(list(kept))}"
        masked = duplicate(model)
        for name, numbers in kept.items():
            _close(masked, mixtures[name], sorted({*range(mixtures[name].count)} - {*numbers}))
        how = "the one whose router gives these experts the logit -inf"
        verify_call(masked, small, args, kwargs, what, check_device, expected=how)
    return small


def _count_experts(module: nn.Module) -> int:
    """Return how many experts a module holds; 0 if it is no module of experts."""
    if isinstance(module, nn.ModuleList):
        return len(module) if len({type(child) for child in module}) == 1 else 0
    lengths = {len(p) for p in module.parameters(recurse=False) if p.ndim > 1}
    stacked = any(p.ndim == 3 for p in module.parameters(recurse=False))
    return lengths.pop() if stacked and len(lengths) == 1 else 0


def _routes(module: nn.Module, count: int) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2 and len(weight) == count


def _count_chosen(module: nn.Module) -> int:
    given = [getattr(m, key, 0) for m in module.modules() for key in CHOSEN]
    return max([1, *(n for n in given if isinstance(n, int))])


def _check_experts(mixtures: Mapping[str, Mixture], keep: Any) -> dict[str, list[int]]:
    if not isinstance(keep, Mapping):
        raise InputError(f"keep must map names of mixtures to numbers of experts; got {type(keep).__name__}")
    kept = {}
    for name, numbers in keep.items():
        if name not in mixtures:
            raise InputError(unknown("mixture", str(name), list(mixtures)))
        mixture = mixtures[name]
        kept[name] = [int(n) for n in check_units(name, mixture.count, numbers)]
        if len(kept[name]) < mixture.chosen:
            raise InputError(
                f"{len(kept[name])} of {mixture.count} experts of {name!r} would stay, and its router "
                f"chooses {mixture.chosen} for each token: keep at least {mixture.chosen}"
            )
    return kept


def _select_experts(model: nn.Module, name: str, mixture: Mixture, numbers: Sequence[int]) -> None:
    """Keep these experts and their rows of the router, in place."""
    experts, router = model.get_submodule(mixture.experts), model.get_submodule(mixture.router)
    if isinstance(experts, nn.ModuleList):
        for i in reversed(range(mixture.count)):
            if i not in numbers:
                del experts[i]
    for module in dict.fromkeys([router, *([] if isinstance(experts, nn.ModuleList) else [experts])]):
        tensors: Any
        for tensors in (module._parameters, module._buffers):
            for key, tensor in tensors.items():
                if tensor is not None and tensor.ndim and len(tensor) == mixture.count:
                    value = tensor.detach()[torch.tensor(numbers, device=tensor.device)].clone()
                    parameter = isinstance(tensor, nn.Parameter)
                    tensors[key] = nn.Parameter(value, tensor.requires_grad) if parameter else value
    if isinstance(router, nn.Linear):
        router.out_features = len(numbers)
    _set_counts(model.get_submodule(name).modules(), {name: mixture}, len(numbers))


def _set_counts(holders: Any, mixtures: Mapping[str, Mixture], count: int) -> None:
    """Set the attributes that state the number of experts."""
    before = {mixture.count for mixture in mixtures.values()}
    for holder in {id(h): h for h in holders if h is not None}.values():
        for key in COUNTS:
            if getattr(holder, key, None) in before and count not in before:
                setattr(holder, key, count)


class _ClosedRouter(nn.Module):
    """A router whose logits of some experts are -inf."""

    def __init__(self, router: nn.Module, closed: Sequence[int]) -> None:
        super().__init__()
        self.router, self.closed = router, list(closed)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _ClosedLogits(self.router, self.closed):
            return self.router(*args, **kwargs)


class _ClosedLogits(TorchFunctionMode):
    """Sets logits to -inf where a router multiplies by its weight."""

    def __init__(self, router: nn.Module, closed: list[int]) -> None:
        super().__init__()
        self.router, self.closed = router, closed

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        logits = func is functional.linear and result.shape[-1] == len(self.router.weight)  # type: ignore[arg-type]
        if logits:
            result[..., self.closed] = -torch.inf
        return result


def _close(model: nn.Module, mixture: Mixture, closed: Sequence[int]) -> None:
    parent, _, child = mixture.router.rpartition(".")
    setattr(model.get_submodule(parent), child, _ClosedRouter(model.get_submodule(mixture.router), closed))
