"""Leverages of all weights of a network, from scores and the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.core import InputError, Layer, PruningGraph
from secateur.methods.spectral.features import axis_features
from secateur.structures import spectral

__all__ = ["Leverages", "layer_leverages", "network_leverages", "split_heads", "unfold"]


@dataclass(frozen=True, eq=False)
class Leverages:
    """Leverage w_e R_e of every weight.

    Attributes:
        values: By weight, in its shape; 0 where the score is 0.
        nodes: By weight, the number of nodes of its graph.
        notes: By weight, how the resistances were computed.
    """

    values: Mapping[str, Tensor]
    nodes: Mapping[str, int]
    notes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def unfold(layer: Layer, scores: Tensor) -> spectral.LayerGraph:
    """Return the bipartite graphs of a layer: one for each group of a convolution, and for each gate."""
    return spectral.layer_graph(scores, layer.out_axis or 0, layer.in_axis or 0, layer.groups, layer.gates)


def split_heads(graph: PruningGraph, layer: Layer) -> Layer:
    """Return a layer of attention with the queries, keys and values of each head as separate graphs.

    The traced heads say which outputs belong together; each run of neighbours is a graph.  Layers without
    heads, and those whose runs differ in length, are returned as they are.
    """
    for group in graph.groups:
        for slot in group.slots if group.kind in ("heads", "key-value groups") else ():
            if (slot.tensor, slot.axis, slot.role) == (layer.weight, layer.out_axis, "out"):
                owned = np.sort(slot.index, axis=1)
                ends = [np.flatnonzero(np.diff(row) > 1) + 1 for row in owned]
                runs = [run for row, cut in zip(owned, ends, strict=True) for run in np.split(row, cut)]
                length, size = len(runs[0]), graph.shapes[layer.weight][layer.out_axis or 0]
                starts = sorted(int(run[0]) for run in runs)
                if starts == list(range(0, size, length)) and all(len(run) == length for run in runs):
                    return replace(layer, gates=len(runs))
    return layer


def layer_leverages(
    graph: PruningGraph, scores: Mapping[str, Tensor], tol: float = 1e-2, heads: bool = False
) -> Leverages:
    """Compute the leverages layer by layer (Algorithm 2); on a GPU, layers of one shape together.

    Args:
        graph: The traced network.
        scores: By weight, non-negative.
        tol: Accepted relative error of the resistances.
        heads: Whether the queries, keys and values of each head are separate graphs.
    """
    layers = {name: _layer(graph, name) for name in scores}
    layers = {name: split_heads(graph, x) for name, x in layers.items()} if heads else layers
    graphs = {name: unfold(layers[name], value) for name, value in scores.items()}
    values, notes = {}, {}
    for names in _batches(graphs):
        scores_of = [graphs[name].scores for name in names]
        S = scores_of[0] if len(scores_of) == 1 else torch.cat(scores_of)
        solved = _resistances(", ".join(names), S, tol)
        parts = spectral.leverage(S, solved).split([len(x) for x in scores_of])
        for name, part in zip(names, parts, strict=True):
            values[name] = graphs[name].fold(part)
            notes[name] = {"resistances": solved.method, "bound": solved.bound, "foster": solved.foster}
    nodes = {name: sum(bipartite.scores.shape[1:]) for name, bipartite in graphs.items()}
    return Leverages({name: values[name] for name in scores}, nodes, notes)


def _batches(graphs: Mapping[str, spectral.LayerGraph]) -> list[list[str]]:
    """Return the layers to solve together: those of one shape on a GPU; on a CPU batches gain nothing."""
    alike: dict[Any, list[str]] = {}
    for name, bipartite in graphs.items():
        S = bipartite.scores
        key = (S.shape[1:], S.dtype, S.device) if _batched(S.device) else name
        alike.setdefault(key, []).append(name)
    return list(alike.values())


def _batched(device: torch.device) -> bool:
    return device.type != "cpu"


def _resistances(name: str, scores: Tensor, tol: float) -> spectral.Resistance:
    try:
        return spectral.effective_resistance(scores, tol=tol)
    except (ArithmeticError, ValueError, MemoryError) as error:
        raise InputError(f"the graph of {name!r} has no effective resistances: {error}") from error


def network_leverages(graph: PruningGraph, scores: Mapping[str, Tensor]) -> Leverages:
    """Compute the leverages in the graph of the whole network (Algorithm 1), exactly.

    Nodes are the units of the traced groups, and the features of frozen axes.  Features that residual
    additions, flattened copies or the gates of a recurrent unit make one are one node, as are all taps of a
    kernel; the channels that a grouped convolution couples stay apart (`features`).
    """
    layers = tuple(_layer(graph, name) for name in scores)
    ends = {axis: torch.from_numpy(nodes) for axis, nodes in axis_features(graph, layers).items()}
    links = {
        # Resistances do not depend on the direction, so axis 0 may be either end.
        x.weight: spectral.Link(scores[x.weight], ends[x.weight, 1], ends[x.weight, 0], x.groups)
        for x in layers
    }
    try:
        resistance = spectral.chain_resistance(list(links.values()))
    except (ArithmeticError, ValueError) as error:
        raise InputError(f"the graph of the network has no effective resistances: {error}") from error
    values = dict(zip(links, resistance.leverage(list(links.values())), strict=True))
    note = {"resistances": "network", "foster": resistance.foster, "components": resistance.components}
    return Leverages(values, dict.fromkeys(links, resistance.nodes), dict.fromkeys(links, note))


def _layer(graph: PruningGraph, weight: str) -> Layer:
    return next(x for x in graph.prunable_weights() if x.weight == weight)
