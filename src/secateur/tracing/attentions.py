"""Watch attentions while a model runs: the fused function, or a softmax between two products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["AttentionWatch"]

SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)
PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm)
ADDED = (torch.baddbmm, Tensor.baddbmm)


class AttentionWatch(TorchFunctionMode):
    """Call a function with the queries, keys and values of each attention.

    Args:
        watch: Called with them, [batch, heads, tokens, positions] where the heads have an axis of their own,
            before the attention mixes the values.
    """

    def __init__(self, watch: Callable[[Tensor, Tensor, Tensor], None]) -> None:
        """Start without an attention."""
        super().__init__()
        self._watch = watch
        self._scored: tuple[Tensor, Tensor] | None = None  # queries and keys of the last product
        self._shape: torch.Size | None = None  # of the scores in the softmax after it

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at the arguments, then run the function."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            named = {**dict(zip(("query", "key", "value"), args, strict=False)), **kwargs}
            self._watch(*(named[name] for name in ("query", "key", "value")))
        elif func in SOFTMAX:
            self._shape = None if self._scored is None else args[0].shape
        elif func in ADDED or (func in PRODUCTS and args[0].ndim > 2):
            self._multiply(*([*args, *kwargs.values()][1:3] if func in ADDED else args[:2]))
        return func(*args, **kwargs)

    def _multiply(self, a: Tensor, b: Tensor) -> None:
        if self._shape is None:
            self._scored = a, b.transpose(-1, -2)
            return
        if self._scored is not None and len(self._shape) == 4:
            inputs = (*self._scored, b)  # [batch * heads, ...] in Bloom
            self._watch(*(x if x.ndim == 4 else x.unflatten(0, self._shape[:2]) for x in inputs))
        self._scored = self._shape = None
