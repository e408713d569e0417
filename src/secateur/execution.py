"""Run a user's model and leave it as it was: modes, buffers, flags and random generators are restored.

What a batch may be is in `batches`, what a model may return in `outputs`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from numbers import Integral
from threading import RLock
from typing import Any, ParamSpec, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from secateur.batches import split_batch
from secateur.core import InputError, SecateurError, brief

__all__ = [
    "Together",
    "all_finite",
    "call",
    "check_calls",
    "check_finite",
    "check_flags",
    "check_module",
    "check_seed",
    "copy_tensors",
    "device_and_dtype",
    "device_of",
    "duplicate",
    "evaluating",
    "explain_errors",
    "one_at_a_time",
    "plain_tensors",
    "read_batches",
    "tensors_by_name",
    "tensors_of",
    "to_device",
    "to_model",
    "untouched",
]

P = ParamSpec("P")
T = TypeVar("T")
_LOCK = RLock()


def one_at_a_time(function: Callable[P, T]) -> Callable[P, T]:
    """Let the calls of several threads wait for each other, those of all functions decorated so.

    Exports and comparisons set what torch and Python have once for all threads: the default dtype, the random
    generators, the fused attention path, standard output, and the modes of the user's model.
    """

    @wraps(function)
    def wait_and_call(*args: P.args, **kwargs: P.kwargs) -> T:
        with _LOCK:
            return function(*args, **kwargs)

    return wait_and_call


def tensors_by_name(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer, the objects themselves, by its first name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def plain_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the floating tensors that modules hold as plain attributes, which are not registered, by name.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> layer.positions = torch.zeros(3)
        >>> list(plain_tensors(layer))
        ['positions']
    """
    return {
        f"{name}.{key}" if name else key: value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if type(value) is Tensor and value.is_floating_point()
    }


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer, detached, by its first name."""
    return {name: tensor.detach() for name, tensor in tensors_by_name(model).items()}


def copy_tensors(value: Any) -> Any:
    """Copy the tensors in a structure: a model that changes its inputs in place then changes the copies."""
    return tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, value)


def device_and_dtype(model: nn.Module) -> tuple[torch.device, torch.dtype | None]:
    """Return the device of a model's first parameter or buffer, and its first floating dtype."""
    tensors = [*model.parameters(), *model.buffers()]
    floating = [t.dtype for t in tensors if t.is_floating_point()]
    return tensors[0].device if tensors else torch.device("cpu"), floating[0] if floating else None


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter or buffer."""
    return device_and_dtype(model)[0]


def check_flags(**flags: Any) -> None:
    """Raise `InputError` if an argument of this name is neither True nor False.

    Example:
        >>> check_flags(check="no")
        Traceback (most recent call last):
        ...
        secateur.core.errors.InputError: check must be True or False; got 'no'
    """
    for name, given in flags.items():
        if not isinstance(given, bool):
            raise InputError(f"{name} must be True or False; got {brief(given)}")


def check_module(model: Any, name: str = "model") -> None:
    """Raise `InputError` if an argument is not a module."""
    if not isinstance(model, nn.Module):
        raise InputError(f"{name} must be a torch.nn.Module; got {type(model).__name__}")


def check_calls(**functions: Any) -> None:
    """Raise `InputError` if an argument of this name is neither None nor a callable."""
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise InputError(f"{name} must be a callable; got {type(function).__name__}")


def check_seed(seed: Any) -> None:
    """Raise `InputError` unless every generator accepts the seed."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) < 2**63:
        raise InputError(f"a seed is an integer from 0 to 2**63 - 1; got {brief(seed)}")


def duplicate(model: nn.Module, tensors: Mapping[int, Tensor] | None = None) -> nn.Module:
    """Copy a module tree, ties included.

    Tensors that a forward pass left in attributes (stored features, weights computed by a hook) are copied
    without their gradient history, which torch cannot copy.

    Args:
        model: The model; it is not changed.
        tensors: id of a tensor -> the tensor that replaces it in the copy.

    Raises:
        InputError: If the model's own way of copying gives a module of the model back.

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
    copied = copy.deepcopy(model, memo)
    own = {id(module): name for name, module in model.named_modules()}
    shared = next((own[id(module)] for module in copied.modules() if id(module) in own), None)
    if shared is not None:
        raise InputError(
            f"a copy of {type(model).__name__} shares its module {shared!r}, so that a pruning would change "
            "the model itself: let __deepcopy__ return a copy"
        )
    return copied


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode; restore its modes, buffers and other attributes at the end."""
    training = {module: module.training for module in model.modules()}
    attributes = {module: dict(vars(module)) for module in model.modules()}
    lists = [(x, list(x)) for before in attributes.values() for x in before.values() if type(x) is list]
    registered = ((m, k, b) for m in model.modules() for k, b in m.named_buffers(recurse=False))
    buffers = [(m, k, b, b.detach().clone()) for m, k, b in registered]
    # An embedding with max_norm shortens the rows that it reads, in its weight.
    tables = [m.weight for m in model.modules() if getattr(m, "max_norm", None) is not None]
    rows = [(w, w.detach().clone()) for w in tables if isinstance(w, Tensor)]
    try:
        model.eval()
        yield
    finally:
        for module, before in attributes.items():
            for name in set(vars(module)) - set(before):
                del vars(module)[name]
            vars(module).update(before)
        for values, entries in lists:
            values[:] = entries  # a forward may collect what it sees
        for module, flag in training.items():
            module.training = flag
        for module, name, buffer, value in buffers:
            module._buffers[name] = buffer
            if not (buffer.is_meta or torch.equal(buffer, value)):
                buffer.detach().copy_(value)
        for weight, value in rows:
            if not torch.equal(weight, value):
                weight.detach().copy_(value)


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
    """Run a model in evaluation mode with a seed; restore the model and the generators at the end.

    Training flags, `requires_grad`, buffers and other attributes and torch's generators are restored.  The
    fused attention path is off inside because it hides the weights.  For recurrent models cuDNN is off
    too: its kernels refuse gradients in evaluation mode.
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
    """Move tensors to a model's device."""
    device = device_of(model)
    return tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, value)


def to_model(value: Any, model: nn.Module) -> Any:
    """Copy tensors to a model's device, and floating ones to its dtype.

    They are always copied: a model that changes its inputs in place must not change the user's.
    """
    device, dtype = device_and_dtype(model)

    def move(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return x.detach().to(device, dtype if x.is_floating_point() else None, copy=True)

    return tree_map(move, value)


def read_batches(
    batches: Iterable[Any], model: nn.Module
) -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any], Any]]:
    """Yield each batch as (name, args, kwargs, targets), checked, on the model's device.

    The name is "batch 0" and so on, for messages; batches that are kept apart have the numbers that they had
    among all.  Floating inputs get the model's dtype.

    Raises:
        InputError: If there are no batches, or one has another form or NaN or infinite values.
    """
    where = ""
    try:
        numbered = enumerate(batches, getattr(batches, "first_number", 0))
    except TypeError as error:
        raise InputError(f"batches must be a list or a DataLoader; got {type(batches).__name__}") from error
    for number, batch in numbered:
        where = f"batch {number}"
        try:
            args, kwargs, targets = split_batch(batch, model)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        _check_values((args, kwargs), f"the inputs of {where}")
        check_finite((args, kwargs), f"the inputs of {where}")
        check_finite(targets, f"the targets of {where}")
        args, kwargs = to_model((args, kwargs), model)
        yield where, args, kwargs, to_device(targets, model)
    if not where:
        raise InputError(
            "there are no batches: the data is empty, or an iterator that was used up (pass a list)"
        )


def all_finite(tensor: Tensor) -> bool:
    """Return whether a tensor has neither NaN nor infinite values.

    A finite sum proves it in one pass without a copy.  Only if the sum is not finite are the values checked.

    Example:
        >>> all_finite(torch.full((4,), 3e38)), all_finite(torch.tensor([torch.inf, -torch.inf]))
        (True, False)
    """
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def _check_values(inputs: Any, where: str) -> None:
    """Raise `InputError` if a tensor has no values: no rows, or the meta device."""
    for x in tree_leaves(inputs):
        if isinstance(x, Tensor) and (x.numel() == 0 or x.is_meta):
            why = "is on the meta device" if x.is_meta else "is empty"
            raise InputError(f"{where}: a tensor of shape {tuple(x.shape)} {why}; leave this batch out")


def check_finite(value: Any, where: str) -> None:
    """Raise `InputError` if a tensor has NaN or infinite values; additive masks of 0 and -inf are allowed."""
    for x in tree_leaves(value):
        if isinstance(x, Tensor) and x.is_floating_point() and not all_finite(x):
            if ((x == 0) | (x == -torch.inf)).all() and (x == 0).any():
                continue
            raise InputError(f"{where} hold NaN or infinite values; clean them first")


class Together(ExitStack):
    """Contexts that are entered together, as often as needed: a batch may run sequence by sequence."""

    def __init__(self, contexts: Sequence[AbstractContextManager[Any]]) -> None:
        """Enter nothing yet."""
        super().__init__()
        self._contexts = contexts

    def __enter__(self) -> Self:
        """Enter all, in order."""
        for context in self._contexts:
            self.enter_context(context)
        return self


@contextmanager
def explain_errors(where: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Turn an error of the model or the loss into an `InputError` that shows the shapes."""
    try:
        yield
    except (SecateurError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        shapes = [tuple(x.shape) for x in tree_leaves((args, dict(kwargs))) if isinstance(x, Tensor)]
        message = f"the model or the loss cannot take {where}, inputs of shapes {shapes}: {_message(error)}"
        raise InputError(message) from error


def call(model: nn.Module, inputs: Any, kwargs: Mapping[str, Any] | None = None) -> Any:
    """Call a model on a tensor, a sequence of positional or a mapping of keyword arguments.

    Tensors are moved to the model's device, and floating ones to its dtype.

    Raises:
        InputError: If the model cannot take them; the message gives their shapes and the model's error.
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
        raise InputError(
            f"{type(model).__name__} cannot take inputs of shapes {given}: {_message(error)}"
        ) from error


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, RuntimeError) else f"{type(error).__name__}: {error}"


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
