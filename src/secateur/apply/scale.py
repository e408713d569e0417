"""Multiply weights by given factors."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from secateur.core import PlanError, unknown

__all__ = ["scaled"]


def scaled(model: nn.Module, factors: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of the model with some parameters multiplied.

    Args:
        model: The model; it is not changed.
        factors: By parameter name, tensors of its shape.

    Raises:
        PlanError: If a name or a shape does not fit.

    Example:
        >>> twice = scaled(nn.Linear(2, 1), {"weight": torch.full((1, 2), 2.0)})
        >>> sorted(dict(twice.named_parameters()))
        ['bias', 'weight']
    """
    result = copy.deepcopy(model)
    parameters = dict(result.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, factor in factors.items():
            if name not in parameters:
                raise PlanError(unknown("parameter", name, list(parameters)))
            if factor.shape != parameters[name].shape:
                raise PlanError(
                    f"the factors of {name!r} have shape {tuple(factor.shape)}; the parameter has "
                    f"{tuple(parameters[name].shape)}"
                )
            parameters[name].mul_(factor.to(parameters[name]))
    return result
