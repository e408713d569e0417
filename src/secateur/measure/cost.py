"""The cost of a model: parameters, bytes, and the multiply-accumulates of one forward pass.

`torch.utils.flop_counter` counts the multiply-accumulates in a real forward pass, at the level of ATen
operations.  It knows matrix products, convolutions and attention; recurrent kernels, products with
vectors, grouped products and trilinear forms are added here.  Attention is counted as its two full matrix
products, masked or not.  Element-wise work is not counted.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from secateur.execution import call, check_module, evaluating

__all__ = ["ModelCost", "cost", "macs", "nbytes", "nonzero", "parameters"]

Shape = Sequence[int]
aten = torch.ops.aten


def macs(model: nn.Module, inputs: Any, kwargs: Mapping[str, Any] | None = None) -> int:
    """Count the multiply-accumulates of one forward pass on these inputs (the whole batch).

    Args:
        model: Any module.
        inputs: A tensor, a sequence of positional or a mapping of keyword arguments.
        kwargs: Keyword arguments.

    Example:
        >>> macs(nn.Linear(20, 30), torch.zeros(4, 20))
        2400
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with evaluating(model), sdpa_kernel(SDPBackend.MATH), _counter() as counter:
            call(model, inputs, kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() // 2


def parameters(model: nn.Module) -> int:
    """Count the elements of all parameters; tied ones count once."""
    return sum(p.numel() for p in model.parameters())


def nonzero(model: nn.Module) -> int:
    """Count the elements of all parameters that are not zero; tied ones count once.

    On the meta device, where there are no values, all elements count.
    """
    return sum(p.numel() if p.is_meta else int(torch.count_nonzero(p.detach())) for p in model.parameters())


def nbytes(model: nn.Module) -> int:
    """Count the bytes of all parameters and buffers; tied ones count once."""
    return sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])


@dataclass(frozen=True)
class ModelCost:
    """The size of a model and the cost of one forward pass.

    Attributes:
        parameters: Elements of all parameters.
        nonzero: Elements that are not zero.
        bytes: Bytes of parameters and buffers.
        macs: Multiply-accumulates of one forward pass on the inputs that were given.
        body: Parameters without the embeddings; None in reports of older versions.
    """

    parameters: int
    nonzero: int
    bytes: int
    macs: int
    body: int | None = None


def cost(
    model: nn.Module,
    inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    embeddings: Collection[str] = (),
) -> ModelCost:
    """Return the size of a model and the cost of one forward pass on these inputs.

    Args:
        model: Any module.
        inputs: A tensor, a sequence of positional or a mapping of keyword arguments.
        kwargs: Keyword arguments.
        embeddings: Names of the parameters that are embeddings; see `PruningGraph.embeddings`.

    Raises:
        InputError: If the model is not a module, or cannot take the inputs.

    Example:
        >>> cost(nn.Linear(20, 30), torch.zeros(1, 20))
        ModelCost(parameters=630, nonzero=630, bytes=2520, macs=600, body=630)
    """
    check_module(model)
    body = sum(p.numel() for name, p in model.named_parameters() if name not in embeddings)
    return ModelCost(parameters(model), nonzero(model), nbytes(model), macs(model, inputs, kwargs), body)


def _matrices(weights: Sequence[Shape]) -> int:
    return sum(math.prod(w) for w in weights if len(w) == 2)


def _mkldnn_rnn(x: Shape, w_ih: Shape, w_hh: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x[:-1]) * _matrices([w_ih, w_hh])


def _fused_rnn(x: Shape, weights: Sequence[Shape], *_: Any, **__: Any) -> int:
    # Every matrix is applied once a step and sequence; the leading axes of x count both.
    return 2 * math.prod(x[:-1]) * _matrices(weights)


def _vector(a: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(a)


def _addmv(_bias: Shape, a: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(a)


def _addbmm(_bias: Shape, a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(a) * b[-1]


def _trilinear(
    a: Shape, b: Shape, c: Shape, new_a: Shape, new_b: Shape, new_c: Shape, *_: Any, **__: Any
) -> int:
    def expanded(shape: Shape, new: Shape) -> list[int]:
        sizes = list(shape)
        for axis in sorted(new):
            sizes.insert(axis, 1)
        return sizes

    broadcast = zip(expanded(a, new_a), expanded(b, new_b), expanded(c, new_c), strict=True)
    return 2 * math.prod(map(max, broadcast))


def _grouped_mm(a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    # Every row of a, or with two axes of b every column of b, meets one matrix.
    return 2 * math.prod(a[-2:] if len(b) == 2 else a) * b[-1]


_FORMULAS = {
    aten.mkldnn_rnn_layer: _mkldnn_rnn,
    aten._cudnn_rnn: _fused_rnn,
    aten.miopen_rnn: _fused_rnn,
    aten.mv: _vector,
    aten.dot: _vector,
    aten.addmv: _addmv,
    aten.addbmm: _addbmm,
    aten._trilinear: _trilinear,
}
if hasattr(aten, "_grouped_mm"):  # newer versions of torch; mixtures of experts use it
    _FORMULAS[aten._grouped_mm] = _grouped_mm


class _WholeModel(contextlib.nullcontext[None]):
    """Stands for the tracker of modules, whose hooks fail on parameters that a module gets as inputs."""

    parents = ("Global",)

    def __exit__(self, *error: object) -> None:
        """Do nothing."""


def _counter() -> FlopCounterMode:
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    counter.mod_tracker = _WholeModel()  # type: ignore[assignment]
    return counter
