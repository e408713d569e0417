"""Exchanges of edges: count and components stay, the condition number falls, worth is the derivative."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from secateur.structures.spectral import connectivity, leverage, sparsifier_quality, sparsify
from secateur.structures.spectral.exchange import (
    _edge_worth,
    _eigenpairs,
    _smooth_condition,
    _whiten,
    exchange_edges,
)
from secateur.structures.spectral.sampling import _mark_largest, _spanning_forest


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_graph(shape: tuple[int, int], seed: int) -> Tensor:
    weights = torch.randn(shape, generator=gen(seed), dtype=torch.float64).abs()
    return weights * (torch.rand(shape, generator=gen(seed + 100)) < 0.8)


def some_edges(G: Tensor, count: int, seed: int) -> Tensor:
    """Return a spanning forest and random edges."""
    forest = _spanning_forest(leverage(G), count)
    drawn = torch.rand(G.shape, generator=gen(seed + 200), dtype=torch.float64) * ((G > 0) & ~forest)
    return forest | _mark_largest(drawn, count - int(forest.sum()))


@pytest.mark.parametrize("seed", range(12))
def test_as_many_edges_of_the_graph_stay_and_the_condition_falls(seed: int) -> None:
    G = random_graph((24 + seed, 12), seed)
    mask = some_edges(G, 130, seed)
    better = exchange_edges(G, mask, 1.0)
    before, after = (sparsifier_quality(G, G * m).condition for m in (mask, better))
    assert int(better.sum()) == 130 and bool((G[better] > 0).all())
    assert after < before
    assert torch.equal(better, exchange_edges(G, mask, 1.0))


def test_exchanges_end_at_the_condition_that_is_asked_for() -> None:
    G = random_graph((40, 20), 0)
    mask = some_edges(G, 250, 0)
    reached = sparsifier_quality(G, G * exchange_edges(G, mask, 5.0)).condition
    best = sparsifier_quality(G, G * exchange_edges(G, mask, 1.0)).condition
    assert best < reached <= 5
    assert torch.equal(exchange_edges(G, mask, 1e6), mask)


def test_components_and_nodes_without_edges_stay_what_they_are() -> None:
    blocks = torch.block_diag(random_graph((14, 8), 1), random_graph((14, 8), 2))
    G = torch.nn.functional.pad(blocks, (0, 1, 1, 0))
    better = exchange_edges(G, some_edges(G, 140, 3), 1.0)
    result = connectivity(G * better)
    assert (result.components, result.dead_inputs, result.dead_outputs) == (2, 1, 1)


def test_without_edges_to_exchange_the_mask_stays() -> None:
    G = random_graph((6, 4), 7)
    for mask in (G > 0, torch.zeros_like(G, dtype=torch.bool)):
        assert torch.equal(exchange_edges(G, mask, 1.0), mask)
    nearly = (G > 0) & (G[G > 0].min() != G)
    assert int(exchange_edges(G, nearly, 1.0).sum()) == int(nearly.sum())


def test_a_graph_that_fell_apart_stays() -> None:
    G = random_graph((20, 10), 4)
    mask = torch.zeros_like(G, dtype=torch.bool)
    mask[:, 0] = G[:, 0] > 0
    assert torch.equal(exchange_edges(G, mask, 2.0), mask)


@pytest.mark.parametrize("power", [4, 64])
def test_the_worth_of_an_edge_is_the_derivative_of_the_smooth_condition(power: int) -> None:
    G = random_graph((9, 6), 5)
    nodes, step = _whiten(G), 1e-6
    weights = G * (0.5 + torch.rand(G.shape, generator=gen(6), dtype=torch.float64))
    kept = torch.ones_like(G)
    values, vectors = _eigenpairs(weights, kept, nodes)
    worth = _edge_worth(G, nodes @ vectors, values, power)
    for edge in torch.nonzero(G)[::5].tolist():
        change = torch.zeros_like(G)
        change[tuple(edge)] = step * G[tuple(edge)]
        up, down = (
            _smooth_condition(_eigenpairs(weights + sign * change, kept, nodes)[0], power) for sign in (1, -1)
        )
        assert (down - up) / (2 * step) == pytest.approx(float(worth[tuple(edge)]), rel=1e-4, abs=1e-6)


def test_coverage_has_a_condition_of_at_most_5_at_3_edges_a_row() -> None:
    G = torch.randn(288, 32, generator=gen(0)).abs()
    mask = sparsify(G, round(0.1 * G.numel()), mode="coverage").mask
    assert int(mask.sum()) == round(0.1 * G.numel())
    assert sparsifier_quality(G, G * mask).condition <= 5
