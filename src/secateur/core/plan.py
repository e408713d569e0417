"""A plan: what a method decides to remove."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.core.errors import PlanError, brief, shorten, unknown
from secateur.core.graph import PruningGraph
from secateur.core.group import BoolArray, IntArray
from secateur.core.indices import check_units

__all__ = ["Merge", "Plan"]

LISTED = 6  # entries of a list in a note
SHOWN = 10  # groups and weights in a repr
MOST_EXPERTS = 2**31  # the model knows how many there are
MAPS = {
    "keep": "group names to unit numbers",
    "masks": "weight names to masks",
    "merges": "group names to merges",
    "factors": "weight names to factors",
    "experts": "names of mixtures to numbers of experts",
    "notes": "names to reasons",
}


@dataclass(frozen=True, eq=False, repr=False)
class Merge:
    """Removed units as exact affine combinations of kept ones.

    unit[removed] = coefficients @ unit[kept] + offset, on the inputs that the plan's notes state.

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

    def __repr__(self) -> str:
        """Summarise the merge in one line."""
        return f"Merge({len(self.removed)} units into {len(self.kept)})"


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """What to remove, and why: a value that can be read, stored, and applied to a model.

    Attributes:
        graph: The traced network that it refers to.
        method: Name of the method that decided.
        keep: Group name -> sorted numbers of the units that stay.  Groups not named stay whole.
        masks: Weight name -> boolean mask of its shape, True where the weight stays.
        merges: Group name -> exact merges, to be folded into the consumers when units go.
        budget: The budget, as text.
        seed: The seed that was used.
        notes: The reasons, JSON-able: by group or weight name, or about the whole.
        blocks: Names of whole blocks of the original model that go before anything else
            (`secateur.apply.blocks`); the graph is that of the model without them.
        factors: Weight name -> float64 factors of its shape for the weights that stay, if the method rescales
            them (a sparsifier: 1 / probability).  Only masked weights have factors.
        experts: Name of a mixture of the original model -> sorted numbers of the experts that stay
            (`secateur.apply.experts`).  The others go before blocks and units; mixtures not named stay whole.

    Raises:
        PlanError: If the units of `keep` are not units of the graph, each once, rising, if groups of
            `PruningGraph.equal_counts` keep unequal numbers, or if factors do not fit the masks.
    """

    graph: PruningGraph
    method: str
    keep: Mapping[str, IntArray] = field(default_factory=dict)
    masks: Mapping[str, BoolArray] = field(default_factory=dict)
    merges: Mapping[str, Merge] = field(default_factory=dict)
    budget: str = ""
    seed: int = 0
    notes: Mapping[str, Any] = field(default_factory=dict)
    blocks: tuple[str, ...] = ()
    factors: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    experts: Mapping[str, IntArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the units, the masks and the factors.

        Raises:
            PlanError: If a unit is invalid; the message names the group and the first such unit.  Or if
                counts must be equal and are not; the message names the groups.
        """
        for what, kind in (("graph", PruningGraph), ("method", str), ("budget", str)):
            if not isinstance(given := getattr(self, what), kind):
                raise PlanError(f"{what} must be a {kind.__name__}; got a {type(given).__name__}")
        names = isinstance(self.blocks, (tuple, list)) and all(isinstance(x, str) for x in self.blocks)
        if not names:
            raise PlanError(f"blocks must be names of blocks; got {brief(self.blocks)}")
        for what, maps in MAPS.items():
            if not isinstance(given := getattr(self, what), Mapping):
                raise PlanError(f"{what} must map {maps}; got a {type(given).__name__}")
        for name, kept in self.experts.items():
            check_units(name, MOST_EXPERTS, kept)
        self._check_units()
        self._check_masks()

    def _check_units(self) -> None:
        sizes = {group.name: group.size for group in self.graph.groups} if self.keep else {}
        for name, kept in self.keep.items():
            if name not in sizes:
                raise PlanError(unknown("group", str(name), list(sizes)))
            check_units(name, sizes[name], kept)
        for names in self.graph.equal_counts if self.keep else ():
            counts = {name: len(self.keep[name]) if name in self.keep else sizes[name] for name in names}
            # No number states how many padded units there are: whole heads may have taken unequal ones.
            if len(set(counts.values())) > 1 and not self.graph.group(names[0]).padded:
                raise PlanError(
                    f"the groups {shorten(map(repr, names), count=8)} must keep equally many units, because "
                    f"one number states how many they have (hidden_size, a config), or the budget is even; "
                    f"got {brief(list(counts.values()))}"
                )

    def _check_masks(self) -> None:
        for name, mask in self.masks.items():
            shape = self.graph.shapes.get(name)
            if shape is None:
                raise PlanError(unknown("weight", str(name), list(self.graph.shapes)))
            array = isinstance(mask, np.ndarray)
            if not array or mask.dtype != np.bool_ or mask.shape != tuple(shape):
                got = f"{mask.dtype} of shape {mask.shape}" if array else type(mask).__name__
                raise PlanError(
                    f"the mask of {name!r} must be a boolean numpy array of shape {tuple(shape)}, True where "
                    f"a weight stays; got {got}"
                )
        for name, factor in self.factors.items():
            shape = getattr(factor, "shape", None)
            if name not in self.masks or self.masks[name].shape != shape:
                raise PlanError(f"the factors of {name!r}, {shape}, must have the shape of its mask")
            if not (np.isfinite(factor).all() and (factor != 0).all()):
                raise PlanError(f"the factors of {name!r} must be finite and not 0: a mask zeroes weights")

    @property
    def removes(self) -> bool:
        """Whether anything goes."""
        return bool(self.keep or self.masks or self.blocks or self.experts)

    def removed(self, group: str) -> IntArray:
        """Return the sorted numbers of a group's removed units."""
        size = self.graph.group(group).size
        return np.setdiff1d(np.arange(size), self.keep.get(group, np.arange(size)))

    def __repr__(self) -> str:
        """Summarise the plan in at most 13 lines; `explain` lists everything."""
        names = {group.name: group.size for group in self.graph.groups} if self.keep else {}
        lines = [f"  {name}: {len(kept)} of {names[name]} units stay" for name, kept in self.keep.items()]
        lines += [f"  {name}: {int(m.sum())} of {m.size} weights stay" for name, m in self.masks.items()]
        more = [f"  and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        without = f", experts of {len(self.experts)} mixtures gone" if self.experts else ""
        without += f", {len(self.blocks)} blocks gone" if self.blocks else ""
        head = f"Plan by {self.method!r}, budget {self.budget or 'none'}, seed {self.seed}{without}"
        return "\n".join([head, *lines[:SHOWN], *more, "plan.explain() shows everything, with the reasons"])

    def explain(self) -> str:
        """Describe what goes from each group and weight, with the notes."""
        lines = [f"{self.method}, budget {self.budget}, seed {self.seed}"]
        lines += [f"  experts that stay in {x}: {_short(list(kept))}" for x, kept in self.experts.items()]
        lines += [f"  blocks gone: {', '.join(self.blocks)}"] if self.blocks else []
        for name, kept in self.keep.items():
            size = self.graph.group(name).size
            lines.append(f"  {name}: keeps {len(kept)} of {size} units{_note(self.notes.get(name))}")
        for name, mask in self.masks.items():
            left = int(mask.sum())
            lines.append(f"  {name}: keeps {left} of {mask.size} weights{_note(self.notes.get(name))}")
        named = set(self.keep) | set(self.masks)
        lines += [f"  {key}: {_short(value)}" for key, value in self.notes.items() if key not in named]
        return "\n".join(lines)


def _note(note: Any) -> str:
    if note is None:
        return ""
    if isinstance(note, Mapping):
        return "; " + ", ".join(f"{key} {_short(value)}" for key, value in note.items())
    return f"; {_short(note)}"


def _short(note: Any) -> str:
    """Return a note as text, with the first entries of long lists."""
    if isinstance(note, Mapping):
        return "{" + ", ".join(f"{key}: {_short(value)}" for key, value in note.items()) + "}"
    if isinstance(note, (list, tuple)) and len(note) > LISTED:
        return "[" + ", ".join(map(_short, note[:LISTED])) + f", ... {len(note) - LISTED} more]"
    return str(note)
