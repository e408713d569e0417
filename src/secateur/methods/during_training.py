"""Pruning during training: every few epochs a method masks the current weights.

Algorithms 2 and 3 of arXiv:2502.16525 do this, and do not state whether masks persist.  Without persistence,
zeroed weights grow back in the following epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from secateur.core import BoolArray, InputError, PruningGraph, Statistics, Weights
from secateur.methods.base import Method

__all__ = ["prune_every"]


def prune_every(
    epochs: int, method: Method, graph: PruningGraph, budget: Weights, *, persist: bool = True, seed: int = 0
) -> Callable[[int, nn.Module], Mapping[str, BoolArray] | None]:
    """Return a hook for `finetune(..., after_epoch=...)` that prunes single weights during training.

    Args:
        epochs: Epochs from one pruning to the next: it happens after every epoch that they divide.
        method: Decides each time, from the current weights.
        graph: Trace of the model in training.
        budget: How many weights stay.
        persist: Keep masked weights at zero until the next pruning; otherwise they are set to zero and train
            on.
        seed: Seed of the method.

    Raises:
        InputError: If `epochs` is below 1, if the budget is not in `Weights`, or if the method needs data.

    Example:
        >>> from secateur.repair.finetune import finetune
        >>> from secateur.methods import Magnitude
        >>> from secateur.tracing.trace import trace
        >>> data = [(torch.eye(4), torch.arange(4))]
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        >>> hook = prune_every(2, Magnitude(), trace(model, torch.eye(4)), Weights(0.25))
        >>> trained, _ = finetune(model, data, epochs=5, after_epoch=hook, progress=False)
        >>> int((trained[0].weight != 0).sum()), trained[0].weight.numel()
        (8, 32)
    """
    if epochs < 1 or not isinstance(budget, Weights):
        raise InputError(
            f"pruning during training needs epochs of at least 1 and a budget in Weights (units "
            f"are removed after training); got {epochs} and {budget!r}"
        )
    if needs := method.needs(budget):
        raise InputError(
            f"{method.name!r} needs {', '.join(sorted(needs))}: during training a method sees "
            "only the weights"
        )

    def prune(epoch: int, model: nn.Module) -> Mapping[str, BoolArray] | None:
        if epoch % epochs:
            return None
        tensors = {
            name: p.detach()
            for named in (model.named_parameters(), model.named_buffers())
            for name, p in named
        }
        plan = method.plan(graph, Statistics(tensors, seed=seed), budget)
        if plan.factors:
            raise InputError(
                f"{method.name!r} rescales the weights that stay: during training only masks are applied, so "
                "leave its option reweight at False"
            )
        masks = plan.masks
        if persist:
            return masks
        with torch.no_grad():
            for name, mask in masks.items():
                tensors[name].masked_fill_(torch.from_numpy(~mask).to(tensors[name].device), 0)
        return None

    return prune
