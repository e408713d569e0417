"""Sparsifiers: counts, probabilities, Theorem 2.3, connectivity."""

from __future__ import annotations

import math

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampled import sampled
from torch import Tensor

from secateur.structures.spectral import (
    connectivity,
    epsilon_for_count,
    inclusion,
    leverage,
    sparsifier_quality,
    sparsify,
)

SAMPLERS = ("systematic", "paper", "reweighted")


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def half_normal(n1: int, n2: int, seed: int = 0) -> Tensor:
    return torch.randn(n1, n2, generator=gen(1000 + seed), dtype=torch.float64).abs()


@given(
    n1=st.integers(1, 20),
    n2=st.integers(1, 20),
    seed=st.integers(0, 99),
    share=st.floats(0, 1),
    zeros=st.booleans(),
)
@settings(max_examples=80)
def test_epsilon_gives_the_count_on_average(n1: int, n2: int, seed: int, share: float, zeros: bool) -> None:
    S = half_normal(n1, n2, seed)
    if zeros:
        S *= torch.rand(n1, n2, generator=gen(seed)) < 0.5
        S[0, 0] = 1
    lev, edges = leverage(S), int((S > 0).sum())
    count = max(1, round(share * edges))
    epsilon = epsilon_for_count([lev], [n1 + n2], count)
    p = inclusion(lev, n1 + n2, epsilon)
    assert math.isclose(float(p.sum()), count, rel_tol=1e-9)
    assert torch.allclose(p, (lev.double() * 5 * math.log(n1 + n2) * epsilon).clamp(max=1))
    for mode in ("systematic", "paper", "coverage"):
        kept = sparsify(S, count, mode=mode, generator=gen(seed))
        assert int(kept.mask.sum()) == count
        assert not kept.mask[S == 0].any()
        assert int(sparsify(S.T, count, mode=mode, generator=gen(seed)).mask.sum()) == count


def test_one_epsilon_for_several_graphs() -> None:
    levs, nodes = [leverage(half_normal(20, 10, s)) * 0.3**s for s in range(3)], [30, 30, 30]
    epsilon = epsilon_for_count(levs, nodes, 100)
    assert math.isclose(sum(float(inclusion(x, 30, epsilon).sum()) for x in levs), 100, rel_tol=1e-9)
    with pytest.raises(ValueError, match="600 edges"):
        epsilon_for_count(levs, nodes, 601)


@pytest.mark.parametrize(("seed", "count"), [(0, 30), (1, 61), (2, 100)])
def test_inclusion_probabilities_are_exact(seed: int, count: int) -> None:
    """600 draws: every edge within four standard errors, and their mean square near one."""
    S, draws, g = half_normal(12, 11, seed) ** 2, 600, gen(seed)
    lev = leverage(S)
    kept = [sparsify(S, count, generator=g, leverages=lev) for _ in range(draws)]
    assert {int(x.mask.sum()) for x in kept} == {count}
    p = kept[0].probability
    share = torch.stack([x.mask for x in kept]).double().mean(0)
    certain = p >= 1
    assert (share[certain] == 1).all()
    z = ((share - p) / (p * (1 - p) / draws).sqrt())[~certain]
    assert float(z.abs().max()) < 4
    assert 0.5 < float(z.square().mean()) < 2


def test_reweighting_is_unbiased() -> None:
    S, g = half_normal(10, 9), gen(1)
    lev = leverage(S)
    drawn = [sparsify(S, 40, mode="reweighted", generator=g, leverages=lev) for _ in range(800)]
    mean = torch.stack([S * x.mask * x.scale for x in drawn]).mean(0)
    p = drawn[0].probability
    error = S * ((1 - p) / p / len(drawn)).sqrt()
    assert ((mean - S).abs() <= 5 * error + 1e-12).all()
    assert torch.allclose(S * drawn[0].mask * drawn[0].scale, drawn[0].reweight(S))


@pytest.mark.parametrize("mode", SAMPLERS)
def test_same_seed_same_mask(mode: str) -> None:
    S = half_normal(30, 20)
    a, b, c = (sparsify(S, 90, mode=mode, generator=gen(seed)).mask for seed in (5, 5, 6))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_graphs_of_one_layer_are_sampled_together() -> None:
    S = torch.rand(4, 9, 5, generator=gen(0), dtype=torch.float64)
    for mode in ("systematic", "paper", "coverage"):
        kept = sparsify(S, 70, mode=mode, generator=gen(0))
        assert kept.mask.shape == S.shape
        assert int(kept.mask.sum()) == 70


def test_epsilon_without_a_count() -> None:
    S = half_normal(40, 30)
    p = inclusion(leverage(S), 70, 0.3)
    fixed = sparsify(S, epsilon=0.3, generator=gen(0))
    assert abs(int(fixed.mask.sum()) - float(p.sum())) < 1
    drawn = sparsify(S, epsilon=0.3, mode="paper", generator=gen(0))
    assert abs(int(drawn.mask.sum()) - float(p.sum())) < 5 * math.sqrt(float((p * (1 - p)).sum()))


@pytest.mark.parametrize("eps", [0.7, 1.0])
def test_theorem_2_3(eps: float) -> None:
    """Algorithm 1 gives an eps-sparsifier with O(n log n / eps^2) edges, at epsilon = eps^-2."""
    G = half_normal(240, 200)
    n = sum(G.shape)
    for seed in range(3):
        H = sparsify(G, epsilon=eps**-2, mode="paper", generator=gen(seed))
        assert sparsifier_quality(G, H.reweight(G)).epsilon < eps
        expected = float(H.probability.sum())
        assert expected < min(5 * n * math.log(n) / eps**2, 0.7 * G.numel())
        assert abs(int(H.mask.sum()) - expected) < 5 * math.sqrt(expected)


def dense_quality(G: Tensor, H: Tensor) -> tuple[float, float]:
    """Generalised eigenvalues through the square root of the pseudo-inverse."""

    def laplacian(S: Tensor) -> Tensor:
        A = torch.zeros(sum(S.shape), sum(S.shape), dtype=torch.float64)
        A[: len(S), len(S) :], A[len(S) :, : len(S)] = S, S.T
        return torch.diag(A.sum(1)) - A

    values, U = torch.linalg.eigh(laplacian(G))
    live = values > 1e-10
    half = U[:, live] * values[live].rsqrt()
    result = torch.linalg.eigvalsh(half.T @ laplacian(H) @ half)
    return float(result[0]), float(result[-1])


@pytest.mark.parametrize("blocks", [1, 2])
def test_quality_is_the_extreme_generalised_eigenvalues(blocks: int) -> None:
    G = torch.block_diag(*[half_normal(9, 14, s) for s in range(blocks)])
    G = torch.cat([G, torch.zeros(1, G.shape[1], dtype=torch.float64)])
    H = G * (0.5 + torch.rand(G.shape, generator=gen(1)))
    low, high = dense_quality(G, H)
    result = sparsifier_quality(G, H)
    assert math.isclose(result.low, low, rel_tol=1e-8)
    assert math.isclose(result.high, high, rel_tol=1e-8)
    assert math.isclose(result.condition, high / low, rel_tol=1e-7)


def test_quality_sees_what_fell_apart_and_refuses_what_does_not_fit() -> None:
    G = half_normal(6, 5)
    H = G.clone()
    H[0] = 0
    assert sparsifier_quality(G, H).condition == math.inf
    assert sparsifier_quality(G, H).epsilon == pytest.approx(1)
    parted = torch.block_diag(G, G)
    with pytest.raises(ValueError, match="no connection"):
        sparsifier_quality(parted, torch.ones_like(parted))
    with pytest.raises(ValueError, match="same nodes"):
        sparsifier_quality(G, G.T)


def top(values: Tensor, count: int) -> Tensor:
    order = values.flatten().argsort(descending=True, stable=True)[:count]
    return torch.zeros(values.numel(), dtype=torch.bool).index_fill_(0, order, True).view(values.shape)


@pytest.mark.parametrize("seed", range(3))
def test_coverage_stays_connected_at_five_percent(seed: int) -> None:
    """One component and a condition number of at most 5, where the others lose nodes."""
    G = half_normal(400, 200, seed) * torch.rand(400, 1, generator=gen(seed), dtype=torch.float64)
    count = G.numel() // 20
    kept = G * sparsify(G, count, mode="coverage").mask
    result = connectivity(kept)
    assert (result.components, result.dead_inputs, result.dead_outputs, result.share) == (1, 0, 0, 1)
    assert sparsifier_quality(G, kept).condition <= 5
    others = (top(G, count), sparsify(G, count, generator=gen(seed)).mask)
    assert all(sparsifier_quality(G, G * mask).condition > 9 for mask in others)
    assert connectivity(G * others[0]).dead_inputs > 50


def test_coverage_keeps_weak_links_as_long_as_the_count_allows() -> None:
    G = torch.block_diag(half_normal(40, 30), half_normal(40, 30, 1)) + 1e-3
    for count in (139, 200, 400):
        assert connectivity(G * sparsify(G, count, mode="coverage").mask).share == 1
    assert connectivity(G * sparsify(G, 60, mode="coverage").mask).share < 1
    assert torch.equal(sparsify(G, 200, mode="coverage").mask, sparsify(G, 200, mode="coverage").mask)


@pytest.mark.parametrize("seed", range(6))
def test_connectivity_against_networkx(seed: int) -> None:
    S = half_normal(14, 11, seed) * (torch.rand(14, 11, generator=gen(seed)) < (0.12, 0.5)[seed % 2])
    G = nx.Graph()
    G.add_weighted_edges_from((u, 14 + v, float(S[u, v])) for u, v in torch.nonzero(S).tolist())
    parts = sorted(nx.connected_components(G), key=len)
    spectrum = sorted(nx.normalized_laplacian_spectrum(G.subgraph(parts[-1])))
    result = connectivity(S)
    assert (result.components, result.edges) == (len(parts), G.number_of_edges())
    assert result.dead_inputs + result.dead_outputs == 25 - len(G)
    assert result.share == pytest.approx(len(parts[-1]) / 25)
    if len([p for p in parts if len(p) == len(parts[-1])]) == 1:
        assert result.lambda2 == pytest.approx(spectrum[1], abs=1e-9)
    low, high = result.conductance
    assert low <= conductance(G.subgraph(parts[-1])) <= high + 1e-12


def conductance(G: nx.Graph) -> float:
    """Return the best sweep cut over all eigenvectors: an upper bound that obeys Cheeger too."""
    A = torch.as_tensor(nx.to_numpy_array(G))
    d = A.sum(1)
    r = d.rsqrt()
    vectors = torch.linalg.eigh(torch.eye(len(A)) - r[:, None] * A * r[None, :]).eigenvectors
    best = math.inf
    for order in [(vectors[:, k] * r).argsort() for k in range(len(A))]:
        for size in range(1, len(A)):
            side, rest = order[:size], order[size:]
            best = min(best, float(A[side][:, rest].sum() / min(d[side].sum(), d[rest].sum())))
    return best


def test_connectivity_of_simple_graphs() -> None:
    assert connectivity(torch.ones(5, 4)).lambda2 == pytest.approx(1)
    assert connectivity(torch.ones(5, 1)).lambda2 == 1
    empty = connectivity(torch.zeros(3, 2))
    assert (empty.lambda2, empty.share, empty.components, empty.dead_inputs) == (0, 0, 0, 3)
    weak = torch.block_diag(torch.ones(5, 5), torch.ones(5, 5)).double()
    weak[0, 9] = 1e-12
    assert 0 < connectivity(weak).lambda2 < 1e-12


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"count": 13}, "number of edges, 12"),
        ({"count": 0}, "from 1"),
        ({}, "either count or epsilon"),
        ({"count": 3, "epsilon": 1.0}, "either count or epsilon"),
        ({"epsilon": 0.0}, "positive"),
        ({"count": 3, "mode": "best"}, "no mode"),
        ({"count": 3, "generator": None}, "seed"),
        ({"epsilon": 1.0, "mode": "coverage"}, "needs a count"),
    ],
)
def test_bad_requests_are_refused(options: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        sparsify(torch.ones(4, 3), **{"generator": gen(0), **options})


def test_certain_edges_stay_in_the_papers_mode() -> None:
    """A bridge has p = 1 and stays (nearly) always, because epsilon is lowered and not the probabilities."""
    S = torch.zeros(9, 9)
    S[:5, :5] = torch.rand(5, 5, generator=torch.Generator().manual_seed(1)) + 0.5
    S[5:, 5:] = torch.rand(4, 4, generator=torch.Generator().manual_seed(2)) + 0.5
    S[0, 8] = 0.01
    stays = [
        bool(sparsify(S, 30, mode="paper", generator=torch.Generator().manual_seed(seed)).mask[0, 8])
        for seed in range(300)
    ]
    assert sum(stays) >= 0.95 * len(stays)


@pytest.mark.parametrize("block", sampled(range(10), 0))
def test_cheegers_inequality_on_1000_graphs(block: int) -> None:
    """Lemma 2.1: lambda_2 / 2 <= conductance <= sqrt(2 lambda_2), by all cuts of connected graphs."""
    for seed in range(100 * block, 100 * (block + 1)):
        rng = np.random.default_rng(seed)
        n1, n2 = rng.integers(2, 6, 2)
        S = rng.random((n1, n2)) ** 3 + 1e-3
        A = np.block([[np.zeros((n1, n1)), S], [S.T, np.zeros((n2, n2))]])
        sides = (np.arange(1, 2 ** (n1 + n2 - 1))[:, None] >> np.arange(n1 + n2)) & 1
        volume = sides @ A.sum(0)
        cut = ((sides @ A) * (1 - sides)).sum(1)
        conductance = (cut / np.minimum(volume, A.sum() - volume)).min()
        lambda2 = connectivity(torch.from_numpy(S)).lambda2
        assert lambda2 / 2 <= conductance * (1 + 1e-9)
        assert conductance <= (2 * lambda2) ** 0.5 * (1 + 1e-9)
