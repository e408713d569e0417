"""Record the input of each weight while a model runs, in whatever way the weight is used.

A `TorchFunctionMode` sees every torch function with its arguments, and recognises weights among them by
identity: in modules, in functional calls on bare parameters, tied, reused, transposed, sliced, or scaled
element by element.  Two kinds of functions hide the inputs of their inner weights.  Recurrent kernels run
again layer by layer (`rnn_inputs`).  Multi-head attention runs with an identity matrix as its output
projection, so that its result is the input of that projection, which is then applied by itself.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from secateur.statistics.rnn_inputs import recurrent_inputs

__all__ = ["InputHooks", "WeightInput", "Window"]


Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Call = tuple[Args, Kwargs]


class Window(NamedTuple):
    """How a convolution slides: one entry for each spatial axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]


class WeightInput(NamedTuple):
    """The input of one weight, at one use.

    Attributes:
        key: The key of the weight in `InputHooks`.
        x: The tensor that the weight multiplies.
        axis: The axis of `x` that holds the features; the others are examples and positions.
        window: For a convolution, how it slides over the axes after `axis`.
    """

    key: str
    x: Tensor
    axis: int
    window: Window | None = None


Record = Callable[[WeightInput], Tensor | None]


class _Origin(NamedTuple):
    """The weight that a tensor is, or is a view of.

    Attributes:
        keys: Axis of the weight that multiplies an input -> key.
        axes: For each axis of the tensor, the axis of the weight that it is, or None.
    """

    keys: Mapping[int, str]
    axes: tuple[int | None, ...]


class InputHooks(TorchFunctionMode):
    """Report every input of the given weights to a callback, which may replace it.

    Args:
        weights: Key -> a weight and the axis of it that multiplies the input; a weight may occur several
            times with different axes.
        record: Called with each `WeightInput` before the operation runs.  A tensor that it returns replaces
            `x` for this use.  For recurrent kernels and cells the returned tensor is ignored.

    Example:
        >>> layer = torch.nn.Linear(3, 2)
        >>> with InputHooks({"weight": (layer.weight, 1)}, lambda i: print(i.key, tuple(i.x.shape))):
        ...     y = layer(torch.ones(5, 3))
        weight (5, 3)
    """

    def __init__(self, weights: Mapping[str, tuple[Tensor, int]], record: Record) -> None:
        """Remember the weights by identity."""
        super().__init__()
        self._record = record
        keys: dict[int, dict[int, str]] = defaultdict(dict)
        for key, (weight, axis) in weights.items():
            keys[id(weight)][axis] = key
        self._weights = {id(w): (w, _Origin(keys[id(w)], tuple(range(w.ndim)))) for w, _ in weights.values()}
        self._known = dict(self._weights)

    def __enter__(self) -> Self:
        """Forget the tensors that were derived from weights before."""
        self._known = dict(self._weights)
        super().__enter__()
        return self

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Report, then run the function."""
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            return self._attention(*args, **kwargs)
        if (handler := _HANDLERS.get(func)) is not None:
            args, kwargs = handler(self, func, args, kwargs)
        result = func(*args, **kwargs)
        if getattr(func, "__name__", "") in _SAME_AXES and isinstance(result, Tensor):
            self._follow(result, args)
        return result

    def origin(self, tensor: Any) -> _Origin | None:
        """Return which weight a tensor is, or is a view of; else None."""
        if not isinstance(tensor, Tensor):
            return None
        if (known := self._known.get(id(tensor))) is not None:
            return known[1]
        base = tensor._base
        if base is None or (known := self._known.get(id(base))) is None:
            return None
        # An axis of a view that has the stride and the length of an axis of the weight is that axis.
        found = {(base.stride(i), base.shape[i]): axis for i, axis in enumerate(known[1].axes)}
        axes = (found.get((tensor.stride(i), n)) for i, n in enumerate(tensor.shape))
        return _Origin(known[1].keys, tuple(axes))

    def _follow(self, result: Tensor, args: tuple[Any, ...]) -> None:
        for arg in args:
            if (origin := self.origin(arg)) is not None and arg.shape == result.shape:
                self._known[id(result)] = (result, origin)
                return

    def report(
        self, weight: Any, contracted: int, x: Tensor, axis: int, window: Window | None = None
    ) -> Tensor:
        """Report `x` if it is multiplied by a known weight along the axis that was given for it.

        Args:
            weight: The other operand.
            contracted: The axis of `weight` that is summed over.
            x: The input.
            axis: The axis of `x` that is summed over.
            window: For a convolution, how it slides.

        Returns:
            The tensor to use: `x`, or what the callback returned instead.
        """
        origin = self.origin(weight)
        weight_axis = None if origin is None else origin.axes[contracted]
        if origin is None or weight_axis is None or weight_axis not in origin.keys:
            return x
        replacement = self._record(WeightInput(origin.keys[weight_axis], x, axis % x.ndim, window))
        return x if replacement is None else replacement

    def _attention(self, *args: Any, **kwargs: Any) -> Any:
        call = _ATTENTION.bind(*args, **kwargs)
        call.apply_defaults()
        a = call.arguments
        q, k, v = a["query"], a["key"], a["value"]
        if a["use_separate_proj_weight"]:
            names = ("query", "q_proj_weight"), ("key", "k_proj_weight"), ("value", "v_proj_weight")
            a |= {name: self.report(a[weight], 1, a[name], -1) for name, weight in names}
        elif q is k is v:
            a["query"] = a["key"] = a["value"] = self.report(a["in_proj_weight"], 1, q, -1)
        else:
            a |= {n: self.report(a["in_proj_weight"], 1, a[n], -1) for n in ("query", "key", "value")}
        weight, bias = a["out_proj_weight"], a["out_proj_bias"]
        a["out_proj_weight"] = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        a["out_proj_bias"] = None
        mixed, attention = F.multi_head_attention_forward(*call.args, **call.kwargs)
        return F.linear(self.report(weight, 1, mixed, -1), weight, bias), attention


_ATTENTION = inspect.signature(F.multi_head_attention_forward)

# Operations whose result has the axes of their first weight argument, where the shape is unchanged.
_SAME_AXES = frozenset(
    {
        "to",
        "type",
        "type_as",
        "float",
        "double",
        "half",
        "bfloat16",
        "contiguous",
        "clone",
        "detach",
        "alias",
        "mul",
        "__mul__",
        "__rmul__",
        "multiply",
        "div",
        "__truediv__",
        "divide",
        "neg",
        "abs",
        "where",
        "masked_fill",
        "requires_grad_",
        "dropout",
    }
)


def _linear(hooks: InputHooks, func: Any, args: Args, kwargs: Kwargs) -> Call:
    input, weight, bias = _named(("input", "weight", "bias"), args, kwargs)
    return (hooks.report(weight, -1, input, -1), weight, bias), {}


def _named(names: tuple[str, ...], args: Args, kwargs: Kwargs) -> list[Any]:
    return [args[i] if i < len(args) else kwargs.get(name) for i, name in enumerate(names)]


def _product(hooks: InputHooks, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    first = hooks.report(b, -2 if b.ndim > 1 else 0, a, -1)
    return first, hooks.report(a, -1, b, -2 if b.ndim > 1 else 0)


def _factors(*names: str, skip: int = 0) -> Callable[..., Call]:
    """Return the handler of a product whose two factors follow `skip` arguments, or have these names."""

    def handle(hooks: InputHooks, func: Any, args: Args, kwargs: Kwargs) -> Call:
        values: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        one, two = [*range(skip, len(args)), *(name for name in names if name in kwargs)][:2]
        values[one], values[two] = _product(hooks, values[one], values[two])
        return tuple(values[i] for i in range(len(args))), {name: values[name] for name in kwargs}

    return handle


def _reflected_matmul(hooks: InputHooks, func: Any, args: Args, kwargs: Kwargs) -> Call:
    left, right = _product(hooks, args[1], args[0])
    return (right, left), {}


def _einsum(hooks: InputHooks, func: Any, args: Args, kwargs: Kwargs) -> Call:
    equation, *operands = args
    if not isinstance(equation, str):
        return args, kwargs
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = list(operands[0])
    left, _, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    new = list(operands)
    for weight, term in zip(operands, terms, strict=True):
        if (origin := hooks.origin(weight)) is None:
            continue
        for letter in set(term) - set(result) - {"."}:
            contracted = _place(term, letter)
            if origin.axes[contracted] is None:
                continue
            for i, other in enumerate(terms):
                if operands[i] is not weight and letter in other:
                    new[i] = hooks.report(weight, contracted, operands[i], _place(other, letter))
    return (equation, *new), {}


def _place(term: str, letter: str) -> int:
    before, _, after = term.partition("...")
    return before.index(letter) if letter in before else after.index(letter) - len(after)


def _convolution(hooks: InputHooks, func: Any, args: Args, kwargs: Kwargs) -> Call:
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    input, weight, bias, stride, padding, dilation, groups = _named(names, args, kwargs)
    stride, padding, dilation = (d if x is None else x for x, d in ((stride, 1), (padding, 0), (dilation, 1)))
    x = input if input.ndim == weight.ndim else input.unsqueeze(0)
    x = hooks.report(weight, 1, x, 1, _window(weight, stride, padding, dilation))
    x = x if input.ndim == weight.ndim else x.squeeze(0)
    return (x, weight, bias, stride, padding, dilation, 1 if groups is None else groups), {}


def _window(weight: Tensor, stride: Any, padding: Any, dilation: Any) -> Window:
    dims = weight.ndim - 2
    kernel, dilation = tuple(weight.shape[2:]), _each(dilation, dims)
    if isinstance(padding, str):
        spans = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        pads = tuple((span // 2, span - span // 2) for span in spans)
    else:
        pads = tuple((p, p) for p in _each(padding, dims))
    return Window(kernel, _each(stride, dims), pads, dilation)


def _transposed_convolution(hooks: InputHooks, func: Any, args: Args, kwargs: Kwargs) -> Call:
    input, weight = _named(("input", "weight"), args, kwargs)
    x = hooks.report(weight, 0, input, 1 if input.ndim == weight.ndim else 0)
    rest = {k: v for k, v in kwargs.items() if k not in ("input", "weight")}
    return (x, weight, *args[2:]), rest


def _each(value: Any, dims: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return values * dims if len(values) == 1 else values


def _batch_norm(hooks: InputHooks, func: Any, args: Args, kwargs: Kwargs) -> Call:
    input, mean = _named(("input", "running_mean"), args, kwargs)
    x = hooks.report(mean, 0, input, 1)
    return (x, *args[1:]), {k: v for k, v in kwargs.items() if k != "input"}


def _recurrent(hooks: InputHooks, func: Any, args: Args, kwargs: Kwargs) -> Call:
    parameters: Any = args[3] if isinstance(args[3], (list, tuple)) else args[2]
    if any(hooks.origin(p) is not None for p in parameters):
        for weight, x in recurrent_inputs(func, *args):
            hooks.report(weight, 1, x, -1)
    return args, kwargs


def _cell(hooks: InputHooks, func: Any, args: Args, kwargs: Kwargs) -> Call:
    input, hx, w_ih, w_hh = _named(("input", "hx", "w_ih", "w_hh"), args, kwargs)
    hooks.report(w_ih, 1, input, -1)
    hooks.report(w_hh, 1, hx if isinstance(hx, Tensor) else hx[0], -1)
    return args, kwargs


_MATMUL = _factors("input", "mat2", "other", "vec")
_ADDED = _factors("mat1", "batch1", "mat", "mat2", "batch2", "vec", skip=1)
_HANDLERS: dict[Any, Callable[..., Call]] = {
    F.linear: _linear,
    torch.einsum: _einsum,
    **dict.fromkeys((torch.matmul, torch.mm, torch.bmm, torch.mv), _MATMUL),
    **dict.fromkeys((Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm, Tensor.mv), _MATMUL),
    Tensor.__rmatmul__: _reflected_matmul,
    **dict.fromkeys((torch.addmm, torch.baddbmm, torch.addmv, torch.addbmm), _ADDED),
    **dict.fromkeys((Tensor.addmm, Tensor.baddbmm, Tensor.addmv, Tensor.addbmm), _ADDED),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _convolution),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _transposed_convolution),
    F.batch_norm: _batch_norm,
    **dict.fromkeys((torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu), _recurrent),
    **dict.fromkeys((torch.lstm_cell, torch.gru_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell), _cell),
}
