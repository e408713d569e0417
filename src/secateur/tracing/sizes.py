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
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.tracing.export import FRAME, ExportedModel, module_of
from secateur.tracing.labels import Label
from secateur.tracing.propagate import Axes, Flow, Literal
from secateur.tracing.size_recorder import Heard, Made, Place, listen
from secateur.tracing.symbolic_int import Expression, evaluate, expression_of, leaves

__all__ = ["settle"]

ARITHMETIC = ("add", "div", "mul", "pow", "rsub", "sub")
TRIALS = 16  # random removals under which every computed size must come out right


def settle(taken: ExportedModel, flow: Flow, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Tie every written size to what it comes from, or freeze its axis."""
    live = any(flow.atoms.normal(x.label) is not None for x in flow.literals)
    values = list(_values(taken))
    if live or values:
        settler = _Settler(taken, flow, listen(taken.model, args, kwargs))
        settler.run()
        for node, value in values:
            settler.freeze_behind(node, value)


def _values(taken: ExportedModel) -> Iterator[tuple[Any, float]]:
    """Yield the arithmetic with a number that may be a length, its inverse, or the root of either."""
    lengths = {
        n for node in taken.module.graph.nodes for s in _states(taken.states.get(node.name)) for n in s.shape
    }
    telling = {
        float(f(n)) for n in lengths if n > 1 for f in (int, math.sqrt, lambda n: 1 / n, lambda n: n**-0.5)
    }
    for node in _all_nodes(taken.module):
        if getattr(node.target, "_opname", "").rstrip("_") in ARITHMETIC:
            for value in node.args:
                if isinstance(value, (int, float)) and float(value) in telling:
                    yield node, value


class _Settler:
    """Matches sizes in the graph with sizes as written, and makes them agree under removal."""

    def __init__(self, taken: ExportedModel, flow: Flow, heard: Heard) -> None:
        self.flow, self.atoms, self.states = flow, flow.atoms, taken.states
        self.calls, self.equalities = heard.calls, heard.equalities
        self.nodes = {node.name: node for node in _all_nodes(taken.module)}
        holders = {n.name: n for n in taken.module.graph.nodes if n.op == "placeholder"}
        self.placeholders = {
            name: holders[node] for node, name in taken.parameters.items() if node in holders
        }
        self.by_line: dict[Place, list[Any]] = defaultdict(list)
        for node in self.nodes.values():
            self.by_line[module_of(node)[0], line_of(node)].append(node)
        self.sized: dict[Expression, list[tuple[Literal, str]]] = defaultdict(list)
        self.trials: Any = None
        self.computed: list[tuple[Literal, Expression, str]] = []

    def run(self) -> None:
        """Read every literal, tie what one attribute sizes, then test what is computed."""
        for literal in self.flow.literals:
            self._read(literal)
        for pair in {tuple(sorted(p, key=lambda e: e[0])) for p in self.equalities}:
            self._compare(*pair)
        for (_, module, attribute, _), uses in self.sized.items():
            self._tie(module, attribute, uses)
        changed = True
        while changed:
            changed = sum(self._freeze_if_wrong(*item) for item in self.computed) > 0

    def freeze_behind(self, node: Any, value: float) -> None:
        """Freeze the axes whose lengths a number in the arithmetic was computed from."""
        place, module = line_of(node), module_of(node)[0]
        if module in self.flow.norms:
            return  # replaced as a whole when it narrows
        for call in self.calls.get((module, place), []):
            for n in call.sizes:
                for leaf in leaves(expression_of(n)) if n == value else ():
                    for label in self._labels(leaf):
                        self._freeze(label, "its length enters the computation as a number", place)

    def _read(self, literal: Literal) -> None:
        node = self.nodes[literal.node]
        if module_of(node)[1].endswith("activation.MultiheadAttention"):
            return  # replaced as a whole when it loses anything
        place = line_of(node)
        shapes = {
            tuple(v.shape) for v in torch.utils._pytree.tree_leaves(node.meta["val"]) if isinstance(v, Tensor)
        }
        written = {
            expression_of(n)
            for call in self.calls.get((module_of(node)[0], place), [])
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

    def _compare(self, left: Expression, right: Expression) -> None:
        """Keep true what the code checked: an attribute found equal to a length sizes that axis."""
        if (left[0], right[0]) == ("attr", "shape"):
            for label in self._labels(right):
                self.sized[left].append((Literal("", 0, left[3], label), "a comparison"))

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
        if label is None and all(x is None for found in axes.values() for x in found):
            return True
        for dead in self._trials():
            expected = _alive(label, dead, literal.size)
            for choice in itertools.product(*axes.values()):
                values = {leaf: _alive(x, dead, leaf[3]) for leaf, x in zip(axes, choice, strict=True)}
                if not (expected and all(values.values())):
                    continue  # nothing left of an axis: no plan does that
                if evaluate(expression, values.__getitem__) != expected:
                    return False
        return True

    def _trials(self) -> Any:
        """Return random removals [trials, atoms], the same as long as there are no more atoms."""
        if self.trials is None or self.trials.shape[1] < self.atoms.size:
            self.trials = np.random.default_rng(0).random((TRIALS, self.atoms.size), dtype=np.float32) < 0.4
            self.trials[:, 0] = False
        return self.trials

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
