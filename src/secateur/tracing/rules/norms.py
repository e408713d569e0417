"""Normalisations: what they compute statistics over cannot shrink; what they scale goes along."""

from __future__ import annotations

from typing import Any

from secateur.tracing.propagate import Axes, Flow
from secateur.tracing.rules.base import rule

__all__: list[str] = []

Shapes = list[tuple[int, ...]]


@rule("batch_norm", "instance_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
def channel_norm(
    flow: Flow,
    out: Shapes,
    x: Axes,
    weight: Axes | None = None,
    bias: Axes | None = None,
    mean: Axes | None = None,
    var: Axes | None = None,
    *rest: Any,
    **options: Any,
) -> Any:
    """Normalise every channel (axis 1) alone."""
    label = x.labels[1]
    for state in (weight, bias, mean, var):
        if isinstance(state, Axes):
            label = flow.equate(label, state.labels[0])
            flow.role(state, 0, "scale")
    if weight is not None:
        flow.layer("norm", weight, None, None, 0.0)
    if "Norm" in flow.owner_class:
        flow.size("num_features", x.shape[1], label)
    zero = weight is not None or (mean is None and x.zero[1] and bias is None)
    result = (
        x.with_axis(1, x.shape[1], label, zero).nonzero()
        if not zero
        else x.with_axis(1, x.shape[1], label, True)
    )
    return result if len(out) == 1 else [result] + [flow.plain(s) for s in out[1:]]


@rule("layer_norm", "rms_norm", "native_layer_norm", "_fused_rms_norm")
def layer_norm(
    flow: Flow,
    out: Shapes,
    x: Axes,
    normalized_shape: list[int],
    weight: Axes | None = None,
    bias: Any = None,
    *rest: Any,
    **options: Any,
) -> Any:
    """Normalise over the last axes: they stay, unless the module can be replaced by a narrower one."""
    n = len(normalized_shape)
    states = [s for s in (weight, bias) if isinstance(s, Axes)]
    for state in states:
        for axis in range(state.ndim):
            flow.role(state, axis, "scale")
    if weight is not None and weight.ndim == 1:
        flow.layer("norm", weight, None, None, 0.0)
    if n == 1 and flow.narrows(x):
        label = x.labels[-1]
        for state in states:
            label = flow.equate(label, state.labels[0])
        result = x.nonzero().with_axis(-1, x.shape[-1], label, weight is not None)
    else:
        why = "the normalisation takes a statistic over the axis"
        for state in states:
            flow.freeze_all(state, why)
        result = flow.freeze(x, range(x.ndim - n, x.ndim), why).nonzero()
    return result if len(out) == 1 else [result] + [flow.plain(s) for s in out[1:]]


@rule("group_norm")
def group_norm(
    flow: Flow,
    out: Shapes,
    x: Axes,
    groups: int,
    weight: Axes | None = None,
    bias: Axes | None = None,
    *rest: Any,
    **options: Any,
) -> Axes:
    """Normalise within groups of channels: a group goes whole."""
    channels = x.shape[1]
    label = x.labels[1]
    for state in (weight, bias):
        if state is not None:
            label = flow.equate(label, state.labels[0])
            flow.role(state, 0, "scale")
    outer, inner = flow.atoms.split(label, groups, channels // groups)
    flow.atoms.freeze(inner, f"the normalisation takes a statistic over the group: {flow.place}")
    if flow.owner_class.endswith("GroupNorm"):
        flow.size("num_groups", groups, flow.atoms.normal(outer))
        flow.size("num_channels", channels, flow.atoms.normal(label))
    else:
        flow.literal(0, groups, flow.atoms.normal(outer))
    if weight is not None:
        flow.layer("norm", weight, None, None, 0.0)
    zero = weight is not None or x.zero[1]
    return x.nonzero().with_axis(1, channels, flow.atoms.normal(label), zero)
