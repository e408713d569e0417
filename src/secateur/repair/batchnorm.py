"""BatchNorm statistics of a pruned network, taken anew."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.core import InputError
from secateur.execution import call, duplicate, split_batch

__all__ = ["update_bn"]


def update_bn(model: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """Return a copy whose BatchNorm layers have the means and variances of what reaches them now.

    Units that are gone change what reaches the layers behind them; the statistics of training are stale then,
    and much of what a network without repair loses is due to that.  Nothing else changes, nothing is trained.

    Args:
        model: Left as it is; the copy is in the same mode.
        batches: Inputs, or (inputs, targets), of which the targets are not looked at; every batch counts
            alike, so give batches of one size, of 32 examples or more.

    Raises:
        InputError: No BatchNorm layer keeps running statistics, or there are no batches.

    Example:
        >>> norm = nn.Sequential(nn.BatchNorm1d(2)).eval()
        >>> found = update_bn(norm, [torch.tensor([[1.0, 0.0], [3.0, 0.0]])])
        >>> found[0].running_mean.tolist(), norm[0].running_mean.tolist()
        ([2.0, 0.0], [0.0, 0.0])
    """
    copied = duplicate(model)
    norms = [m for m in copied.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        raise InputError(
            f"{type(model).__name__} has no BatchNorm layer with running statistics: there is nothing to do"
        )
    momenta = [norm.momentum for norm in norms]
    copied.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over batches
        norm.train()
    seen = 0
    with torch.no_grad():
        for batch in batches:
            args, kwargs, _ = split_batch(batch)
            call(copied, args, kwargs)
            seen += 1
    if not seen:
        raise InputError("there are no batches to take statistics from")
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for mine, theirs in zip(copied.modules(), model.modules(), strict=True):
        mine.training = theirs.training
    return copied
