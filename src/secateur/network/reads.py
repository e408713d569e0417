"""Find what reaches each weight while a model runs, whatever way the weight is used.

A `TorchFunctionMode` sees every torch function with its arguments, and a weight is recognised among them by
identity: in modules, in functional calls on bare parameters, when it is tied, reused, transposed,
sliced, or scaled element by element.  Recurrent kernels and multi-head attention hide what
their inner weights read; `replay` and an identity in place of the output projection bring it out.
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

from secateur.network.replay import recurrent_reads

__all__ = ["Read", "Reads", "Window"]


class Window(NamedTuple):
    """How a convolution slides, one entry a spatial axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]


class Read(NamedTuple):
    """One use of a reading weight.

    Attributes:
        key: What it was given as.
        x: What it is multiplied with.
        axis: The axis of `x` that holds the features; the others are samples and positions.
        window: For a convolution, how it slides over the axes behind `axis`.
    """

    key: str
    x: Tensor
    axis: int
    window: Window | None = None


class _Origin(NamedTuple):
    # Axis along which the weight reads -> key.
    keys: Mapping[int, str]
    # For each axis of the tensor at hand, the axis of the weight that it is, or None.
    axes: tuple[int | None, ...]


class Reads(TorchFunctionMode):
    """Report every use of the given weights to a callback.

    Args:
        weights: Key -> a weight and an axis along which it reads; a weight may come more than once.
        record: Called with each `Read`, without gradients, before the operation runs.

    Example:
        >>> layer = torch.nn.Linear(3, 2)
        >>> with Reads({"weight": (layer.weight, 1)}, lambda read: print(read.key, tuple(read.x.shape))):
        ...     y = layer(torch.ones(5, 3))
        weight (5, 3)
    """

    def __init__(self, weights: Mapping[str, tuple[Tensor, int]], record: Callable[[Read], None]) -> None:
        """Remember the weights by identity."""
        super().__init__()
        self._record = record
        keys: dict[int, dict[int, str]] = defaultdict(dict)
        for key, (weight, axis) in weights.items():
            keys[id(weight)][axis] = key
        self._own = {id(w): (w, _Origin(keys[id(w)], tuple(range(w.ndim)))) for w, _ in weights.values()}
        self._known = dict(self._own)

    def __enter__(self) -> Self:
        """Forget the tensors that were derived from weights before."""
        self._known = dict(self._own)
        super().__enter__()
        return self

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Report, then run the function."""
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            return self._attention(*args, **kwargs)
        if (reader := _READERS.get(func)) is not None:
            reader(self, func, *args, **kwargs)
        result = func(*args, **kwargs)
        if getattr(func, "__name__", "") in _SAME_AXES and isinstance(result, Tensor):
            self._follow(result, args)
        return result

    def origin(self, tensor: Any) -> _Origin | None:
        """Say which weight a tensor is, or is a view of."""
        if not isinstance(tensor, Tensor):
            return None
        if (known := self._known.get(id(tensor))) is not None:
            return known[1]
        base = tensor._base
        if base is None or (known := self._known.get(id(base))) is None:
            return None
        # In a view an axis keeps its stride and its length.
        found = {(base.stride(i), base.shape[i]): axis for i, axis in enumerate(known[1].axes)}
        axes = (found.get((tensor.stride(i), n)) for i, n in enumerate(tensor.shape))
        return _Origin(known[1].keys, tuple(axes))

    def _follow(self, result: Tensor, args: tuple[Any, ...]) -> None:
        for arg in args:
            if (origin := self.origin(arg)) is not None and arg.shape == result.shape:
                self._known[id(result)] = (result, origin)
                return

    def note(self, weight: Any, contracted: int, x: Tensor, axis: int, window: Window | None = None) -> None:
        """Record that `x` met a tensor, if this is a weight contracted along the axis that it reads."""
        origin = self.origin(weight)
        axis_read = None if origin is None else origin.axes[contracted]
        if origin is not None and axis_read in origin.keys:
            with torch.no_grad():
                self._record(Read(origin.keys[axis_read], x.detach(), axis % x.ndim, window))

    def _attention(self, *args: Any, **kwargs: Any) -> Any:
        call = _ATTENTION.bind(*args, **kwargs)
        call.apply_defaults()
        a = call.arguments
        q, k, v = a["query"], a["key"], a["value"]
        if a["use_separate_proj_weight"]:
            for name, x in (("q_proj_weight", q), ("k_proj_weight", k), ("v_proj_weight", v)):
                self.note(a[name], 1, x, -1)
        else:
            for x in (q,) if q is k is v else (q, k, v):
                self.note(a["in_proj_weight"], 1, x, -1)
        weight, bias = a["out_proj_weight"], a["out_proj_bias"]
        a["out_proj_weight"] = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        a["out_proj_bias"] = None
        mixed, attention = F.multi_head_attention_forward(*call.args, **call.kwargs)
        self.note(weight, 1, mixed, -1)
        return F.linear(mixed, weight, bias), attention


_ATTENTION = inspect.signature(F.multi_head_attention_forward)

# Operations whose result has the axes of their first weight argument, where the shape is unchanged.
_SAME_AXES = frozenset({
    "to", "type", "type_as", "float", "double", "half", "bfloat16", "contiguous", "clone", "detach", "alias",
    "mul", "__mul__", "__rmul__", "multiply", "div", "__truediv__", "divide", "neg", "abs", "where",
    "masked_fill", "requires_grad_", "dropout",
})


def _linear(reads: Reads, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    reads.note(weight, -1, input, -1)


def _product(reads: Reads, a: Tensor, b: Tensor) -> None:
    reads.note(b, -2 if b.ndim > 1 else 0, a, -1)
    reads.note(a, -1, b, -2 if b.ndim > 1 else 0)


def _matmul(reads: Reads, func: Any, *args: Any, **kwargs: Any) -> None:
    operands = [*args, *(kwargs[k] for k in ("input", "mat2", "other", "vec", "tensor2") if k in kwargs)]
    _product(reads, operands[0], operands[1])


def _reflected_matmul(reads: Reads, func: Any, right: Tensor, left: Tensor) -> None:
    _product(reads, left, right)


def _added_matmul(reads: Reads, func: Any, *args: Any, **kwargs: Any) -> None:
    names = ("input", "mat1", "batch1", "mat", "mat2", "batch2", "vec")
    operands = [*args, *(kwargs[k] for k in names if k in kwargs)]
    _product(reads, operands[1], operands[2])


def _einsum(reads: Reads, func: Any, equation: Any, *operands: Any) -> None:
    if not isinstance(equation, str):
        return
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    left, _, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    for weight, term in zip(operands, terms, strict=True):
        if (origin := reads.origin(weight)) is None:
            continue
        for letter in set(term) - set(result) - {"."}:
            contracted = _place(term, letter)
            if origin.axes[contracted] is None:
                continue
            for x, other in zip(operands, terms, strict=True):
                if x is not weight and letter in other:
                    reads.note(weight, contracted, x, _place(other, letter))


def _place(term: str, letter: str) -> int:
    before, _, after = term.partition("...")
    return before.index(letter) if letter in before else after.index(letter) - len(after)


def _convolution(
    reads: Reads, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
    padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> None:
    dims = weight.ndim - 2
    kernel, stride, dilation = tuple(weight.shape[2:]), _each(stride, dims), _each(dilation, dims)
    if isinstance(padding, str):
        spans = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        pads = tuple((span // 2, span - span // 2) for span in spans)
    else:
        pads = tuple((p, p) for p in _each(padding, dims))
    x = input if input.ndim == weight.ndim else input.unsqueeze(0)
    reads.note(weight, 1, x, 1, Window(kernel, stride, pads, dilation))


def _transposed_convolution(
    reads: Reads, func: Any, input: Tensor, weight: Tensor, *_: Any, **__: Any
) -> None:
    reads.note(weight, 0, input, 1 if input.ndim == weight.ndim else 0)


def _each(value: Any, dims: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return values * dims if len(values) == 1 else values


def _recurrent(reads: Reads, func: Any, *args: Any) -> None:
    parameters: Any = args[3] if isinstance(args[3], (list, tuple)) else args[2]
    if any(reads.origin(p) is not None for p in parameters):
        with torch.no_grad():
            for weight, x in recurrent_reads(func, *args):
                reads.note(weight, 1, x, -1)


def _cell(
    reads: Reads, func: Any, input: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, *_: Any, **__: Any
) -> None:
    reads.note(w_ih, 1, input, -1)
    reads.note(w_hh, 1, hx if isinstance(hx, Tensor) else hx[0], -1)


_READERS: dict[Any, Callable[..., None]] = {
    F.linear: _linear,
    torch.einsum: _einsum,
    **dict.fromkeys((torch.matmul, torch.mm, torch.bmm, torch.mv, Tensor.matmul, Tensor.__matmul__, Tensor.mm,
                     Tensor.bmm, Tensor.mv), _matmul),
    Tensor.__rmatmul__: _reflected_matmul,
    **dict.fromkeys((torch.addmm, torch.baddbmm, torch.addmv, torch.addbmm, Tensor.addmm, Tensor.baddbmm,
                     Tensor.addmv, Tensor.addbmm), _added_matmul),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _convolution),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _transposed_convolution),
    **dict.fromkeys((torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu), _recurrent),
    **dict.fromkeys((torch.lstm_cell, torch.gru_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell), _cell),
}
