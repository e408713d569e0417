"""Diagnostics of the spectral method: connectivity of each layer before and after, leverages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur.apply.mask import mask
from secateur.core import BoolArray, Plan, PruningGraph
from secateur.core.indices import kept_axes
from secateur.diagnostics.context import DiagnosticContext
from secateur.diagnostics.figures import (
    KEPT,
    REMOVED,
    Json,
    bars,
    figure,
    not_drawn,
    palette_colour,
    points,
    round_numbers,
    section,
)
from secateur.methods.spectral.connectivity import layer_connectivity

__all__ = ["kept_entries", "spectral_sections"]

LARGEST_SIDE = 2048
FEWEST_BINS, MOST_BINS = 8, 40
SPECTRUM = {"lambda2": "lambda_2", "share": "share of the largest component", "edges": "edges"}
COUNTS = {"components": "components", "dead_inputs": "dead inputs", "dead_outputs": "dead outputs"}
Layers = Mapping[str, Mapping[str, Mapping[str, Any]]]


def spectral_sections(context: DiagnosticContext) -> list[Json]:
    """Return sections on each layer's graph before and after, and on the leverages of its weights."""
    graph, skipped = _without_large_layers(context.plan.graph)
    before = layer_connectivity(graph, _tensors(context.model))
    after = layer_connectivity(graph, _tensors(mask(context.model, context.plan)))
    layers = {name: {"before": _as_dict(before[name]), "after": _as_dict(after[name])} for name in before}
    leverages = context.method.leverages(context.plan.graph, context.statistics()).values
    sections = [_lambda2(layers), _components(layers)] if layers else []
    for name in layers:
        if name in leverages:
            values = leverages[name].detach().double().cpu().numpy()
            sections.append(_leverages(name, values.ravel(), kept_entries(context.plan, name).ravel()))
    return sections + not_drawn(skipped)


def kept_entries(plan: Plan, weight: str) -> BoolArray:
    """Return which entries of a weight are kept: neither masked nor part of a removed unit."""
    entries = np.ones(plan.graph.shapes[weight], bool)
    for (tensor, axis), kept in kept_axes(plan.graph, plan.keep).items():
        if tensor == weight:
            entries &= np.expand_dims(kept, [i for i in range(entries.ndim) if i != axis])
    return entries & plan.masks.get(weight, True)


def _without_large_layers(graph: PruningGraph) -> tuple[PruningGraph, dict[str, str]]:
    """Omit layers whose eigenproblem is large; return the reason for each of them."""
    sides = {layer.weight: min(graph.shapes[layer.weight][:2]) for layer in graph.prunable_weights()}
    skipped = {
        name: f"its smaller side has {side:,} nodes, the limit is {LARGEST_SIDE:,}"
        for name, side in sides.items()
        if side > LARGEST_SIDE
    }
    layers = tuple(layer for layer in graph.layers if layer.weight not in skipped)
    return replace(graph, layers=layers), skipped


def _as_dict(connectivity: Any) -> Json:
    return {key: round_numbers(value) for key, value in asdict(connectivity).items()}


def _tensors(model: torch.nn.Module) -> Mapping[str, Tensor]:
    return {name: x.detach() for name, x in model.named_parameters(remove_duplicate=False)}


def _lambda2(layers: Layers) -> Json:
    traces = [
        points(layers, [x[when]["lambda2"] for x in layers.values()], when, colour, size=11, symbol=symbol)
        for when, colour, symbol in (("before", KEPT, "circle"), ("after", REMOVED, "diamond"))
    ]
    text = (
        "The weights of a layer are a bipartite graph of its inputs and outputs. lambda_2 is the second "
        "smallest eigenvalue of the normalised Laplacian of its largest component. Near 0 the component "
        "almost falls apart. It describes one component only and rises as that shrinks, so compare it with "
        "the component's share of the nodes."
    )
    drawn = figure(traces, "layer", "lambda_2", xaxis={"type": "category"}, yaxis={"rangemode": "tozero"})
    return section("lambda_2 of each layer", text, _rows(layers, SPECTRUM), drawn)


def _components(layers: Layers) -> Json:
    traces = [
        bars(layers, [x["after"][key] for x in layers.values()], name, palette_colour(number))
        for number, (key, name) in enumerate(COUNTS.items())
    ]
    text = (
        "After pruning: the number of components of each layer's graph, and of inputs and outputs without "
        "any weight. The rows and columns of removed units are dead inputs and outputs."
    )
    drawn = figure(traces, "layer", "number", xaxis={"type": "category"}, barmode="group")
    title = "Components and dead units of each layer"
    return section(title, text, _rows(layers, COUNTS), drawn)


def _rows(layers: Layers, columns: Mapping[str, str]) -> list[Json]:
    return [
        {"layer": name} | {f"{column} {when}": x[when][key] for key, column in columns.items() for when in x}
        for name, x in layers.items()
    ]


def _leverages(name: str, values: NDArray[np.float64], kept: BoolArray) -> Json:
    """Draw a histogram with bins of equal ratio; weights with score 0 are not edges and have no leverage."""
    edge = values > 0
    low, high = values[edge].min(), values[edge].max()
    bins = int(np.clip(np.sqrt(edge.sum()), FEWEST_BINS, MOST_BINS))
    edges = np.geomspace(low * (1 - 1e-9), max(high, low * 1.01) * (1 + 1e-9), bins + 1)
    counts = [np.histogram(values[edge & chosen], edges)[0].tolist() for chosen in (kept, ~kept)]
    pairs = list(pairwise(round_numbers(edges)))
    traces = [
        bars([(a * b) ** 0.5 for a, b in pairs], count, label, colour) | {"width": [b - a for a, b in pairs]}
        for count, label, colour in zip(counts, ("kept", "removed"), (KEPT, REMOVED), strict=True)
    ]
    text = (
        "The leverage of a weight, its score times the effective resistance between its ends, is the "
        "probability that it is in a random spanning tree of the layer's graph. Mean leverage: "
        f"{_mean(values[kept])} of kept weights, {_mean(values[~kept])} of removed weights."
    )
    rows = [
        {"from": a, "to": b, "kept": k, "removed": r} for (a, b), k, r in zip(pairs, *counts, strict=True)
    ]
    drawn = figure(traces, "leverage", "weights", xaxis={"type": "log"}, barmode="stack", bargap=0)
    return section(f"Leverage of the weights of {name}", text, rows, drawn, layer=name)


def _mean(values: NDArray[np.float64]) -> str:
    return f"{values.mean():.5g}" if len(values) else "none"
