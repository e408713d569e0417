"""Operations that read or write a part of a tensor: slices, splits, indices."""

from __future__ import annotations

from typing import Any

import numpy as np

from secateur.tracing.propagate import Propagation, TensorAxes
from secateur.tracing.rules.base import axes_of, rule
from secateur.tracing.stacked_states import stack_rows

__all__: list[str] = []

Shapes = list[tuple[int, ...]]


@rule("slice")
def slice_(
    propagation: Propagation,
    out: Shapes,
    x: TensorAxes,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> TensorAxes:
    """Take a range of an axis; record the bounds that the call states."""
    n = x.shape[dim]
    taken = slice(start, None if end is None or end >= n else end, step)
    label = x.labels[dim]
    if label is None or len(range(n)[taken]) == n:
        return x if out[0] == x.shape else x.piece(dim, out[0][dim], label)
    first, last, _ = taken.indices(n)
    if step > 1 and first < step and n % step == 0 and last == n:
        # One of every `step` neighbours: the neighbours live and die together.
        label, inner = propagation.algebra.split(label, n // step, step)
        propagation.algebra.freeze(inner, f"a strided slice: {propagation.location}")
        return x.piece(dim, out[0][dim], propagation.algebra.normal(label))
    for position, bound in enumerate((first, last)):
        if bound not in (0, n):
            propagation.record_size(position, bound, label[:bound])
    if step != 1:
        propagation.freeze(x, [dim], "a strided slice")
    return x.piece(dim, out[0][dim], label[taken] if step == 1 else None)


@rule("narrow")
def narrow(
    propagation: Propagation, out: Shapes, x: TensorAxes, dim: int, start: int, length: int
) -> TensorAxes:
    """Take a range of an axis."""
    return slice_(propagation, out, x, dim, start, start + length)


@rule("split", "chunk", "split_with_sizes", "tensor_split")
def split(propagation: Propagation, out: Shapes, x: TensorAxes, sizes: Any, dim: int = 0) -> list[TensorAxes]:
    """Cut an axis into parts; equal parts lose equally many indices, so the number of parts stays."""
    lengths = [shape[dim] for shape in out]
    ends = np.cumsum(lengths)
    label = x.labels[dim]
    parts = [None if label is None else label[e - n : e] for e, n in zip(ends, lengths, strict=True)]
    if not isinstance(sizes, (list, tuple)) and label is not None:
        if len(set(lengths)) > 1:
            x = propagation.freeze(x, [dim], "parts of unlike length")
            parts = [None] * len(parts)
        else:
            for part in parts[1:]:
                propagation.equate_lengths(parts[0], part)
            if propagation.operation_name != "chunk":
                propagation.record_size(0, int(sizes), parts[0])
    elif isinstance(sizes, (list, tuple)):
        for i, (size, part) in enumerate(zip(sizes, parts, strict=False)):
            propagation.record_size(i, int(size), part)
    return [x.piece(dim, n, part) for n, part in zip(lengths, parts, strict=True)]


@rule("unbind")
def unbind(propagation: Propagation, out: Shapes, x: TensorAxes, dim: int = 0) -> list[TensorAxes]:
    """Take an axis apart into its entries: freeze it.  The rows of stacked states keep their own units."""
    x = propagation.freeze(x, [dim], "taken apart by position")
    rows = [stack_rows(x, [row]) for row in x.rows] or [x] * len(out)
    return [row.without([dim]) for row in rows]


@rule("select")
def select(propagation: Propagation, out: Shapes, x: TensorAxes, dim: int, index: int) -> TensorAxes:
    """Take one position of an axis: freeze it."""
    return propagation.freeze(x, [dim], "indexed by position").without([dim])


@rule("index_select", "gather", "take_along_dim", "roll", "sort", "topk", "flip", "fliplr", "flipud")
def by_position(propagation: Propagation, out: Shapes, x: TensorAxes, *rest: Any, **options: Any) -> Any:
    """Freeze the axes that are addressed by position; pass the others if their lengths stay."""
    dim: Any
    if propagation.operation_name in ("roll", "flip"):
        dim = next((r for r in reversed(rest) if isinstance(r, (list, tuple))), None)
    elif propagation.operation_name == "topk":
        dim = rest[1] if len(rest) > 1 else -1
    else:
        dim = next((r for r in rest if isinstance(r, int) and not isinstance(r, bool)), None)
    axes = axes_of(options.get("dim", dim), x.ndim)
    x = propagation.freeze(x, axes, "addressed by position")
    if any(len(shape) != x.ndim for shape in out):
        propagation.freeze_all(x, "addressed by position")
        results = [propagation.unlabelled(shape, x.data) for shape in out]
    else:
        results = [x.derived(shape=shape) for shape in out]
        for shape in out:
            wrong = [a for a in range(x.ndim) if a not in axes and shape[a] != x.shape[a]]
            x = propagation.freeze(x, wrong, "addressed by position")
            results = [propagation.unlabelled(s, x.data) for s in out] if wrong else results
    return results[0] if len(results) == 1 else results


@rule("index")
def index(
    propagation: Propagation, out: Shapes, x: TensorAxes, indices: list[TensorAxes | None]
) -> TensorAxes:
    """Freeze the axes that are indexed by tensors; pass the others."""
    used = [i for i, index in enumerate(indices) if index is not None]
    x = propagation.freeze(x, used, "indexed by a tensor")
    together = used == list(range(used[0], used[-1] + 1))
    added = len(out[0]) - (x.ndim - len(used))
    at = used[0] if together else 0
    rest = x.without(used)
    labels = (*rest.labels[:at], *(None,) * added, *rest.labels[at:])
    zero = (*rest.zero[:at], *(True,) * added, *rest.zero[at:])
    return TensorAxes(out[0], labels, zero, True)


@rule("select_scatter")
def select_scatter(
    propagation: Propagation, out: Shapes, x: TensorAxes, source: TensorAxes, dim: int, index: int
) -> TensorAxes:
    """Write one position of an axis: freeze it, tie the others."""
    x = propagation.freeze(x, [dim], "written by position")
    rest = x.without([dim])
    shape, labels = propagation.broadcast(rest, source)
    zero = propagation.zero_flags(shape, [rest, source], every=True)
    dim %= x.ndim
    return TensorAxes(
        x.shape, (*labels[:dim], None, *labels[dim:]), (*zero[:dim], True, *zero[dim:]), x.data or source.data
    )


@rule("slice_scatter")
def slice_scatter(
    propagation: Propagation,
    out: Shapes,
    x: TensorAxes,
    source: TensorAxes,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> TensorAxes:
    """Write a range of an axis: tie the new entries to the old ones."""
    piece = slice_(propagation, [source.shape], x, dim, start, end, step)
    propagation.broadcast(piece, source)
    zero = propagation.zero_flags(x.shape, [source], every=True)
    return x.derived(
        zero=tuple(a and b for a, b in zip(x.zero, zero, strict=True)), data=x.data or source.data
    )


@rule("copy", "fill")
def copy(propagation: Propagation, out: Shapes, x: TensorAxes, source: Any, *rest: Any) -> TensorAxes:
    """Overwrite a tensor: tie it to the source, whose zeros it takes."""
    if not isinstance(source, TensorAxes):
        return x.derived() if source == 0 else x.nonzero()
    shape, labels = propagation.broadcast(x, source)
    return TensorAxes(shape, labels, propagation.zero_flags(shape, [source], every=True), source.data)
