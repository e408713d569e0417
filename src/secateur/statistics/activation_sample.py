"""Keep a sample of the units' activations, for methods that look at which units are active together."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.core import Group, IntArray, Layer, PruningGraph
from secateur.statistics.weight_inputs import WeightInput

__all__ = ["ActivationSample"]


class ActivationSample:
    """A sample of unit activations, taken evenly from the inputs of one consumer of each group.

    A row is a (sample, position or time step).  Of a recurrent group the state is kept, else what the first
    reading layer reads; a unit that is several features there (a flattened map) gives a row for each of them.

    Args:
        graph: The trace.
        limit: Most rows kept for a group; one batch gives at most a quarter of them, evenly spaced.
    """

    def __init__(self, graph: PruningGraph, limit: int = 4096) -> None:
        """Choose the reader of each group."""
        self._limit = limit
        self._kept: dict[str, list[Tensor]] = {}
        self._groups: dict[str, list[tuple[str, IntArray, int, int]]] = {}
        for group in graph.groups:
            found = _reader(graph, group)
            if found is not None:
                layer, index = found
                width = graph.shapes[layer.weight][layer.in_axis or 0]
                known = self._groups.setdefault(graph.input_key(layer), [])
                known.append((group.name, index, layer.groups, width))

    def add(self, read: WeightInput) -> None:
        """Keep some rows of one read."""
        for name, index, groups, width in self._groups.get(read.key, ()):
            kept = self._kept.setdefault(name, [])
            room = min(self._limit - sum(map(len, kept)), self._limit // 4)
            if room > 0:
                kept.append(_sample(read, index, groups, width, room))

    def activations(self) -> dict[str, Tensor]:
        """Return, by group, the rows [rows, units] in float32."""
        return {name: torch.cat(rows) for name, rows in self._kept.items() if rows}


def _reader(graph: PruningGraph, group: Group) -> tuple[Layer, IntArray] | None:
    consumers = [(layer, slot.index) for layer, slot in graph.consumers(group)]
    states = [(layer, index) for layer, index in consumers if layer.reads == "state"]
    return next(iter(states or consumers), None)


def _sample(read: WeightInput, index: IntArray, groups: int, width: int, room: int) -> Tensor:
    rows = read.x.detach().movedim(read.axis, -1).reshape(-1, read.x.shape[read.axis])
    # The weight of a grouped convolution has one input axis for all its groups.
    own = torch.cat([torch.as_tensor(index) + g * width for g in range(groups)], 1).to(rows.device)
    take = max(1, room // own.shape[1])
    chosen = torch.linspace(0, len(rows) - 1, min(take, len(rows)), device=rows.device).long()
    return rows[chosen][:, own].transpose(1, 2).reshape(-1, len(index))[:room].float()
