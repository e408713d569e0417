"""Multi-head attention whose inner width may differ from its outer width.

`torch.nn.MultiheadAttention` takes its inner width from `embed_dim`, so it cannot lose a head.  This module
computes the same results from the same tensors, and takes the widths from the tensors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["SlimAttention"]


class SlimAttention(nn.Module):
    """Replacement of an `nn.MultiheadAttention` that has lost heads or features.

    Args:
        attention: A module whose tensors have their final shapes; they are used, not copied.
        head_dim: Length of a head.  The scale stays 1 / sqrt(head_dim).

    Example:
        >>> whole = nn.MultiheadAttention(8, 2, batch_first=True).eval()
        >>> x = torch.randn(2, 5, 8)
        >>> bool(torch.allclose(SlimAttention(whole, 4)(x, x, x)[0], whole(x, x, x)[0], atol=1e-6))
        True
    """

    _qkv_same_embed_dim = False  # keeps nn.TransformerEncoder off its fused path, which assumes one width

    def __init__(self, attention: nn.MultiheadAttention, head_dim: int) -> None:
        """Use the tensors of the given module."""
        super().__init__()
        self.head_dim = head_dim
        self.batch_first = attention.batch_first
        self.dropout = attention.dropout
        self.in_proj_weight = attention.in_proj_weight
        self.q_proj_weight = attention.q_proj_weight
        self.k_proj_weight = attention.k_proj_weight
        self.v_proj_weight = attention.v_proj_weight
        self.in_proj_bias = attention.in_proj_bias
        self.out_proj = attention.out_proj
        self.embed_dim = self.out_proj.weight.shape[0]
        rows = (
            self.in_proj_weight.shape[0] // 3
            if self.in_proj_weight is not None
            else self.q_proj_weight.shape[0]
        )
        self.num_heads = rows // head_dim
        self.training = attention.training

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, with the arguments and results of `nn.MultiheadAttention.forward`."""
        batched = query.dim() == 3
        if not batched:
            query, key, value = (t.unsqueeze(1) for t in (query, key, value))
        elif self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        # As in nn.MultiheadAttention, weights multiply [time, batch, features]: a repair compares these rows.
        q, k, v = self._project(query, key, value)
        bias = self._mask(q, k, attn_mask, key_padding_mask)
        if bias is None and is_causal:
            raise ValueError("is_causal needs attn_mask, as in nn.MultiheadAttention")
        shown = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
            weights = (scores if bias is None else scores + bias).softmax(-1)
            weights = functional.dropout(weights, self.dropout, self.training)
            heads = weights @ v
            shown = weights.mean(1) if average_attn_weights else weights
        else:
            rate = self.dropout if self.training else 0.0
            heads = functional.scaled_dot_product_attention(q, k, v, bias, rate)
        out = self.out_proj(heads.permute(2, 0, 1, 3).flatten(2))
        if not batched:
            return out.squeeze(1), None if shown is None else shown.squeeze(0)
        return (out.transpose(0, 1) if self.batch_first else out), shown

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return [
            functional.linear(x, w, b).unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0, 3)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        ]

    def _mask(self, q: Tensor, k: Tensor, mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
        """Return the sum of the masks as floats that broadcast over [batch, heads, queries, keys]."""
        total = None
        if mask is not None:
            total = _as_float(mask, q)
            total = total.unflatten(0, (q.shape[0], -1)) if total.dim() == 3 else total
        if padding is not None:
            extra = _as_float(padding, q).reshape(-1, 1, 1, k.shape[-2])
            total = extra if total is None else total + extra
        return total


def _as_float(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf)
