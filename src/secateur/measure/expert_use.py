"""How many tokens a mixture sends to each of its experts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.apply.experts import Mixture, find_mixtures
from secateur.execution import evaluating, explain_errors, read_batches

__all__ = ["measure_expert_use"]


def measure_expert_use(model: nn.Module, batches: Sequence[Any]) -> dict[str, Tensor]:
    """Return the share of the tokens that are sent to each expert, from the largest logits of the router.

    Args:
        model: A model with mixtures of experts; it is not changed.
        batches: Batches of inputs; no labels are needed.

    Returns:
        Name of a mixture -> shares [experts], float64.  They add up to the number of experts for one token.
    """
    mixtures = find_mixtures(model)
    counts = {name: torch.zeros(x.count, dtype=torch.float64) for name, x in mixtures.items()}
    tokens = dict.fromkeys(mixtures, 0)

    def add(name: str, mixture: Mixture, router: Any, inputs: Any) -> None:
        x = inputs[0].reshape(-1, router.weight.shape[1])
        logits = functional.linear(x, router.weight.to(x.dtype), getattr(router, "bias", None))
        chosen = logits.topk(mixture.chosen, -1).indices
        counts[name] += chosen.flatten().bincount(minlength=mixture.count).cpu()
        tokens[name] += len(x)

    handles = [
        model.get_submodule(x.router).register_forward_pre_hook(partial(add, name, x))
        for name, x in mixtures.items()
    ]
    try:
        with evaluating(model):
            for where, args, kwargs, _ in read_batches(batches, model):
                with explain_errors(where, args, kwargs):
                    model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: count / max(tokens[name], 1) for name, count in counts.items()}
