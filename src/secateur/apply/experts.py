"""Whole experts of a mixture: take them out with their rows of the router.

A mixture is a module with experts that are stacked in tensors [experts, ...] or listed in an `nn.ModuleList`,
and a router whose weight [experts, features] gives a logit for each.  Without some experts the router chooses
among the others: the result equals the model in which their logits, and biases of their scores, are -inf.
This is checked on example inputs, as every removal is; a mixture whose router may still choose an expert at
-inf is refused.

A router that first chooses among groups of experts (DeepSeek) has groups of equal size: each keeps equally
many.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from secateur.apply.exactness import verify_call
from secateur.core import InputError, IntArray, shorten, unknown
from secateur.core.indices import check_units
from secateur.execution import check_module, duplicate, tensors_by_name
from secateur.tracing.trace import as_call

__all__ = ["Mixture", "check_count", "check_numbers", "drop_experts", "find_mixtures"]

COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "num_routed_experts")
CHOSEN = ("top_k", "num_experts_per_tok", "moe_top_k")
GROUPS, OPEN = ("n_group", "num_group", "num_expert_group"), ("topk_group",)
NO_EXPERTS = (nn.Conv1d, nn.ConvTranspose1d, nn.Bilinear)  # whose weights have three axes, too
LEAST = 2  # experts of a group: DeepSeek-V3 ranks groups by the two best


@dataclass(frozen=True)
class Mixture:
    """Where a mixture keeps its experts.

    Attributes:
        experts: Name of the module with the experts.
        router: Name of the module with the router's weight.
        count: Number of experts.
        chosen: How many the router chooses for each token, at least as far as a module states it.
        groups: Number of groups of equal size that the router first chooses among.
        open: How many of them it chooses for each token.
    """

    experts: str
    router: str
    count: int
    chosen: int
    groups: int = 1
    open: int = 1


def find_mixtures(model: nn.Module) -> dict[str, Mixture]:
    """Return the mixtures of a model by the name of the module that holds experts and router.

    Example:
        >>> class Mixing(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.gate, self.top_k = nn.Linear(3, 4, bias=False), 2
        ...         self.experts = nn.ModuleList([nn.Linear(3, 3) for _ in range(4)])
        >>> find_mixtures(nn.Sequential(Mixing()))
        {'0': Mixture(experts='0.experts', router='0.gate', count=4, chosen=2, groups=1, open=1)}
    """
    found = {}
    for name, module in model.named_modules():
        counts = {child: _count_experts(experts) for child, experts in module.named_children()}
        for experts, count in counts.items():
            routers = [child for child, router in module.named_children() if _routes(router, count)]
            if count > 1 and len(routers) == 1 and routers[0] != experts:
                prefix = f"{name}." if name else ""
                groups = _stated(module, GROUPS)
                numbers = (_stated(module, CHOSEN), groups, min(groups, _stated(module, OPEN, groups)))
                found[name] = Mixture(prefix + experts, prefix + routers[0], count, *numbers)
    # A list of layers beside a head of as many rows is none.
    return {
        name: mixture
        for name, mixture in found.items()
        if not any(other.startswith(f"{mixture.experts}.") for other in found)
    }


def drop_experts(
    model: nn.Module,
    keep: Mapping[str, Sequence[int] | IntArray],
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
        InputError: If a name is no mixture, if fewer experts would stay than the router chooses, or if groups
            of experts would keep unequal numbers.
        PlanError: If the numbers are not experts, each once, rising.
        ExactnessError: If the router would choose otherwise.
    """
    check_module(model)
    mixtures = find_mixtures(model)
    if not isinstance(keep, Mapping):
        raise InputError(f"keep must map names of mixtures to numbers of experts; got {type(keep).__name__}")
    kept = {name: check_numbers(mixtures, name, numbers).tolist() for name, numbers in keep.items()}
    small = duplicate(model, _selected_tensors(model, mixtures, kept))
    for name, numbers in kept.items():
        _select_experts(small, name, mixtures[name], numbers)
    counts = {len(kept.get(name, range(mixture.count))) for name, mixture in mixtures.items()}
    if len(counts) == 1:
        holders = [holder for m in small.modules() for holder in (m, getattr(m, "config", None))]
        _set_counts(holders, mixtures, counts.pop())
    if example_inputs is not None or example_kwargs is not None:
        args, kwargs = as_call({} if example_inputs is None else example_inputs, example_kwargs)
        what = f"the model without experts of {shorten(list(kept))}"
        masked = duplicate(model, {id(tensor): tensor for tensor in tensors_by_name(model).values()})
        for name, numbers in kept.items():
            _close(masked, name, mixtures[name], sorted({*range(mixtures[name].count)} - {*numbers}))
        how = "the one whose router gives these experts the logit -inf (which no output that counts may show)"
        verify_call(masked, small, args, kwargs, what, check_device, expected=how)
    return small


def check_count(mixtures: Mapping[str, Mixture], name: str, count: int) -> int:
    """Return how many experts stay in a mixture, after checking that it exists and can work with them.

    Raises:
        InputError: If there is no such mixture, or it cannot work with so many experts.
    """
    mixture = _mixture_named(mixtures, name)
    stay = f"{count} of {mixture.count} experts of {name!r} would stay"
    if count > mixture.count:
        raise InputError(f"{name!r} has {mixture.count} experts: {count} cannot stay")
    groups = mixture.groups
    least = groups * max(LEAST if groups > 1 else 1, -(-mixture.chosen // mixture.open))
    if count % groups:
        raise InputError(
            f"{stay}, and its router chooses among {groups} groups of equal size: keep a multiple of {groups}"
        )
    if count < least:
        among = f" from {mixture.open} of {groups} groups" if groups > 1 else ""
        raise InputError(
            f"{stay}, and its router chooses {mixture.chosen} for each token{among}: keep at least {least}"
        )
    return count


def check_numbers(mixtures: Mapping[str, Mixture], name: str, numbers: Any) -> IntArray:
    """Return the numbers of the experts that stay in a mixture, after checking them.

    Raises:
        InputError: If there is no such mixture, or it cannot work with these experts.
        PlanError: If the numbers are not experts, each once, rising.
    """
    mixture = _mixture_named(mixtures, name)
    units = check_units(name, mixture.count, numbers)
    check_count(mixtures, name, len(units))
    each = np.bincount(units * mixture.groups // mixture.count, minlength=mixture.groups)
    if len(set(each.tolist())) > 1:
        raise InputError(
            f"the {mixture.groups} groups of experts of {name!r} would keep {each.tolist()}, and its "
            "router needs groups of equal size: keep equally many of each"
        )
    return units


def _mixture_named(mixtures: Mapping[str, Mixture], name: str) -> Mixture:
    if name not in mixtures:
        raise InputError(unknown("mixture", str(name), list(mixtures)))
    return mixtures[name]


def _count_experts(module: nn.Module) -> int:
    """Return how many experts a module holds; 0 if it is no module of experts."""
    if isinstance(module, nn.ModuleList):
        return len(module) if len({type(child) for child in module}) == 1 else 0
    if isinstance(module, NO_EXPERTS):
        return 0
    lengths = {len(p) for p in module.parameters(recurse=False) if p.ndim > 1}
    stacked = any(p.ndim == 3 for p in module.parameters(recurse=False))
    return lengths.pop() if stacked and len(lengths) == 1 else 0


def _routes(module: nn.Module, count: int) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2 and len(weight) == count


def _stated(module: nn.Module, keys: Sequence[str], default: int = 1) -> int:
    """Return the largest number that a module or one inside it states under one of these names."""
    given = [getattr(m, key, None) for m in module.modules() for key in keys]
    return max((n for n in given if isinstance(n, int) and n > 0), default=default)


def _selected_tensors(
    model: nn.Module, mixtures: Mapping[str, Mixture], kept: Mapping[str, Sequence[int]]
) -> dict[int, Tensor]:
    """Return the tensors of experts that go or lose rows, by id: a copy of the model needs none of them."""
    gone: set[str] = set()
    for name, numbers in kept.items():
        mixture, experts = mixtures[name], model.get_submodule(mixtures[name].experts)
        if isinstance(experts, nn.ModuleList):
            lists = {i: tensors_by_name(experts[i]) for i in range(mixture.count) if i not in numbers}
            gone |= {f"{mixture.experts}.{i}.{key}" for i, tensors in lists.items() for key in tensors}
        else:
            stacked = [
                key for tensors, key in _own_tensors(experts) if _has_row_for_each(tensors[key], mixture)
            ]
            gone |= {f"{mixture.experts}.{key}" for key in stacked}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    others = {id(tensor) for name, tensor in named if name not in gone}
    return {id(tensor): tensor for name, tensor in named if name in gone and id(tensor) not in others}


def _select_experts(model: nn.Module, name: str, mixture: Mixture, numbers: Sequence[int]) -> None:
    """Keep these experts and their rows of the router, in place."""
    experts, router = model.get_submodule(mixture.experts), model.get_submodule(mixture.router)
    stacked = [] if isinstance(experts, nn.ModuleList) else [experts]
    if isinstance(experts, nn.ModuleList):
        for i in reversed(range(mixture.count)):
            if i not in numbers:
                del experts[i]
    rows = [(tensors, key) for m in (router, *stacked) for tensors, key in _own_tensors(m)]
    for tensors, key in [*rows, *_biases(model.get_submodule(name))]:
        tensor = tensors[key]
        if _has_row_for_each(tensor, mixture):
            _set_tensor(tensors, key, tensor.detach()[torch.tensor(numbers, device=tensor.device)].clone())
    if isinstance(router, nn.Linear):
        router.out_features = len(numbers)
    _set_counts(model.get_submodule(name).modules(), {name: mixture}, len(numbers))


def _own_tensors(module: nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield where a module itself keeps its tensors: a dict and a key in it."""
    for tensors in (module._parameters, module._buffers):
        yield from ((tensors, key) for key, tensor in tensors.items() if tensor is not None)


def _set_tensor(tensors: dict[str, Any], key: str, value: Tensor) -> None:
    """Replace a parameter or a buffer."""
    before = tensors[key]
    parameter = isinstance(before, nn.Parameter)
    tensors[key] = nn.Parameter(value, before.requires_grad) if parameter else value


def _has_row_for_each(tensor: Tensor, mixture: Mixture) -> bool:
    return tensor.ndim > 0 and len(tensor) == mixture.count


def _biases(module: nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield where a mixture or a router keeps what it adds to logits or scores."""
    for tensors, key in _own_tensors(module):
        if "bias" in key and tensors[key].ndim == 1 and tensors[key].is_floating_point():
            yield tensors, key


def _set_counts(holders: Any, mixtures: Mapping[str, Mixture], count: int) -> None:
    """Set the attributes that state the number of experts."""
    before = {mixture.count for mixture in mixtures.values()}
    for holder in {id(h): h for h in holders if h is not None}.values():
        for key in COUNTS:
            if getattr(holder, key, None) in before and count not in before:
                setattr(holder, key, count)


class _Closed:
    """Mixed into the class of a router: its logits of some experts are -inf."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        router: Any = self
        with _ClosedLogits(router, router.closed):
            return super().forward(*args, **kwargs)  # type: ignore[misc]


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


def _close(model: nn.Module, name: str, mixture: Mixture, closed: list[int]) -> None:
    """Give the logits of some experts, and the biases of their scores, the value -inf."""
    router: Any = model.get_submodule(mixture.router)
    router.closed = closed
    router.__class__ = type(type(router).__name__, (_Closed, type(router)), {})
    for tensors, key in [*_biases(model.get_submodule(name)), *_biases(router)]:
        if _has_row_for_each(tensors[key], mixture):
            value = tensors[key].detach().clone()
            value[closed] = -torch.inf
            _set_tensor(tensors, key, value)
