"""Keep a sample of the units' activations, for methods that use which units are active together."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.core import Group, IntArray, Layer, PruningGraph
from secateur.statistics.weight_inputs import WeightInput

__all__ = ["ActivationSample"]


class ActivationSample:
    """A sample of unit activations, taken evenly from the inputs of one consumer of each group.

    A row is one example at one position or time step.  For a recurrent group it is the hidden state,
    otherwise the input of the first consumer.  A unit that is several features there (a flattened map) gives
    one row for each of them.

    Args:
        graph: The trace.
        limit: Largest number of rows of a group; one batch gives at most a quarter of them, evenly spaced.
    """

    def __init__(self, graph: PruningGraph, limit: int = 4096) -> None:
        """Choose the consumer of each group."""
        self._limit = limit
        self._kept: dict[str, list[Tensor]] = {}
        self._groups: dict[str, list[tuple[str, IntArray, int, int]]] = {}
        for group in graph.groups:
            consumer = _consumer(graph, group)
            if consumer is not None:
                layer, index = consumer
                width = graph.shapes[layer.weight][layer.in_axis or 0]
                known = self._groups.setdefault(graph.input_key(layer), [])
                known.append((group.name, index, layer.groups, width))

    def add(self, entry: WeightInput) -> None:
        """Keep some rows of one input."""
        for name, index, groups, width in self._groups.get(entry.key, ()):
            kept = self._kept.setdefault(name, [])
            room = min(self._limit - sum(map(len, kept)), self._limit // 4)
            if room > 0:
                kept.append(_sample(entry, index, groups, width, room))

    def activations(self) -> dict[str, Tensor]:
        """Return the rows [rows, units] of each group, in float32."""
        return {name: torch.cat(rows) for name, rows in self._kept.items() if rows}


def _consumer(graph: PruningGraph, group: Group) -> tuple[Layer, IntArray] | None:
    consumers = [(layer, slot.index) for layer, slot in graph.consumers(group)]
    states = [(layer, index) for layer, index in consumers if layer.reads == "state"]
    return next(iter(states or consumers), None)


def _sample(entry: WeightInput, index: IntArray, groups: int, width: int, room: int) -> Tensor:
    rows = entry.x.detach().movedim(entry.axis, -1).reshape(-1, entry.x.shape[entry.axis])
    # The weight of a grouped convolution has one input axis for all its groups.
    own = torch.cat([torch.as_tensor(index) + g * width for g in range(groups)], 1).to(rows.device)
    take = max(1, room // own.shape[1])
    chosen = torch.linspace(0, len(rows) - 1, min(take, len(rows)), device=rows.device).long()
    return rows[chosen][:, own].transpose(1, 2).reshape(-1, len(index))[:room].float()
