"""Operations that create tensors, and those that pool over positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from secateur.tracing.propagate import Propagation, TensorAxes
from secateur.tracing.rules.base import rule, words

__all__: list[str] = []

Shapes = list[tuple[int, ...]]


@rule("zeros", "new_zeros")
def zeros(propagation: Propagation, out: Shapes, *rest: Any, **options: Any) -> TensorAxes:
    """Create a tensor of zeros: its axes may carry units (an initial hidden state)."""
    return replace(propagation.new_tensor(out[0], True), all_zero=True)


@rule("ones", "full", "empty", "rand", "randn", "new_ones", "new_full", "new_empty")
def ones(propagation: Propagation, out: Shapes, *rest: Any, **options: Any) -> TensorAxes:
    """Create a tensor that is not zero."""
    return propagation.new_tensor(out[0], False)


@rule(
    "arange",
    "linspace",
    "scalar_tensor",
    "tril",
    "triu",
    "eye",
    "one_hot",
    "tensor",
    "randint",
    "randperm",
    "tril_indices",
    "triu_indices",
)
def constant(propagation: Propagation, out: Shapes, *rest: Any, **options: Any) -> TensorAxes:
    """Create a tensor whose values depend on positions: freeze everything."""
    for state in rest:
        if isinstance(state, TensorAxes):
            propagation.freeze_all(state, "used by position")
    return propagation.unlabelled(out[0], any(isinstance(s, TensorAxes) and s.data for s in rest))


POOLS = words(
    """max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
    max_pool2d_with_indices _adaptive_avg_pool2d lp_pool2d"""
)
RESIZES = words(
    """upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_linear1d
    upsample_trilinear3d upsample_bicubic2d"""
)


@rule(*POOLS, *RESIZES)
def pool(propagation: Propagation, out: Shapes, x: TensorAxes, *rest: Any, **options: Any) -> Any:
    """Pool or resize: pass batch and channels, freeze positions."""
    spatial = int(next(c for c in propagation.operation if c.isdigit()))
    x = propagation.freeze(x, range(x.ndim - spatial, x.ndim), "positions")
    results = [x.derived(shape=shape) for shape in out]
    return results[0] if len(results) == 1 else results
