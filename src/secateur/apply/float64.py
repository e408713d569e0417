"""Run a model in float64, whatever type its weights have.

A copy of all weights in float64 takes twice the memory of a model in float32.  So each
weight is converted when an operation reads it; only one at a time is in float64.  Models for which this
fails, for instance because they write into a weight, are copied whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from secateur.execution import duplicate
from secateur.tracing.export import without_fused_attention

__all__ = ["computing_in", "copy_for_check", "in_float64", "run", "run_float64"]

WIDE = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
}
# What reads no values, or few of them: the result is converted instead.
QUERIES = {"size", "dim", "numel", "nelement", "stride", "is_floating_point", "is_complex", "is_contiguous"}
QUERIES |= {"__len__", "__get__", "__getitem__", "__deepcopy__", "index_select", "get_device"}
WRITES = {"__set__", "__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__"}


class _Float64(TorchFunctionMode):
    """Turns casts to lower precision into casts to float64, for models that normalise in float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("float", "half", "bfloat16"):
            func = Tensor.double
        raise_ = {k: _raised(v) for k, v in (kwargs or {}).items()}
        return func(*(_raised(a) for a in args), **raise_)


class _WidenedWeights(_Float64):
    """Also converts tensors of lower precision in every operation that reads them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if _writes(name, args, kwargs):
            raise TypeError(f"{name} writes into a tensor that is converted when it is read")
        if name in QUERIES or (name == "embedding" and not _renormalises(*args, **kwargs)):
            return tree_map(_widened, func(*args, **kwargs))
        return super().__torch_function__(func, types, *tree_map(_widened, (args, kwargs)))


def _raised(value: Any) -> Any:
    low = isinstance(value, torch.dtype) and value in WIDE and value.is_floating_point
    return torch.float64 if low else value


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to(WIDE[value.dtype]) if value.dtype in WIDE else value
    return _raised(value)


def _renormalises(
    input: Tensor, weight: Tensor, padding_idx: Any = None, max_norm: Any = None, *_: Any, **others: Any
) -> bool:
    """Return whether an embedding writes into its weight; the arguments are those of `F.embedding`."""
    return max_norm is not None


def _writes(name: str, args: Any, kwargs: Any) -> bool:
    """Return whether an operation writes into a tensor of lower precision."""
    changes = name in WRITES or (name.endswith("_") and not name.endswith("__"))
    written = (*args[:1], *tree_leaves(kwargs.get("out"))) if changes else tree_leaves(kwargs.get("out"))
    return any(isinstance(x, Tensor) and x.dtype in WIDE for x in written)


@contextlib.contextmanager
def in_float64(mode: Callable[[], TorchFunctionMode] = _Float64) -> Iterator[None]:
    """Compute in float64, without gradients and without fused fast paths."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with mode(), torch.no_grad(), without_fused_attention():
            yield
    finally:
        torch.set_default_dtype(before)


def computing_in(dtype: torch.dtype, widened: bool = False) -> contextlib.AbstractContextManager[None]:
    """Return a context that computes in a type; with `widened`, weights keep their type until read."""
    if dtype != torch.float64:
        return contextlib.nullcontext()
    return in_float64(_WidenedWeights if widened else _Float64)


def run_float64(model: nn.Module, args: Any, kwargs: Any, device: Any = None) -> list[Tensor]:
    """Run a model in evaluation mode and in float64; return its floating-point outputs."""
    for widened in (True, False) if device is None else (False,):
        try:
            copied = copy_for_check(model, device, torch.float64, widened)
            with computing_in(torch.float64, widened):
                outputs = run(copied, args, kwargs, device, torch.float64)
            break
        except Exception:  # a user's forward may raise any
            if not widened:
                raise
    return [t for t in outputs if t.is_floating_point()]


def copy_for_check(model: nn.Module, device: Any, dtype: torch.dtype, widened: bool = False) -> nn.Module:
    """Return a copy of a model in evaluation mode, without a cache of keys and values.

    Args:
        model: The model.
        device: Where the copy goes; None for the model's own device.
        dtype: Its type.
        widened: Whether the copy shares the parameters, which stay in their own type.
    """
    if widened:
        model = duplicate(model, {id(x): x for x in model.parameters()})
        for module in model.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = _widened(buffer)
    else:
        model = duplicate(model).to(dtype)
    for module in model.eval().modules():
        if getattr(getattr(module, "config", None), "use_cache", False):
            module.config.use_cache = False  # type: ignore[union-attr]
    return model if device is None else model.to(device)


def run(
    model: nn.Module, args: Any, kwargs: Any, device: Any, dtype: torch.dtype, inside: Sequence[str] = ()
) -> list[Tensor]:
    """Run a model on copies of inputs in this type; return its outputs, numbers as tensors.

    The outputs of the submodules `inside` follow, in the order of their calls.
    """
    returned: list[Any] = []
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _, __, output: returned.append(output))
        for name in inside
    ]

    def move(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(device, dtype if value.is_floating_point() else None, copy=True)

    args, kwargs = tree_map(move, (args, dict(kwargs)))
    with torch.no_grad(), without_fused_attention(), torch.random.fork_rng():
        torch.manual_seed(0)
        outputs = model(*args, **kwargs), returned
    for hook in hooks:
        hook.remove()
    leaves = [torch.tensor(x) if isinstance(x, (bool, int, float)) else x for x in tree_leaves(outputs)]
    return [torch.view_as_real(t) if t.is_complex() else t for t in leaves if isinstance(t, Tensor)]
