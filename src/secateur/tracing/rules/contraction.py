"""Operations that sum over an axis of two operands: linear maps, convolutions, attention, lookups."""

from __future__ import annotations

import math
import string
from typing import Any

from secateur.tracing.propagate import Propagation, TensorAxes
from secateur.tracing.rules.base import rule

__all__: list[str] = []

Shapes = list[tuple[int, ...]]


@rule("linear")
def linear(
    propagation: Propagation, out: Shapes, x: TensorAxes, weight: TensorAxes, bias: TensorAxes | None = None
) -> TensorAxes:
    """Compute x W^T + b."""
    propagation.contract(x, -1, weight, 1)
    label = weight.labels[0]
    if bias is not None:
        label = propagation.equate(label, bias.labels[0])
    propagation.record_layer("linear", weight, 0, 1, math.prod(out[0][:-1]), bias)
    zero = weight.zero[0] and (bias is None or bias.zero[0])
    lead = x.zero[:-1] if bias is None else (False,) * (x.ndim - 1)  # where x is 0, the result is the bias
    return TensorAxes(out[0], (*x.labels[:-1], label), (*lead, zero))


@rule("matmul", "mm", "bmm", "mv", "dot")
def matmul(propagation: Propagation, out: Shapes, x: TensorAxes, y: TensorAxes) -> TensorAxes:
    """Multiply matrices; batch axes broadcast."""
    j = -2 if y.ndim > 1 else -1
    propagation.contract(x, x.ndim - 1, y, y.ndim + j)
    _record_product(propagation, out, x, y)
    left = x.without([-1])
    right = y.without([j])
    batch = max(x.ndim, y.ndim) - 2
    rows = (left.labels[-1:], left.zero[-1:], left.shape[-1:]) if x.ndim > 1 else ((), (), ())
    columns = (right.labels[-1:], right.zero[-1:], right.shape[-1:]) if y.ndim > 1 else ((), (), ())
    labels: tuple[Any, ...] = ()
    zero: tuple[bool, ...] = ()
    if batch > 0:
        heads = [s.without(range(max(s.ndim - 2, 0), s.ndim)) for s in (x, y)]
        shape, labels = propagation.broadcast(*heads)
        zero = propagation.zero_flags(shape, heads, every=False)
        if x.data and y.data:
            propagation.record_attention(labels, [x.labels[-1], y.labels[-1]])
    return TensorAxes(
        out[0], (*labels, *rows[0], *columns[0]), (*zero, *rows[1], *columns[1]), x.data or y.data
    )


def _record_product(propagation: Propagation, out: Shapes, x: TensorAxes, y: TensorAxes) -> None:
    """Record a product with a parameter on either side as a linear layer."""
    if y.parameter is not None and y.ndim == 2:
        propagation.record_layer("linear", y, 1, 0, math.prod(out[0]) / y.shape[1])
    elif x.parameter is not None and x.ndim == 2:
        propagation.record_layer("linear", x, 0, 1, math.prod(out[0]) / x.shape[0])
    else:
        for state, axes in ((x, (-1, -2)), (y, (-2, -1))):
            for axis, role in zip(axes, ("in", "out"), strict=True):
                if state.parameter is not None and state.ndim >= -axis:
                    propagation.record_role(state, axis, role)  # type: ignore[arg-type]
        for state in (x, y):
            if state.parameter is not None and state.ndim > 2:
                uses = math.prod(out[0]) * x.shape[-1] / math.prod(state.shape)
                propagation.record_layer("stacked", state, None, None, uses)


@rule("addmm", "addmv", "baddbmm", "addbmm")
def addmm(
    propagation: Propagation, out: Shapes, bias: TensorAxes, x: TensorAxes, y: TensorAxes, **options: Any
) -> TensorAxes:
    """Compute b + x W: a linear layer whose weight has its inputs first (GPT-2's Conv1D)."""
    product = matmul(propagation, out, x, y)
    propagation.record_role(bias, -1, "out")
    shape, labels = propagation.broadcast(product, bias)
    zero = propagation.zero_flags(shape, [product, bias], every=True)
    return TensorAxes(shape, labels, zero, product.data)


@rule("_grouped_mm", "grouped_mm", "grouped_mm_fallback")
def grouped_mm(
    propagation: Propagation, out: Shapes, x: TensorAxes, weight: TensorAxes, *rest: Any, **options: Any
) -> TensorAxes:
    """Multiply rows, sorted by expert, each with the matrix of its expert: x [rows, in], weight [E, in, out].

    All experts lose the same features, because they share the axes of one tensor.  The experts stay.
    """
    others = [o for o in (*rest, *options.values()) if isinstance(o, TensorAxes)]
    if x.ndim != 2 or weight.ndim != 3 or any(o.ndim != 1 for o in others):
        for state in (x, weight, *others):
            propagation.freeze_all(state, "a grouped product of another form")
        return propagation.unlabelled(out[0])
    for state in others:
        propagation.freeze_all(state, "rows and experts are counted")
    x = propagation.freeze(x, [0], "rows are sorted by expert")
    weight = propagation.freeze(weight, [0], "experts are addressed by number")
    propagation.contract(x, 1, weight, 1)
    propagation.record_role(weight, 1, "in")
    propagation.record_role(weight, 2, "out")
    propagation.record_layer("experts", weight, None, None, x.shape[0] / weight.shape[0])
    propagation.expert_units.append(weight.labels[2])
    return TensorAxes(out[0], (None, weight.labels[2]), (True, weight.zero[2]), True)


@rule("einsum")
def einsum(
    propagation: Propagation, out: Shapes, equation: str, operands: list[TensorAxes], **options: Any
) -> TensorAxes:
    """Tie axes with the same letter; where a letter is summed over, one operand must be 0 at dead indices."""
    left, _, right = _without_ellipsis(equation.replace(" ", ""), operands).partition("->")
    terms = left.split(",")
    if "." in left or (not right and "->" not in equation) or any(len(set(t)) < len(t) for t in terms):
        for operand in operands:
            propagation.freeze_all(operand, "einsum with an ellipsis, a diagonal, or an implicit result")
        return propagation.unlabelled(out[0])
    where = {
        c: [(o, t.index(c)) for o, t in zip(operands, terms, strict=True) if c in t] for c in left if c != ","
    }
    for letter, places in where.items():
        first, i = places[0]
        if letter in right or len(places) == 1:
            for other, j in places[1:]:
                propagation.equate(first.labels[i], other.labels[j])
            if len(places) > 1 and all(operand.data for operand, _ in places):
                propagation.record_attention([first.labels[i]], [])
            if letter not in right and first.labels[i] is not None and not first.zero[i]:
                propagation.freeze(first, [i], "dead values are not 0 where they are summed")
        else:
            for other, j in places[1:]:
                propagation.contract(first, i, other, j)
    _record_einsum(propagation, out, operands, terms, right)
    labels = tuple(propagation.algebra.normal(where[c][0][0].labels[where[c][0][1]]) for c in right)
    zero = tuple(any(o.zero[i] for o, i in where[c]) for c in right)
    return TensorAxes(out[0], labels, zero, any(o.data for o in operands))


def _without_ellipsis(equation: str, operands: list[TensorAxes]) -> str:
    """Return the equation with letters for its ellipsis, if that has the same axes in every operand."""
    terms = equation.partition("->")[0].split(",")
    covered = {
        o.shape[(start := t.index("...")) : start + o.ndim - len(t) + 3]
        for o, t in zip(operands, terms, strict=True)
        if "..." in t
    }
    free = [letter for letter in string.ascii_letters if letter not in equation]
    if len(covered) != 1 or "->" not in equation or len(free) < len(axes := covered.pop()):
        return equation
    return equation.replace("...", "".join(free[: len(axes)]))


def _record_einsum(
    propagation: Propagation, out: Shapes, operands: list[TensorAxes], terms: list[str], right: str
) -> None:
    for operand, term in zip(operands, terms, strict=True):
        if operand.parameter is None:
            continue
        read = [i for i, c in enumerate(term) if c not in right]
        made = [i for i, c in enumerate(term) if c in right]
        if len(term) == 2 and len(read) == len(made) == 1:
            propagation.record_layer(
                "linear", operand, made[0], read[0], math.prod(out[0]) / operand.shape[made[0]]
            )
        else:
            for axes, role in ((read, "in"), (made, "out")):
                for axis in axes:
                    propagation.record_role(operand, axis, role)  # type: ignore[arg-type]
            if len(operands) == 2 and len(term) > 2:
                lengths = dict(zip("".join(terms), (n for o in operands for n in o.shape), strict=True))
                uses = math.prod(lengths.values()) / math.prod(operand.shape)
                propagation.record_layer("stacked", operand, None, None, uses)


@rule("bilinear")
def bilinear(
    propagation: Propagation,
    out: Shapes,
    x: TensorAxes,
    y: TensorAxes,
    weight: TensorAxes,
    bias: TensorAxes | None = None,
) -> TensorAxes:
    """Compute y_o = x^T W_o y + b_o."""
    propagation.contract(x, -1, weight, 1)
    propagation.contract(y, -1, weight, 2)
    label = weight.labels[0] if bias is None else propagation.equate(weight.labels[0], bias.labels[0])
    propagation.record_layer("stacked", weight, None, None, math.prod(out[0][:-1]))
    for axis, role in ((0, "out"), (1, "in"), (2, "in")):
        propagation.record_role(weight, axis, role)  # type: ignore[arg-type]
    lead = propagation.broadcast(x.without([-1]), y.without([-1]))[1]
    return TensorAxes(out[0], (*lead, label), (False,) * len(lead) + (True,), True)


@rule("conv1d", "conv2d", "conv3d")
def conv(
    propagation: Propagation,
    out: Shapes,
    x: TensorAxes,
    weight: TensorAxes,
    bias: TensorAxes | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> TensorAxes:
    """Convolve; input channels are (group, j), outputs (group, o), the weight is [out, j, *kernel]."""
    return _convolution(propagation, out, x, weight, bias, groups, in_axis=1, out_axis=0)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(
    propagation: Propagation,
    out: Shapes,
    x: TensorAxes,
    weight: TensorAxes,
    bias: TensorAxes | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> TensorAxes:
    """Convolve transposed; the weight is [in, o, *kernel]."""
    return _convolution(propagation, out, x, weight, bias, groups, in_axis=0, out_axis=1)


def _convolution(
    propagation: Propagation,
    out: Shapes,
    x: TensorAxes,
    weight: TensorAxes,
    bias: TensorAxes | None,
    groups: int,
    in_axis: int,
    out_axis: int,
) -> TensorAxes:
    spatial = weight.ndim - 2
    channel = x.ndim - spatial - 1
    weight = propagation.freeze(weight, range(2, weight.ndim), "kernel")
    x = propagation.freeze(x, range(channel + 1, x.ndim), "positions")
    if groups == 1:
        propagation.contract(x, channel, weight, in_axis)
        label = weight.labels[out_axis]
    elif in_axis == 1:
        label = _grouped(propagation, x.labels[channel], x.shape[channel], weight, groups)
    else:
        propagation.freeze(x, [channel], "grouped transposed convolution")
        weight = propagation.freeze(weight, [0, 1], "grouped transposed convolution")
        label = None
    if bias is not None:
        label = propagation.equate(label, bias.labels[0])
    kind = "conv" if in_axis == 1 else "conv_transpose"
    uses = math.prod(out[0] if in_axis == 1 else x.shape) / (out[0] if in_axis == 1 else x.shape)[channel]
    propagation.record_layer(kind, weight, out_axis, in_axis, uses, bias, groups=groups)
    if bias is not None and label is None:
        propagation.record_role(bias, 0, "out")
    positions = (None,) * spatial
    zero = weight.zero[out_axis] and (bias is None or bias.zero[0])
    lead = x.labels[:channel]
    return TensorAxes(out[0], (*lead, label, *positions), (*x.zero[:channel], zero, *(True,) * spatial), True)


def _grouped(propagation: Propagation, label: Any, channels: int, weight: TensorAxes, groups: int) -> Any:
    """Split both channel axes by group and tie the groups; a depthwise group has one channel."""
    outs = weight.shape[0] // groups
    g_in, j = propagation.algebra.split(label, groups, channels // groups)
    g_out, _ = propagation.algebra.split(weight.labels[0], groups, outs)
    propagation.algebra.equate(g_in, g_out)
    propagation.algebra.equate(j, weight.labels[1])
    if propagation.module_class.endswith(("Conv1d", "Conv2d", "Conv3d")):
        propagation.record_size_attribute("groups", groups, g_out)
    else:
        propagation.record_size(0, groups, g_out)
    return propagation.algebra.normal(weight.labels[0])


@rule("embedding")
def embedding(
    propagation: Propagation, out: Shapes, weight: TensorAxes, indices: TensorAxes, *rest: Any, **options: Any
) -> TensorAxes:
    """Look up rows: the rows are frozen, the columns are features."""
    weight = propagation.freeze(weight, [0], "rows are looked up by number")
    propagation.freeze_all(indices, "used as row numbers")
    propagation.record_layer("embedding", weight, 1, None, 0.0)
    return TensorAxes(
        out[0], (*(None,) * indices.ndim, weight.labels[1]), (True,) * (indices.ndim + 1), indices.data
    )


@rule("scaled_dot_product_attention")
def attention(
    propagation: Propagation,
    out: Shapes,
    q: TensorAxes,
    k: TensorAxes,
    v: TensorAxes,
    attn_mask: TensorAxes | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> TensorAxes:
    """Attend: tie heads; freeze the inner axis of q and k, whose length may enter the scale."""
    inner = propagation.equate(q.labels[-1], k.labels[-1]), v.labels[-1]
    q = propagation.freeze(q, [-1], "its length may be the scale of the attention")
    k = propagation.freeze(k, [-1], "its length may be the scale of the attention")
    k, v = (propagation.freeze(s, [-2], "every key enters the attention") for s in (k, v))
    heads = q.labels[-3] if q.ndim > 3 else None
    if enable_gqa and q.ndim > 3:
        groups = k.shape[-3]
        outer, queries = propagation.algebra.split(q.labels[-3], groups, q.shape[-3] // groups)
        propagation.repeated.append(queries)
        propagation.algebra.equate(outer, k.labels[-3])
        propagation.algebra.equate(k.labels[-3], v.labels[-3])
        k, v = (s.with_axis(-3, 1, None, True) for s in (k, v))
    batch = [s.without([-1, -2]) for s in (q, k, v)]
    if attn_mask is not None:
        batch.append(attn_mask.without([-1, -2]) if attn_mask.ndim >= 2 else attn_mask)
    shape, labels = propagation.broadcast(*batch)
    zero = propagation.zero_flags(shape, [batch[0], batch[2]], every=False)
    propagation.record_attention([propagation.algebra.normal(heads)], inner)
    return TensorAxes(out[0], (*labels, q.labels[-2], v.labels[-1]), (*zero, False, v.zero[-1]), True)


@rule("cdist", "cosine_similarity", "pairwise_distance")
def distance(
    propagation: Propagation, out: Shapes, x: TensorAxes, y: TensorAxes, *rest: Any, **options: Any
) -> TensorAxes:
    """Compare vectors: freeze everything."""
    propagation.freeze_all(x, "compared by distance")
    propagation.freeze_all(y, "compared by distance")
    return propagation.unlabelled(out[0])
