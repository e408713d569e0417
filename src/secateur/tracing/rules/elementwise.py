"""Operations on single entries, which tie their operands axis by axis, and reductions."""

from __future__ import annotations

import math
from typing import Any

from secateur.tracing.propagate import Propagation, TensorAxes
from secateur.tracing.rules.base import axes_of, rule, words

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
LAST_BY_DEFAULT = words("kthvalue mode")  # statistics over the last axis, if none is given
AFTER_ANOTHER = words("kthvalue quantile nanquantile")  # the axis follows another argument
NEVER_NEGATIVE = words("relu abs square exp exp2 sigmoid softplus sqrt cosh var std norm linalg_vector_norm")
UNIFY = words(
    """maximum minimum max min fmax fmin eq ne lt le gt ge logical_and logical_or logical_xor bitwise_and
    bitwise_or bitwise_xor remainder fmod atan2 hypot"""
)


@rule(*SAME)
def same(
    propagation: Propagation, out: list[tuple[int, ...]], x: TensorAxes, *rest: Any, **options: Any
) -> TensorAxes:
    """Return the operand unchanged: labels, zeros, and whether it is a parameter."""
    return x


@rule(*KEEPS_ZERO)
def keeps_zero(
    propagation: Propagation, out: list[tuple[int, ...]], x: TensorAxes, *rest: Any, **options: Any
) -> TensorAxes:
    """Apply a function with f(0) = 0: labels and zeros pass."""
    all_zero = x.all_zero or propagation.operation_name == "zeros_like"
    return x.derived(least=_bound(propagation), all_zero=all_zero)


@rule(*LOSES_ZERO)
def loses_zero(
    propagation: Propagation, out: list[tuple[int, ...]], x: TensorAxes, *rest: Any, **options: Any
) -> TensorAxes:
    """Apply a function with f(0) finite and not 0: labels pass, zeros do not."""
    return x.nonzero().derived(least=_bound(propagation))


def _bound(propagation: Propagation) -> float:
    return 0.0 if propagation.operation_name in NEVER_NEGATIVE else -math.inf


@rule(*SINGULAR)
def singular(
    propagation: Propagation, out: list[tuple[int, ...]], x: TensorAxes, *rest: Any, **options: Any
) -> TensorAxes:
    """Apply a function that is not finite at 0: freeze, as the masked model would give infinities or NaN.

    Values that are always positive, such as a mean of squares plus a constant, need no freezing.
    """
    if x.least > 0:
        return x.nonzero()
    return propagation.freeze(x, range(x.ndim), "not finite at 0").nonzero()


@rule("clamp", "clip", "hardtanh", "clamp_min", "clamp_max", "threshold")
def clamp(
    propagation: Propagation, out: list[tuple[int, ...]], x: TensorAxes, *bounds: Any, **options: Any
) -> TensorAxes:
    """Tie bounds that are tensors to the operand; 0 stays 0 only between bounds that are numbers."""
    given = [b for b in (*bounds, *options.values()) if b is not None]
    tensors = [b for b in given if isinstance(b, TensorAxes)]
    shape, labels = propagation.broadcast(x, *tensors)
    low = next(iter(bounds), options.get("min"))
    high = bounds[1] if len(bounds) > 1 else options.get("max")
    safe = not tensors and (low is None or low <= 0) and (high is None or high >= 0)
    return x.derived(shape=shape, labels=labels, zero=x.zero if safe else (False,) * len(shape))


@rule("add", "sub", "rsub", "subtract", "lerp")
def add(propagation: Propagation, out: list[tuple[int, ...]], *operands: Any, **options: Any) -> TensorAxes:
    """Add: tie the terms; the sum is 0 at dead indices only if every term is."""
    states = [o for o in operands if isinstance(o, TensorAxes)]
    for state in states if propagation.module in propagation.norms else ():
        for axis in range(state.ndim):
            propagation.record_role(state, axis, "scale")
    scalars = [o for o in operands[:2] if not isinstance(o, TensorAxes) and o != 0]
    shape, labels = propagation.broadcast(*states)
    zero = (False,) * len(shape) if scalars else propagation.zero_flags(shape, states, every=True)
    bounds = [o.least if isinstance(o, TensorAxes) else o for o in operands]
    known = (
        propagation.operation_name == "add"
        and not options
        and all(isinstance(b, (int, float)) for b in bounds)
    )
    least = sum(bounds) if known else -math.inf
    return TensorAxes(shape, labels, zero, any(s.data for s in states), least=least)


@rule("mul", "multiply")
def mul(propagation: Propagation, out: list[tuple[int, ...]], *operands: Any, **options: Any) -> TensorAxes:
    """Multiply: tie the factors; the product is 0 at dead indices if any factor is."""
    states = [o for o in operands if isinstance(o, TensorAxes)]
    for state in states:
        for axis in range(state.ndim):
            propagation.record_role(state, axis, "scale")
    shape, labels = propagation.broadcast(*states)
    return TensorAxes(
        shape, labels, propagation.zero_flags(shape, states, every=False), any(s.data for s in states)
    )


@rule("div", "divide", "true_divide", "floor_divide")
def div(propagation: Propagation, out: list[tuple[int, ...]], x: Any, y: Any, **options: Any) -> TensorAxes:
    """Divide: tie the operands; freeze where the denominator is 0 at dead indices."""
    states = [o for o in (x, y) if isinstance(o, TensorAxes)]
    if isinstance(y, TensorAxes):
        risky = [a for a in range(y.ndim) if y.labels[a] is not None and y.zero[a]]
        y = propagation.freeze(y, risky, "division by values that are 0 where dead")
        states = [o for o in (x, y) if isinstance(o, TensorAxes)]
    shape, labels = propagation.broadcast(*states)
    zero = (
        propagation.zero_flags(shape, [x], every=True) if isinstance(x, TensorAxes) else (False,) * len(shape)
    )
    return TensorAxes(shape, labels, zero, any(s.data for s in states))


@rule("addcmul")
def addcmul(
    propagation: Propagation,
    out: list[tuple[int, ...]],
    x: TensorAxes,
    a: TensorAxes,
    b: TensorAxes,
    **options: Any,
) -> TensorAxes:
    """Compute x + a * b."""
    return add(propagation, out, x, mul(propagation, out, a, b))


@rule("addcdiv")
def addcdiv(
    propagation: Propagation, out: list[tuple[int, ...]], *operands: TensorAxes, **options: Any
) -> TensorAxes:
    """Tie the three operands; dead values may be anything."""
    return unify(propagation, out, *operands)


@rule(*UNIFY)
def unify(propagation: Propagation, out: list[tuple[int, ...]], *operands: Any, **options: Any) -> Any:
    """Tie the operands; dead values may be anything.  Reductions such as `max(x, dim)` freeze."""
    states = [o for o in operands if isinstance(o, TensorAxes)]
    if (
        len(out) != 1
        or len(out[0]) != max((s.ndim for s in states), default=0)
        or (len(operands) > 1 and len(states) == 1 and out[0] != states[0].shape)
    ):
        return reduce_all(propagation, out, *operands)
    shape, labels = propagation.broadcast(*states)
    return TensorAxes(shape, labels, (False,) * len(shape), any(s.data for s in states))


@rule("pow", "float_power")
def power(
    propagation: Propagation, out: list[tuple[int, ...]], x: Any, exponent: Any, **options: Any
) -> TensorAxes:
    """Keep 0 under a positive exponent; freeze under a negative one."""
    if isinstance(x, TensorAxes) and isinstance(exponent, (int, float)):
        if exponent <= 0:
            return singular(propagation, out, x) if exponent < 0 else x.nonzero()
        return x.derived(least=0.0 if exponent % 2 == 0 else -math.inf)
    result = unify(propagation, out, x, exponent)
    return result


@rule("where")
def where(
    propagation: Propagation,
    out: list[tuple[int, ...]],
    condition: TensorAxes,
    *branches: Any,
    **options: Any,
) -> TensorAxes:
    """Tie condition and branches; the result is 0 at dead indices if both branches are."""
    states = [b for b in branches if isinstance(b, TensorAxes)]
    shape, labels = propagation.broadcast(condition, *states)
    exact = all(isinstance(b, TensorAxes) or b == 0 for b in branches)
    zero = propagation.zero_flags(shape, states, every=True) if exact and states else (False,) * len(shape)
    return TensorAxes(shape, labels, zero, any(s.data for s in (condition, *states)))


@rule("masked_fill")
def masked_fill(
    propagation: Propagation, out: list[tuple[int, ...]], x: TensorAxes, mask: TensorAxes, value: Any
) -> TensorAxes:
    """Tie operand and mask; filling with 0 keeps zeros."""
    shape, labels = propagation.broadcast(x, mask)
    zero = propagation.zero_flags(shape, [x], every=True) if value == 0 else (False,) * len(shape)
    return TensorAxes(shape, labels, zero, x.data or mask.data)


@rule("prelu", "_prelu_kernel")
def prelu(
    propagation: Propagation, out: list[tuple[int, ...]], x: TensorAxes, weight: TensorAxes
) -> TensorAxes:
    """Tie the slopes to the channel axis (1); one slope for all channels ties nothing."""
    if weight.ndim == 1 and weight.shape[0] > 1:
        propagation.equate(x.labels[1], weight.labels[0])
        propagation.record_role(weight, 0, "scale")
    elif weight.ndim > 1:
        propagation.broadcast(x, weight)
    return x.derived()


@rule("glu")
def glu(propagation: Propagation, out: list[tuple[int, ...]], x: TensorAxes, dim: int = -1) -> TensorAxes:
    """Gate the first half of an axis by the second: tie the halves."""
    half = x.shape[dim] // 2
    label = x.labels[dim]
    if label is None:
        return x.with_axis(dim, half, None, True)
    first = propagation.equate(label[:half], label[half:])
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
def along(
    propagation: Propagation, out: list[tuple[int, ...]], x: TensorAxes, dim: int, *rest: Any, **options: Any
) -> TensorAxes:
    """Normalise or accumulate along an axis: freeze it, pass the others."""
    return propagation.freeze(x, [dim], "every entry of the axis enters").nonzero()


@rule("sum", "nansum")
def sum_(
    propagation: Propagation,
    out: list[tuple[int, ...]],
    x: TensorAxes,
    dim: Any = None,
    keepdim: bool = False,
    **options: Any,
) -> TensorAxes:
    """Sum over axes: dead values must be 0 there."""
    axes = axes_of(dim, x.ndim)
    if len(axes) != 1 or not propagation.can_narrow(x, axes[0]):
        risky = [a for a in axes if x.labels[a] is not None and not x.zero[a]]
        x = propagation.freeze(x, risky, "dead values are not 0 where they are summed")
    return _drop(x, axes, len(out[0]) == x.ndim).derived(least=0.0 if x.least >= 0 else -math.inf)


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
    "nanquantile",
    "nanmedian",
    "count_nonzero",
)
def reduce(
    propagation: Propagation, out: list[tuple[int, ...]], x: TensorAxes, *rest: Any, **options: Any
) -> Any:
    """Take a statistic over axes: freeze them, because their lengths enter it.

    The other axes keep their labels; a mean or an extreme of zeros is 0.
    """
    name = propagation.operation_name
    others = rest[1:] if "norm" in name or name in AFTER_ANOTHER else rest
    default = -1 if name in LAST_BY_DEFAULT else None
    dim = options.get(
        "dim",
        next((r for r in others if isinstance(r, (list, tuple, int)) and not isinstance(r, bool)), default),
    )
    axes = axes_of(dim, x.ndim)
    if name not in ("mean", "var") or len(axes) != 1 or not propagation.can_narrow(x, axes[0]):
        x = propagation.freeze(x, axes, "a statistic over the axis")
    dropped = _drop(x, axes, len(out[0]) == x.ndim)
    if name in ("mean", "amax", "amin"):
        dropped = dropped.derived(least=x.least)  # of zeros, 0
    elif "norm" in name:
        dropped = dropped.derived(least=0.0)  # of zeros, 0
    else:
        dropped = dropped.nonzero().derived(least=_bound(propagation))
    return dropped if len(out) == 1 else [dropped] * len(out)


def reduce_all(
    propagation: Propagation, out: list[tuple[int, ...]], x: TensorAxes, *rest: Any, **options: Any
) -> Any:
    """Take `max(x)` or `max(x, dim, keepdim)`: freeze the axes."""
    axes = axes_of(rest[0] if rest else None, x.ndim)
    dropped = _drop(
        propagation.freeze(x, axes, "an extreme over the axis"), axes, len(out[0]) == x.ndim
    ).nonzero()
    return dropped if len(out) == 1 else [dropped] * len(out)


def _drop(x: TensorAxes, axes: list[int], keep: bool) -> TensorAxes:
    if not keep:
        return x.without(axes)
    for axis in axes:
        x = x.with_axis(axis, 1, None, True)
    return x
