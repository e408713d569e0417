"""Mask a model: set everything that a plan removes to zero; shapes stay.

`mask` shares no index arithmetic with `shrink`: it multiplies by zeros where the other selects.  So
comparing the two is a real check; `shrink` makes it after every removal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.apply.before_units import before_units
from secateur.apply.copying import check_plan, check_tensors, copy_with
from secateur.core import Plan, PlanError, unknown

__all__ = ["keep_masked", "mask", "masked_weights", "zero_weights"]


def mask(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a copy of the model in which everything that the plan removes is zero.

    Shapes stay, so nothing gets faster; only whole experts and blocks that the plan drops are gone.  Weights
    that stay are multiplied by the plan's factors, if it has any.  Floating buffers are masked like
    parameters: a table of positions that is added to the features must be zero where the features are.
    Other buffers stay.  In training, zeroed weights become nonzero again unless `keep_masked` is used.

    Raises:
        PlanError: If the plan does not fit the model.
    """
    check_plan(plan)
    model = before_units(model, plan)
    tensors = check_tensors(model, plan)
    factors: dict[str, Tensor] = {}
    for group in plan.graph.groups:
        gone = plan.removed(group.name)
        for slot in group.slots if len(gone) else ():
            tensor = tensors[slot.tensor]
            if not (tensor.is_floating_point() or tensor.is_complex()):
                continue
            alive = torch.ones(tensor.shape[slot.axis], dtype=tensor.dtype, device=tensor.device)
            alive[torch.from_numpy(slot.index[gone].ravel()).to(tensor.device)] = 0
            shape = [-1 if axis == slot.axis else 1 for axis in range(tensor.ndim)]
            factor = factors.get(slot.tensor, torch.ones((), dtype=tensor.dtype, device=tensor.device))
            factors[slot.tensor] = factor * alive.reshape(shape)
    for name, stays in _mask_tensors(plan, tensors).items():
        factors[name] = factors.get(name, torch.ones_like(stays)) * stays
    # Not a product: 0 * inf is NaN.
    values = {name: torch.where(factor != 0, tensors[name].detach(), 0) for name, factor in factors.items()}
    for name, scale in plan.factors.items():
        values[name] = values[name] * torch.from_numpy(np.array(scale)).to(values[name])
    return copy_with(model, tensors, values)


def keep_masked(model: nn.Module, plan: Plan, optimizer: torch.optim.Optimizer) -> Any:
    """Keep the plan's masked weights at exactly zero through training.

    After every step of the optimiser the masked weights are set to zero again, because momentum and weight
    decay change them.

    Returns:
        A handle.  After `handle.remove()`, the weights train again.

    Raises:
        PlanError: If the plan does not fit the model.
    """
    check_tensors(model, plan)
    masked = masked_weights(model, plan.masks)
    zero_weights(masked)
    return optimizer.register_step_post_hook(lambda *_: zero_weights(masked))


def masked_weights(model: nn.Module, masks: Mapping[str, Any]) -> list[tuple[nn.Parameter, Tensor]]:
    """Return each masked weight with a boolean tensor of its shape, True where it is gone.

    Args:
        model: The model.
        masks: Weight name -> boolean array or tensor of its shape, True where the weight stays.

    Raises:
        PlanError: If a weight does not exist, or a mask has another shape or type.
    """
    known = dict(model.named_parameters(remove_duplicate=False))
    pairs = []
    for name, mask in masks.items():
        if name not in known:
            raise PlanError(unknown("parameter", name, list(known)))
        weight = known[name]
        stays = mask if isinstance(mask, Tensor) else torch.from_numpy(np.ascontiguousarray(mask))
        if stays.shape != weight.shape or stays.dtype != torch.bool:
            raise PlanError(
                f"the mask of {name!r} must be boolean of shape {tuple(weight.shape)}; got "
                f"{stays.dtype} of shape {tuple(stays.shape)}"
            )
        pairs.append((weight, ~stays.to(weight.device)))
    return pairs


@torch.no_grad()
def zero_weights(masked: list[tuple[nn.Parameter, Tensor]]) -> None:
    """Set the weights that `masked_weights` returned to zero where they are gone, in place."""
    for weight, gone in masked:
        weight.masked_fill_(gone, 0)


def _mask_tensors(plan: Plan, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the plan's masks as ones and zeros, in type and on device of their weights."""
    return {
        name: torch.from_numpy(np.ascontiguousarray(stays)).to(tensors[name])
        for name, stays in plan.masks.items()
    }
