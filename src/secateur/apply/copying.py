"""Copies of a model in which some tensors are replaced."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from secateur.core import InputError, Plan, PlanError
from secateur.execution import check_module, duplicate, plain_tensors, tensors_by_name

__all__ = ["check_plan", "check_tensors", "copy_with"]


def check_plan(plan: Plan) -> None:
    """Raise `InputError` if a value is not a plan."""
    if not isinstance(plan, Plan):
        raise InputError(f"plan must be what plan() returned, or result.plan; got {type(plan).__name__}")


def check_tensors(model: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """Return parameters, buffers and plain tensors by first name, after comparing them with the plan's graph.

    Raises:
        InputError: If the model is not a module, or the plan not a plan.
        PlanError: If the model lacks a tensor of the plan, or one has another shape.
    """
    check_module(model)
    check_plan(plan)
    tensors = {**plain_tensors(model), **tensors_by_name(model)}
    for name, shape in plan.graph.shapes.items():
        if name not in tensors:
            raise PlanError(f"the plan names {name!r}, which {type(model).__name__} does not have")
        if tuple(tensors[name].shape) != tuple(shape):
            raise PlanError(
                f"{name!r} has shape {tuple(tensors[name].shape)} and the plan was made for {tuple(shape)}: "
                "apply a plan to the model that was traced, or to a fresh instance with the same sizes"
            )
    return tensors


def copy_with(model: nn.Module, tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> nn.Module:
    """Copy the model, replacing some tensors.  Tied weights stay tied; gradients are dropped.

    Args:
        model: Left as it is.
        tensors: Its parameters and buffers by name, as `check_tensors` returns them.
        values: By name, what replaces some of them, of any shape.
    """
    copies = {id(tensors[name]): _like(tensors[name], value) for name, value in values.items()}
    for parameter in model.parameters():
        if id(parameter) not in copies:
            copies[id(parameter)] = _like(parameter, parameter.detach().clone())
    return _drop_caches(duplicate(model, copies))


def _drop_caches(model: nn.Module) -> nn.Module:
    """Leave the mode and enter it again: some models then drop values that they computed from weights.

    Modules that override `train` (LeViT, TinyViT) cache gathered attention biases in evaluation mode.
    """
    modes = {module: module.training for module in model.modules()}
    mode = model.training
    model.train(not mode)
    model.train(mode)
    for module, before in modes.items():
        module.training = before
    return model


def _like(old: Tensor, value: Tensor) -> Tensor:
    return nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
