"""What goes before units do: whole experts of mixtures, then whole blocks."""

from __future__ import annotations

from torch import nn

from secateur.apply.blocks import drop_blocks
from secateur.apply.experts import drop_experts
from secateur.core import InputError, Plan, PlanError
from secateur.execution import plain_tensors, tensors_by_name

__all__ = ["before_units"]


def before_units(model: nn.Module, plan: Plan) -> nn.Module:
    """Return the model that the graph of a plan describes: without the experts and blocks that it drops.

    A model without them is returned as it is.

    Raises:
        PlanError: If the model does not have these experts and blocks.
    """
    if not (plan.experts or plan.blocks) or _is_left(model, plan):
        return model
    what = "experts" if plan.experts else "blocks"
    try:
        left = drop_experts(model, plan.experts) if plan.experts else model
        what = "blocks"
        return drop_blocks(left, plan.blocks) if plan.blocks else left
    except (InputError, PlanError) as error:
        raise PlanError(
            f"the plan drops {what} that {type(model).__name__} does not have: {error}"
        ) from error


def _is_left(model: nn.Module, plan: Plan) -> bool:
    """Return whether a model has the tensors of the graph; experts may go without any name going."""
    tensors, shapes = tensors_by_name(model), plan.graph.shapes
    if set(tensors) != set(shapes) - set(plain_tensors(model)):
        return False
    return not plan.experts or all(tensor.shape == shapes[name] for name, tensor in tensors.items())
