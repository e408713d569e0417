"""Operations that only move entries: views, permutations, slices, joins, and creation."""

from __future__ import annotations

from typing import Any

import numpy as np

from secateur.tracing.propagate import Axes, Flow, concatenate
from secateur.tracing.rules.base import aligned, rule

__all__: list[str] = []

Shapes = list[tuple[int, ...]]


@rule("view", "reshape", "_unsafe_view", "_reshape_alias")
def view(flow: Flow, out: Shapes, x: Axes, sizes: list[int]) -> Axes:
    """Regroup the axes; remember the sizes that the code wrote."""
    if not isinstance(sizes, (list, tuple)):
        flow.freeze_all(x, "a view as another type")
        return flow.plain(out[0], x.data)
    result = flow.reshape(x, out[0])
    for i, (size, label) in enumerate(zip(sizes, result.labels, strict=True)):
        flow.literal(i, size, label)
    return result


@rule(
    "flatten",
    "squeeze",
    "unsqueeze",
    "ravel",
    "view_as",
    "reshape_as",
    "atleast_1d",
    "atleast_2d",
    "atleast_3d",
)
def regroup(flow: Flow, out: Shapes, x: Axes, *rest: Any, **options: Any) -> Axes:
    """Regroup the axes where the code wrote no size."""
    return flow.reshape(x, out[0])


@rule("unflatten")
def unflatten(flow: Flow, out: Shapes, x: Axes, dim: int, sizes: list[int]) -> Axes:
    """Split one axis into written sizes."""
    result = flow.reshape(x, out[0])
    for i, size in enumerate(sizes):
        flow.literal(i, size, result.labels[dim % x.ndim + i])
    return result


@rule("transpose", "swapaxes", "swapdims")
def transpose(flow: Flow, out: Shapes, x: Axes, i: int, j: int) -> Axes:
    """Swap two axes."""
    order = list(range(x.ndim))
    order[i], order[j] = order[j], order[i]
    return x.permute(order)


@rule("t", "numpy_T", "adjoint", "mT", "matrix_H", "mH")
def reverse(flow: Flow, out: Shapes, x: Axes) -> Axes:
    """Swap the last two axes (`t`, `mT`), or reverse all (`T`)."""
    if x.ndim < 2:
        return x
    order = list(range(x.ndim))
    if flow.name == "numpy_T":
        return x.permute(order[::-1])
    order[-1], order[-2] = order[-2], order[-1]
    return x.permute(order)


@rule("permute")
def permute(flow: Flow, out: Shapes, x: Axes, order: list[int]) -> Axes:
    """Permute the axes."""
    return x.permute(order)


@rule("movedim", "moveaxis")
def movedim(flow: Flow, out: Shapes, x: Axes, source: Any, destination: Any) -> Axes:
    """Move axes to other places."""
    source, destination = aligned(source, x.ndim), aligned(destination, x.ndim)
    order = [i for i in range(x.ndim) if i not in source]
    for place, axis in sorted(zip(destination, source, strict=True)):
        order.insert(place, axis)
    return x.permute(order)


@rule("expand", "broadcast_to", "expand_as")
def expand(flow: Flow, out: Shapes, x: Axes, sizes: Any, **options: Any) -> Axes:
    """Repeat axes of length 1: new atoms there, which may turn out to be units (grouped queries)."""
    shape = out[0]
    lead = len(shape) - x.ndim
    labels, zero = [], []
    for i, n in enumerate(shape):
        kept = i >= lead and x.shape[i - lead] == n
        labels.append(x.labels[i - lead] if kept else flow.atoms.label(n))
        zero.append(x.zero[i - lead] if kept else False)
        if isinstance(sizes, (list, tuple)):
            flow.literal(i, sizes[i], labels[-1])
    return x.derived(shape=shape, labels=tuple(labels), zero=tuple(zero))


@rule("repeat", "tile")
def repeat(flow: Flow, out: Shapes, x: Axes, counts: list[int]) -> Axes:
    """Repeat axes end to end."""
    lead = len(out[0]) - x.ndim
    counts = [1] * (len(out[0]) - len(counts)) + list(counts)
    labels: list[Any] = [None] * lead
    for label, n in zip(x.labels, counts[lead:], strict=True):
        labels.append(label if n == 1 or label is None else np.tile(label, (n, 1)))
    return Axes(out[0], tuple(labels), (True,) * lead + x.zero, x.data)


@rule("repeat_interleave")
def repeat_interleave(
    flow: Flow, out: Shapes, x: Axes, repeats: Any, dim: int | None = None, **options: Any
) -> Axes:
    """Repeat every entry of an axis in place: (axis, new atoms)."""
    if not isinstance(repeats, int) or dim is None:
        flow.freeze_all(x, "repeats by tensor")
        return flow.plain(out[0], x.data)
    fresh = flow.atoms.label(repeats)
    flow.literal(0, repeats, fresh)
    label = flow.atoms.merge(x.labels[dim], x.shape[dim], fresh, repeats)
    return x.with_axis(dim, x.shape[dim] * repeats, label, x.zero[dim] and fresh is None)


@rule("cat", "concat", "concatenate")
def cat(flow: Flow, out: Shapes, tensors: list[Axes], dim: int = 0) -> Axes:
    """Join along one axis, tie the others."""
    parts = [t for t in tensors if t.shape != (0,)]
    dim %= len(out[0])
    labels = list(parts[0].labels)
    for axis in range(len(out[0])):
        if axis == dim:
            labels[axis] = concatenate([p.labels[axis] for p in parts], [p.shape[axis] for p in parts])
        else:
            for other in parts[1:]:
                labels[axis] = flow.equate(labels[axis], other.labels[axis])
    zero = tuple(all(p.zero[a] for p in parts) for a in range(len(out[0])))
    return Axes(out[0], tuple(labels), zero, any(p.data for p in parts))


@rule("stack")
def stack(flow: Flow, out: Shapes, tensors: list[Axes], dim: int = 0) -> Axes:
    """Tie the operands; the new axis stays."""
    shape, labels = flow.elementwise(*tensors)
    zero = flow.zeros(shape, tensors, every=True)
    dim %= len(out[0])
    return Axes(
        out[0],
        (*labels[:dim], None, *labels[dim:]),
        (*zero[:dim], True, *zero[dim:]),
        any(t.data for t in tensors),
    )


@rule(
    "constant_pad_nd", "pad", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d"
)
def pad(
    flow: Flow, out: Shapes, x: Axes, padding: list[int], mode: Any = "constant", value: Any = None
) -> Axes:
    """Lengthen axes by entries that are always there."""
    fill = mode if not isinstance(mode, str) else (value or 0)
    for i in range(len(padding) // 2):
        axis = x.ndim - 1 - i
        before, after = padding[2 * i], padding[2 * i + 1]
        if (before, after) == (0, 0):
            continue
        if x.labels[axis] is not None and (
            min(before, after) < 0 or (isinstance(mode, str) and mode != "constant")
        ):
            x = flow.freeze(x, [axis], "padded from its own entries")
        label = (
            concatenate([None, x.labels[axis], None], [before, x.shape[axis], after])
            if min(before, after) >= 0
            else None
        )
        x = x.with_axis(axis, out[0][axis], label, x.zero[axis])
    return x.derived(zero=x.zero if fill == 0 else (False,) * x.ndim)


@rule("pixel_shuffle")
def pixel_shuffle(flow: Flow, out: Shapes, x: Axes, factor: int) -> Axes:
    """Turn channels (C, r^2) into positions: the inner part stays."""
    squared = factor**2
    channels, inner = flow.atoms.split(x.labels[-3], x.shape[-3] // squared, squared)
    flow.atoms.freeze(inner, f"its length is squared: {flow.place}")
    x = flow.freeze(x, [-1, -2], "spatial")
    return x.with_axis(-3, out[0][-3], flow.atoms.normal(channels), x.zero[-3]).derived(shape=out[0])


@rule("pixel_unshuffle")
def pixel_unshuffle(flow: Flow, out: Shapes, x: Axes, factor: int) -> Axes:
    """Turn positions into channels (C, r^2)."""
    x = flow.freeze(x, [-1, -2], "spatial")
    label = flow.atoms.merge(x.labels[-3], x.shape[-3], None, factor**2)
    return x.with_axis(-3, out[0][-3], label, x.zero[-3]).derived(shape=out[0])


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(flow: Flow, out: Shapes, x: Axes, groups: int) -> Axes:
    """Swap (group, channel) to (channel, group); the number of groups stays."""
    outer, inner = flow.atoms.split(x.labels[1], groups, x.shape[1] // groups)
    flow.atoms.freeze(outer, f"the number of groups is written: {flow.place}")
    label = flow.atoms.merge(flow.atoms.normal(inner), x.shape[1] // groups, None, groups)
    return x.with_axis(1, x.shape[1], label, x.zero[1])
