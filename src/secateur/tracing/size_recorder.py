"""Run a model once with tagged integers, and note the sizes in its calls as Python wrote them."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from secateur.tracing.export import copy_sharing_tensors, exporting_flag_set, without_fused_attention
from secateur.tracing.symbolic_int import Expression, Tagged, TaggedFloat

__all__ = ["Heard", "Made", "Place", "Written", "listen"]

Place = tuple[str, str]  # a module's name and ``file:line``


@dataclass(frozen=True)
class Made:
    """Where a tensor was made: the lines of the call from the inside out, the module, and its shape.

    A parameter was made at no line; `name` says which it is.
    """

    frames: tuple[str, ...]
    module: str
    shape: tuple[int, ...]
    name: str = ""


@dataclass(frozen=True)
class Written:
    """One call that took sizes, as Python wrote them.

    Attributes:
        sizes: The integers, and numbers computed from sizes, in the order of the arguments.
        shapes: Shapes of the results.
    """

    sizes: tuple[Any, ...]
    shapes: tuple[tuple[int, ...], ...]


class _Listener(TorchFunctionMode):
    """Records the integers in calls by the lines they were called from, and tags sizes read from tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.calls: dict[Place, list[Written]] = defaultdict(list)
        self.made = WeakIdKeyDictionary()
        self.equalities: list[tuple[Expression, Expression]] = []
        self.stack = [""]
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name: self.stack.append(name))
            module.register_forward_hook(lambda *_: self.stack.pop() and None, always_call=True)
        for named in (model.named_parameters(), model.named_buffers()):
            for name, t in named:
                self.made[t] = Made((), "", tuple(t.shape), name)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in ("__get__", "size") and isinstance(args[0], Tensor):
            return self._tag(args[0], result, args[1:])
        tensors = [t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, Tensor)]
        if not tensors:
            return result
        frames, module = _frames(), self.stack[-1]
        for t in tensors:
            self.made[t] = Made(frames, module, tuple(map(int, t.shape)))
        sizes = tuple(_numbers((args, kwargs or {})))
        if sizes:
            written = Written(sizes, tuple(tuple(map(int, t.shape)) for t in tensors))
            for frame in frames:
                self.calls[module, frame].append(written)
        return result

    def _tag(self, tensor: Tensor, result: Any, rest: tuple[Any, ...]) -> Any:
        made = self.made.get(tensor)
        if isinstance(result, torch.Size):
            return torch.Size(
                [Tagged(n, ("shape", made, i, n), self.equalities) for i, n in enumerate(result)]
            )
        if type(result) is int and rest:
            return Tagged(result, ("shape", made, int(rest[0]) % tensor.ndim, result), self.equalities)
        return result


def _numbers(tree: Any) -> Iterator[Any]:
    if isinstance(tree, (bool, Tensor)):
        return
    if isinstance(tree, (int, TaggedFloat)):
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


def tag_attributes(model: nn.Module) -> None:
    """Replace, in a copy made by `copy_sharing_tensors`, the integers that modules and their configs hold."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        for holder, prefix in _holders(module):
            if id(holder) in seen:
                continue
            seen.add(id(holder))
            for key, value in list(holder.__dict__.items()):
                if type(value) is int and value > 1:
                    holder.__dict__[key] = Tagged(value, ("attr", name, prefix + key, value))


def _holders(module: nn.Module) -> Iterator[tuple[Any, str]]:
    yield module, ""
    for key, value in list(module.__dict__.items()):
        if not key.startswith("_") and hasattr(value, "__dict__") and "onfig" in type(value).__name__ + key:
            yield value, f"{key}."


@dataclass(frozen=True)
class Heard:
    """What one run told.

    Attributes:
        calls: By module and line: the calls that took sizes.
        equalities: Pairs of expressions that the code compared and found equal.
    """

    calls: Mapping[Place, list[Written]]
    equalities: list[tuple[Expression, Expression]]


def listen(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Heard:
    """Run the model once with tagged integers; return what it wrote and compared."""
    copy = copy_sharing_tensors(model)
    tag_attributes(copy)
    with _Listener(copy) as listener, torch.no_grad(), without_fused_attention(), exporting_flag_set():
        copy(*args, **kwargs)
    return Heard(listener.calls, listener.equalities)
