"""Find where each size in the code comes from, so that it changes with the axis whose length it states.

A view or a split gets sizes as arguments.  A size that is read from a tensor follows the tensor when it
shrinks.  A size that is read from an attribute of a module follows when the attribute is changed.  A number
that is written in the code follows nothing, so its axis is frozen.

The exported graph shows only numbers.  So the model runs once with every integer attribute, and every size
that is read from a tensor, replaced by an integer that remembers how it was computed (`TracedInt`), and the
arguments of every call are recorded (`size_recorder`).  A size argument of the graph is matched with the
recorded calls of the same line and module whose results have the same shape.

A size that is computed must come out right whichever units go.  This is tested on random removals; where it
fails, the axis is frozen, and if that is not enough, also the axes that the size is computed from.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from secateur.execution import copy_tensors
from secateur.tracing.equal_lengths import equally_long
from secateur.tracing.export import FRAME, ExportedModel, module_of, shapes_in
from secateur.tracing.labels import Label
from secateur.tracing.propagate import ExplicitSize, Propagation, TensorAxes
from secateur.tracing.size_recorder import CodeLocation, RecordedSizes, TensorOrigin, record_sizes
from secateur.tracing.symbolic_int import Expression, evaluate_expression, expression_of, leaves

__all__ = ["match_sizes"]

PADDINGS = ("constant_pad_nd", "pad")
ARITHMETIC = ("add", "div", "mul", "pow", "rsub", "sub")
TRIALS = 16  # random removals under which every computed size must come out right


def match_sizes(
    exported: ExportedModel,
    propagation: Propagation,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    states: Collection[str] = (),
) -> None:
    """Tie every size in the graph to what it comes from, or freeze its axis.

    Args:
        exported: The exported model.
        propagation: After the labels have passed through the graph.
        args: Positional example inputs.
        kwargs: Keyword example inputs.
        states: Names of the graph's inputs that are states.
    """
    labelled = any(propagation.algebra.normal(x.label) is not None for x in propagation.explicit_sizes)
    numbers = list(_length_like_numbers(exported, propagation))
    if labelled or numbers:
        args, kwargs = copy_tensors((args, dict(kwargs)))
        inputs = zip(exported.user_inputs(), tree_leaves((args, kwargs)), strict=False)
        known = {f"input {node.name}": x for node, x in inputs if node.name in states}
        matcher = _SizeMatcher(exported, propagation, record_sizes(exported.model, args, kwargs, known))
        matcher.run()
        for node, value in numbers:
            matcher.freeze_lengths_behind(node, value)


def _length_like_numbers(exported: ExportedModel, propagation: Propagation) -> Iterator[tuple[Any, float]]:
    """Yield arithmetic nodes with a constant that may be a length, its inverse, or the root of either.

    And paddings with each of their amounts: padded entries are of no unit, so their number must not change.
    """
    lengths = {
        n
        for node in exported.graph_module.graph.nodes
        for state in _states(propagation.states.get(node.name))
        for n in state.shape
    }
    constants = {
        float(f(n)) for n in lengths if n > 1 for f in (int, math.sqrt, lambda n: 1 / n, lambda n: n**-0.5)
    }
    for node in _all_nodes(exported.graph_module):
        name = getattr(node.target, "_opname", "").rstrip("_")
        if name in PADDINGS:
            yield from ((node, amount) for amount in node.args[1] if amount)
        if name in ARITHMETIC:
            for value in node.args:
                if isinstance(value, (int, float)) and float(value) in constants:
                    yield node, value


class _SizeMatcher:
    """Matches sizes in the graph with sizes in the code, and makes them agree whichever units go.

    Attributes:
        axes_of: Expression of an attribute -> the sizes that equal it, each with its line of code.
        computed: (size, expression, line of code) of the sizes that the code computes.
    """

    def __init__(self, exported: ExportedModel, propagation: Propagation, recorded: RecordedSizes) -> None:
        self.propagation, self.algebra = propagation, propagation.algebra
        self.states = propagation.states
        self.calls, self.equalities = recorded.calls, recorded.equalities
        self.error = f", because recording the sizes failed: {recorded.error}" if recorded.error else ""
        self.nodes = {node.name: node for node in _all_nodes(exported.graph_module)}
        inputs = {n.name: n for n in exported.graph_module.graph.nodes if n.op == "placeholder"}
        self.inputs = {name: inputs[node] for node, name in exported.parameters.items() if node in inputs}
        self.inputs |= {f"input {node.name}": node for node in exported.user_inputs()}
        self.by_line: dict[CodeLocation, list[Any]] = defaultdict(list)
        for node in self.nodes.values():
            self.by_line[module_of(node)[0], innermost_line(node)].append(node)
        self.axes_of: dict[Expression, list[tuple[ExplicitSize, str]]] = defaultdict(list)
        self.computed: list[tuple[ExplicitSize, Expression, str]] = []
        self._dead: Any = None
        self._tied: set[tuple[ExplicitSize, Expression]] = set()

    def run(self) -> None:
        """Match every size, tie the axes that share an attribute, then test what is computed."""
        for size in self.propagation.explicit_sizes:
            self._match(size)
        for pair in {tuple(sorted(p, key=lambda e: e[0])) for p in self.equalities}:
            self._use_equality(*pair)
        for (_, module, attribute, _), uses in self.axes_of.items():
            self._tie(module, attribute, uses)
        # Freezing one axis can break a size that is computed from another: repeat until nothing changes.
        changed = True
        while changed:
            changed = sum(self._freeze_if_wrong(*item) for item in self.computed) > 0

    def freeze_lengths_behind(self, node: Any, value: float) -> None:
        """Freeze the axes whose lengths a number in the arithmetic was computed from."""
        line, module = innermost_line(node), module_of(node)[0]
        if module in self.propagation.norms:
            return  # NarrowNorm replaces the module when it narrows, and keeps the number
        numbers = [n for call in self.calls.get((module, line), []) for n in call.sizes if n == value]
        for expression in map(expression_of, numbers):
            for leaf in () if self._is_constant(expression) else leaves(expression):
                for label in self._labels(leaf):
                    self._freeze(label, "its length enters the computation as a number", line)

    def _match(self, size: ExplicitSize) -> None:
        """Find the expressions that a size argument may come from."""
        node = self.nodes[size.node]
        if module_of(node)[1].endswith("activation.MultiheadAttention"):
            return  # SlimAttention replaces the module when it loses anything
        line = innermost_line(node)
        shapes = set(shapes_in(node.meta["val"]))
        expressions = {
            expression_of(n)
            for call in self.calls.get((module_of(node)[0], line), [])
            if shapes & set(call.shapes)
            for n in _candidates(call.sizes, size)
        }
        if not expressions:
            self._freeze(size.label, f"its size {size.size} cannot be followed{self.error}", line)
        for expression in expressions:
            if expression[0] == "number":
                self._freeze(size.label, f"its size {size.size} is written in the code", line)
            elif expression[0] == "attr":
                self.axes_of[expression].append((size, line))
            else:
                self.computed.append((size, expression, line))

    def _use_equality(self, left: Expression, right: Expression) -> None:
        """Keep true what the code checked: an attribute that equalled a length states that length."""
        if (left[0], right[0]) == ("attr", "shape"):
            for label in self._labels(right):
                self.axes_of[left].append((ExplicitSize("", 0, left[3], label), "a comparison"))

    def _freeze(self, label: Label, why: str, line: str) -> bool:
        """Freeze a label; return whether anything on it was free."""
        label = self.algebra.normal(label)
        self.algebra.freeze(label, f"{why} ({line})")
        return label is not None

    def _tie(self, module: str, attribute: str, uses: list[tuple[ExplicitSize, str]]) -> None:
        """Require that all axes that one attribute states the length of lose equally many indices."""
        (first, first_line), *others = uses
        for other, line in others:
            if _length(first) == _length(other):
                self.algebra.why = f"tied by the attribute {module}.{attribute} ({line})"
                self.propagation.equate_lengths(first.label, other.label)
            else:
                for size in (first, other):
                    self._freeze(size.label, f"{module}.{attribute} sizes two axes", line)
        self.propagation.size_attributes.append((module, attribute, first.size, first.label, first_line))

    def _freeze_if_wrong(self, size: ExplicitSize, expression: Expression, line: str) -> bool:
        """Freeze an axis, then what its size is computed from, if the computation does not follow.

        Returns:
            Whether anything was frozen.
        """
        if self._follows(size, expression):
            return False
        if (size, expression) not in self._tied:
            self._tied.add((size, expression))
            self.algebra.why = f"tied by the size {size.size} that is computed from it ({line})"
            module = module_of(self.nodes[size.node])[0]
            self._tie_factors(size.label, _length(size), expression, (module, line))
            if self._follows(size, expression):
                return True
        changed = self._freeze(
            size.label, f"its size {size.size} is computed in a way that does not follow", line
        )
        if not self._follows(size, expression):
            for leaf in leaves(expression):
                for label in self._labels(leaf):
                    changed |= self._freeze(
                        label, "a size is computed from it in a way that does not follow", line
                    )
        return changed

    def _tie_factors(self, label: Label, length: int, expression: Expression, where: CodeLocation) -> None:
        """Tie the axes whose lengths a size is the product, the quotient or the sum of.

        If C // heads states the length of a head, the C features must be (head, position) like those of the
        attention: they go in blocks, with the heads.  If a slice ends at heads * length + others * length,
        the first part of the axis belongs to the first term.
        """
        if expression[0] == "add" and label is not None:
            first = evaluate_expression(expression[1], lambda leaf: leaf[3])
            self._tie_factors(label[:first], first, expression[1], where)
            self._tie_factors(label[first:], length - first, expression[2], where)
        elif expression[0] == "floordiv":
            whole, divisor = (self._product(x) for x in expression[1:])
            if whole and divisor and whole[0] is not None and whole[1] == divisor[1] * length:
                self.algebra.equate(whole[0], self.algebra.merge(*divisor, label, length))
        elif not self._tie_attributes(label, expression, where):
            product = self._product(expression)
            if product and product[0] is not None and product[1] == length:
                self.algebra.equate(product[0], label)

    def _tie_attributes(self, label: Label, expression: Expression, where: CodeLocation) -> bool:
        """Split an axis of heads * length into both, if each is an attribute that may occur only as a factor.

        A config that all layers share states the same number for all of them, but not the same units.

        Returns:
            Whether the expression has that form.
        """
        factors = expression[1:]
        if expression[0] != "mul" or any(x[0] != "attr" for x in factors):
            return False
        lengths = [x[3] for x in factors]
        if label is None or math.prod(lengths) != len(label):
            return False
        module, line = where
        for factor, axis in zip(factors, self.algebra.split(label, *lengths), strict=True):
            known = self.axes_of[factor]
            if not known:
                known.append((ExplicitSize("", 0, factor[3], axis), line))
                self._tie(factor[1], factor[2], known)
            elif factor[1] == module:
                self.algebra.equate(known[0][0].label, axis)
            else:
                self._keep_equally_many(known[0][0].label, axis)
        return True

    def _keep_equally_many(self, a: Label, b: Label) -> None:
        """Require that two axes keep equally many indices, by each of the units that an index depends on."""
        a, b = self.algebra.normal(a), self.algebra.normal(b)
        if a is None or b is None or a.shape != b.shape:
            self.algebra.equate(a, b)
            return
        for one, other in zip(a.T, b.T, strict=True):
            first, second = np.unique(one)[:, None], np.unique(other)[:, None]
            if not np.array_equal(first, second):
                self.propagation.equal_lengths.append(((first, second), self.algebra.why))
                self._dead = None  # the random removals must keep them equal, too

    def _product(self, expression: Expression) -> tuple[Label, int] | None:
        """Return label and length of the axis that a product of lengths counts, or None."""
        if expression[0] == "number":
            return None, expression[1]
        if expression[0] in ("attr", "shape"):
            first, *others = self._labels(expression)
            for other in others:
                self.algebra.equate(first, other)
            return self.algebra.normal(first), expression[3]
        if expression[0] != "mul":
            return None
        outer, inner = map(self._product, expression[1:])
        if outer is None or inner is None:
            return None
        return self.algebra.merge(*outer, *inner), outer[1] * inner[1]

    def _is_constant(self, expression: Expression) -> bool:
        """Return whether no random removal changes a number that is computed from lengths."""
        axes = {leaf: self._labels(leaf) for leaf in leaves(expression)}
        return all(
            evaluate_expression(part, values.__getitem__) == evaluate_expression(part, lambda leaf: leaf[3])
            for dead in self._trials()
            for values in _lengths(axes, dead)
            for part in (expression[1:] if expression[0] == "value" else [expression])
        )

    def _follows(self, size: ExplicitSize, expression: Expression) -> bool:
        """Return whether the computed size is the length of its axis under random removals.

        A wrong formula passes all trials only if it agrees with the right one at each: `TRIALS` independent
        removals of 40 % of all units make that unlikely, and the check after each shrink remains.
        """
        label = self.algebra.normal(size.label)
        axes = {leaf: self._labels(leaf) for leaf in leaves(expression)}
        if label is None and all(x is None for labels in axes.values() for x in labels):
            return True
        for dead in self._trials():
            expected = _alive(label, dead, size.size)
            for values in _lengths(axes, dead) if expected else ():
                if evaluate_expression(expression, values.__getitem__) != expected:
                    return False
        return True

    def _trials(self) -> Any:
        """Return random removals [trials, atoms]; they stay the same until there are more atoms."""
        if self._dead is None or self._dead.shape[1] < self.algebra.size:
            generator = np.random.default_rng(0)
            self._dead = generator.random((TRIALS, self.algebra.size), dtype=np.float32) < 0.4
            self._dead[:, 0] = False
            for first, *others in equally_long(self.propagation):
                for other in others:
                    self._dead[:, other] = self._dead[:, generator.permutation(first)]
        return self._dead

    def _labels(self, leaf: Expression) -> list[Label]:
        """Return the labels that the axis behind an attribute or a shape may have."""
        if leaf[0] == "attr":
            return [self.algebra.normal(self.axes_of[leaf][0][0].label)] if leaf in self.axes_of else [None]
        origin, axis = leaf[1], leaf[2]
        if origin is None:
            return [None]
        nodes = [self.inputs[origin.name]] if origin.name in self.inputs else self._nodes_at(origin)
        labels = [
            s.labels[axis] for n in nodes for s in _states(self.states.get(n.name)) if s.shape == origin.shape
        ]
        return [self.algebra.normal(x) for x in labels] or [None]

    def _nodes_at(self, origin: TensorOrigin) -> list[Any]:
        """Return the nodes of the innermost line that computed a tensor of the right shape."""
        for frame in origin.frames:
            nodes = [
                n
                for n in self.by_line.get((origin.module, frame), [])
                if any(s.shape == origin.shape for s in _states(self.states.get(n.name)))
            ]
            if nodes:
                return nodes
        return []


def _states(state: Any) -> list[TensorAxes]:
    return [s for s in (state if isinstance(state, (list, tuple)) else [state]) if isinstance(s, TensorAxes)]


def _lengths(axes: Mapping[Expression, list[Label]], dead: Any) -> Iterator[dict[Expression, int]]:
    """Yield the lengths after a removal, for every choice of the labels that the axes may have.

    A choice that leaves an axis empty is left out: no plan removes all units.
    """
    for choice in itertools.product(*axes.values()):
        values = {leaf: _alive(x, dead, leaf[3]) for leaf, x in zip(axes, choice, strict=True)}
        if all(values.values()):
            yield values


def _alive(label: Label, dead: Any, length: int) -> int:
    return length if label is None else int((~dead[label].any(1)).sum())


def _length(size: ExplicitSize) -> int:
    return size.size if size.label is None else len(size.label)


def _candidates(sizes: tuple[Any, ...], size: ExplicitSize) -> list[int]:
    """Return the recorded argument at the same position, or else every argument of the same value."""
    if size.position < len(sizes) and sizes[size.position] == size.size:
        sizes = (sizes[size.position],)
    return [n for n in sizes if n == size.size and isinstance(n, int)]


def innermost_line(node: Any) -> str:
    """Return ``file:line`` of a node's innermost frame."""
    frames = FRAME.findall(node.meta.get("stack_trace") or "")
    return f"{frames[-1][0]}:{frames[-1][1]}" if frames else ""


def _all_nodes(module: torch.fx.GraphModule) -> Iterator[Any]:
    yield from module.graph.nodes
    for child in module.children():
        if isinstance(child, torch.fx.GraphModule):
            yield from _all_nodes(child)
