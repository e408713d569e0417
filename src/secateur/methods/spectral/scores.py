"""Scores of single weights: the edge weights of layer graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from secateur.allocation import weight_sizes
from secateur.core import InputError, Layer, PruningGraph, Statistics
from secateur.methods.base import required
from secateur.methods.unit_sums import input_factors, moments_of

__all__ = ["NEEDS", "EdgeScore", "edge_scores"]

EdgeScore = Literal["magnitude", "activation", "snip", "synflow"]
NEEDS: dict[str, frozenset[str]] = {
    "magnitude": frozenset(),
    "activation": frozenset({"moments"}),
    "snip": frozenset({"gradients"}),
    "synflow": frozenset({"flow"}),
}


def edge_scores(
    graph: PruningGraph,
    statistics: Statistics,
    score: EdgeScore,
    power: float = 1.0,
    masks: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Score every weight that a mask may zero.

    Args:
        graph: The traced network.
        statistics: Weights, and the statistics in `NEEDS`.
        score: ``"magnitude"``: |w|; ``"activation"``: |w| times the root mean square of its input feature;
            ``"snip"``: |gradient * w|; ``"synflow"``: |w dR/dw|.
        power: Exponent on the scores.
        masks: Masks of earlier rounds, for ``"synflow"``; their scores are zero.

    Returns:
        Non-negative tensors in the shape of each weight.

    Raises:
        InputError: If statistics are missing, or if the scores of a layer are all zero or not finite.
    """
    flow = _flow(statistics, masks or {}) if score == "synflow" else {}
    scores = {}
    for name in weight_sizes(graph):
        layer = next(x for x in graph.prunable_weights() if x.weight == name)
        w = statistics.weights[name].detach()
        w = w if w.dtype in (torch.float32, torch.float64) else w.float()
        if score == "synflow":
            value = flow[name]
        elif score == "snip":
            value = (w.double() * required(statistics.gradients, name, "gradients", "spectral")).abs()
        else:
            value = w.abs() * (_input_norm(graph, statistics, layer) if score == "activation" else 1)
        scores[name] = _check_scores(value if power == 1 else value.pow(power), name, score)
    return scores


def _flow(statistics: Statistics, masks: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if statistics.flow is None:
        raise InputError("'spectral' with score 'synflow' needs 'flow': collect it with needs={'flow'}")
    flow: Mapping[str, Tensor] = statistics.flow(masks)
    return {
        name: value.masked_fill(~masks[name], 0) if name in masks else value for name, value in flow.items()
    }


def _input_norm(graph: PruningGraph, statistics: Statistics, layer: Layer) -> Tensor:
    """Return the root mean square of each weight's input, broadcast over the weight's shape."""
    moments = moments_of(graph, statistics, layer)
    if moments is None:
        required({}, graph.input_key(layer), "moments", "spectral")
    norm = moments.second.sqrt()  # type: ignore[union-attr]
    weight = statistics.weights[layer.weight]
    norm = norm.to(weight.device, weight.dtype if weight.dtype == torch.float64 else torch.float32)
    return input_factors(layer, norm, weight.shape)


def _check_scores(value: Tensor, name: str, score: str) -> Tensor:
    if not bool(value.isfinite().all()):
        raise InputError(f"the {score} scores of {name!r} hold NaN or infinities: check weights and data")
    if not bool(value.any()):
        raise InputError(
            f"the {score} scores of {name!r} are all zero, so its graph has no edge: the layer is dead, or "
            "dead on this data; take other data or another score"
        )
    return value
