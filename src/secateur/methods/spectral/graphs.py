"""From a traced network and scores of its weights to the leverage of every weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from secateur.core import InputError, Layer, PruningGraph
from secateur.structures import spectral

__all__ = ["Leverages", "layer_leverages", "network_leverages", "unfold"]


@dataclass(frozen=True, eq=False)
class Leverages:
    """Leverage w_e R_e of every weight.

    Attributes:
        values: By weight, in its shape; 0 where the score is 0.
        nodes: By weight, the number of nodes of the graph it belongs to.
        notes: By weight, how the resistances were computed.
    """

    values: Mapping[str, Tensor]
    nodes: Mapping[str, int]
    notes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def unfold(layer: Layer, scores: Tensor) -> spectral.LayerGraph:
    """Return the bipartite graphs of a layer: one for each group of a convolution, and for each gate."""
    return spectral.layer_graph(scores, layer.out_axis or 0, layer.in_axis or 0, layer.groups, layer.gates)


def layer_leverages(graph: PruningGraph, scores: Mapping[str, Tensor], tol: float = 1e-2) -> Leverages:
    """Compute the leverages layer by layer (Algorithm 2); on a GPU, layers of one shape together.

    Args:
        graph: The traced network.
        scores: By weight, non-negative.
        tol: Relative error of the resistances that is accepted.
    """
    graphs = {name: unfold(_layer(graph, name), value) for name, value in scores.items()}
    values, notes = {}, {}
    for names in _together(graphs):
        own = [graphs[name].scores for name in names]
        S = own[0] if len(own) == 1 else torch.cat(own)
        found = _solved(", ".join(names), S, tol)
        parts = spectral.leverage(S, found).split([len(x) for x in own])
        for name, part in zip(names, parts, strict=True):
            values[name] = graphs[name].fold(part)
            notes[name] = {"resistances": found.method, "bound": found.bound, "foster": found.foster}
    nodes = {name: sum(bipartite.scores.shape[1:]) for name, bipartite in graphs.items()}
    return Leverages({name: values[name] for name in scores}, nodes, notes)


def _together(graphs: Mapping[str, spectral.LayerGraph]) -> list[list[str]]:
    """Say which layers are solved at once: on a processor each alone, since batches gain nothing there."""
    alike: dict[Any, list[str]] = {}
    for name, bipartite in graphs.items():
        S = bipartite.scores
        key = (S.shape[1:], S.dtype, S.device) if _batched(S.device) else name
        alike.setdefault(key, []).append(name)
    return list(alike.values())


def _batched(device: torch.device) -> bool:
    return device.type != "cpu"


def _solved(name: str, scores: Tensor, tol: float) -> spectral.Resistance:
    try:
        return spectral.effective_resistance(scores, tol=tol)
    except (ArithmeticError, ValueError, MemoryError) as error:
        raise InputError(f"the graph of {name!r} has no effective resistances: {error}") from error


def network_leverages(graph: PruningGraph, scores: Mapping[str, Tensor]) -> Leverages:
    """Compute the leverages in the graph of the whole network (Algorithm 1), exactly.

    Nodes are the units of the traced groups, and the features of frozen axes.  What tracing coupled (residual
    additions, flattened copies, the gates of a recurrent unit) is one node; taps of a kernel read one node.
    """
    links = {name: _link(graph, _layer(graph, name), value) for name, value in scores.items()}
    try:
        found = spectral.chain_resistance(list(links.values()))
    except (ArithmeticError, ValueError) as error:
        raise InputError(f"the graph of the network has no effective resistances: {error}") from error
    values = dict(zip(links, found.leverage(list(links.values())), strict=True))
    note = {"resistances": "network", "foster": found.foster, "components": found.components}
    return Leverages(values, dict.fromkeys(links, found.nodes), dict.fromkeys(links, note))


def _layer(graph: PruningGraph, weight: str) -> Layer:
    return next(x for x in graph.prunable_weights() if x.weight == weight)


def _link(graph: PruningGraph, layer: Layer, scores: Tensor) -> spectral.Link:
    """Join the features along axes 0 and 1; which of them is made and which read changes no resistance."""
    own = _features(graph, layer, 0)
    width = graph.shapes[layer.weight][1]
    depthwise = layer.groups > 1 and width == 1 and layer.groups == len(own)
    return spectral.Link(scores, own if depthwise else _features(graph, layer, 1), own, layer.groups)


def _features(graph: PruningGraph, layer: Layer, axis: int) -> Tensor:
    """Return level and node of each feature along an axis: the unit that owns it, else one of its own."""
    width = graph.shapes[layer.weight][axis]
    copies = layer.groups if axis == 1 else 1
    own = 2 * len(graph.groups) + 2 * [x.weight for x in graph.layers].index(layer.weight) + axis
    nodes = torch.arange(width * copies)
    ends = torch.stack([torch.full_like(nodes, own), nodes], 1)
    # Where units of two groups share an index (heads, and dimensions in them), the larger group's count.
    for number, group in sorted(enumerate(graph.groups), key=lambda x: x[1].size):
        for slot in group.slots:
            if (slot.tensor, slot.axis) == (layer.weight, axis):
                index, unit = torch.as_tensor(slot.index), torch.arange(group.size)[:, None]
                for g in range(copies):
                    ends[index + g * width] = torch.stack(
                        [torch.full_like(index, number), unit.expand_as(index)], -1
                    )
    return ends
