"""The kind of a group: what its units are in the network, from the tensors and axes that they own.

Operations record which axes are heads, positions inside a head, and repetitions of keys and values.  The
layers that produce and read a group say the rest: units are the residual stream ("hidden") if one of the
layers that add to them reads them first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secateur.core import Kind, Layer, Slot
from secateur.tracing.labels import Label
from secateur.tracing.propagate import Propagation

__all__ = ["KindFinder"]

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class _Attention:
    """The atoms of attention: each set holds the free atoms of one kind of axis."""

    heads: frozenset[int]
    shared: frozenset[int]
    positions: frozenset[int]


class KindFinder:
    """Finds the kinds of groups, after all labels have passed through the graph.

    Args:
        propagation: What the rules recorded.
    """

    def __init__(self, propagation: Propagation) -> None:
        """Collect the atoms of attention, and the layers by the axes that they produce and read."""
        self._attention = _find_attention(propagation)
        self._experts = _atoms(propagation, propagation.expert_units)
        self._producers: dict[tuple[str, int | None], list[tuple[int, Layer]]] = {}
        self._consumers: dict[tuple[str, int | None], list[tuple[int, Layer]]] = {}
        for order, layer in enumerate(propagation.layers):
            if layer.kind != "norm":
                self._producers.setdefault((layer.weight, layer.out_axis), []).append((order, layer))
                self._consumers.setdefault((layer.weight, layer.in_axis), []).append((order, layer))

    def kind(self, atoms: Ints, slots: Sequence[Slot]) -> Kind:
        """Return the kind of a group with these atoms and slots."""
        axes = [(slot.tensor, slot.axis) for slot in slots]
        made = [x for axis in axes for x in self._producers.get(axis, ())]
        read = [x for axis in axes for x in self._consumers.get(axis, ())]
        first, attention = int(atoms[0]), self._attention
        if any(layer.kind == "recurrent" for _, layer in made):
            return "recurrent"
        convolutions = sum(layer.kind.startswith("conv") for _, layer in (*made, *read))
        if _is_residual(made, read):  # before heads: the stream may be tied to them in blocks
            return "channels" if 2 * convolutions > len(made) + len(read) else "hidden"
        if first in attention.shared:
            return "key-value groups"
        if first in attention.heads:
            return "heads"
        if first in attention.positions:
            return "head positions"
        if first in self._experts and not made:
            return "expert units"
        return _kind_of_producers([layer for _, layer in made])


def _is_residual(made: Sequence[tuple[int, Layer]], read: Sequence[tuple[int, Layer]]) -> bool:
    """Return whether a layer that produces the units runs after one that reads them, or is the same.

    A layer that runs several times counts as at its first run: the second run of an inner layer would
    come after the first run of the layer behind it.
    """
    at: dict[str, int] = {}
    for order, layer in sorted((*made, *read), key=lambda x: x[0]):
        at.setdefault(layer.weight, order)
    last = max((at[layer.weight] for _, layer in made), default=-1)
    return any(at[layer.weight] <= last for _, layer in read)


def _kind_of_producers(layers: Sequence[Layer]) -> Kind:
    if not layers:
        return "other"
    kinds = {layer.kind for layer in layers}
    if any(kind.startswith("conv") for kind in kinds):
        return "channels"
    return "embedding" if kinds == {"embedding"} else "ffn"


def _find_attention(propagation: Propagation) -> _Attention:
    """Return the atoms of the recorded axes.

    Where keys and values are repeated for several queries, the axis of heads is (key-value head, repetition):
    a repetition is a query head, and what it repeats is a group of them with one key and value.
    """
    repeated = _atoms(propagation, propagation.repeated)
    heads: set[int] = set()
    shared: set[int] = set()
    for label in propagation.heads:
        atoms = _atoms(propagation, [label])
        queries = atoms & repeated
        heads |= queries or atoms
        shared |= atoms - queries if queries else set()
    positions = _atoms(propagation, propagation.head_positions)
    return _Attention(frozenset(heads), frozenset(shared - heads), frozenset(positions - heads - shared))


def _atoms(propagation: Propagation, labels: Sequence[Label]) -> set[int]:
    normal = [propagation.algebra.normal(label) for label in labels]
    return {int(atom) for label in normal if label is not None for atom in np.unique(label)} - {0}
