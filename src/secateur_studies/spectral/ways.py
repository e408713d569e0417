"""The ways to choose a mask that the study compares: the paper's, its comparator, and controls.

`sparsify`: one epsilon for the network, draws topped up to the count (the paper, as read here).  `greedy`:
the same share of the largest scores in each layer (the paper's comparator).  Controls: the largest scores of
all layers ranked together; greedy and random with the layer sizes of `sparsify`, which show what its
allocation alone does; ERK sizes; the same share for `sparsify` too; and the connectivity mode.
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

__all__ = ["CONTROLS", "MAIN", "WAYS", "masks_of", "of_every", "ranked", "sized_like"]

Masks = dict[str, Any]
MAIN = ("sparsify", "greedy")
CONTROLS = (
    "greedy, global",
    "greedy, ERK",
    "greedy, sizes of sparsify",
    "random, sizes of sparsify",
    "sparsify, uniform",
    "coverage, sizes of sparsify",
)
WAYS = MAIN + CONTROLS


def masks_of(
    way: str,
    network: PruningGraph,
    evidence: Statistics,
    density: float,
    score: str = "magnitude",
    rounds: int = 1,
) -> Masks:
    """Choose masks by weight name.

    Args:
        way: Of `WAYS`.
        network: The traced network.
        evidence: What the score needs.
        density: Share of the weights that stay.
        score: Of `Spectral`.
        rounds: Rounds of SynFlow; other scores are taken once.
    """
    rounds = rounds if score == "synflow" else 1
    budget = Weights(density)
    if way in ("sparsify", "sparsify, uniform"):
        spread: Any = "uniform" if "uniform" in way else "one-epsilon"
        method = Spectral(score=score, allocation=spread, mode="paper", rounds=rounds)  # type: ignore[arg-type]
        return dict(method.plan(network, evidence, budget).masks)
    if way in ("greedy", "greedy, global", "greedy, ERK"):
        scope: Any = {"greedy": "layer", "greedy, global": "global", "greedy, ERK": "erk"}[way]
        return ranked(network, evidence, replace(budget, scope=scope), score, rounds)
    if way not in WAYS:
        raise InputError(f"no way {way!r}; there are {WAYS}")
    sizes = masks_of("sparsify", network, evidence, density, score, rounds)
    if way.startswith("random"):
        return sized_like(sizes, network, evidence, None)
    return sized_like(sizes, network, evidence, score, _grown if way.startswith("coverage") else top)


def sized_like(
    sizes: Mapping[str, Any],
    network: PruningGraph,
    evidence: Statistics,
    score: str | None,
    pick: Callable[[Tensor, int], Tensor] = top,
) -> Masks:
    """Choose masks that keep as many weights of each layer as given masks do.

    Args:
        sizes: The given masks by weight name.
        network: The traced network.
        evidence: What the score needs.
        score: Score of `Spectral`, or None for random ones (which is shuffling the masks within layers).
        pick: Marks a number of weights by their scores.
    """
    if score is None:
        scores = dict(Random().weight_scores(network, evidence))
    else:
        scores = edge_scores(network, evidence, score)  # type: ignore[arg-type]
    return {name: _numpy(pick(scores[name], int(mask.sum())), mask) for name, mask in sizes.items()}


def ranked(
    network: PruningGraph, evidence: Statistics, budget: Weights, score: str, rounds: int = 1
) -> Masks:
    """Keep the weights of largest score; the budget's scope says how many each layer keeps."""
    masks: dict[str, Tensor] = {}
    for t in range(1, rounds + 1):
        scores = edge_scores(network, evidence, score, masks=masks)  # type: ignore[arg-type]
        part = budget.after(t / rounds)
        counts = allocate(network, part, scores).counts
        masks = {name: top(scores[name], count) for name, count in counts.items()}
    return {name: mask.cpu().numpy() for name, mask in masks.items()}


def of_every(network: PruningGraph, evidence: Statistics, score: str, n: int, m: int) -> Masks:
    """Keep the `n` weights of largest score of every `m` along the input axis."""
    scores = edge_scores(network, evidence, score)  # type: ignore[arg-type]
    masks = {w: top_of_every(scores[w], n, m, network.layer(w).in_axis or 0) for w in weight_sizes(network)}
    return {name: mask.cpu().numpy() for name, mask in masks.items()}


def _grown(scores: Tensor, count: int) -> Tensor:
    graph = layer_graph(scores)
    return graph.fold(sparsify(graph.scores, min(count, int((scores > 0).sum())), mode="coverage").mask)


def _numpy(mask: Tensor, like: Any) -> Any:
    return mask.reshape(like.shape).cpu().numpy()
