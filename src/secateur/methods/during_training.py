"""Pruning while a network trains: every few epochs a method masks the weights as they are then.

Algorithms 2 and 3 of arXiv:2502.16525 prune so, and do not say whether masks persist.  Without, what was
zeroed grows back in the epochs that follow.
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
        epochs: Passes between two prunings; the last pass is followed by one if they divide its number.
        method: Decides each time, from the weights as they are.
        graph: Trace of the model that is trained.
        budget: How many weights stay.
        persist: Whether masked weights stay zero until the next pruning; else they are set to zero and train
            on.
        seed: Seed of the method.

    Raises:
        InputError: Epochs below 1, a budget that is no `Weights`, or a method that needs data.

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
            f"go from a network that is trained); got {epochs} and {budget!r}"
        )
    if needs := method.needs(budget):
        raise InputError(
            f"{method.name!r} needs {', '.join(sorted(needs))}: during training a method sees "
            "the weights alone"
        )

    def prune(epoch: int, model: nn.Module) -> Mapping[str, BoolArray] | None:
        if epoch % epochs:
            return None
        tensors = {
            name: p.detach()
            for named in (model.named_parameters(), model.named_buffers())
            for name, p in named
        }
        masks = method.plan(graph, Statistics(tensors, seed=seed), budget).masks
        if persist:
            return masks
        with torch.no_grad():
            for name, mask in masks.items():
                tensors[name].masked_fill_(torch.from_numpy(~mask).to(tensors[name].device), 0)
        return None

    return prune
