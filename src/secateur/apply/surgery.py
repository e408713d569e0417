"""Apply a plan: `mask` zeroes what goes, `shrink` takes it out; both return new modules.

`shrink` selects kept indices and sets sizes; `mask` multiplies by zeros.  They share no index
arithmetic, so that comparing them is a check and not a tautology: after every shrink the two must
give the same outputs in float64 on the example inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.apply.exactness import verify
from secateur.core import BoolArray, IntArray, NothingToPrune, Plan, PlanError, Size
from secateur.execution import duplicate
from secateur.modules.narrow_norm import narrowed
from secateur.modules.size_attributes import resize
from secateur.modules.slim_attention import SlimAttention

__all__ = ["keep_masked", "kept_indices", "mask", "shrink"]


def mask(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a copy of the model in which everything that the plan removes is zero.

    Shapes stay; buffers stay; nothing gets faster.  Zeroed single weights regrow in training unless
    the optimiser is told with `keep_masked`.

    Raises:
        PlanError: The plan does not fit the model.
    """
    tensors = _tensors(model, plan)
    parameters = set(plan.graph.parameters)
    factors: dict[str, Tensor] = {}
    for group in plan.graph.groups:
        gone = plan.removed(group.name)
        for slot in group.slots if len(gone) else ():
            if slot.tensor not in parameters:
                continue
            tensor = tensors[slot.tensor]
            alive = torch.ones(tensor.shape[slot.axis], dtype=tensor.dtype, device=tensor.device)
            alive[torch.from_numpy(slot.index[gone].ravel()).to(tensor.device)] = 0
            shape = [-1 if axis == slot.axis else 1 for axis in range(tensor.ndim)]
            factor = factors.get(slot.tensor, torch.ones((), dtype=tensor.dtype, device=tensor.device))
            factors[slot.tensor] = factor * alive.reshape(shape)
    for name, kept in plan.masks.items():
        stays = torch.from_numpy(np.ascontiguousarray(kept)).to(tensors[name])
        factors[name] = factors.get(name, torch.ones_like(stays)) * stays
    changed = {name: torch.where(factor != 0, tensors[name].detach(), 0) for name, factor in factors.items()}
    return _rebuild(
        model, {id(tensors[name]): _like(tensors[name], value) for name, value in changed.items()}
    )


def shrink(
    model: nn.Module, plan: Plan, check: bool = True, check_device: str | torch.device | None = None
) -> nn.Module:
    """Return a copy of the model without the units that the plan removes: smaller, and as fast as that.

    Single weights that the plan masks are zeroed as well.

    Args:
        model: The traced model, or a fresh instance of its class; left as it is.
        plan: What goes.
        check: Compare with the masked model in float64 on the traced example inputs.
        check_device: Where to make that comparison; the model's own device by default.

    Raises:
        NothingToPrune: The plan removes nothing.
        PlanError: The plan does not fit the model.
        ExactnessError: The outputs differ; the message names the operation.
    """
    gone = {g.name: plan.removed(g.name) for g in plan.graph.groups}
    if not any(len(units) for units in gone.values()) and not plan.masks:
        raise NothingToPrune(f"the plan removes nothing.\n{plan.graph.summary()}")
    _tensors(model, plan)
    kept = kept_indices(plan)
    base = mask(model, _only_masks(plan)) if plan.masks else model
    sources = _tensors(base, plan)
    small = {
        id(sources[name]): _like(sources[name], _select(sources[name].detach(), axes))
        for name, axes in kept.items()
    }
    heads = {name: m.head_dim for name, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)}
    result = _rebuild(base, small)
    names = [*kept, *(alias for alias, first in plan.graph.aliases.items() if first in kept)]
    touched = {name.rpartition(".")[0] for name in names}
    for size in plan.graph.sizes:
        result = _set_size(result, model, size, plan)
    result = _resize(result, touched, heads)
    if check and (plan.graph.example_inputs or plan.graph.example_kwargs):
        verify(mask(model, plan), result, plan, check_device)
    return result


def keep_masked(model: nn.Module, plan: Plan, optimizer: torch.optim.Optimizer) -> Any:
    """Keep the plan's masked weights at exactly zero through training.

    After every step of the optimiser the masked weights are set to zero again, whatever momentum or
    weight decay did.  Returns a handle; `handle.remove()` ends it, and the zeros are then just values.
    """
    tensors = _tensors(model, plan)
    stays = {
        name: torch.from_numpy(np.ascontiguousarray(m)).to(tensors[name]) for name, m in plan.masks.items()
    }

    def zero(*_: Any) -> None:
        with torch.no_grad():
            for name, factor in stays.items():
                tensors[name].mul_(factor)

    zero()
    return optimizer.register_step_post_hook(zero)


def _tensors(model: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """Return the model's tensors by first name, after comparing their shapes with the plan's network."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, shape in plan.graph.shapes.items():
        if name not in tensors:
            raise PlanError(f"the plan speaks of {name!r}, which {type(model).__name__} does not have")
        if tuple(tensors[name].shape) != tuple(shape):
            raise PlanError(
                f"{name!r} has shape {tuple(tensors[name].shape)} and the plan was made for {tuple(shape)}: "
                "apply a plan to the model that was traced, or to a fresh instance with the same sizes"
            )
    return tensors


def _only_masks(plan: Plan) -> Plan:
    return Plan(plan.graph, plan.method, masks=plan.masks)


def kept_indices(plan: Plan) -> dict[str, dict[int, IntArray]]:
    """Return tensor -> axis -> indices that stay, for every axis that loses any."""
    alive: dict[tuple[str, int], BoolArray] = {}
    for group in plan.graph.groups:
        gone = np.ones(group.size, dtype=bool)
        gone[plan.keep.get(group.name, np.arange(group.size))] = False
        for slot in group.slots if gone.any() else ():
            place = (slot.tensor, slot.axis)
            stays = alive.setdefault(place, np.ones(plan.graph.shapes[slot.tensor][slot.axis], dtype=bool))
            stays[slot.index[gone]] = False
    kept: dict[str, dict[int, IntArray]] = {}
    for (tensor, axis), stays in alive.items():
        kept.setdefault(tensor, {})[axis] = np.flatnonzero(stays)
    return kept


def _select(tensor: Tensor, axes: Mapping[int, IntArray]) -> Tensor:
    for axis, index in axes.items():
        tensor = tensor.index_select(axis, torch.from_numpy(index).to(tensor.device))
    return tensor.contiguous()


def _like(old: Tensor, value: Tensor) -> Tensor:
    return nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value


def _rebuild(model: nn.Module, replacements: dict[int, Tensor]) -> nn.Module:
    """Deep-copy the model with other tensors in the place of some; ties stay ties, gradients go."""
    memo = dict(replacements)
    for parameter in model.parameters():
        if id(parameter) not in memo:
            memo[id(parameter)] = nn.Parameter(
                parameter.detach().clone(), requires_grad=parameter.requires_grad
            )
    return duplicate(model, memo)


def _set_size(model: nn.Module, original: nn.Module, size: Size, plan: Plan) -> nn.Module:
    """Set an attribute that states a length; a normalisation that narrows is replaced."""
    gone = {
        int(p)
        for g, (u, at) in zip(size.groups, size.index, strict=True)
        for p in at[np.isin(u, plan.removed(g))]
    }
    if not gone:
        return model
    if size.attribute == "normalized_shape":
        before, after = original.get_submodule(size.module), model.get_submodule(size.module)
        norm = narrowed(before, after, size.value)
        if norm is None:
            raise PlanError(f"{size.module!r} is a {type(before).__name__} of another form than when traced")
        return _put(model, size.module, norm)
    holder: Any = model.get_submodule(size.module)
    *path, attribute = size.attribute.split(".")
    for name in path:
        holder = getattr(holder, name)
    setattr(holder, attribute, size.value - len(gone))
    return model


def _put(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put a module in the place of another; return the model, which it may itself be."""
    if not name:
        return module
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
    return model


def _resize(model: nn.Module, touched: set[str], heads: Mapping[str, int]) -> nn.Module:
    """Set size attributes of the layers that changed; attention that lost anything changes its class."""
    for name, module in list(model.named_modules()):
        if name in touched:
            resize(module)
        attention = touched & {name, f"{name}.out_proj"}
        if isinstance(module, nn.MultiheadAttention) and attention:
            model = _put(model, name, SlimAttention(module, heads[name]))
            _unnest(model, name)
    return model


def _unnest(model: nn.Module, name: str) -> None:
    """Keep encoders around an attention from packing padded sequences for torch's own attention."""
    path = name.split(".")
    for length in range(len(path)):
        module = model.get_submodule(".".join(path[:length]))
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
