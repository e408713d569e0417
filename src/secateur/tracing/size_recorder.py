"""Run a model once with integers that remember their origin, and record the sizes in its calls.

See `sizes` for what the records are used for.
"""

from __future__ import annotations

import contextlib
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from secateur.execution import plain_tensors
from secateur.tracing.export import copy_sharing_tensors, exporting_flag_set, without_fused_attention
from secateur.tracing.symbolic_int import Expression, TracedFloat, TracedInt

__all__ = ["CodeLocation", "RecordedSizes", "SizedCall", "TensorOrigin", "record_sizes"]

CodeLocation = tuple[str, str]  # a module's name and ``file:line``


@dataclass(frozen=True)
class TensorOrigin:
    """Where a tensor was computed.

    Attributes:
        frames: ``file:line`` of the call and its callers, innermost first; empty for a parameter.
        module: Name of the module.
        shape: Shape of the tensor.
        name: Name of the parameter, buffer or state that it is, or "".
    """

    frames: tuple[str, ...]
    module: str
    shape: tuple[int, ...]
    name: str = ""


@dataclass(frozen=True)
class SizedCall:
    """One call that got sizes.

    Attributes:
        sizes: Its integers, and numbers computed from sizes, in the order of the arguments.
        shapes: Shapes of the results.
    """

    sizes: tuple[Any, ...]
    shapes: tuple[tuple[int, ...], ...]


class _SizeRecorder(TorchFunctionMode):
    """Records the integers in calls by their lines of code; sizes read from tensors become `TracedInt`."""

    def __init__(self, model: nn.Module, states: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.calls: dict[CodeLocation, list[SizedCall]] = defaultdict(list)
        self.origins = WeakIdKeyDictionary()
        self.equalities: list[tuple[Expression, Expression]] = []
        self.stack = [""]
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name: self.stack.append(name))
            module.register_forward_hook(lambda *_: self.stack.pop() and None, always_call=True)
        plain = plain_tensors(model).items()
        for named in (model.named_parameters(), model.named_buffers(), plain, states.items()):
            for name, t in named:
                self.origins[t] = TensorOrigin((), "", tuple(t.shape), name)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in ("__get__", "size") and isinstance(args[0], Tensor):
            return self._traced_size(args[0], result, args[1:])
        tensors = [t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, Tensor)]
        if not tensors:
            return result
        frames, module = _frames(), self.stack[-1]
        for t in tensors:
            self.origins[t] = TensorOrigin(frames, module, tuple(map(int, t.shape)))
        sizes = tuple(_numbers((args, kwargs or {})))
        if sizes:
            call = SizedCall(sizes, tuple(tuple(map(int, t.shape)) for t in tensors))
            for frame in frames:
                self.calls[module, frame].append(call)
        return result

    def _traced_size(self, tensor: Tensor, result: Any, rest: tuple[Any, ...]) -> Any:
        origin = self.origins.get(tensor)
        if isinstance(result, torch.Size):
            return torch.Size(
                [TracedInt(n, ("shape", origin, i, n), self.equalities) for i, n in enumerate(result)]
            )
        if type(result) is int and rest:
            return TracedInt(result, ("shape", origin, int(rest[0]) % tensor.ndim, result), self.equalities)
        return result


def _numbers(tree: Any) -> Iterator[Any]:
    if isinstance(tree, (bool, Tensor)):
        return
    if isinstance(tree, (int, TracedFloat)):
        yield tree
    elif isinstance(tree, slice):
        yield from _numbers((tree.start, tree.stop, tree.step))
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from _numbers(item)
    elif isinstance(tree, dict):
        yield from _numbers(list(tree.values()))


def _frames() -> tuple[str, ...]:
    frames = []
    frame: Any = sys._getframe(2)
    while frame is not None:
        frames.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
        frame = frame.f_back
    return tuple(frames)


def trace_attributes(model: nn.Module) -> None:
    """Replace the integers that modules and their configs hold by `TracedInt`.

    Args:
        model: A copy made by `copy_sharing_tensors`; it is changed.
    """
    seen: set[int] = set()
    for name, module in model.named_modules():
        for holder, prefix in _holders(module):
            if id(holder) in seen:
                continue
            seen.add(id(holder))
            for key, value in list(holder.__dict__.items()):
                if type(value) is int and value > 1:
                    holder.__dict__[key] = TracedInt(value, ("attr", name, prefix + key, value))


def _holders(module: nn.Module) -> Iterator[tuple[Any, str]]:
    yield module, ""
    for key, value in list(module.__dict__.items()):
        if not key.startswith("_") and hasattr(value, "__dict__") and "onfig" in type(value).__name__ + key:
            yield value, f"{key}."


@dataclass(frozen=True)
class RecordedSizes:
    """Sizes recorded in one forward pass.

    Attributes:
        calls: By module and line: the calls that got sizes.
        equalities: Pairs of expressions that the code compared and that were equal.
        error: Why the pass ended early: code that does not take integers which remember their origin; or "".
    """

    calls: Mapping[CodeLocation, list[SizedCall]]
    equalities: list[tuple[Expression, Expression]]
    error: str = ""


@contextlib.contextmanager
def _without_einops_cache() -> Iterator[None]:
    """Make einops compute its shapes again: its cache holds plain integers of an earlier call."""
    einops: Any = sys.modules.get("einops.einops")
    cached: Any = getattr(einops, EINOPS_CACHE, None)
    if not hasattr(cached, "__wrapped__"):
        yield
        return
    setattr(einops, EINOPS_CACHE, cached.__wrapped__)
    try:
        yield
    finally:
        setattr(einops, EINOPS_CACHE, cached)


EINOPS_CACHE = "_reconstruct_from_shape"


def record_sizes(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], states: Mapping[str, Tensor]
) -> RecordedSizes:
    """Run a copy of the model once; return the sizes that its code passed and compared.

    Args:
        model: The model.
        args: Positional inputs.
        kwargs: Keyword inputs.
        states: Those of the inputs on whose axes units lie, by the names that their origins get.
    """
    # On the meta device no code can branch on values, as transformers does; libraries know of fake tensors.
    fake = FakeTensorMode() if any(p.is_meta for p in model.parameters()) else None
    copy = copy_sharing_tensors(model, {} if fake is None else _fakes(model, fake))
    trace_attributes(copy)
    reason = ""
    if fake is not None:
        args, kwargs, states = tree_map_only(Tensor, fake.from_tensor, (args, dict(kwargs), dict(states)))
    with (
        fake or nullcontext(),
        _SizeRecorder(copy, states) as recorder,
        _without_einops_cache(),
        torch.no_grad(),
        without_fused_attention(),
        exporting_flag_set(),
    ):
        try:
            copy(*args, **kwargs)
        except Exception as error:  # the export ran the same code
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
    return RecordedSizes(recorder.calls, recorder.equalities, reason)


def _fakes(model: nn.Module, fake: FakeTensorMode) -> dict[int, Tensor]:
    """Return, by id, tensors without values that stand for the parameters and buffers of a model."""
    return {id(t): fake.from_tensor(t) for t in (*model.parameters(), *model.buffers())}
