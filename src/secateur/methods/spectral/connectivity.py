"""Connectivity of the layers of a network, before and after pruning.

Each layer's weights are a bipartite graph (Laenen, arXiv:2306.08849, section 2.4); the paper reports lambda_2
of the normalised Laplacian of its largest component.  That number rises to 1 as the component shrinks to
a few nodes, so it is reported with the share, the number of components and the dead units.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from secateur.core import InputError, PruningGraph
from secateur.methods.spectral.graphs import split_heads, unfold
from secateur.structures.spectral import Connectivity, connectivity, sparsifier_quality

__all__ = ["condition_number", "layer_connectivity"]


def layer_connectivity(
    graph: PruningGraph,
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Any] | None = None,
    heads: bool = False,
) -> dict[str, Connectivity]:
    """Measure the graph of |w| of every layer whose weights a mask may zero.

    A layer of several graphs (groups of a convolution, gates) gets the smallest lambda_2, the mean share, and
    sums of the counts.

    Args:
        graph: The traced network.
        weights: Its tensors by name, as in `model.state_dict()`.
        masks: Boolean masks by weight name; other weights stay whole.
        heads: Whether the queries, keys and values of each head of attention are separate graphs:
            lambda_2 is then that of the worst of them.

    Raises:
        InputError: If a weight is missing or has another shape than when traced.

    Example:
        >>> from secateur.tracing.trace import trace
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
        >>> layers = layer_connectivity(trace(model, torch.ones(1, 4)), model.state_dict())
        >>> {name: (layer.components, layer.edges) for name, layer in layers.items()}
        {'0.weight': (1, 24), '2.weight': (1, 12)}
    """
    layers = {}
    for name, graphs in _graphs(graph, weights, masks or {}, heads).items():
        parts = [connectivity(bipartite) for bipartite in graphs]
        layers[name] = Connectivity(
            min(x.lambda2 for x in parts),
            sum(x.share for x in parts) / len(parts),
            *(
                sum(getattr(x, key) for x in parts)
                for key in ("components", "dead_inputs", "dead_outputs", "edges")
            ),
        )
    return layers


def condition_number(
    graph: PruningGraph, weights: Mapping[str, Tensor], masks: Mapping[str, Any]
) -> dict[str, float]:
    """Return the condition number of every masked layer's graph relative to the whole one.

    A layer of several graphs gets the largest.  It is infinite if the mask disconnects connected nodes.
    """
    whole, left = _graphs(graph, weights, {}), _graphs(graph, weights, masks)
    return {
        name: max(sparsifier_quality(G, H).condition for G, H in zip(whole[name], left[name], strict=True))
        for name in left
        if name in masks
    }


def _graphs(
    graph: PruningGraph, weights: Mapping[str, Tensor], masks: Mapping[str, Any], heads: bool = False
) -> dict[str, Tensor]:
    graphs = {}
    for layer in graph.prunable_weights():
        name = layer.weight
        if name not in weights or tuple(weights[name].shape) != tuple(graph.shapes[name]):
            raise InputError(
                f"no weight {name!r} of shape {tuple(graph.shapes[name])} among the tensors given"
            )
        scores = weights[name].detach().abs()
        if name in masks:
            scores = scores * torch.as_tensor(masks[name], device=scores.device)
        graphs[name] = unfold(split_heads(graph, layer) if heads else layer, scores).scores
    return graphs
