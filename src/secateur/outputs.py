"""Find the scores, and all floating tensors, in what a model returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from secateur.core import InputError

__all__ = ["floating_outputs", "is_cache", "logits", "named_logits"]


def floating_outputs(output: Any) -> list[torch.Tensor]:
    """Return the floating tensors of a model's output, in order.

    The loss and the cache of keys and values, which models of Hugging Face return, do not count.

    Raises:
        InputError: If there is none.

    Example:
        >>> [len(x) for x in floating_outputs({"loss": torch.zeros(()), "boxes": torch.zeros(2)})]
        [2]
    """
    fields = output if isinstance(output, Mapping) else getattr(output, "__dict__", None)
    if fields and not isinstance(output, (torch.Tensor, tuple, list)):
        output = {name: x for name, x in fields.items() if name not in ("loss", "past_key_values")}
    leaves = tree_leaves(output, is_leaf=is_cache)
    tensors = [x for x in leaves if isinstance(x, torch.Tensor) and x.is_floating_point()]
    if not tensors:
        raise InputError(
            f"the model returned {type(output).__name__}, which holds no floating tensor; pass a loss or a "
            "metric of your own"
        )
    return tensors


def is_cache(value: Any) -> bool:
    """Return whether a value is a cache of keys and values as Hugging Face has them."""
    return type(value).__name__.endswith("Cache")


def logits(output: Any) -> torch.Tensor:
    """Return the tensor of scores in a model's output: itself, `.logits`, or its first floating tensor.

    Example:
        >>> logits({"loss": None, "logits": torch.zeros(2)})
        tensor([0., 0.])
    """
    scores = named_logits(output)
    return floating_outputs(output)[0] if scores is None else scores


def named_logits(output: Any) -> torch.Tensor | None:
    """Return the tensor that a model's output calls ``logits``, or None."""
    scores = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    return scores if isinstance(scores, torch.Tensor) else None
