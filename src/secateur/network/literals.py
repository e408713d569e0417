"""Sizes written into operations: where does each number come from?

A view or a split states sizes.  A size read from a tensor follows the tensor when it shrinks; a size
read from an attribute of a module follows when the attribute is changed; a number written in the
code follows nothing, so its axis stays.  Which is which is found by running the model once with
every integer attribute, and every size read from a tensor, replaced by an integer that remembers
where it came from (`Tagged`), under a mode that sees the arguments of each call as Python wrote them.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur.network.capture import FRAME, Capture, owner, slow_paths, twin
from secateur.network.flow import Flow, Literal

__all__ = ["Tagged", "settle"]

SHAPE = "shape"


class Tagged(int):
    """An integer that remembers where it came from, through arithmetic.

    Attributes:
        origins: (module, attribute) pairs, or ``("shape", "")`` for a size read from a tensor.
        exact: Whether it is still the very value of its one origin.

    Example:
        >>> heads = Tagged(4, {("attn", "num_heads")})
        >>> width = Tagged(12, {("shape", "")})
        >>> (width // heads).origins == {("attn", "num_heads"), ("shape", "")}, (width // heads).exact
        (True, False)
    """

    origins: frozenset[tuple[str, str]]
    exact: bool

    def __new__(cls, value: int, origins: Any, exact: bool = True) -> Tagged:
        """Return the integer with its origins."""
        self = super().__new__(cls, value)
        self.origins = frozenset(origins)
        self.exact = exact
        return self

    def __deepcopy__(self, memo: Any) -> Tagged:
        """Return itself: an integer does not change."""
        return self

    def __reduce__(self) -> Any:
        """Pickle as a plain integer."""
        return int, (int(self),)


def _operation(name: str) -> Callable[..., Any]:
    plain = getattr(int, name)

    def method(self: Tagged, *others: Any) -> Any:
        value = plain(self, *others)
        if type(value) is not int:
            return value
        origins = self.origins.union(*(o.origins for o in others if isinstance(o, Tagged)))
        return Tagged(value, origins, exact=False)

    return method


for _name in ("add", "sub", "mul", "floordiv", "mod", "radd", "rsub", "rmul", "rfloordiv", "rmod", "neg", "pow", "rpow"):
    setattr(Tagged, f"__{_name}__", _operation(f"__{_name}__"))


@dataclass(frozen=True)
class Written:
    """One call that took sizes, as Python wrote them.

    Attributes:
        frames: ``file:line`` of the frames it was called from.
        sizes: The integers, with their origins where they have any.
        shapes: Shapes of the results.
    """

    frames: frozenset[str]
    sizes: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]


class _Listener(TorchFunctionMode):
    """Records the integers in calls, and tags sizes that are read from tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Written] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "__get__" and isinstance(result, torch.Size):
            return torch.Size([Tagged(n, {(SHAPE, "")}) for n in result])
        if name in ("size", "dim", "__len__"):
            return _tag_size(result) if name != "dim" else result
        sizes = tuple(_integers((args, kwargs)))
        if sizes:
            shapes = tuple(tuple(map(int, t.shape)) for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, Tensor))
            self.calls.append(Written(_frames(), sizes, shapes))
        return result


def _tag_size(result: Any) -> Any:
    if isinstance(result, torch.Size):
        return torch.Size([Tagged(n, {(SHAPE, "")}) for n in result])
    return Tagged(result, {(SHAPE, "")}) if type(result) is int else result


def _integers(tree: Any) -> Iterator[int]:
    if isinstance(tree, bool) or isinstance(tree, Tensor):
        return
    if isinstance(tree, int):
        yield tree
    elif isinstance(tree, slice):
        yield from _integers((tree.start, tree.stop, tree.step))
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from _integers(item)
    elif isinstance(tree, dict):
        yield from _integers(list(tree.values()))


def _frames() -> frozenset[str]:
    frames = set()
    frame: Any = sys._getframe(2)
    while frame is not None:
        frames.add(f"{frame.f_code.co_filename}:{frame.f_lineno}")
        frame = frame.f_back
    return frozenset(frames)


def tag_attributes(model: nn.Module) -> None:
    """Replace, in a copy made by `twin`, the integers that modules and their configs hold."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        for holder, prefix in _holders(module):
            if id(holder) in seen:
                continue
            seen.add(id(holder))
            for key, value in list(holder.__dict__.items()):
                if type(value) is int and value > 1:
                    holder.__dict__[key] = Tagged(value, {(name, prefix + key)})


def _holders(module: nn.Module) -> Iterator[tuple[Any, str]]:
    yield module, ""
    for key, value in list(module.__dict__.items()):
        if not key.startswith("_") and hasattr(value, "__dict__") and "onfig" in type(value).__name__ + key:
            yield value, f"{key}."


def listen(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Written]:
    """Run the model once with tagged integers; return the calls that took sizes."""
    copy = twin(model)
    tag_attributes(copy)
    with _Listener() as listener, torch.no_grad(), slow_paths():
        copy(*args, **kwargs)
    return listener.calls


def settle(taken: Capture, flow: Flow, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Tie every written size to the attribute that it comes from, or freeze its axis."""
    live = [x for x in flow.literals if flow.atoms.normal(x.label) is not None]
    if not live:
        return
    by_line: dict[str, list[Written]] = defaultdict(list)
    for call in listen(taken.model, args, kwargs):
        for frame in call.frames:
            by_line[frame].append(call)
    nodes = {node.name: node for node in _all_nodes(taken.module)}
    attributes: dict[tuple[str, str], list[tuple[Literal, str]]] = defaultdict(list)
    for literal in live:
        _settle_one(flow, literal, nodes[literal.node], by_line, attributes)
    for (module, attribute), uses in attributes.items():
        _tie(flow, module, attribute, uses)


def _all_nodes(module: torch.fx.GraphModule) -> Iterator[Any]:
    for node in module.graph.nodes:
        yield node
    for child in module.children():
        if isinstance(child, torch.fx.GraphModule):
            yield from _all_nodes(child)


def _settle_one(flow: Flow, literal: Literal, node: Any, by_line: Any, attributes: Any) -> None:
    if owner(node)[1].endswith("activation.MultiheadAttention"):
        return  # replaced as a whole when it loses heads
    frames = FRAME.findall(node.meta.get("stack_trace") or "")
    place = f"{frames[-1][0]}:{frames[-1][1]}" if frames else ""
    shown = f"{Path(place.rpartition(':')[0]).name}:{place.rpartition(':')[2]}" if place else "an unknown line"
    shapes = {tuple(v.shape) for v in torch.utils._pytree.tree_leaves(node.meta["val"]) if isinstance(v, Tensor)}
    calls = [c for c in by_line.get(place, []) if shapes & set(c.shapes)]
    written = [s for c in calls for s in c.sizes if s == literal.size]
    origins = {o for s in written if isinstance(s, Tagged) and s.exact for o in s.origins}
    mixed = [s for s in written if isinstance(s, Tagged) and not s.exact]
    plain = [s for s in written if not isinstance(s, Tagged)]
    own = sorted(o for o in origins if o[0] != SHAPE)
    if plain and not origins and not mixed:
        flow.atoms.freeze(literal.label, f"its size {literal.size} is written in the code ({place})")
    elif own:
        attributes[own[0]].append((literal, place))
        for other in own[1:]:
            attributes[other].append((literal, place))
    elif not calls or (mixed and not any((SHAPE, "") in s.origins for s in mixed) and (SHAPE, "") not in origins):
        flow.atoms.freeze(literal.label, f"its size {literal.size} cannot be followed at {shown} ({place})")


def _tie(flow: Flow, module: str, attribute: str, uses: list[tuple[Literal, str]]) -> None:
    """One attribute holds one number: every axis that it sizes loses equally many, at equal places."""
    first, place = uses[0]
    for other, _ in uses[1:]:
        if len(other.label) == len(first.label):  # type: ignore[arg-type]
            flow.atoms.why = f"tied by the attribute {module}.{attribute} ({place})"
            flow.atoms.equate(first.label, other.label)
        else:
            flow.atoms.freeze(other.label, f"sized by {module}.{attribute} in two ways ({place})")
            flow.atoms.freeze(first.label, f"sized by {module}.{attribute} in two ways ({place})")
    flow.sizes.append((module, attribute, int(first.size), first.label, place))


