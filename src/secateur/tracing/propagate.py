"""The state of a propagation: labels of a tensor's axes, and what the rules write down on the way."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from secateur.core import Layer, Role
from secateur.tracing.labels import Atoms, Label

__all__ = ["Axes", "Flow", "Literal"]


@dataclass(frozen=True, eq=False)
class Axes:
    """What is known of one tensor in the traced graph.

    Attributes:
        shape: Its sizes.
        labels: One label per axis.
        zero: Per axis: whether the values at dead indices are 0 in the masked model.
        data: Whether it is an activation: depends on the inputs, or came out of a layer.
        parameter: Name of the parameter that this is, possibly with its axes permuted.
        order: Where `parameter` is set: axis of the parameter for each axis of this tensor.
        part: Whether it is only a slice of that parameter.
    """

    shape: tuple[int, ...]
    labels: tuple[Label, ...]
    zero: tuple[bool, ...]
    data: bool = True
    parameter: str | None = None
    order: tuple[int, ...] = ()
    part: bool = False

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def permute(self, order: Sequence[int]) -> Axes:
        """Return the axes in another order."""
        order = [i % self.ndim for i in order]
        return Axes(
            tuple(self.shape[i] for i in order),
            tuple(self.labels[i] for i in order),
            tuple(self.zero[i] for i in order),
            self.data,
            self.parameter,
            tuple(self.order[i] for i in order) if self.parameter else (),
            self.part,
        )

    def piece(self, axis: int, size: int, label: Label) -> Axes:
        """Return a slice along one axis: still the parameter, in part."""
        axis %= self.ndim
        return replace(
            self, shape=_set(self.shape, axis, size), labels=_set(self.labels, axis, label), part=True
        )

    def derived(self, **changes: Any) -> Axes:
        """Return a copy that is no longer the parameter itself."""
        return replace(self, parameter=None, order=(), part=False, **changes)

    def with_axis(self, axis: int, size: int, label: Label, zero: bool) -> Axes:
        """Return a copy with one axis replaced."""
        axis %= self.ndim
        return self.derived(
            shape=_set(self.shape, axis, size),
            labels=_set(self.labels, axis, label),
            zero=_set(self.zero, axis, zero),
        )

    def without(self, axes: Iterable[int]) -> Axes:
        """Return a copy with some axes dropped."""
        gone = {a % self.ndim for a in axes}
        keep = [i for i in range(self.ndim) if i not in gone]
        return self.permute(keep).derived()

    def nonzero(self) -> Axes:
        """Return a copy that promises nothing about dead values."""
        return self.derived(zero=(False,) * self.ndim)


def _set(values: tuple[Any, ...], i: int, value: Any) -> tuple[Any, ...]:
    return (*values[:i], value, *values[i + 1 :])


@dataclass(frozen=True, eq=False)
class Literal:
    """A size that Python code wrote into an operation, and the label of the axis it states.

    Attributes:
        node: Name of the graph node.
        position: Which of the node's sizes.
        size: The number.
        label: The axis.
    """

    node: str
    position: int
    size: int
    label: Label


@dataclass(eq=False)
class Flow:
    """Everything that the rules share while a graph is walked.

    Attributes:
        atoms: The algebra.
        roles: (parameter, axis) -> role in which its entries are used.
        layers: The weighted operations seen so far.
        literals: Sizes written into operations.
        sizes: (module, attribute) -> labels that it sizes, from operations that own the attribute.
        kinds: Pairs of a label and the word for its units.
        norms: Names of modules that normalise over their last axis in a known form.
        batch: Examples in the example inputs.
        node: The node being handled; `owner`: its module and that module's class; `place`: its
            operation and source line in words.
    """

    atoms: Atoms = field(default_factory=Atoms)
    roles: dict[tuple[str, int], Role] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    literals: list[Literal] = field(default_factory=list)
    sizes: list[tuple[str, str, int, Label, str]] = field(default_factory=list)
    kinds: list[tuple[Label, str]] = field(default_factory=list)
    norms: frozenset[str] = frozenset()
    batch: int = 1
    node: str = ""
    owner: str = ""
    owner_class: str = ""
    operation: str = ""
    source: str = ""

    def enter(self, node: str, owner: tuple[str, str], operation: str, source: str) -> None:
        """Say which node is being handled: for reasons and records."""
        self.node, (self.owner, self.owner_class) = node, owner
        self.operation, self.source = operation, source
        self.atoms.why = f"tied by {self.place} to an axis without units (an input or a constant)"

    @property
    def name(self) -> str:
        """The operation without namespace and overload."""
        return self.operation.split(".")[1] if self.operation.count(".") else self.operation

    @property
    def place(self) -> str:
        """The operation and where the user wrote it."""
        return f"{self.operation} ({self.source})" if self.source else self.operation

    def plain(self, shape: Sequence[int], data: bool = True) -> Axes:
        """Return the state of a tensor on which nothing dies."""
        n = len(shape)
        return Axes(tuple(shape), (None,) * n, (True,) * n, data)

    def fresh(self, shape: Sequence[int], zero: bool, literal_from: int | None = None) -> Axes:
        """Return a created tensor whose axes may turn out to carry units."""
        labels = tuple(self.atoms.label(n) for n in shape)
        if literal_from is not None:
            for i, (n, label) in enumerate(zip(shape, labels, strict=True)):
                self.literal(literal_from + i, n, label)
        return Axes(tuple(shape), labels, (zero,) * len(labels), data=False)

    def freeze(self, state: Axes, axes: Iterable[int], why: str) -> Axes:
        """Freeze some axes of a tensor; return it with them unlabelled."""
        for axis in {a % state.ndim for a in axes}:
            self.atoms.freeze(state.labels[axis], f"{why}: {self.place}")
            state = replace(state, labels=_set(state.labels, axis, None), zero=_set(state.zero, axis, True))
        return state

    def freeze_all(self, state: Axes, why: str) -> None:
        """Freeze every axis of a tensor."""
        self.freeze(state, range(state.ndim), why)

    def equate(self, a: Label, b: Label) -> Label:
        """Tie two axes; return their common label."""
        self.atoms.equate(a, b)
        return self.atoms.normal(a)

    def literal(self, position: int, size: int, label: Label) -> None:
        """Record that the code wrote this size for this axis."""
        if size != -1:
            self.literals.append(Literal(self.node, position, size, label))

    def size(self, attribute: str, value: int, label: Label) -> None:
        """Record that an attribute of the node's module states the length of this axis."""
        if label is not None:
            self.sizes.append((self.owner, attribute, value, label, self.source))

    def narrows(self, x: Axes) -> bool:
        """Whether the last axis may shrink under the statistic that is being taken over it.

        It may in a module that can be replaced by one which remembers the original length, if dead
        values are 0 where they enter it.
        """
        label = self.atoms.normal(x.labels[-1])
        if label is None or self.owner not in self.norms:
            return False
        known = any(module == self.owner and a == "normalized_shape" for module, a, *_ in self.sizes)
        if not known and not x.zero[-1]:
            return False
        self.size("normalized_shape", x.shape[-1], label)
        return True

    def kind(self, label: Label, word: str) -> None:
        """Name the units of an axis."""
        if label is not None:
            self.kinds.append((label, word))

    def role(self, state: Axes | None, axis: int, role: Role) -> None:
        """Record in which role a parameter's axis is used; making outweighs reading outweighs scaling."""
        if state is None or state.parameter is None:
            return
        key = (state.parameter, state.order[axis % state.ndim])
        rank = {"scale": 0, "in": 1, "out": 2}
        if key not in self.roles or rank[role] > rank[self.roles[key]]:
            self.roles[key] = role

    def layer(
        self,
        kind: str,
        weight: Axes,
        out_axis: int | None,
        in_axis: int | None,
        uses: float,
        bias: Axes | None = None,
        **more: Any,
    ) -> None:
        """Record a weighted operation; `uses` counts how often each weight acts in the whole batch."""
        for axis, role in ((in_axis, "in"), (out_axis, "out")):
            if axis is not None:
                self.role(weight, axis, role)  # type: ignore[arg-type]
        if bias is not None:
            self.role(bias, 0, "out")
        if weight.parameter is None or weight.part:
            return
        made, read = (None if a is None else weight.order[a % weight.ndim] for a in (out_axis, in_axis))
        found = Layer(
            name=self.owner,
            kind=kind,
            weight=weight.parameter,
            bias=bias.parameter if bias is not None else None,
            out_axis=made,
            in_axis=read,
            positions=uses / self.batch,
        )
        self.layers.append(replace(found, **more))

    def elementwise(self, *states: Axes) -> tuple[tuple[int, ...], tuple[Label, ...]]:
        """Tie the axes of operands that broadcast against one another; return shape and labels."""
        ndim = max(s.ndim for s in states)
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

    def zeros(self, shape: tuple[int, ...], states: Sequence[Axes], every: bool) -> tuple[bool, ...]:
        """Return per axis whether every (or any) operand is 0 at the dead indices of the result."""
        flags = []
        for axis in range(-len(shape), 0):
            known = [s.ndim >= -axis and s.shape[axis] == shape[axis] and s.zero[axis] for s in states]
            flags.append(all(known) if every else any(known))
        return tuple(flags)

    def contract(self, a: Axes, i: int, b: Axes, j: int) -> None:
        """Tie two axes that are summed over together; dead values must be 0 on one side."""
        self.equate(a.labels[i], b.labels[j])
        if a.data and b.data:
            why = "its length may enter a scale (inner product of two activations)"
            self.freeze(a, [i], why)
        elif not (a.zero[i] or b.zero[j]):
            self.freeze(a, [i], "dead values are not 0 where they are summed")

    def reshape(self, state: Axes, new: Sequence[int]) -> Axes:
        """Carry labels and zero flags through a view: align factor groups, merge, then split."""
        labels: list[Label] = []
        zero: list[bool] = []
        for old_axes, new_axes in factor_groups(state.shape, tuple(new)):
            flag = all(state.zero[i] for i in old_axes if state.labels[i] is not None)
            labels += self._regroup(state, old_axes, [new[j] for j in new_axes])
            zero += [flag] * len(new_axes)
        return state.derived(shape=tuple(new), labels=tuple(labels), zero=tuple(zero))

    def _regroup(self, state: Axes, old_axes: Sequence[int], sizes: Sequence[int]) -> list[Label]:
        if len(old_axes) == len(sizes) == 1:
            return [state.labels[old_axes[0]]]
        merged, length = None, 1
        for i in old_axes:
            merged = self.atoms.merge(merged, length, state.labels[i], state.shape[i])
            length *= state.shape[i]
        labels: list[Label] = []
        for size in sizes[:-1]:
            length //= size
            outer, merged = self.atoms.split(merged, size, length)
            labels.append(outer if size > 1 else None)
        return [*labels, merged] if sizes else labels


def factor_groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Pair runs of axes of two shapes whose sizes have the same product.

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


def tile(label: Label, n: int) -> Label:
    """Repeat a label end to end."""
    return None if label is None else np.tile(label, (n, 1))


def concatenate(labels: Sequence[Label], sizes: Sequence[int]) -> Label:
    """Join labels end to end; what has none is TRUE."""
    width = max((x.shape[1] for x in labels if x is not None), default=0)
    if not width:
        return None
    rows = []
    for label, n in zip(labels, sizes, strict=True):
        full = np.zeros((n, width), dtype=np.int64)
        if label is not None:
            full[:, : label.shape[1]] = label
        rows.append(full)
    return np.concatenate(rows)
