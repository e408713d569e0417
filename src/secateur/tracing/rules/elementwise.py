"""Operations that act on every entry alone: operands tie axis by axis."""

from __future__ import annotations

from typing import Any

from secateur.tracing.propagate import Axes, Flow
from secateur.tracing.rules.base import rule, words

__all__: list[str] = []

KEEPS_ZERO = words(
    """relu relu6 gelu silu mish tanh sin tan asin atan sinh asinh leaky_relu rrelu elu selu celu hardswish
    hardshrink softshrink tanhshrink softsign neg abs sign sgn square sqrt round floor ceil trunc frac erf
    expm1 log1p dropout feature_dropout alpha_dropout feature_alpha_dropout nan_to_num conj real imag
    zeros_like positive bernoulli"""
)
LOSES_ZERO = words(
    """sigmoid exp exp2 cos cosh acos softplus logsigmoid log_sigmoid hardsigmoid erfc logical_not
    bitwise_not isnan isinf isfinite logit special_expit ones_like full_like empty_like rand_like randn_like
    lgamma digamma"""
)
SAME = words(
    """clone contiguous detach to _to_copy alias lift_fresh_copy lift_fresh type_as float double half
    bfloat16 requires_grad_"""
)
SINGULAR = words("log log2 log10 rsqrt reciprocal")
UNIFY = words(
    """maximum minimum max min fmax fmin eq ne lt le gt ge logical_and logical_or logical_xor bitwise_and
    bitwise_or bitwise_xor remainder fmod atan2 hypot"""
)


@rule(*SAME)
def same(flow: Flow, out: list[tuple[int, ...]], x: Axes, *rest: Any, **options: Any) -> Axes:
    """Pass labels, zeros and parameterhood on."""
    return x


@rule(*KEEPS_ZERO)
def keeps_zero(flow: Flow, out: list[tuple[int, ...]], x: Axes, *rest: Any, **options: Any) -> Axes:
    """Pass labels on through a function with f(0) = 0."""
    return x.derived()


@rule(*LOSES_ZERO)
def loses_zero(flow: Flow, out: list[tuple[int, ...]], x: Axes, *rest: Any, **options: Any) -> Axes:
    """Pass labels on through a function with f(0) finite and not 0."""
    return x.nonzero()


@rule(*SINGULAR)
def singular(flow: Flow, out: list[tuple[int, ...]], x: Axes, *rest: Any, **options: Any) -> Axes:
    """Freeze axes whose dead values may be 0: the masked model would be infinite there."""
    return flow.freeze(x, range(x.ndim), "not finite at 0").nonzero()


@rule("clamp", "clip", "hardtanh", "clamp_min", "clamp_max", "threshold")
def clamp(flow: Flow, out: list[tuple[int, ...]], x: Axes, *bounds: Any, **options: Any) -> Axes:
    """Tie tensor bounds to the operand; 0 stays 0 only if it lies between number bounds."""
    given = [b for b in (*bounds, *options.values()) if b is not None]
    tensors = [b for b in given if isinstance(b, Axes)]
    shape, labels = flow.elementwise(x, *tensors)
    low = next(iter(bounds), options.get("min"))
    high = bounds[1] if len(bounds) > 1 else options.get("max")
    safe = not tensors and (low is None or low <= 0) and (high is None or high >= 0)
    return x.derived(shape=shape, labels=labels, zero=x.zero if safe else (False,) * len(shape))


@rule("add", "sub", "rsub", "subtract", "lerp")
def add(flow: Flow, out: list[tuple[int, ...]], *operands: Any, **options: Any) -> Axes:
    """Tie; the sum is 0 at dead indices only where every term is."""
    states = [o for o in operands if isinstance(o, Axes)]
    for state in states if flow.owner in flow.norms else ():
        for axis in range(state.ndim):
            flow.role(state, axis, "scale")
    scalars = [o for o in operands[:2] if not isinstance(o, Axes) and o != 0]
    shape, labels = flow.elementwise(*states)
    zero = (False,) * len(shape) if scalars else flow.zeros(shape, states, every=True)
    return Axes(shape, labels, zero, any(s.data for s in states))


@rule("mul", "multiply")
def mul(flow: Flow, out: list[tuple[int, ...]], *operands: Any, **options: Any) -> Axes:
    """Tie; the product is 0 at dead indices where any factor is."""
    states = [o for o in operands if isinstance(o, Axes)]
    for state in states:
        for axis in range(state.ndim):
            flow.role(state, axis, "scale")
    shape, labels = flow.elementwise(*states)
    return Axes(shape, labels, flow.zeros(shape, states, every=False), any(s.data for s in states))


@rule("div", "divide", "true_divide", "floor_divide")
def div(flow: Flow, out: list[tuple[int, ...]], x: Any, y: Any, **options: Any) -> Axes:
    """Tie; a denominator that is 0 at dead indices freezes them."""
    states = [o for o in (x, y) if isinstance(o, Axes)]
    if isinstance(y, Axes):
        risky = [a for a in range(y.ndim) if y.labels[a] is not None and y.zero[a]]
        y = flow.freeze(y, risky, "division by values that are 0 where dead")
        states = [o for o in (x, y) if isinstance(o, Axes)]
    shape, labels = flow.elementwise(*states)
    zero = flow.zeros(shape, [x], every=True) if isinstance(x, Axes) else (False,) * len(shape)
    return Axes(shape, labels, zero, any(s.data for s in states))


@rule("addcmul", "addcdiv")
def addc(flow: Flow, out: list[tuple[int, ...]], *operands: Axes, **options: Any) -> Axes:
    """Tie the three operands; promise nothing about dead values."""
    return unify(flow, out, *operands)


@rule(*UNIFY)
def unify(flow: Flow, out: list[tuple[int, ...]], *operands: Any, **options: Any) -> Any:
    """Tie operands; promise nothing about dead values.  `max(x, dim)` and the like freeze."""
    states = [o for o in operands if isinstance(o, Axes)]
    if (
        len(out) != 1
        or len(out[0]) != max(s.ndim for s in states)
        or (len(operands) > 1 and len(states) == 1 and out[0] != states[0].shape)
    ):
        return reduce_all(flow, out, *operands)
    shape, labels = flow.elementwise(*states)
    return Axes(shape, labels, (False,) * len(shape), any(s.data for s in states))


@rule("pow", "float_power")
def power(flow: Flow, out: list[tuple[int, ...]], x: Any, exponent: Any, **options: Any) -> Axes:
    """Keep 0 under a positive exponent; freeze under a negative one."""
    if isinstance(x, Axes) and isinstance(exponent, (int, float)):
        return x.derived() if exponent > 0 else singular(flow, out, x) if exponent < 0 else x.nonzero()
    result = unify(flow, out, x, exponent)
    return result


@rule("where")
def where(flow: Flow, out: list[tuple[int, ...]], condition: Axes, *branches: Any, **options: Any) -> Axes:
    """Tie all three; 0 where both branches are."""
    states = [b for b in branches if isinstance(b, Axes)]
    shape, labels = flow.elementwise(condition, *states)
    exact = all(isinstance(b, Axes) or b == 0 for b in branches)
    zero = flow.zeros(shape, states, every=True) if exact and states else (False,) * len(shape)
    return Axes(shape, labels, zero, any(s.data for s in (condition, *states)))


@rule("masked_fill")
def masked_fill(flow: Flow, out: list[tuple[int, ...]], x: Axes, mask: Axes, value: Any) -> Axes:
    """Tie; filling with 0 keeps zeros."""
    shape, labels = flow.elementwise(x, mask)
    zero = flow.zeros(shape, [x], every=True) if value == 0 else (False,) * len(shape)
    return Axes(shape, labels, zero, x.data or mask.data)


@rule("prelu", "_prelu_kernel")
def prelu(flow: Flow, out: list[tuple[int, ...]], x: Axes, weight: Axes) -> Axes:
    """Tie the slopes, one a channel or one for all, to the channel axis (1)."""
    if weight.ndim == 1 and weight.shape[0] > 1:
        flow.equate(x.labels[1], weight.labels[0])
        flow.role(weight, 0, "scale")
    elif weight.ndim > 1:
        flow.elementwise(x, weight)
    return x.derived()


@rule("glu")
def glu(flow: Flow, out: list[tuple[int, ...]], x: Axes, dim: int = -1) -> Axes:
    """Tie the halves of an axis; the first is gated by the second."""
    half = x.shape[dim] // 2
    label = x.labels[dim]
    if label is None:
        return x.with_axis(dim, half, None, True)
    first = flow.equate(label[:half], label[half:])
    return x.with_axis(dim, half, first, x.zero[dim])


@rule(
    "softmax",
    "log_softmax",
    "_softmax",
    "_log_softmax",
    "_safe_softmax",
    "softmin",
    "cumsum",
    "cumprod",
    "logcumsumexp",
)
def along(flow: Flow, out: list[tuple[int, ...]], x: Axes, dim: int, *rest: Any, **options: Any) -> Axes:
    """Freeze the axis that is normalised or accumulated over; pass the others."""
    return flow.freeze(x, [dim], "every entry of the axis enters").nonzero()


@rule("sum", "nansum")
def sum_(
    flow: Flow, out: list[tuple[int, ...]], x: Axes, dim: Any = None, keepdim: bool = False, **options: Any
) -> Axes:
    """Drop the axes; dead values must be 0."""
    axes = _axes(dim, x.ndim)
    if axes != [x.ndim - 1] or not flow.narrows(x):
        risky = [a for a in axes if x.labels[a] is not None and not x.zero[a]]
        x = flow.freeze(x, risky, "dead values are not 0 where they are summed")
    return _drop(x, axes, len(out[0]) == x.ndim)


@rule(
    "mean",
    "var",
    "std",
    "amax",
    "amin",
    "logsumexp",
    "norm",
    "linalg_vector_norm",
    "prod",
    "all",
    "any",
    "median",
    "argmax",
    "argmin",
    "var_mean",
    "std_mean",
    "aminmax",
    "mode",
    "kthvalue",
    "quantile",
    "count_nonzero",
)
def reduce(flow: Flow, out: list[tuple[int, ...]], x: Axes, *rest: Any, **options: Any) -> Any:
    """Freeze the axes that a statistic is taken over: it would notice what is missing."""
    dim = options.get(
        "dim", next((r for r in rest if isinstance(r, (list, tuple, int)) and not isinstance(r, bool)), None)
    )
    if "norm" in flow.name:
        dim = options.get("dim", rest[1] if len(rest) > 1 else None)
    axes = _axes(dim, x.ndim)
    if flow.name != "mean" or axes != [x.ndim - 1] or not flow.narrows(x):
        x = flow.freeze(x, axes, "a statistic over the axis")
    dropped = _drop(x, axes, len(out[0]) == x.ndim).nonzero()
    return dropped if len(out) == 1 else [dropped] * len(out)


def reduce_all(flow: Flow, out: list[tuple[int, ...]], x: Axes, *rest: Any, **options: Any) -> Any:
    """Reduce with `max(x)` or `max(x, dim, keepdim)`: freeze the axes."""
    axes = _axes(rest[0] if rest else None, x.ndim)
    dropped = _drop(flow.freeze(x, axes, "an extreme over the axis"), axes, len(out[0]) == x.ndim).nonzero()
    return dropped if len(out) == 1 else [dropped] * len(out)


def _axes(dim: Any, ndim: int) -> list[int]:
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return list(range(ndim))
    return [a % ndim for a in (dim if isinstance(dim, (list, tuple)) else [dim])] if ndim else []


def _drop(x: Axes, axes: list[int], keep: bool) -> Axes:
    if not keep:
        return x.without(axes)
    for axis in axes:
        x = x.with_axis(axis, 1, None, True)
    return x
