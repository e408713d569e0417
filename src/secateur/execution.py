"""Run a user's model and leave no trace: where it lives, how it is called, what it returns.

Batches are pairs (inputs, targets); inputs are a tensor, a sequence of positional or a mapping of keyword
arguments.  Modes, buffers, flags and generators come back as they were.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from secateur.core import InputError, SecateurError

__all__ = [
    "all_finite",
    "call",
    "check_seed",
    "device_of",
    "duplicate",
    "evaluating",
    "explained",
    "finite_tensors",
    "logits",
    "place",
    "split_batch",
    "tensors_of",
    "to_device",
    "to_model",
    "untouched",
]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer, detached, by its first name."""
    return {name: t.detach() for name, t in [*model.named_parameters(), *model.named_buffers()]}


def place(model: nn.Module) -> tuple[torch.device, torch.dtype | None]:
    """Return the device of a model's first parameter or buffer, and its first floating dtype."""
    tensors = [*model.parameters(), *model.buffers()]
    floating = [t.dtype for t in tensors if t.is_floating_point()]
    return tensors[0].device if tensors else torch.device("cpu"), floating[0] if floating else None


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter or buffer."""
    return place(model)[0]


def check_seed(seed: Any) -> None:
    """Raise `InputError` if a seed is none that every generator takes."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) < 2**63:
        raise InputError(f"a seed is an integer from 0 to 2**63 - 1; got {seed!r}")


def duplicate(model: nn.Module, tensors: Mapping[int, Tensor] | None = None) -> nn.Module:
    """Copy a module tree.

    Tensors that a forward pass left in attributes (features that are kept, weights that a hook computes)
    cannot be copied with their history; they come without it.

    Args:
        model: Left as it is.
        tensors: id of a tensor -> the tensor that stands in for it in the copy.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> layer.seen = layer(torch.ones(1, 2))
        >>> bool(duplicate(layer).seen.equal(layer.seen))
        True
    """
    memo: dict[int, Any] = dict(tensors or {})
    for module in model.modules():
        for x in tree_leaves(list(vars(module).values())):
            if isinstance(x, Tensor) and not x.is_leaf:
                memo.setdefault(id(x), x.detach().clone())
    return copy.deepcopy(model, memo)


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode; restore its modes, buffers and other attributes at the end."""
    training = {module: module.training for module in model.modules()}
    attributes = {module: dict(vars(module)) for module in model.modules()}
    own = ((m, k, b) for m in model.modules() for k, b in m.named_buffers(recurse=False))
    buffers = [(m, k, b, b.detach().clone()) for m, k, b in own]
    try:
        model.eval()
        yield
    finally:
        for module, held in attributes.items():
            for name in set(vars(module)) - set(held):
                del vars(module)[name]
            vars(module).update(held)
        for module, flag in training.items():
            module.training = flag
        for module, name, buffer, value in buffers:
            module._buffers[name] = buffer
            if not torch.equal(buffer, value):
                buffer.detach().copy_(value)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Run a model in evaluation mode without gradients; restore its modes and its buffers at the end.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()).train()
        >>> with evaluating(model): model.training
        False
        >>> model.training
        True
    """
    with _evaluation(model), torch.no_grad():
        yield model


@contextmanager
def untouched(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """Run a model in evaluation mode, seeded, and restore it and the generators at the end.

    Restored are training flags, `requires_grad`, buffers and other attributes, PyTorch's generators and the
    switch of the fused attention path, which is off inside because it hides the weights.  For recurrent
    models cuDNN is off too: its kernels refuse gradients in evaluation mode.
    """
    required = {p: p.requires_grad for p in model.parameters()}
    recurrent = any(isinstance(m, nn.RNNBase) for m in model.modules())
    fast, cudnn = torch.backends.mha.get_fastpath_enabled(), torch.backends.cudnn.enabled
    device = device_of(model)
    with ExitStack() as stack:
        stack.enter_context(_evaluation(model))
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        try:
            torch.manual_seed(seed)
            torch.backends.mha.set_fastpath_enabled(False)
            torch.backends.cudnn.enabled = cudnn and not recurrent
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            torch.backends.cudnn.enabled = cudnn
            for parameter, flag in required.items():
                parameter.requires_grad_(flag)


def to_device(value: Any, model: nn.Module) -> Any:
    """Bring tensors to a model's device."""
    device = device_of(model)
    return tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, value)


def to_model(value: Any, model: nn.Module) -> Any:
    """Bring tensors to a model's device, floating ones also to its dtype."""
    device, dtype = place(model)

    def move(x: Any) -> Any:
        return x.to(device, dtype if x.is_floating_point() else None) if isinstance(x, Tensor) else x

    return tree_map(move, value)


def split_batch(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Split a batch into positional inputs, keyword inputs and targets (None where there are none).

    Args:
        batch: (inputs, targets); or inputs alone, as a tensor, a mapping of keywords, or a sequence of one.
            Inputs are a tensor, a sequence of positional or a mapping of keyword arguments.

    Example:
        >>> split_batch(({"input_ids": 1}, 2))
        ((), {'input_ids': 1}, 2)
    """
    inputs, targets = batch, None
    if isinstance(batch, (tuple, list)):
        if len(batch) not in (1, 2):
            raise InputError(f"a batch is (inputs, targets), more inputs in a tuple; got {len(batch)} parts")
        inputs, targets = batch[0], batch[1] if len(batch) == 2 else None
    if isinstance(inputs, Mapping):
        return (), dict(inputs), targets
    if not isinstance(inputs, (Tensor, tuple, list)):
        raise InputError(f"inputs are a tensor, a sequence or a mapping; got {type(inputs).__name__}")
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,), {}, targets


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinities.

    A finite sum shows it in one pass without a copy; only a sum that is not has to be looked at.

    Example:
        >>> all_finite(torch.full((4,), 3e38)), all_finite(torch.tensor([torch.inf, -torch.inf]))
        (True, False)
    """
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def finite_tensors(value: Any, where: str) -> None:
    """Raise `InputError` if a tensor holds NaN or infinities; additive masks of 0 and -inf may pass."""
    for x in tree_leaves(value):
        if isinstance(x, Tensor) and x.is_floating_point() and not all_finite(x):
            if ((x == 0) | (x == -torch.inf)).all() and (x == 0).any():
                continue
            raise InputError(f"{where} hold NaN or infinite values; clean them first")


@contextmanager
def explained(where: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Turn what the model or the loss cannot take into an `InputError` that shows the shapes."""
    try:
        yield
    except (SecateurError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        shapes = [tuple(x.shape) for x in tree_leaves((args, dict(kwargs))) if isinstance(x, Tensor)]
        message = f"the model or the loss cannot take {where}, inputs of shapes {shapes}: {_said(error)}"
        raise InputError(message) from error


def call(model: nn.Module, inputs: Any, kwargs: Mapping[str, Any] | None = None) -> Any:
    """Call a model on a tensor, a sequence of positional or a mapping of keyword arguments.

    Tensors are brought to the model's device, floating ones also to its dtype.

    Raises:
        InputError: The model cannot take them.
    """
    inputs, named = to_model((inputs, dict(kwargs or {})), model)
    if isinstance(inputs, Mapping):
        inputs, named = (), {**inputs, **named}
    arguments = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    try:
        return model(*arguments, **named)
    except (SecateurError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        given = ", ".join([*map(_shape, arguments), *(f"{k}={_shape(x)}" for k, x in named.items())])
        who = type(model).__name__
        raise InputError(f"{who} cannot take inputs of shapes {given}: {_said(error)}") from error


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, RuntimeError) else f"{type(error).__name__}: {error}"


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def logits(output: Any) -> Tensor:
    """Return the tensor of scores in a model's output: itself, `.logits`, or its first tensor.

    Example:
        >>> logits({"loss": None, "logits": torch.zeros(2)})
        tensor([0., 0.])
    """
    if isinstance(output, Tensor):
        return output
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    values = output.values() if isinstance(output, Mapping) else output
    tensors = [named, *(values if isinstance(values, Iterable) else ())]
    for value in tensors:
        if isinstance(value, Tensor):
            return value
    raise InputError(
        f"the model returned {type(output).__name__}, which holds no tensor of scores; pass a loss or a "
        "metric of your own"
    )
