"""Operations that only move or repeat entries: views, permutations, expansions, joins, padding, shuffles.

Slices are in `slices`, creation is in `creation`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from secateur.tracing.labels import concatenate
from secateur.tracing.propagate import Propagation, TensorAxes
from secateur.tracing.rules.base import axes_of, rule

__all__: list[str] = []

Shapes = list[tuple[int, ...]]


@rule("view", "reshape", "_unsafe_view", "_reshape_alias")
def view(propagation: Propagation, out: Shapes, x: TensorAxes, sizes: list[int]) -> TensorAxes:
    """Regroup the axes; record the sizes that the call states."""
    if not isinstance(sizes, (list, tuple)):
        propagation.freeze_all(x, "a view as another type")
        return propagation.unlabelled(out[0], x.data)
    result = propagation.reshape(x, out[0])
    for i, (size, label) in enumerate(zip(sizes, result.labels, strict=True)):
        propagation.record_size(i, size, label)
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
def regroup(propagation: Propagation, out: Shapes, x: TensorAxes, *rest: Any, **options: Any) -> TensorAxes:
    """Regroup the axes where the call states no size."""
    return propagation.reshape(x, out[0])


@rule("unflatten")
def unflatten(propagation: Propagation, out: Shapes, x: TensorAxes, dim: int, sizes: list[int]) -> TensorAxes:
    """Split one axis into the stated sizes."""
    result = propagation.reshape(x, out[0])
    for i, size in enumerate(sizes):
        propagation.record_size(i, size, result.labels[dim % x.ndim + i])
    return result


@rule("transpose", "swapaxes", "swapdims")
def transpose(propagation: Propagation, out: Shapes, x: TensorAxes, i: int, j: int) -> TensorAxes:
    """Swap two axes."""
    order = list(range(x.ndim))
    order[i], order[j] = order[j], order[i]
    return x.permute(order)


@rule("t", "numpy_T", "adjoint", "mT", "matrix_H", "mH")
def reverse(propagation: Propagation, out: Shapes, x: TensorAxes) -> TensorAxes:
    """Swap the last two axes (`t`, `mT`), or reverse all (`T`)."""
    if x.ndim < 2:
        return x
    order = list(range(x.ndim))
    if propagation.operation_name == "numpy_T":
        return x.permute(order[::-1])
    order[-1], order[-2] = order[-2], order[-1]
    return x.permute(order)


@rule("permute")
def permute(propagation: Propagation, out: Shapes, x: TensorAxes, order: list[int]) -> TensorAxes:
    """Permute the axes."""
    return x.permute(order)


@rule("movedim", "moveaxis")
def movedim(
    propagation: Propagation, out: Shapes, x: TensorAxes, source: Any, destination: Any
) -> TensorAxes:
    """Move axes to other positions."""
    source, destination = axes_of(source, x.ndim), axes_of(destination, x.ndim)
    order = [i for i in range(x.ndim) if i not in source]
    for position, axis in sorted(zip(destination, source, strict=True)):
        order.insert(position, axis)
    return x.permute(order)


@rule("expand", "broadcast_to", "expand_as")
def expand(propagation: Propagation, out: Shapes, x: TensorAxes, sizes: Any, **options: Any) -> TensorAxes:
    """Repeat axes of length 1: each gets new atoms, which may turn out to be units (grouped queries)."""
    shape = out[0]
    lead = len(shape) - x.ndim
    labels, zero = [], []
    for i, n in enumerate(shape):
        kept = i >= lead and x.shape[i - lead] == n
        labels.append(x.labels[i - lead] if kept else propagation.algebra.label(n))
        propagation.repeated += [] if kept else labels[-1:]
        zero.append(x.zero[i - lead] if kept else False)
        if isinstance(sizes, (list, tuple)):
            propagation.record_size(i, sizes[i], labels[-1])
    return x.derived(shape=shape, labels=tuple(labels), zero=tuple(zero), all_zero=x.all_zero)


@rule("repeat", "tile")
def repeat(propagation: Propagation, out: Shapes, x: TensorAxes, counts: list[int]) -> TensorAxes:
    """Repeat axes end to end."""
    lead = len(out[0]) - x.ndim
    counts = [1] * (len(out[0]) - len(counts)) + list(counts)
    labels: list[Any] = [None] * lead
    for label, n in zip(x.labels, counts[lead:], strict=True):
        labels.append(label if n == 1 or label is None else np.tile(label, (n, 1)))
    return TensorAxes(out[0], tuple(labels), (True,) * lead + x.zero, x.data, all_zero=x.all_zero)


@rule("repeat_interleave")
def repeat_interleave(
    propagation: Propagation, out: Shapes, x: TensorAxes, repeats: Any, dim: int | None = None, **options: Any
) -> TensorAxes:
    """Repeat every entry of an axis in place: (axis, new atoms)."""
    if not isinstance(repeats, int) or dim is None:
        propagation.freeze_all(x, "repeats by tensor")
        return propagation.unlabelled(out[0], x.data)
    fresh = propagation.algebra.label(repeats)
    propagation.record_size(0, repeats, fresh)
    propagation.repeated.append(fresh)
    label = propagation.algebra.merge(x.labels[dim], x.shape[dim], fresh, repeats)
    return x.with_axis(dim, x.shape[dim] * repeats, label, x.zero[dim] and fresh is None)


@rule("cat", "concat", "concatenate")
def cat(propagation: Propagation, out: Shapes, tensors: list[TensorAxes], dim: int = 0) -> TensorAxes:
    """Join tensors along one axis; tie the other axes."""
    parts = [t for t in tensors if t.shape != (0,)]
    dim %= len(out[0])
    labels = list(parts[0].labels)
    for axis in range(len(out[0])):
        if axis == dim:
            labels[axis] = concatenate([p.labels[axis] for p in parts], [p.shape[axis] for p in parts])
        else:
            for other in parts[1:]:
                labels[axis] = propagation.equate(labels[axis], other.labels[axis])
    zero = tuple(all(p.zero[a] for p in parts) for a in range(len(out[0])))
    return TensorAxes(out[0], tuple(labels), zero, any(p.data for p in parts))


@rule("stack")
def stack(propagation: Propagation, out: Shapes, tensors: list[TensorAxes], dim: int = 0) -> TensorAxes:
    """Stack tensors: tie them; the new axis has no units."""
    shape, labels = propagation.broadcast(*tensors)
    zero = propagation.zero_flags(shape, tensors, every=True)
    dim %= len(out[0])
    return TensorAxes(
        out[0],
        (*labels[:dim], None, *labels[dim:]),
        (*zero[:dim], True, *zero[dim:]),
        any(t.data for t in tensors),
    )


@rule(
    "constant_pad_nd", "pad", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d"
)
def pad(
    propagation: Propagation,
    out: Shapes,
    x: TensorAxes,
    padding: list[int],
    mode: Any = "constant",
    value: Any = None,
) -> TensorAxes:
    """Pad axes with entries that are always alive."""
    fill = mode if not isinstance(mode, str) else (value or 0)
    for i in range(len(padding) // 2):
        axis = x.ndim - 1 - i
        before, after = padding[2 * i], padding[2 * i + 1]
        if (before, after) == (0, 0):
            continue
        if x.labels[axis] is not None and (
            min(before, after) < 0 or (isinstance(mode, str) and mode != "constant")
        ):
            x = propagation.freeze(x, [axis], "padded from its own entries")
        label = (
            concatenate([None, x.labels[axis], None], [before, x.shape[axis], after])
            if min(before, after) >= 0
            else None
        )
        x = x.with_axis(axis, out[0][axis], label, x.zero[axis])
    return x.derived(zero=x.zero if fill == 0 else (False,) * x.ndim)


@rule("pixel_shuffle")
def pixel_shuffle(propagation: Propagation, out: Shapes, x: TensorAxes, factor: int) -> TensorAxes:
    """Turn channels (C, r^2) into positions: freeze the r^2."""
    squared = factor**2
    channels, inner = propagation.algebra.split(x.labels[-3], x.shape[-3] // squared, squared)
    propagation.algebra.freeze(inner, f"its length is squared: {propagation.location}")
    x = propagation.freeze(x, [-1, -2], "spatial")
    return x.with_axis(-3, out[0][-3], propagation.algebra.normal(channels), x.zero[-3]).derived(shape=out[0])


@rule("pixel_unshuffle")
def pixel_unshuffle(propagation: Propagation, out: Shapes, x: TensorAxes, factor: int) -> TensorAxes:
    """Turn positions into channels (C, r^2)."""
    x = propagation.freeze(x, [-1, -2], "spatial")
    label = propagation.algebra.merge(x.labels[-3], x.shape[-3], None, factor**2)
    return x.with_axis(-3, out[0][-3], label, x.zero[-3]).derived(shape=out[0])


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(propagation: Propagation, out: Shapes, x: TensorAxes, groups: int) -> TensorAxes:
    """Swap (group, channel) to (channel, group): freeze the groups."""
    outer, inner = propagation.algebra.split(x.labels[1], groups, x.shape[1] // groups)
    propagation.algebra.freeze(outer, f"the number of groups is written: {propagation.location}")
    label = propagation.algebra.merge(propagation.algebra.normal(inner), x.shape[1] // groups, None, groups)
    return x.with_axis(1, x.shape[1], label, x.zero[1])
