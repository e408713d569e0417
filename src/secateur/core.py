"""The values that pass between Secateur's stages, and its errors: data only.

A model is traced into a `Network`: `Group`\\ s of units that live and die together, and `Frozen`
axes with the reason why nothing goes there.  Batches are collected into `Evidence`.  A method turns
both and a `Budget` into a `Plan`, a value that says what goes and why.  Nothing here knows
`torch.nn.Module`, and nothing here decides anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Role = Literal["out", "in", "scale"]
Scope = Literal["layer", "global", "erk"]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


class SecateurError(Exception):
    """Base of every error that Secateur raises on purpose."""


class InputError(SecateurError, ValueError):
    """An argument that cannot be: says what was given, why it cannot be, and what would work."""


class CaptureError(SecateurError):
    """The model could not be captured by `torch.export`."""


class NothingToPrune(SecateurError):
    """A plan would remove nothing; the message lists what is frozen and why."""


class ExactnessError(SecateurError):
    """The shrunk model does not compute what the masked model computes."""


class PlanError(SecateurError):
    """A plan does not fit the model it is applied to."""


class StoreError(SecateurError):
    """A saved folder is missing, damaged, or cannot be written."""


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
        exact: Whether removal provably equals masking.  False where a statistic over the axis
            (LayerNorm) would notice the removal; such groups are locked unless asked for.
        note: What a reader should know, for instance why `exact` is False.
    """

    name: str
    size: int
    slots: tuple[Slot, ...]
    exact: bool = True
    note: str = ""

    def makers(self) -> tuple[Slot, ...]:
        """Return the slots that make the units: weights (2 or more axes) before biases."""
        return tuple(slot for slot in self.slots if slot.role == "out")

    def readers(self) -> tuple[Slot, ...]:
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
class Network:
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
        graph: What `surgery` needs to name a deviating operation; opaque to everybody else.
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
    graph: Any = None

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

    def readers(self, group: Group) -> tuple[tuple[Layer, Slot], ...]:
        """Return the layers that read a group's units, each with the slot that says where."""
        by_weight = {(x.weight, x.in_axis): x for x in self.layers if x.in_axis is not None}
        found = ((by_weight.get((slot.tensor, slot.axis)), slot) for slot in group.readers())
        return tuple((layer, slot) for layer, slot in found if layer is not None)

    def makers(self, group: Group) -> tuple[tuple[Layer, Slot], ...]:
        """Return the layers whose weights make a group's units, each with its slot."""
        by_weight = {(x.weight, x.out_axis): x for x in self.layers if x.out_axis is not None}
        found = ((by_weight.get((slot.tensor, slot.axis)), slot) for slot in group.makers())
        return tuple((layer, slot) for layer, slot in found if layer is not None)

    def input_key(self, layer: Layer) -> str:
        """Return the key of a layer's input among `Evidence.moments`: the name of its weight.

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
            lock = "" if g.exact else f"  locked: {g.note}"
            lines.append(f"  {g.name}: {g.size} units on {where}{more}{lock}")
        lines.append(f"{len(self.frozen)} frozen axes")
        for f in self.frozen:
            lines.append(f"  {f.tensor}[{f.axis}]: {f.reason}" + (f" ({f.source})" if f.source else ""))
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Moments:
    """Streamed statistics of what reaches one reading weight, over samples and positions.

    Attributes:
        count: Number of rows seen (samples times positions).
        mean: Mean of each input feature, float64 [features].
        absolute: Mean absolute value of each feature, float64 [features].
        second: Mean square of each feature, float64 [features].
        gram: Mean of x x^T, float64 [features, features] (or, where `taps` > 1, of the patches),
            or None if only the means were asked for.
        taps: Kernel positions that a Gram row spans: its features are (input feature, tap), tap
            fastest.  1 where every tap shares the statistics of its input feature.
        gram_mean: Mean of the rows behind `gram`, float64, one entry a row and column of it: where
            taps > 1, padding and stride make it differ from `mean`.
    """

    count: int
    mean: Tensor
    absolute: Tensor
    second: Tensor
    gram: Tensor | None = None
    taps: int = 1
    gram_mean: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a method may look at.  Only what it asked for (`Method.needs`) is filled in.

    Attributes:
        weights: Every parameter and buffer, detached, by its first name.
        moments: By reading weight (`Network.input_key`): statistics of its input (needs "moments" or "gram").
        gradients: By parameter: summed loss gradient over the batches (needs "gradients").
        taylor: By group: sum over examples of (d loss / d gate of the unit)^2 (needs "taylor").
        flow: Called with masks by weight name (may be empty), returns |theta * dR/dtheta| of
            SynFlow's objective R for the masked network; with `neutral_bn=True` BatchNorm counts as at
            initialisation (needs "flow").
        chain: The network as an affine-ReLU chain (needs "chain").
        images: Calibration inputs and targets kept whole (needs "images").
        activations: By group: a sample of its units' activations [rows, units] (needs "activations").
        seed: Seed from which a method derives every random choice.
    """

    weights: Mapping[str, Tensor]
    moments: Mapping[str, Moments] = field(default_factory=dict)
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    taylor: Mapping[str, Tensor] = field(default_factory=dict)
    flow: Callable[..., Mapping[str, Tensor]] | None = None
    chain: Any = None
    images: tuple[Tensor, Tensor] | None = None
    activations: Mapping[str, Tensor] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Merge:
    """An exact statement: removed units as affine combinations of kept ones.

    unit[removed] = coefficients @ unit[kept] + offset, wherever the plan's notes say so.

    Attributes:
        removed: Unit numbers [R].
        kept: Unit numbers [K].
        coefficients: float64 [R, K].
        offset: float64 [R].
    """

    removed: IntArray
    kept: IntArray
    coefficients: NDArray[np.float64]
    offset: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Plan:
    """What goes, and why: a value that can be read, stored, and applied to a model.

    Attributes:
        network: The traced network that it speaks of.
        method: Name of the method that decided.
        keep: Group name -> sorted numbers of the units that stay.  Groups not named stay whole.
        masks: Weight name -> boolean mask of its shape, True where the weight stays.
        merges: Group name -> exact merges to be folded into the readers when units go.
        budget: The budget, in words.
        seed: The seed that was used.
        notes: The evidence, JSON-able: by group or weight name, or about the whole.
    """

    network: Network
    method: str
    keep: Mapping[str, IntArray] = field(default_factory=dict)
    masks: Mapping[str, BoolArray] = field(default_factory=dict)
    merges: Mapping[str, Merge] = field(default_factory=dict)
    budget: str = ""
    seed: int = 0
    notes: Mapping[str, Any] = field(default_factory=dict)

    def removed(self, group: str) -> IntArray:
        """Return the sorted numbers of the units of a group that go."""
        size = self.network.group(group).size
        return np.setdiff1d(np.arange(size), self.keep.get(group, np.arange(size)))

    def explain(self) -> str:
        """Describe for a person what goes from each group and weight, with the notes."""
        lines = [f"{self.method}, budget {self.budget}, seed {self.seed}"]
        for name, kept in self.keep.items():
            size = self.network.group(name).size
            lines.append(f"  {name}: keeps {len(kept)} of {size} units{_note(self.notes.get(name))}")
        for name, mask in self.masks.items():
            kept = int(mask.sum())
            lines.append(f"  {name}: keeps {kept} of {mask.size} weights{_note(self.notes.get(name))}")
        named = set(self.keep) | set(self.masks)
        lines += [f"  {key}: {value}" for key, value in self.notes.items() if key not in named]
        return "\n".join(lines)


def _note(note: Any) -> str:
    if note is None:
        return ""
    if isinstance(note, Mapping):
        return "; " + ", ".join(f"{key} {value}" for key, value in note.items())
    return f"; {note}"


def unknown(what: str, name: str, known: list[str] | tuple[str, ...]) -> str:
    """Word an error about an unknown name, with the near matches."""
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"no {what} {name!r}{hint} Known: {', '.join(map(repr, sorted(known))) or 'none'}"


def _fraction(what: str, value: float) -> None:
    if not (isinstance(value, (int, float)) and 0 < value <= 1):
        raise InputError(f"{what} must be in (0, 1], a share that stays; got {value!r}")


def _common(scope: str, floor: int, round_to: int) -> None:
    if scope not in ("layer", "global", "erk"):
        raise InputError(unknown("scope", str(scope), ["layer", "global", "erk"]))
    if floor < 1 or round_to < 1:
        raise InputError(f"floor and round_to must be at least 1; got {floor} and {round_to}")


@dataclass(frozen=True)
class Units:
    """Keep this share of the units; `scope` says whether of each group or of all together.

    Example:
        >>> Units(0.5, round_to=8)
        Units(keep=0.5, scope='layer', floor=1, round_to=8)
    """

    keep: float
    scope: Scope = "layer"
    floor: int = 1
    round_to: int = 1

    def __post_init__(self) -> None:
        """Check the share."""
        _fraction("Units.keep", self.keep)
        _common(self.scope, self.floor, self.round_to)


@dataclass(frozen=True)
class Weights:
    """Keep this share of the single weights (a mask; nothing gets smaller)."""

    density: float
    scope: Scope = "layer"
    floor: int = 1

    def __post_init__(self) -> None:
        """Check the share."""
        _fraction("Weights.density", self.density)
        _common(self.scope, self.floor, 1)


@dataclass(frozen=True)
class Params:
    """Remove units until this share of the parameters is left."""

    keep: float
    scope: Scope = "layer"
    floor: int = 1
    round_to: int = 1

    def __post_init__(self) -> None:
        """Check the share."""
        _fraction("Params.keep", self.keep)
        _common(self.scope, self.floor, self.round_to)


@dataclass(frozen=True)
class Macs:
    """Remove units until this share of the multiply-accumulates is left."""

    keep: float
    scope: Scope = "layer"
    floor: int = 1
    round_to: int = 1

    def __post_init__(self) -> None:
        """Check the share."""
        _fraction("Macs.keep", self.keep)
        _common(self.scope, self.floor, self.round_to)


@dataclass(frozen=True)
class Tolerance:
    """Remove units while a held-out metric falls by no more than `drop`, then stop.

    Attributes:
        drop: Largest fall of the metric that is accepted (0.01: one point of accuracy).
        metric: ``"accuracy"``, or a callable (model, batches) -> float where more is better.
        step: Share of the units that go at each step.
    """

    drop: float
    metric: str | Callable[..., float] = "accuracy"
    step: float = 0.05
    scope: Scope = "layer"
    floor: int = 1
    round_to: int = 1

    def __post_init__(self) -> None:
        """Check drop and step."""
        if not self.drop >= 0:
            raise InputError(f"Tolerance.drop must be 0 or more; got {self.drop!r}")
        _fraction("Tolerance.step", self.step)
        _common(self.scope, self.floor, self.round_to)


Budget = Units | Weights | Params | Macs | Tolerance
__all__ = [
    "BoolArray", "Budget", "CaptureError", "Evidence", "ExactnessError", "Frozen", "Group", "InputError",
    "IntArray", "Layer", "Macs", "Merge", "Moments", "Network", "NothingToPrune", "Params", "Plan",
    "PlanError", "Role", "Scope", "SecateurError", "Size", "Slot", "StoreError", "Tolerance", "Units",
    "Weights", "unknown",
]
