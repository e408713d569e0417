"""Update the BatchNorm statistics of a pruned model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.core import InputError
from secateur.execution import call, duplicate, read_batches

__all__ = ["has_statistics", "update_bn"]


def has_statistics(model: nn.Module) -> bool:
    """Return whether a BatchNorm layer of the model keeps running statistics."""
    return any(isinstance(m, _BatchNorm) and m.running_mean is not None for m in model.modules())


def update_bn(model: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """Return a copy whose BatchNorm layers have the means and variances of their inputs on these batches.

    Removed units change the inputs of later layers, so the statistics of training no longer fit.  Much of
    what a model without repair loses is due to that.  Nothing else changes; nothing is trained.

    Args:
        model: The model; it is not changed.  The copy is in the same mode.
        batches: Batches; targets are not needed.  Every batch counts equally, so give batches of one size, of
            32 examples or more.

    Raises:
        InputError: If no BatchNorm layer keeps running statistics, or there are no batches.

    Example:
        >>> norm = nn.Sequential(nn.BatchNorm1d(2)).eval()
        >>> updated = update_bn(norm, [torch.tensor([[1.0, 0.0], [3.0, 0.0]])])
        >>> updated[0].running_mean.tolist(), norm[0].running_mean.tolist()
        ([2.0, 0.0], [0.0, 0.0])
    """
    copied = duplicate(model)
    norms = [m for m in copied.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        raise InputError(
            f"{type(model).__name__} has no BatchNorm layer with running statistics: nothing to update"
        )
    momenta = [norm.momentum for norm in norms]
    copied.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over batches
        norm.train()
    with torch.no_grad():
        for _, args, kwargs, _ in read_batches(batches, copied):
            call(copied, args, kwargs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, original in zip(copied.modules(), model.modules(), strict=True):
        module.training = original.training
    return copied
