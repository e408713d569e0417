"""Normalisations: an axis that they take a statistic over is frozen; their scales go with the units."""

from __future__ import annotations

from typing import Any

from secateur.tracing.propagate import Propagation, TensorAxes
from secateur.tracing.rules.base import rule

__all__: list[str] = []

Shapes = list[tuple[int, ...]]


@rule("batch_norm", "instance_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
def channel_norm(
    propagation: Propagation,
    out: Shapes,
    x: TensorAxes,
    weight: TensorAxes | None = None,
    bias: TensorAxes | None = None,
    mean: TensorAxes | None = None,
    var: TensorAxes | None = None,
    *rest: Any,
    **options: Any,
) -> Any:
    """Normalise every channel (axis 1) by itself: tie the tensors of the norm to the channels.

    Statistics that are taken from `x`, not stored, freeze the other axes: a weight that is standardised
    over its inputs needs all of them.
    """
    if rest and rest[0] is True:
        others = [axis for axis in range(x.ndim) if axis != 1]
        x = propagation.freeze(x, others, "the normalisation takes a statistic over the axis")
    label = x.labels[1]
    for state in (weight, bias, mean, var):
        if isinstance(state, TensorAxes):
            label = propagation.equate(label, state.labels[0])
            propagation.record_role(state, 0, "scale")
    if weight is not None:
        propagation.record_layer("norm", weight, None, None, 0.0)
    if "Norm" in propagation.module_class:
        propagation.record_size_attribute("num_features", x.shape[1], label)
    zero = (x.zero[1] and mean is None) if weight is None else weight.zero[0]
    zero = zero and (bias is None or bias.zero[0])
    result = x.nonzero().with_axis(1, x.shape[1], label, zero)
    return result if len(out) == 1 else [result] + [propagation.unlabelled(s) for s in out[1:]]


@rule("layer_norm", "rms_norm", "native_layer_norm", "_fused_rms_norm")
def layer_norm(
    propagation: Propagation,
    out: Shapes,
    x: TensorAxes,
    normalized_shape: list[int],
    weight: TensorAxes | None = None,
    bias: Any = None,
    *rest: Any,
    **options: Any,
) -> Any:
    """Normalise over the last axes: freeze them, unless `NarrowNorm` can replace the module."""
    n = len(normalized_shape)
    states = [s for s in (weight, bias) if isinstance(s, TensorAxes)]
    for state in states:
        for axis in range(state.ndim):
            propagation.record_role(state, axis, "scale")
    if weight is not None and weight.ndim == 1:
        propagation.record_layer("norm", weight, None, None, 0.0)
    if n == 1 and propagation.can_narrow(x):
        label = x.labels[-1]
        for state in states:
            label = propagation.equate(label, state.labels[0])
        result = x.nonzero().with_axis(-1, x.shape[-1], label, weight is not None)
    else:
        why = "the normalisation takes a statistic over the axis"
        for state in states:
            propagation.freeze_all(state, why)
        result = propagation.freeze(x, range(x.ndim - n, x.ndim), why).nonzero()
    return result if len(out) == 1 else [result] + [propagation.unlabelled(s) for s in out[1:]]


@rule("_weight_norm")
def weight_norm(
    propagation: Propagation, out: Shapes, v: TensorAxes, g: TensorAxes, dim: int = 0
) -> TensorAxes:
    """Give the slices v[i] along an axis the norms g[i].

    Entries that are 0 change no norm, so the other axes may lose them.  A slice of zeros has no direction,
    so all slices stay.
    """
    why = "a slice of zeros cannot be given a norm"
    propagation.freeze(g, [dim], why)
    for axis, role in ((0, "out"), (1, "in")):
        propagation.record_role(v, axis, role)  # type: ignore[arg-type]
    return propagation.freeze(v, [dim], why).derived()


@rule("group_norm")
def group_norm(
    propagation: Propagation,
    out: Shapes,
    x: TensorAxes,
    groups: int,
    weight: TensorAxes | None = None,
    bias: TensorAxes | None = None,
    *rest: Any,
    **options: Any,
) -> TensorAxes:
    """Normalise within groups of channels: only whole groups can go."""
    channels = x.shape[1]
    label = x.labels[1]
    for state in (weight, bias):
        if state is not None:
            label = propagation.equate(label, state.labels[0])
            propagation.record_role(state, 0, "scale")
    outer, inner = propagation.algebra.split(label, groups, channels // groups)
    propagation.algebra.freeze(
        inner, f"the normalisation takes a statistic over the group: {propagation.location}"
    )
    if propagation.module_class.endswith("GroupNorm"):
        propagation.record_size_attribute("num_groups", groups, propagation.algebra.normal(outer))
        propagation.record_size_attribute("num_channels", channels, propagation.algebra.normal(label))
    else:
        propagation.record_size(0, groups, propagation.algebra.normal(outer))
    if weight is not None:
        propagation.record_layer("norm", weight, None, None, 0.0)
    zero = weight is not None or x.zero[1]
    return x.nonzero().with_axis(1, channels, propagation.algebra.normal(label), zero)
