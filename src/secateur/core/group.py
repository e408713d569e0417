"""A group: units that can be removed one by one, and everything that each of them owns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

__all__ = ["KINDS", "BoolArray", "Group", "IntArray", "Kind", "Role", "Slot"]

Role = Literal["out", "in", "scale"]
Kind = Literal[
    "channels",
    "embedding",
    "expert units",
    "ffn",
    "head positions",
    "heads",
    "hidden",
    "key-value groups",
    "other",
    "query-key positions",
    "recurrent",
    "value positions",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
PADDED: tuple[Kind, ...] = ("query-key positions", "value positions")
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False, repr=False)
class Slot:
    """The indices that a group's units own on one axis of one parameter or buffer.

    Attributes:
        tensor: Qualified name of the parameter or buffer (the first name, when tied).
        axis: The axis of that tensor.
        index: Integers of shape [units, per_unit]: unit `u` owns `index[u]` of the axis.  If two groups own
            the same index (heads, and positions inside a head), it stays only if both units do.
        role: ``"out"``: entries that produce the unit (rows of a weight, its bias); ``"in"``: entries
            that consume it (columns of a weight); ``"scale"``: entries that act on it in place
            (normalisation, PReLU, running statistics).
    """

    tensor: str
    axis: int
    index: IntArray
    role: Role

    def __repr__(self) -> str:
        """Summarise the slot; `index` only by its shape."""
        return f"Slot({self.tensor!r}, axis {self.axis}, {self.role!r}, index {list(np.shape(self.index))})"


@dataclass(frozen=True, eq=False, repr=False)
class Group:
    """A family of `size` units, each of which can be removed alone.

    Attributes:
        name: Unique, named after what produces the units (``"features.0"``, ``"layer1 (heads)"``).
        size: Number of units.
        slots: Everything that the units own.
        kind: What the units are in the network: ``"heads"`` of attention (under grouped queries, one query
            head of every group), ``"key-value groups"`` (a key and a value with all their query heads),
            ``"head positions"``, ``"query-key positions"`` and ``"value positions"`` of one key-value group
            (see `padded`), ``"ffn"`` (inner units between linear layers), ``"expert units"`` (the same
            of all experts of a mixture), ``"hidden"`` (the residual
            stream), ``"channels"`` of convolutions, ``"recurrent"`` units, features of an ``"embedding"``,
            or ``"other"``.
    """

    name: str
    size: int
    slots: tuple[Slot, ...]
    kind: Kind = "other"

    @property
    def padded(self) -> bool:
        """Whether zeros take the place of removed units: what lies between the layers keeps its sizes.

        The layers that own the units get smaller: those that produce them return zeros there, and those that
        read them pass over them.
        """
        return self.kind in PADDED

    def slots_with(self, role: Role) -> tuple[Slot, ...]:
        """Return the slots of that role; of those that produce the units, weights come before biases."""
        return tuple(slot for slot in self.slots if slot.role == role)

    def __repr__(self) -> str:
        """Summarise the group in one line."""
        return f"Group({self.name!r}, {self.size} units on {self.axes(3)})"

    def axes(self, limit: int) -> str:
        """Return the axes that the units sit on, as in ``"conv1.weight[0], bn1.weight[0]"``."""
        text = ", ".join(f"{slot.tensor}[{slot.axis}]" for slot in self.slots[:limit])
        return text + (f" and {len(self.slots) - limit} more" if len(self.slots) > limit else "")
