"""Masks that the study compares: the paper's, the method that it is compared with, and controls.

`SPARSIFY`: one epsilon for the network, draws filled up to the count (the paper, as read here). `GREEDY`: the
same share of the largest scores in each layer (the paper's comparison). Controls: the largest scores of all
layers ranked together; ERK sizes; greedy, random and coverage masks with the layer sizes of `SPARSIFY`, which
show what its allocation alone does; and `SPARSIFY` with the same share in each layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from secateur.allocation import allocate, top, top_of_every, weight_sizes
from secateur.core import InputError, PruningGraph, Statistics, Weights
from secateur.methods import Random
from secateur.methods.spectral import Spectral, edge_scores
from secateur.structures.spectral import layer_graph, sparsify

__all__ = ["CONTROLS", "MAIN", "choose_masks", "rank_weights", "top_of_blocks", "with_sizes"]

Masks = dict[str, Any]
DENSE = "dense"  # no mask
SPARSIFY, UNIFORM = "sparsify", "sparsify, uniform"
GREEDY, GREEDY_GLOBAL, GREEDY_ERK = "greedy", "greedy, global", "greedy, ERK"
GREEDY_SIZES, RANDOM_SIZES = "greedy, sizes of sparsify", "random, sizes of sparsify"
COVERAGE = "coverage, sizes of sparsify"
SCOPES: dict[str, Any] = {GREEDY: "layer", GREEDY_GLOBAL: "global", GREEDY_ERK: "erk"}
MAIN = (SPARSIFY, GREEDY)
CONTROLS = (GREEDY_GLOBAL, GREEDY_ERK, GREEDY_SIZES, RANDOM_SIZES, UNIFORM, COVERAGE)


def choose_masks(
    variant: str,
    graph: PruningGraph,
    statistics: Statistics,
    density: float,
    score: str = "magnitude",
    rounds: int = 1,
) -> Masks:
    """Return masks by the name of the weight.

    Args:
        variant: One of `MAIN` or `CONTROLS`.
        graph: The traced network.
        statistics: What the score needs.
        density: Share of the weights that stay.
        score: Score of `Spectral`.
        rounds: Rounds of SynFlow. Other scores are computed once.

    Raises:
        InputError: If the variant is unknown.
    """
    rounds = rounds if score == "synflow" else 1
    budget = Weights(density)
    if variant in (SPARSIFY, UNIFORM):
        allocation: Any = "uniform" if variant == UNIFORM else "one-epsilon"
        method = Spectral(score=score, allocation=allocation, mode="paper", rounds=rounds)  # type: ignore[arg-type]
        return dict(method.plan(graph, statistics, budget).masks)
    if variant in SCOPES:
        return rank_weights(graph, statistics, replace(budget, scope=SCOPES[variant]), score, rounds)
    if variant not in CONTROLS:
        raise InputError(f"unknown variant {variant!r}; there are {MAIN + CONTROLS}")
    sizes = choose_masks(SPARSIFY, graph, statistics, density, score, rounds)
    pick = _cover if variant == COVERAGE else top
    return with_sizes(sizes, graph, statistics, None if variant == RANDOM_SIZES else score, pick)


def with_sizes(
    sizes: Mapping[str, Any],
    graph: PruningGraph,
    statistics: Statistics,
    score: str | None,
    pick: Callable[[Tensor, int], Tensor] = top,
) -> Masks:
    """Return masks that keep as many weights of each layer as given masks do.

    Args:
        sizes: The given masks by the name of the weight.
        graph: The traced network.
        statistics: What the score needs.
        score: Score of `Spectral`, or None for random masks (the given masks shuffled within layers).
        pick: Marks a number of weights by their scores.
    """
    if score is None:
        scores = dict(Random().weight_scores(graph, statistics))
    else:
        scores = edge_scores(graph, statistics, score)  # type: ignore[arg-type]
    masks = {name: pick(scores[name], int(mask.sum())) for name, mask in sizes.items()}
    return {name: mask.reshape(sizes[name].shape).cpu().numpy() for name, mask in masks.items()}


def rank_weights(
    graph: PruningGraph, statistics: Statistics, budget: Weights, score: str, rounds: int = 1
) -> Masks:
    """Keep the weights with the largest scores. The budget's scope sets how many each layer keeps."""
    masks: dict[str, Tensor] = {}
    for t in range(1, rounds + 1):
        scores = edge_scores(graph, statistics, score, masks=masks)  # type: ignore[arg-type]
        part = budget.after(t / rounds)
        counts = allocate(graph, part, scores).counts
        masks = {name: top(scores[name], count) for name, count in counts.items()}
    return {name: mask.cpu().numpy() for name, mask in masks.items()}


def top_of_blocks(graph: PruningGraph, statistics: Statistics, score: str, n: int, m: int) -> Masks:
    """Keep the `n` weights with the largest scores of every `m` along the input axis."""
    scores = edge_scores(graph, statistics, score)  # type: ignore[arg-type]
    masks = {w: top_of_every(scores[w], n, m, graph.layer(w).in_axis or 0) for w in weight_sizes(graph)}
    return {name: mask.cpu().numpy() for name, mask in masks.items()}


def _cover(scores: Tensor, count: int) -> Tensor:
    graph = layer_graph(scores)
    return graph.fold(sparsify(graph.scores, min(count, int((scores > 0).sum())), mode="coverage").mask)
