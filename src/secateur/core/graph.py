"""The pruning graph: groups of units that go together, frozen axes, layers."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from secateur.core.errors import InputError, unknown
from secateur.core.group import Group, IntArray, Kind, Slot
from secateur.core.interface import Interface, StateAxis

__all__ = ["Frozen", "Layer", "PruningGraph", "SizeAttribute", "Sized"]

LISTED = 8  # groups in a repr
FROZEN = 20  # frozen axes in a message
LAYER_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # a number between dots: "layers.3.mlp", not "fc1"


@dataclass(frozen=True)
class Frozen:
    """An axis from which nothing is removed.

    Attributes:
        tensor: Parameter or buffer name.
        axis: Its axis.
        reason: The reason, with the operation where there is one.
        source: ``file:line`` in the user's code, where known.
    """

    tensor: str
    axis: int
    reason: str
    source: str = ""

    def __str__(self) -> str:
        """Return tensor, axis, reason and source in one line."""
        return f"{self.tensor}[{self.axis}]: {self.reason}" + (f" ({self.source})" if self.source else "")


@dataclass(frozen=True)
class Layer:
    """A weighted operation, in the order of execution.

    Attributes:
        name: The module that owns the weight (``""`` for the root).
        kind: ``"linear"``, ``"conv"``, ``"conv_transpose"``, ``"embedding"``, ``"recurrent"`` (a
            matrix W_ih or W_hh with its gates stacked), ``"norm"``; ``"experts"`` and ``"stacked"``
            (matrices along another axis, for grouped and other products; they count as cost only).
        weight: Name of the weight tensor.
        bias: Name of the bias tensor, or None.
        out_axis: Axis of `weight` that produces features; None for norms and stacked matrices.
        in_axis: Axis of `weight` that consumes features; None if there is none (also for an embedding).
        groups: Groups of a convolution, else 1.
        gates: Gates stacked along `out_axis` (LSTM 4, GRU 3, RNN 1), else 1.
        positions: How often each weight is used for one example (spatial positions, time steps):
            multiply-accumulates = positions * weight.numel().
        reads: ``"input"`` or, for W_hh, ``"state"``.
    """

    name: str
    kind: str
    weight: str
    bias: str | None = None
    out_axis: int | None = 0
    in_axis: int | None = 1
    groups: int = 1
    gates: int = 1
    positions: float = 1.0
    reads: str = "input"


@dataclass(frozen=True, eq=False, repr=False)
class SizeAttribute:
    """An integer attribute that the model computes with, and the axis whose length it is.

    Attributes:
        module: Qualified module name.
        attribute: Attribute that holds the integer.
        value: Its value in the original model.
        groups: Names of the groups on the axis.
        index: For each group, integers [2, m]: unit `index[0, i]` owns position `index[1, i]`.
        source: ``file:line`` where it is used.
    """

    module: str
    attribute: str
    value: int
    groups: tuple[str, ...]
    index: tuple[IntArray, ...]
    source: str = ""

    def __repr__(self) -> str:
        """Summarise the size in one line."""
        return f"SizeAttribute({self.module}.{self.attribute} = {self.value}, of {', '.join(self.groups)})"


Sized = TypeVar("Sized", SizeAttribute, StateAxis)


@dataclass(frozen=True, eq=False, repr=False)
class PruningGraph:
    """The units of a traced model, and what stays: a value, independent of the model.

    Attributes:
        groups: Families of removable units.
        frozen: Axes from which nothing is removed, each with its reason.
        layers: The weighted operations.
        shapes: Shape of every parameter and buffer, by its first name.
        parameters: Names (first names) of the parameters among `shapes`, in the model's order.
        aliases: Other names of tied tensors -> first name.
        sizes: Integer attributes that change with the tensors.
        equal_counts: Names of groups that must keep equally many units, set by set: the layers and directions
            of a recurrent module, which has one `hidden_size`; see also `with_even_layers`.  They are of one
            size and may keep different units.
        element_sizes: Bytes of one element of every parameter and buffer; empty in graphs of older versions.
        interface: Which outputs of the model count, and which states shrink.
        inside: Names of the submodules that were traced; empty if the whole model was.
        example_inputs: The inputs the model was traced with (positional), for the exactness check.
        example_kwargs: The keyword inputs it was traced with.
    """

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    layers: tuple[Layer, ...]
    shapes: Mapping[str, tuple[int, ...]]
    parameters: tuple[str, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    sizes: tuple[SizeAttribute, ...] = ()
    equal_counts: tuple[tuple[str, ...], ...] = ()
    element_sizes: Mapping[str, int] = field(default_factory=dict)
    interface: Interface = field(default_factory=Interface)
    inside: tuple[str, ...] = ()
    example_inputs: tuple[Any, ...] = ()
    example_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def group(self, name: str) -> Group:
        """Return the group of that name.

        Raises:
            InputError: If there is none; the message lists similar names.
        """
        for group in self.groups:
            if group.name == name:
                return group
        raise InputError(unknown("group", name, [g.name for g in self.groups]))

    def counted_together(self) -> tuple[tuple[Group, ...], ...]:
        """Return every group once, in order: those that must keep equal counts together, the others alone."""
        known = {group.name: group for group in self.groups}
        tied = {name: names for names in self.equal_counts for name in names}
        sets = dict.fromkeys(tied.get(name, (name,)) for name in known)
        return tuple(tuple(known[name] for name in names) for names in sets)

    def with_even_layers(self, even: bool = True) -> PruningGraph:
        """Return the graph in which repeated layers keep equal counts.

        Groups are counted together if they are of one size and own the same axes of tensors whose names
        differ in layer numbers only.

        Args:
            even: `Budget.even`; if False, the graph is returned as it is.

        Example:
            >>> import numpy as np
            >>> def hidden(layer):
            ...     rows = np.arange(4)[:, None]
            ...     return Group(layer, 4, (Slot(f"layers.{layer}.fc1.weight", 0, rows, "out"),))
            >>> PruningGraph((hidden("0"), hidden("1")), (), (), {}, ()).with_even_layers().equal_counts
            (('0', '1'),)
        """
        if not even:
            return self
        places: dict[Any, dict[str, None]] = defaultdict(dict)
        for group in self.groups:
            places[group.size, _place(group)][group.name] = None
        sets = list(places.values())
        for names in self.equal_counts:
            joined = [s for s in sets if not s.keys().isdisjoint(names)]
            sets = [s for s in sets if s.keys().isdisjoint(names)]
            sets.append(dict.fromkeys(name for s in joined for name in s))
        order = {group.name: i for i, group in enumerate(self.groups)}
        tied = [sorted(s, key=order.__getitem__) for s in sets if len(s) > 1]
        return replace(self, equal_counts=tuple(map(tuple, sorted(tied, key=lambda s: order[s[0]]))))

    def layer(self, weight: str) -> Layer:
        """Return the layer whose weight has that name.

        Raises:
            InputError: If there is none; the message lists similar names.
        """
        for layer in self.layers:
            if layer.weight == weight:
                return layer
        raise InputError(unknown("weight", weight, [x.weight for x in self.layers]))

    def consumers(self, group: Group) -> tuple[tuple[Layer, Slot], ...]:
        """Return the layers that read a group's units, each with its slot."""
        by_weight = {(x.weight, x.in_axis): x for x in self.layers if x.in_axis is not None}
        return _paired(by_weight, group.slots_with("in"))

    def producers(self, group: Group) -> tuple[tuple[Layer, Slot], ...]:
        """Return the layers whose weights produce a group's units, each with its slot."""
        by_weight = {(x.weight, x.out_axis): x for x in self.layers if x.out_axis is not None}
        return _paired(by_weight, group.slots_with("out"))

    def input_key(self, layer: Layer) -> str:
        """Return the key of a layer's input among `Statistics.moments`: the name of its weight.

        A weight that is read along several axes (as it is and transposed) has, for every axis but the first
        in the order of execution, the key ``"name[axis]"``.
        """
        first = next(x for x in self.layers if x.weight == layer.weight and x.in_axis is not None)
        return layer.weight if first.in_axis == layer.in_axis else f"{layer.weight}[{layer.in_axis}]"

    def prunable_weights(self) -> tuple[Layer, ...]:
        """Return the layers whose single weights a mask may zero: no norms, no embeddings."""
        return tuple(x for x in self.layers if x.in_axis is not None and x.out_axis is not None)

    def without_groups(self, names: Collection[str], reason: str) -> PruningGraph:
        """Return the graph in which these groups stay whole, and those that must keep equal counts with them.

        Args:
            names: Names of groups.
            reason: Why they stay, for the frozen axes.
        """
        whole = [tied for tied in self.equal_counts if any(name in names for name in tied)]
        names = {*names, *(name for tied in whole for name in tied)}
        left = tuple(group for group in self.groups if group.name not in names)
        owned = {(slot.tensor, slot.axis) for group in left for slot in group.slots}
        frozen = dict.fromkeys(
            (slot.tensor, slot.axis)
            for group in self.groups
            for slot in group.slots
            if group.name in names and slot.tensor in self.parameters and len(self.shapes[slot.tensor]) > 1
        )
        sizes = (_without(size, names) for size in self.sizes)
        return replace(
            self,
            groups=left,
            frozen=(*self.frozen, *(Frozen(*axis, reason) for axis in frozen if axis not in owned)),
            sizes=tuple(size for size in sizes if size is not None),
            equal_counts=tuple(tied for tied in self.equal_counts if tied not in whole),
            interface=self.interface.with_axes(lambda axis: _without(axis, names)),
        )

    def embeddings(self) -> frozenset[str]:
        """Return the names of the tables that are looked up by number, and of an output matrix like them.

        The output matrix of a language model has the shape of its table of tokens, and is the last layer.
        """
        tables = {layer.weight for layer in self.layers if layer.kind == "embedding"}
        shapes = {self.shapes[name] for name in tables}
        last = {layer.weight for layer in self.layers[-1:] if layer.kind == "linear"}
        return frozenset(tables | {name for name in last if self.shapes[name] in shapes})

    def summary(self) -> str:
        """Describe every group and every frozen axis, one line each."""
        lines = [f"{len(self.groups)} groups, {self._units()} units"]
        lines += [f"  {g.name}: {g.size} units ({g.kind}) on {g.axes(4)}" for g in self.groups]
        lines += [f"equally many units stay in {', '.join(names)}" for names in self.equal_counts]
        lines += self.interface.summary()
        lines += [f"traced inside {', '.join(self.inside)}"] if self.inside else []
        lines += [f"{len(self.frozen)} frozen axes", *(f"  {frozen}" for frozen in self.frozen)]
        return "\n".join(lines)

    def describe_frozen(self, limit: int = FROZEN) -> str:
        """Describe the first frozen axes, one line each, and say where the rest is listed."""
        lines = [f"{len(self.frozen)} frozen axes", *(f"  {frozen}" for frozen in self.frozen[:limit])]
        if len(self.frozen) > limit:
            rest = len(self.frozen) - limit
            lines.append(f"  and {rest} more: `graph.frozen` and `secateur inspect --all` list them")
        return "\n".join(lines)

    def by_kind(self) -> dict[Kind, tuple[Group, ...]]:
        """Return the groups of each kind, in the order of the groups."""
        kinds = dict.fromkeys(group.kind for group in self.groups)
        return {kind: tuple(group for group in self.groups if group.kind == kind) for kind in kinds}

    def __repr__(self) -> str:
        """Summarise the graph in at most 12 lines; `summary` lists everything."""
        lines = [
            f"PruningGraph: {len(self.groups)} groups, {self._units()} units, {len(self.layers)} layers, "
            f"{len(self.frozen)} frozen axes"
        ]
        kinds = [f"{sum(g.size for g in groups)} {kind}" for kind, groups in self.by_kind().items()]
        lines += [f"  units by kind: {', '.join(kinds)}"] if kinds else []
        lines += [f"  {g.name}: {g.size} units on {g.axes(3)}" for g in self.groups[:LISTED]]
        if len(self.groups) > LISTED:
            lines.append(f"  and {len(self.groups) - LISTED} more groups")
        return "\n".join([*lines, "graph.summary() lists all groups and frozen axes"])

    def _units(self) -> int:
        return sum(group.size for group in self.groups)


def _place(group: Group) -> tuple[Any, ...]:
    """Return what a group owns, without the numbers of the layers."""
    return tuple(
        sorted((LAYER_NUMBER.sub("*", s.tensor), s.axis, s.role, s.index.shape[1:]) for s in group.slots)
    )


def _without(sized: Sized, names: Collection[str]) -> Sized | None:
    """Return a size or an axis of a state without the units of these groups; None if no others are left."""
    pairs = [(n, i) for n, i in zip(sized.groups, sized.index, strict=True) if n not in names]
    if not pairs:
        return None
    return replace(sized, groups=tuple(n for n, _ in pairs), index=tuple(i for _, i in pairs))


def _paired(
    by_weight: Mapping[tuple[str, int], Layer], slots: tuple[Slot, ...]
) -> tuple[tuple[Layer, Slot], ...]:
    pairs = ((by_weight.get((slot.tensor, slot.axis)), slot) for slot in slots)
    return tuple((layer, slot) for layer, slot in pairs if layer is not None)
