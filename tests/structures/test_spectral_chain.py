"""Resistances of whole networks, against the dense pseudo-inverse of the union of their layers."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from secateur.structures.spectral import Link, chain_resistance, effective_resistance, sparsifier_quality


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def nodes_of(end: int | Tensor, features: int, sizes: dict[int, int]) -> list[tuple[int, int]]:
    if isinstance(end, Tensor):
        return [tuple(x) for x in end.tolist()]
    return [(end, i // (features // sizes[end])) for i in range(features)]


def slow(links: list[Link], sizes: dict[int, int]) -> list[Tensor]:
    """Edge by edge, entry by entry, from the definition."""
    number = {node: i for i, node in enumerate((level, i) for level, n in sizes.items() for i in range(n))}
    L = torch.zeros(len(number), len(number), dtype=torch.float64)
    edges = []
    for link in links:
        out, per_group = link.scores.shape[:2]
        made = nodes_of(link.target, out, sizes)
        read = nodes_of(link.source, per_group * link.groups, sizes)
        for at in itertools.product(*map(range, link.scores.shape)):
            group = at[0] // (out // link.groups)
            u, v = number[made[at[0]]], number[read[group * per_group + at[1]]]
            w = float(link.scores[at])
            L[u, u] += w
            L[v, v] += w
            L[u, v] -= w
            L[v, u] -= w
            edges.append((u, v))
    P = torch.linalg.pinv(L, hermitian=True)
    resistances = iter([float(P[u, u] + P[v, v] - 2 * P[u, v]) for u, v in edges])
    return [
        torch.tensor([next(resistances) for _ in range(x.scores.numel())], dtype=torch.float64).view(
            x.scores.shape
        )
        for x in links
    ]


PAIRS = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [1, 2]])
NETWORKS = {
    "chain": (
        [Link(rand(5, 3), 0, 1), Link(rand(6, 5), 1, 2), Link(rand(2, 6), 2, 3)],
        {0: 3, 1: 5, 2: 6, 3: 2},
    ),
    "taps and flattening": ([Link(rand(4, 3, 2, 2), 0, 1), Link(rand(5, 16), 1, 2)], {0: 3, 1: 4, 2: 5}),
    "residual": (
        [Link(rand(5, 3), 0, 1), Link(rand(6, 5), 1, 2), Link(rand(5, 6), 2, 1), Link(rand(4, 5), 1, 3)],
        {0: 3, 1: 5, 2: 6, 3: 4},
    ),
    "projection": (
        [
            Link(rand(5, 3), 0, 1),
            Link(rand(6, 5), 1, 2),
            Link(rand(7, 6), 2, 3),
            Link(rand(7, 5, seed=3), 1, 3),
        ],
        {0: 3, 1: 5, 2: 6, 3: 7},
    ),
    "groups": (
        [Link(rand(6, 3), 0, 1), Link(rand(8, 3, 2), 1, 2, 2), Link(rand(8, 8), 2, 3)],
        {0: 3, 1: 6, 2: 8, 3: 8},
    ),
    "recurrent": (
        [Link(rand(4, 3), 0, 1), Link(rand(4, 4), 1, 1), Link(rand(2, 4), 1, 2)],
        {0: 3, 1: 4, 2: 2},
    ),
    "concatenated": ([Link(rand(4, 5), PAIRS, 2), Link(rand(2, 3), 1, 0)], {0: 2, 1: 3, 2: 4}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_agree_with_the_pseudo_inverse(name: str) -> None:
    links, sizes = NETWORKS[name]
    result = chain_resistance(links)
    for link, values, truth in zip(links, result.values, slow(links, sizes), strict=True):
        assert values.shape == link.scores.shape
        assert torch.allclose(values, truth, rtol=1e-10, atol=1e-12)
    assert (result.nodes, result.components) == (sum(sizes.values()), 1)
    assert result.foster < 1e-12


def test_one_layer_is_the_layer() -> None:
    S = rand(30, 20)
    assert torch.allclose(
        chain_resistance([S]).values[0], effective_resistance(S, "exact").values, rtol=1e-11
    )


def test_disconnected_networks() -> None:
    first, second = torch.block_diag(rand(3, 2), rand(3, 2)), torch.block_diag(rand(2, 3), rand(2, 3))
    first = torch.cat([first, torch.zeros(1, 4, dtype=torch.float64)])
    second = torch.cat([second, torch.zeros(4, 1, dtype=torch.float64)], 1)
    result = chain_resistance([first, second])
    half = chain_resistance([first[:3, :2], second[:2, :3]])
    assert result.components == 3
    assert torch.allclose(result.values[0][:3, :2], half.values[0], rtol=1e-11)
    assert result.values[0][:3, 2:].isinf().all()
    assert (result.leverage([first, second])[0][first == 0] == 0).all()


def test_contraction_only_lowers_resistance_and_float32_stays() -> None:
    W = rand(6, 4, 3, 3).float()
    whole = chain_resistance([W])
    assert whole.values[0].dtype == torch.float32
    unfolded = effective_resistance(W.reshape(6, -1), "exact").values.view_as(W)
    assert (whole.values[0] <= unfolded + 1e-6).all()


def test_layers_add_up_to_the_network() -> None:
    """Lemma 3.1: the worst of the layers' sparsifiers bounds that of the union."""
    g = torch.Generator().manual_seed(0)
    layers = [rand(12, 9), rand(10, 12), rand(8, 10)]
    kept = [x * (0.4 + 1.2 * torch.rand(x.shape, generator=g)) for x in layers]
    sizes = [9, 12, 10, 8]

    def union(parts: list[Tensor]) -> Tensor:
        """All levels are bipartite together: even ones against odd ones."""
        whole = torch.zeros(9 + 10, 12 + 8, dtype=torch.float64)
        whole[:9, :12], whole[9:, :12], whole[9:, 12:] = parts[0].T, parts[1], parts[2].T
        return whole

    layerwise = [sparsifier_quality(a, b) for a, b in zip(layers, kept, strict=True)]
    network = sparsifier_quality(union(layers), union(kept))
    assert sum(sizes) == sum(union(layers).shape)
    assert min(x.low for x in layerwise) - 1e-9 <= network.low
    assert network.high <= max(x.high for x in layerwise) + 1e-9


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        ([], "at least one"),
        ([torch.ones(3)], "shape"),
        ([torch.ones(3, 2), torch.ones(2, 4)], "multiple"),
        ([Link(torch.ones(3, 2), 0, 1), Link(torch.ones(4, 2), 0, 1)], "level 1"),
        ([Link(torch.ones(3, 2), 0, 1, 2)], "groups"),
        ([Link(torch.ones(3, 2), torch.zeros(5, 2, dtype=torch.long), 1)], "source"),
        ([-torch.ones(3, 2)], "non-negative"),
    ],
)
def test_what_does_not_fit_is_refused(layers: list[Tensor | Link], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        chain_resistance(layers)


def test_network_too_wild_for_float64_is_an_error() -> None:
    weak = torch.block_diag(torch.ones(4, 4), torch.ones(4, 4)).double()
    weak[0, 7] = 1e-18
    with pytest.raises(ArithmeticError, match="float64"):
        chain_resistance([weak, weak])
