"""Operations that take or write a part of a tensor: slices, splits, indices."""

from __future__ import annotations

from typing import Any

import numpy as np

from secateur.tracing.propagate import Axes, Flow
from secateur.tracing.rules.base import aligned, rule

__all__: list[str] = []

Shapes = list[tuple[int, ...]]


@rule("slice")
def slice_(
    flow: Flow,
    out: Shapes,
    x: Axes,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Axes:
    """Take a range of an axis; remember the bounds that the code wrote."""
    n = x.shape[dim]
    taken = slice(start, None if end is None or end >= n else end, step)
    label = x.labels[dim]
    if label is None or len(range(n)[taken]) == n:
        return x if out[0] == x.shape else x.piece(dim, out[0][dim], label)
    first, last, _ = taken.indices(n)
    for position, bound in enumerate((first, last)):
        if bound not in (0, n):
            flow.literal(position, bound, label[:bound])
    if step != 1:
        flow.freeze(x, [dim], "a strided slice")
    return x.piece(dim, out[0][dim], label[taken] if step == 1 else None)


@rule("narrow")
def narrow(flow: Flow, out: Shapes, x: Axes, dim: int, start: int, length: int) -> Axes:
    """Take a range of an axis."""
    return slice_(flow, out, x, dim, start, start + length)


@rule("split", "chunk", "split_with_sizes", "tensor_split")
def split(flow: Flow, out: Shapes, x: Axes, sizes: Any, dim: int = 0) -> list[Axes]:
    """Cut an axis in parts; equal parts lose the same indices, so that counting still works."""
    lengths = [shape[dim] for shape in out]
    ends = np.cumsum(lengths)
    label = x.labels[dim]
    parts = [None if label is None else label[e - n : e] for e, n in zip(ends, lengths, strict=True)]
    if not isinstance(sizes, (list, tuple)) and label is not None:
        if len(set(lengths)) > 1:
            x = flow.freeze(x, [dim], "parts of unlike length")
            parts = [None] * len(parts)
        else:
            for part in parts[1:]:
                flow.equate(parts[0], part)
            if flow.name != "chunk":
                flow.literal(0, int(sizes), parts[0])
    elif isinstance(sizes, (list, tuple)):
        for i, (size, part) in enumerate(zip(sizes, parts, strict=False)):
            flow.literal(i, int(size), part)
    return [x.piece(dim, n, part) for n, part in zip(lengths, parts, strict=True)]


@rule("unbind")
def unbind(flow: Flow, out: Shapes, x: Axes, dim: int = 0) -> list[Axes]:
    """Take an axis apart: it stays as long as it is."""
    return [flow.freeze(x, [dim], "taken apart by position").without([dim])] * len(out)


@rule("select")
def select(flow: Flow, out: Shapes, x: Axes, dim: int, index: int) -> Axes:
    """Take one position of an axis: it stays."""
    return flow.freeze(x, [dim], "indexed by position").without([dim])


@rule("index_select", "gather", "take_along_dim", "roll", "sort", "topk", "flip", "fliplr", "flipud")
def by_position(flow: Flow, out: Shapes, x: Axes, *rest: Any, **options: Any) -> Any:
    """Freeze the axes that are addressed by position; pass the others where the shape allows."""
    dim: Any
    if flow.name in ("roll", "flip"):
        dim = next((r for r in reversed(rest) if isinstance(r, (list, tuple))), None)
    elif flow.name == "topk":
        dim = rest[1] if len(rest) > 1 else -1
    else:
        dim = next((r for r in rest if isinstance(r, int) and not isinstance(r, bool)), None)
    axes = aligned(options.get("dim", dim), x.ndim)
    x = flow.freeze(x, axes, "addressed by position")
    if any(len(shape) != x.ndim for shape in out):
        flow.freeze_all(x, "addressed by position")
        results = [flow.plain(shape, x.data) for shape in out]
    else:
        results = [x.derived(shape=shape) for shape in out]
        for shape in out:
            wrong = [a for a in range(x.ndim) if a not in axes and shape[a] != x.shape[a]]
            x = flow.freeze(x, wrong, "addressed by position")
            results = [flow.plain(s, x.data) for s in out] if wrong else results
    return results[0] if len(results) == 1 else results


@rule("index")
def index(flow: Flow, out: Shapes, x: Axes, indices: list[Axes | None]) -> Axes:
    """Freeze the axes indexed by tensors; pass the others when the indices stand together."""
    used = [i for i, index in enumerate(indices) if index is not None]
    x = flow.freeze(x, used, "indexed by a tensor")
    together = used == list(range(used[0], used[-1] + 1))
    added = len(out[0]) - (x.ndim - len(used))
    at = used[0] if together else 0
    rest = x.without(used)
    labels = (*rest.labels[:at], *(None,) * added, *rest.labels[at:])
    zero = (*rest.zero[:at], *(True,) * added, *rest.zero[at:])
    return Axes(out[0], labels, zero, True)


@rule("select_scatter")
def select_scatter(flow: Flow, out: Shapes, x: Axes, source: Axes, dim: int, index: int) -> Axes:
    """Write one position of an axis: it stays, the others tie."""
    x = flow.freeze(x, [dim], "written by position")
    rest = x.without([dim])
    shape, labels = flow.elementwise(rest, source)
    zero = flow.zeros(shape, [rest, source], every=True)
    dim %= x.ndim
    return Axes(
        x.shape, (*labels[:dim], None, *labels[dim:]), (*zero[:dim], True, *zero[dim:]), x.data or source.data
    )


@rule("slice_scatter")
def slice_scatter(
    flow: Flow,
    out: Shapes,
    x: Axes,
    source: Axes,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Axes:
    """Write a range of an axis: tie what is written with what was there."""
    piece = slice_(flow, [source.shape], x, dim, start, end, step)
    flow.elementwise(piece, source)
    zero = flow.zeros(x.shape, [source], every=True)
    return x.derived(
        zero=tuple(a and b for a, b in zip(x.zero, zero, strict=True)), data=x.data or source.data
    )


@rule("copy", "fill")
def copy(flow: Flow, out: Shapes, x: Axes, source: Any, *rest: Any) -> Axes:
    """Overwrite: tie, and take over the zeros of the source."""
    if not isinstance(source, Axes):
        return x.derived() if source == 0 else x.nonzero()
    shape, labels = flow.elementwise(x, source)
    return Axes(shape, labels, flow.zeros(shape, [source], every=True), source.data)
