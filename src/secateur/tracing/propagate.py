"""Carry labels of tensor axes through operations: the state of one tensor, and what the rules share.

A label says which units an index of an axis needs (see `labels`).  In the masked model the units that go are
*dead*: an index of an axis is dead if one of its units is.  Shrinking is exact if removing the dead indices
changes nothing that is still computed.  The rules impose conditions that are sufficient for that:

* Operands that meet index by index (`broadcast`) must lose the same indices.
* An axis that is summed over (`contract`) may lose indices if the terms at its dead indices are 0.  One of
  the two factors must be 0 there, which `TensorAxes.zero` records.
* If the length of an axis enters a result (a mean, a scale), the axis is frozen: nothing dies on it.

A condition that is stronger than necessary freezes too much; it never makes a wrong removal possible.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from secateur.core import Layer, Role
from secateur.tracing.labels import Label, LabelAlgebra

__all__ = ["ExplicitSize", "Propagation", "TensorAxes"]


@dataclass(frozen=True, eq=False)
class TensorAxes:
    """The axes of one tensor in the traced graph.

    Attributes:
        shape: The lengths of the axes.
        labels: One label per axis.
        zero: Per axis: whether the values at dead indices are 0 in the masked model.
        data: Whether the tensor is an activation: it depends on the inputs, or a layer computed it.
        parameter: Name of the parameter that the tensor is, possibly with permuted axes; else None.
        order: If `parameter` is set: the parameter's axis for each axis of this tensor.
        part: Whether the tensor is only a slice of that parameter.
        least: A lower bound of the values in the masked model; -inf where no rule knows one.
        all_zero: Whether the code creates the tensor full of zeros.
        rows: Labels of the last axis, one for each index of the first, if these differ: the states of several
            recurrent layers in one tensor.  They keep equally many units; `labels` has the first of them.
    """

    shape: tuple[int, ...]
    labels: tuple[Label, ...]
    zero: tuple[bool, ...]
    data: bool = True
    parameter: str | None = None
    order: tuple[int, ...] = ()
    part: bool = False
    least: float = -math.inf
    all_zero: bool = False
    rows: tuple[Label, ...] = ()

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def permute(self, order: Sequence[int]) -> TensorAxes:
        """Return the axes in another order."""
        order = [i % self.ndim for i in order]
        return TensorAxes(
            tuple(self.shape[i] for i in order),
            tuple(self.labels[i] for i in order),
            tuple(self.zero[i] for i in order),
            self.data,
            self.parameter,
            tuple(self.order[i] for i in order) if self.parameter else (),
            self.part,
        )

    def piece(self, axis: int, size: int, label: Label) -> TensorAxes:
        """Return a slice along one axis; a slice of a parameter is still known as part of it."""
        axis %= self.ndim
        return replace(
            self, shape=_set(self.shape, axis, size), labels=_set(self.labels, axis, label), part=True
        )

    def derived(self, **changes: Any) -> TensorAxes:
        """Return a copy with other values: no longer the parameter itself, and with nothing known of them."""
        unknown = {"parameter": None, "order": (), "part": False, "least": -math.inf, "all_zero": False}
        return replace(self, **{**unknown, **changes})

    def with_axis(self, axis: int, size: int, label: Label, zero: bool) -> TensorAxes:
        """Return a copy with one axis replaced."""
        axis %= self.ndim
        return self.derived(
            shape=_set(self.shape, axis, size),
            labels=_set(self.labels, axis, label),
            zero=_set(self.zero, axis, zero),
        )

    def without(self, axes: Iterable[int]) -> TensorAxes:
        """Return a copy with some axes dropped."""
        gone = {a % self.ndim for a in axes}
        keep = [i for i in range(self.ndim) if i not in gone]
        return self.permute(keep).derived()

    def nonzero(self) -> TensorAxes:
        """Return a copy whose dead values may be anything."""
        return self.derived(zero=(False,) * self.ndim)


def _set(values: tuple[Any, ...], i: int, value: Any) -> tuple[Any, ...]:
    return (*values[:i], value, *values[i + 1 :])


@dataclass(frozen=True, eq=False)
class ExplicitSize:
    """A size that an operation gets as an argument, and the axis whose length it states.

    Attributes:
        node: Name of the graph node.
        position: Position among the node's size arguments.
        size: The number.
        label: Label of the axis.
    """

    node: str
    position: int
    size: int
    label: Label


@dataclass(eq=False)
class Propagation:
    """What the rules share and record while labels pass through a graph.

    Attributes:
        algebra: Which indices live and die together.
        states: Node name -> the `TensorAxes` of its result, or a list of them.
        roles: (parameter, axis) -> the role in which its entries are used.
        layers: The weighted operations, in the order of execution.
        explicit_sizes: Sizes that operations get as arguments.
        size_attributes: (module, attribute, value, label, source line): attributes that operations of this
            module read as the length of an axis.
        equal_lengths: (labels, reason): axes that one number sizes, but whose units may differ.
        heads: Labels whose units are attention heads.
        head_positions: Labels whose units are positions inside a head.
        expert_units: Labels whose units are made by every expert of a mixture.
        repeated: Labels of axes that repeat entries: the query heads that share a key and a value.
        norms: Names of modules that normalise over one axis in a known form.
        batch: Number of examples in the example inputs.
        node: Name of the current node.
        module: Qualified name of the module that called it; `module_class`: that module's class.
        operation: The current operation, with namespace and overload.
        source: ``file:line`` of the call in the user's code.
    """

    algebra: LabelAlgebra = field(default_factory=LabelAlgebra)
    states: dict[str, Any] = field(default_factory=dict)
    roles: dict[tuple[str, int], Role] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    explicit_sizes: list[ExplicitSize] = field(default_factory=list)
    size_attributes: list[tuple[str, str, int, Label, str]] = field(default_factory=list)
    equal_lengths: list[tuple[tuple[Label, ...], str]] = field(default_factory=list)
    heads: list[Label] = field(default_factory=list)
    head_positions: list[Label] = field(default_factory=list)
    expert_units: list[Label] = field(default_factory=list)
    repeated: list[Label] = field(default_factory=list)
    norms: frozenset[str] = frozenset()
    batch: int = 1
    node: str = ""
    module: str = ""
    module_class: str = ""
    operation: str = ""
    source: str = ""

    def enter_node(self, node: str, module: tuple[str, str], operation: str, source: str) -> None:
        """Set the current node, for reasons and records."""
        self.node, (self.module, self.module_class) = node, module
        self.operation, self.source = operation, source
        self.algebra.why = f"tied by {self.location} to an axis without units (an input or a constant)"

    @property
    def operation_name(self) -> str:
        """The operation without namespace and overload."""
        return self.operation.split(".")[1] if self.operation.count(".") else self.operation

    @property
    def location(self) -> str:
        """The operation and the user's line that calls it."""
        return f"{self.operation} ({self.source})" if self.source else self.operation

    def unlabelled(self, shape: Sequence[int], data: bool = True) -> TensorAxes:
        """Return the axes of a tensor on which nothing dies."""
        n = len(shape)
        return TensorAxes(tuple(shape), (None,) * n, (True,) * n, data)

    def new_tensor(self, shape: Sequence[int], zero: bool) -> TensorAxes:
        """Return the axes of a tensor that the code creates: each may turn out to carry units."""
        labels = tuple(self.algebra.label(n) for n in shape)
        for position, (n, label) in enumerate(zip(shape, labels, strict=True)):
            self.record_size(position, n, label)
        return TensorAxes(tuple(shape), labels, (zero,) * len(labels), data=False)

    def freeze(self, state: TensorAxes, axes: Iterable[int], why: str) -> TensorAxes:
        """Freeze some axes of a tensor; return the tensor without their labels."""
        for axis in {a % state.ndim for a in axes}:
            self.algebra.freeze(state.labels[axis], f"{why}: {self.location}")
            state = replace(state, labels=_set(state.labels, axis, None), zero=_set(state.zero, axis, True))
        return state

    def freeze_all(self, state: TensorAxes, why: str) -> None:
        """Freeze every axis of a tensor."""
        self.freeze(state, range(state.ndim), why)

    def equate(self, a: Label, b: Label) -> Label:
        """Require that two axes lose the same indices; return their common label."""
        self.algebra.equate(a, b)
        return self.algebra.normal(a)

    def record_size(self, position: int, size: int, label: Label) -> None:
        """Record that the operation gets this size as the length of this axis; -1 states nothing."""
        if size != -1:
            self.explicit_sizes.append(ExplicitSize(self.node, position, size, label))

    def record_size_attribute(self, attribute: str, value: int, label: Label) -> None:
        """Record that an attribute of the current module states the length of this axis."""
        if label is not None:
            self.size_attributes.append((self.module, attribute, value, label, self.source))

    def equate_lengths(self, a: Label, b: Label) -> None:
        """Require that two axes lose equally many indices: the same ones, unless `equal_lengths` has both."""
        both = [self.algebra.normal(label) for label in (a, b)]
        for labels, _ in self.equal_lengths:
            known = [x for label in labels if (x := self.algebra.normal(label)) is not None]
            if all(x is not None and any(np.array_equal(x, y) for y in known) for x in both):
                return
        self.algebra.equate(a, b)

    def record_attention(self, heads: Sequence[Label], positions: Sequence[Label]) -> None:
        """Record that the units of these axes are attention heads, and positions inside them."""
        self.heads += [label for label in heads if label is not None]
        self.head_positions += [label for label in positions if label is not None]

    def can_narrow(self, x: TensorAxes, axis: int = -1) -> bool:
        """Return whether an axis may lose indices under a statistic over it.

        It may if the module can be replaced by `NarrowNorm`, which divides by the original length, and if
        the dead values are 0, so that the sums over what is left are the sums over everything.
        """
        label = self.algebra.normal(x.labels[axis])
        if label is None or self.module not in self.norms:
            return False
        # Inside a norm that is written out, later statistics are of centred values, which are not 0 where
        # dead.  NarrowNorm replaces the whole module, so only the module's input must be 0 there.
        known = any(m == self.module and a == "normalized_shape" for m, a, *_ in self.size_attributes)
        if not known and not x.zero[axis]:
            return False
        self.record_size_attribute("normalized_shape", x.shape[axis], label)
        return True

    def record_role(self, state: TensorAxes | None, axis: int, role: Role) -> None:
        """Record in which role a parameter's axis is used; "out" outweighs "in", which outweighs "scale"."""
        if state is None or state.parameter is None:
            return
        key = (state.parameter, state.order[axis % state.ndim])
        rank = {"scale": 0, "in": 1, "out": 2}
        if key not in self.roles or rank[role] > rank[self.roles[key]]:
            self.roles[key] = role

    def record_layer(
        self,
        kind: str,
        weight: TensorAxes,
        out_axis: int | None,
        in_axis: int | None,
        uses: float,
        bias: TensorAxes | None = None,
        **more: Any,
    ) -> None:
        """Record a weighted operation; `uses` says how often the whole batch uses each weight."""
        for axis, role in ((in_axis, "in"), (out_axis, "out")):
            if axis is not None:
                self.record_role(weight, axis, role)  # type: ignore[arg-type]
        if bias is not None:
            self.record_role(bias, 0, "out")
        if weight.parameter is None or weight.part:
            return
        produced, consumed = (
            None if a is None else weight.order[a % weight.ndim] for a in (out_axis, in_axis)
        )
        layer = Layer(
            name=self.module,
            kind=kind,
            weight=weight.parameter,
            bias=bias.parameter if bias is not None else None,
            out_axis=produced,
            in_axis=consumed,
            positions=uses / self.batch,
        )
        self.layers.append(replace(layer, **more))

    def broadcast(self, *states: TensorAxes) -> tuple[tuple[int, ...], tuple[Label, ...]]:
        """Tie the axes of operands that broadcast against each other; return the shape and labels.

        Without operands (all are numbers) the result is a number, too.
        """
        ndim = max((s.ndim for s in states), default=0)
        shape, labels = [], []
        for axis in range(-ndim, 0):
            meet = [s for s in states if s.ndim >= -axis and s.shape[axis] != 1]
            label = meet[0].labels[axis] if meet else None
            for other in meet[1:]:
                if other.labels[axis] is not label:
                    label = self.equate(label, other.labels[axis])
            shape.append(meet[0].shape[axis] if meet else 1)
            labels.append(label)
        return tuple(shape), tuple(labels)

    def zero_flags(
        self, shape: tuple[int, ...], states: Sequence[TensorAxes], every: bool
    ) -> tuple[bool, ...]:
        """Return for each axis whether every operand (or any one) is 0 at the dead indices of the result.

        A sum is 0 where every term is, a product where any factor is.
        """
        flags = []
        for axis in range(-len(shape), 0):
            known = [s.ndim >= -axis and s.shape[axis] == shape[axis] and s.zero[axis] for s in states]
            flags.append(all(known) if every else any(known))
        return tuple(flags)

    def contract(self, a: TensorAxes, i: int, b: TensorAxes, j: int) -> None:
        """Tie two axes that are multiplied and summed over; the terms at dead indices must be 0.

        A product of two activations (attention scores) is frozen: code often divides it by the root of the
        length, and the graph shows that number as a constant.
        """
        self.equate(a.labels[i], b.labels[j])
        if a.data and b.data:
            why = "its length may enter a scale (inner product of two activations)"
            self.freeze(a, [i], why)
        elif not (a.zero[i] or b.zero[j]):
            self.freeze(a, [i], "dead values are not 0 where they are summed")

    def reshape(self, state: TensorAxes, new: Sequence[int]) -> TensorAxes:
        """Carry labels and zero flags through a view.

        A view changes runs of axes into runs of axes with the same product.  Each run is merged into one
        axis, which is then split into the new lengths.
        """
        labels: list[Label] = []
        zero: list[bool] = []
        for old_axes, new_axes in factor_groups(state.shape, tuple(new)):
            flag = all(state.zero[i] for i in old_axes if state.labels[i] is not None)
            labels += self._regroup(state, old_axes, [new[j] for j in new_axes])
            zero += [flag] * len(new_axes)
        return state.derived(shape=tuple(new), labels=tuple(labels), zero=tuple(zero))

    def _regroup(self, state: TensorAxes, old_axes: Sequence[int], sizes: Sequence[int]) -> list[Label]:
        if len(old_axes) == len(sizes) == 1:
            return [state.labels[old_axes[0]]]
        merged, length = None, 1
        for i in old_axes:
            merged = self.algebra.merge(merged, length, state.labels[i], state.shape[i])
            length *= state.shape[i]
        labels: list[Label] = []
        for size in sizes[:-1]:
            length //= size
            outer, merged = self.algebra.split(merged, size, length)
            labels.append(outer if size > 1 else None)
        return [*labels, merged] if sizes else labels


def factor_groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Pair the shortest runs of axes of two shapes whose lengths have the same product.

    Example:
        >>> factor_groups((2, 12, 5), (2, 3, 4, 5))
        [([0], [0]), ([1], [1, 2]), ([2], [3])]
    """
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left, right = (
            ([i], [j]) if i < len(old) and j < len(new) else ([i], []) if i < len(old) else ([], [j])
        )
        i, j = i + len(left), j + len(right)
        while (p := math.prod(old[a] for a in left)) != (q := math.prod(new[b] for b in right)):
            if p < q:
                left.append(i)
                i += 1
            else:
                right.append(j)
                j += 1
        groups.append((left, right))
    return groups
