"""What tracing finds: groups of units, frozen axes, layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from secateur.core.errors import InputError, unknown

Role = Literal["out", "in", "scale"]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Slot:
    """Where a group's units sit on one axis of one parameter or buffer.

    Attributes:
        tensor: Qualified name of the parameter or buffer (the first name, when tied).
        axis: The axis of that tensor.
        index: Integers of shape [units, per_unit]: unit `u` owns `index[u]` of the axis.  Where two
            groups own the same index (heads and positions inside a head), it lives while both do.
        role: ``"out"``: entries that make the unit (rows of a weight, its bias); ``"in"``: entries
            that read it (columns of a weight); ``"scale"``: entries that act on it in place
            (normalisation, PReLU, running statistics).
    """

    tensor: str
    axis: int
    index: IntArray
    role: Role


@dataclass(frozen=True, eq=False)
class Group:
    """A family of `size` units, each of which can be removed alone.

    Attributes:
        name: Unique, named after what makes the units (``"features.0"``, ``"layer1 (heads)"``).
        size: Number of units.
        slots: Everything that each unit owns.
    """

    name: str
    size: int
    slots: tuple[Slot, ...]

    def producers(self) -> tuple[Slot, ...]:
        """Return the slots that make the units: weights (2 or more axes) before biases."""
        return tuple(slot for slot in self.slots if slot.role == "out")

    def consumers(self) -> tuple[Slot, ...]:
        """Return the slots that read the units."""
        return tuple(slot for slot in self.slots if slot.role == "in")


@dataclass(frozen=True)
class Frozen:
    """An axis from which nothing is removed.

    Attributes:
        tensor: Parameter or buffer name.
        axis: Its axis.
        reason: Why, in words, with the operation where there is one.
        source: ``file:line`` in the user's code, where known.
    """

    tensor: str
    axis: int
    reason: str
    source: str = ""


@dataclass(frozen=True)
class Layer:
    """A weighted operation, in the order of execution.

    Attributes:
        name: The module that owns the weight (``""`` for the root).
        kind: ``"linear"``, ``"conv"``, ``"conv_transpose"``, ``"embedding"``, ``"recurrent"`` (a
            matrix W_ih or W_hh with its gates stacked), ``"norm"``, ``"scale"``.
        weight: Name of the weight tensor.
        bias: Name of the bias tensor, or None.
        out_axis: Axis of `weight` that makes features; None for a norm.
        in_axis: Axis of `weight` that reads features; None where nothing is read (embedding).
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


@dataclass(frozen=True, eq=False)
class Size:
    """A Python integer that the model computes with, and the axis whose length it states.

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


@dataclass(frozen=True, eq=False)
class PruningGraph:
    """What tracing found: a value, independent of the model it came from.

    Attributes:
        groups: Families of removable units.
        frozen: Axes that stay, each with its reason.
        layers: The weighted operations.
        shapes: Shape of every parameter and buffer, by its first name.
        parameters: Names (first names) of the parameters among `shapes`, in the model's order.
        aliases: Other names of tied tensors -> first name.
        sizes: Python integers to be changed with the tensors.
        example_inputs: The inputs the model was traced with (positional), for the exactness check.
        example_kwargs: The keyword inputs, likewise.
    """

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    layers: tuple[Layer, ...]
    shapes: Mapping[str, tuple[int, ...]]
    parameters: tuple[str, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    sizes: tuple[Size, ...] = ()
    example_inputs: tuple[Any, ...] = ()
    example_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def group(self, name: str) -> Group:
        """Return the group of that name, or raise `InputError` with the near matches."""
        for group in self.groups:
            if group.name == name:
                return group
        raise InputError(unknown("group", name, [g.name for g in self.groups]))

    def layer(self, weight: str) -> Layer:
        """Return the layer whose weight has that name, or raise `InputError`."""
        for layer in self.layers:
            if layer.weight == weight:
                return layer
        raise InputError(unknown("weight", weight, [x.weight for x in self.layers]))

    def consumers(self, group: Group) -> tuple[tuple[Layer, Slot], ...]:
        """Return the layers that read a group's units, each with the slot that says where."""
        by_weight = {(x.weight, x.in_axis): x for x in self.layers if x.in_axis is not None}
        found = ((by_weight.get((slot.tensor, slot.axis)), slot) for slot in group.consumers())
        return tuple((layer, slot) for layer, slot in found if layer is not None)

    def producers(self, group: Group) -> tuple[tuple[Layer, Slot], ...]:
        """Return the layers whose weights make a group's units, each with its slot."""
        by_weight = {(x.weight, x.out_axis): x for x in self.layers if x.out_axis is not None}
        found = ((by_weight.get((slot.tensor, slot.axis)), slot) for slot in group.producers())
        return tuple((layer, slot) for layer, slot in found if layer is not None)

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

    def summary(self) -> str:
        """Describe groups and frozen axes for a person, one line each."""
        lines = [f"{len(self.groups)} groups, {sum(g.size for g in self.groups)} units"]
        for g in self.groups:
            where = ", ".join(f"{s.tensor}[{s.axis}]" for s in g.slots[:4])
            more = f" and {len(g.slots) - 4} more" if len(g.slots) > 4 else ""
            lines.append(f"  {g.name}: {g.size} units on {where}{more}")
        lines.append(f"{len(self.frozen)} frozen axes")
        for f in self.frozen:
            lines.append(f"  {f.tensor}[{f.axis}]: {f.reason}" + (f" ({f.source})" if f.source else ""))
        return "\n".join(lines)
