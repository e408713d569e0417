"""Sizes written into operations: where does each number come from?

A view or a split states sizes.  A size read from a tensor follows the tensor when it shrinks; a size
read from an attribute of a module follows when the attribute is changed; a number written in the
code follows nothing, so its axis stays.  Which is which is found by running the model once with
every integer attribute, and every size read from a tensor, replaced by an integer that remembers
how it was computed (`Tagged`), under a mode that sees the arguments of each call as Python wrote
them.  A size that is computed must come out right whichever units go; where it would not, its axis,
and if need be what it is computed from, stays.
"""

from __future__ import annotations

import itertools
import operator
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from secateur.network.atoms import Label
from secateur.network.capture import FRAME, Capture, as_if_exporting, owner, slow_paths, twin
from secateur.network.flow import Axes, Flow, Literal

__all__ = ["Tagged", "settle"]

TRIALS = 16  # random removals under which every computed size must come out right

Place = tuple[str, str]  # a module's name and ``file:line``
Expression = tuple[Any, ...]
"""("attr", module, name, n), ("shape", made, axis, n), ("number", n), or (operation, left, right)."""


class Tagged(int):
    """An integer that remembers how it was computed.

    Example:
        >>> heads = Tagged(4, ("attr", "attn", "num_heads", 4))
        >>> (12 // heads).expression
        ('floordiv', ('number', 12), ('attr', 'attn', 'num_heads', 4))
    """

    expression: Expression

    def __new__(cls, value: int, expression: Expression) -> Tagged:
        """Return the integer with its history."""
        self = super().__new__(cls, value)
        self.expression = expression
        return self

    def __deepcopy__(self, memo: Any) -> Tagged:
        """Return itself: an integer does not change."""
        return self

    def __reduce__(self) -> Any:
        """Pickle as a plain integer."""
        return int, (int(self),)


OPERATIONS = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "floordiv": operator.floordiv,
              "mod": operator.mod}  # fmt: skip


def _method(name: str, reflected: bool) -> Callable[[Tagged, Any], Any]:
    def method(self: Tagged, other: Any) -> Any:
        if type(other) not in (int, Tagged):
            return NotImplemented
        pair = (other, self) if reflected else (self, other)
        value = OPERATIONS[name](*(int(n) for n in pair))
        return Tagged(value, (name, *(expression_of(n) for n in pair)))

    return method


for _name in OPERATIONS:
    setattr(Tagged, f"__{_name}__", _method(_name, False))
    setattr(Tagged, f"__r{_name}__", _method(_name, True))


def expression_of(n: int) -> Expression:
    """Return how an integer was computed."""
    return n.expression if isinstance(n, Tagged) else ("number", int(n))


def leaves(expression: Expression) -> Iterator[Expression]:
    """Yield the attributes and shapes that enter an expression."""
    if expression[0] in OPERATIONS:
        yield from leaves(expression[1])
        yield from leaves(expression[2])
    elif expression[0] != "number":
        yield expression


def evaluate(expression: Expression, value: Callable[[Expression], int]) -> int:
    """Evaluate an expression with given values of its leaves.

    Raises:
        ZeroDivisionError: As the code itself would.
    """
    if expression[0] == "number":
        return int(expression[1])
    if expression[0] not in OPERATIONS:
        return value(expression)
    return OPERATIONS[expression[0]](evaluate(expression[1], value), evaluate(expression[2], value))


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
        sizes: The integers in the order of the arguments.
        shapes: Shapes of the results.
    """

    sizes: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]


class _Listener(TorchFunctionMode):
    """Records the integers in calls by the lines they were called from, and tags sizes read from tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.calls: dict[Place, list[Written]] = defaultdict(list)
        self.made = WeakIdKeyDictionary()
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
        sizes = tuple(_integers((args, kwargs or {})))
        if sizes:
            written = Written(sizes, tuple(tuple(map(int, t.shape)) for t in tensors))
            for frame in frames:
                self.calls[module, frame].append(written)
        return result

    def _tag(self, tensor: Tensor, result: Any, rest: tuple[Any, ...]) -> Any:
        made = self.made.get(tensor)
        if isinstance(result, torch.Size):
            return torch.Size([Tagged(n, ("shape", made, i, n)) for i, n in enumerate(result)])
        if type(result) is int and rest:
            return Tagged(result, ("shape", made, int(rest[0]) % tensor.ndim, result))
        return result


def _integers(tree: Any) -> Iterator[int]:
    if isinstance(tree, (bool, Tensor)):
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


def _frames() -> tuple[str, ...]:
    frames = []
    frame: Any = sys._getframe(2)
    while frame is not None:
        frames.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
        frame = frame.f_back
    return tuple(frames)


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
                    holder.__dict__[key] = Tagged(value, ("attr", name, prefix + key, value))


def _holders(module: nn.Module) -> Iterator[tuple[Any, str]]:
    yield module, ""
    for key, value in list(module.__dict__.items()):
        if not key.startswith("_") and hasattr(value, "__dict__") and "onfig" in type(value).__name__ + key:
            yield value, f"{key}."


def listen(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[Place, list[Written]]:
    """Run the model once with tagged integers; return by module and line the calls that took sizes."""
    copy = twin(model)
    tag_attributes(copy)
    with _Listener(copy) as listener, torch.no_grad(), slow_paths(), as_if_exporting():
        copy(*args, **kwargs)
    return listener.calls


def settle(taken: Capture, flow: Flow, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Tie every written size to what it comes from, or freeze its axis."""
    if any(flow.atoms.normal(x.label) is not None for x in flow.literals):
        _Settler(taken, flow, listen(taken.model, args, kwargs)).run()


class _Settler:
    """Matches sizes in the graph with sizes as written, and makes them agree under removal."""

    def __init__(self, taken: Capture, flow: Flow, calls: Mapping[Place, list[Written]]) -> None:
        self.flow, self.atoms, self.calls, self.states = flow, flow.atoms, calls, taken.states
        self.nodes = {node.name: node for node in _all_nodes(taken.module)}
        holders = {n.name: n for n in taken.module.graph.nodes if n.op == "placeholder"}
        self.placeholders = {
            name: holders[node] for node, name in taken.parameters.items() if node in holders
        }
        self.by_line: dict[Place, list[Any]] = defaultdict(list)
        for node in self.nodes.values():
            self.by_line[owner(node)[0], line_of(node)].append(node)
        self.sized: dict[Expression, list[tuple[Literal, str]]] = defaultdict(list)
        self.computed: list[tuple[Literal, Expression, str]] = []

    def run(self) -> None:
        """Read every literal, tie what one attribute sizes, then test what is computed."""
        for literal in self.flow.literals:
            self._read(literal)
        for (_, module, attribute, _), uses in self.sized.items():
            self._tie(module, attribute, uses)
        changed = True
        while changed:
            changed = sum(self._freeze_if_wrong(*item) for item in self.computed) > 0

    def _read(self, literal: Literal) -> None:
        node = self.nodes[literal.node]
        if owner(node)[1].endswith("activation.MultiheadAttention"):
            return  # replaced as a whole when it loses anything
        place = line_of(node)
        shapes = {
            tuple(v.shape) for v in torch.utils._pytree.tree_leaves(node.meta["val"]) if isinstance(v, Tensor)
        }
        written = {
            expression_of(n)
            for call in self.calls.get((owner(node)[0], place), [])
            if shapes & set(call.shapes)
            for n in _candidates(call.sizes, literal)
        }
        if not written:
            self._freeze(literal.label, f"its size {literal.size} cannot be followed", place)
        for expression in written:
            if expression[0] == "number":
                self._freeze(literal.label, f"its size {literal.size} is written in the code", place)
            elif expression[0] == "attr":
                self.sized[expression].append((literal, place))
            else:
                self.computed.append((literal, expression, place))

    def _freeze(self, label: Label, why: str, place: str) -> bool:
        label = self.atoms.normal(label)
        self.atoms.freeze(label, f"{why} ({place})")
        return label is not None

    def _tie(self, module: str, attribute: str, uses: list[tuple[Literal, str]]) -> None:
        """One attribute holds one number: every axis that it sizes loses equally many, at equal places."""
        (first, place), *others = uses
        for other, there in others:
            if _length(first) == _length(other):
                self.atoms.why = f"tied by the attribute {module}.{attribute} ({there})"
                self.atoms.equate(first.label, other.label)
            else:
                for literal in (first, other):
                    self._freeze(literal.label, f"{module}.{attribute} sizes two axes", there)
        self.flow.sizes.append((module, attribute, first.size, first.label, place))

    def _freeze_if_wrong(self, literal: Literal, expression: Expression, place: str) -> bool:
        """Freeze the axis, then what its size is computed from, where the computation would not follow."""
        if self._follows(literal, expression):
            return False
        changed = self._freeze(
            literal.label, f"its size {literal.size} is computed in a way that does not follow", place
        )
        if not self._follows(literal, expression):
            for leaf in leaves(expression):
                for label in self._labels(leaf):
                    changed |= self._freeze(
                        label, "a size is computed from it in a way that does not follow", place
                    )
        return changed

    def _follows(self, literal: Literal, expression: Expression) -> bool:
        """Whether the size comes out right when random units are dead."""
        label = self.atoms.normal(literal.label)
        axes = {leaf: self._labels(leaf) for leaf in leaves(expression)}
        for trial in range(TRIALS):
            dead = np.random.default_rng(trial).random(self.atoms.size) < 0.4
            dead[0] = False
            expected = _alive(label, dead, literal.size)
            for choice in itertools.product(*axes.values()):
                values = {leaf: _alive(x, dead, leaf[3]) for leaf, x in zip(axes, choice, strict=True)}
                if not (expected and all(values.values())):
                    continue  # nothing left of an axis: no plan does that
                if evaluate(expression, values.__getitem__) != expected:
                    return False
        return True

    def _labels(self, leaf: Expression) -> list[Label]:
        """Return the labels that the axis behind an attribute or a shape may have."""
        if leaf[0] == "attr":
            return [self.atoms.normal(self.sized[leaf][0][0].label)] if leaf in self.sized else [None]
        made, axis = leaf[1], leaf[2]
        if made is None:
            return [None]
        nodes = [self.placeholders[made.name]] if made.name in self.placeholders else self._makers(made)
        found = [
            s.labels[axis] for n in nodes for s in _states(self.states.get(n.name)) if s.shape == made.shape
        ]
        return [self.atoms.normal(x) for x in found] or [None]

    def _makers(self, made: Made) -> list[Any]:
        """Return the nodes made at the innermost line that has any of the right shape."""
        for frame in made.frames:
            here = self.by_line.get((made.module, frame), [])
            nodes = [n for n in here if any(s.shape == made.shape for s in _states(self.states.get(n.name)))]
            if nodes:
                return nodes
        return []


def _states(state: Any) -> list[Axes]:
    return [s for s in (state if isinstance(state, (list, tuple)) else [state]) if isinstance(s, Axes)]


def _alive(label: Label, dead: Any, size: int) -> int:
    return size if label is None else int((~dead[label].any(1)).sum())


def _length(literal: Literal) -> int:
    return literal.size if literal.label is None else len(literal.label)


def _candidates(sizes: tuple[int, ...], literal: Literal) -> list[int]:
    """Return the written size at the literal's position, or wherever its value stands."""
    if literal.position < len(sizes) and sizes[literal.position] == literal.size:
        return [sizes[literal.position]]
    return [n for n in sizes if n == literal.size]


def line_of(node: Any) -> str:
    """Return ``file:line`` of a node's innermost frame."""
    frames = FRAME.findall(node.meta.get("stack_trace") or "")
    return f"{frames[-1][0]}:{frames[-1][1]}" if frames else ""


def _all_nodes(module: torch.fx.GraphModule) -> Iterator[Any]:
    yield from module.graph.nodes
    for child in module.children():
        if isinstance(child, torch.fx.GraphModule):
            yield from _all_nodes(child)
