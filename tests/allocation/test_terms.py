"""A network's cost as terms of the counts, against the cost model, index by index."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from bank import BANK
from hypothesis import given
from hypothesis import strategies as st
from plain_graphs import mlp, rows
from test_equal_counts import network

from secateur.allocation import CostModel, counted_terms, length_terms, size_terms
from secateur.allocation.cost import counted_amount
from secateur.core import Bytes, Group, Layer, Macs, Params, PruningGraph, Slot, Units
from secateur.tracing.trace import trace

NETWORKS = (
    "LeNet-5, Flatten",
    "ResNeXt (grouped convolution)",
    "DenseNet (concatenation)",
    "Grouped 1 x 1 and channel shuffle",
    "LSTM, 2 layers, bidirectional, time first",
    "Grouped queries, repeat_interleave",
    "Small GPT, tied",
    "Outer product with itself",
    "Graph attention",
    "nn.Bilinear",
    "Concatenation of pairs and whole features",
    "Experts in one tensor",
)


def draw(graph: PruningGraph, rng: np.random.Generator) -> tuple[dict[str, int], dict[str, np.ndarray]]:
    """Return a count for every set of groups, and that many units of each group."""
    counts = {s[0].name: int(rng.integers(1, s[0].size + 1)) for s in graph.counted_together()}
    keep = {
        g.name: np.sort(rng.permutation(g.size)[: counts[s[0].name]])
        for s in graph.counted_together()
        for g in s
    }
    return counts, keep


@pytest.mark.parametrize("name", NETWORKS)
def test_terms_equal_the_cost_model_to_the_last_unit(name: str) -> None:
    args, kwargs = BANK[name].example()
    graph = trace(BANK[name].build(), args, (), kwargs)
    model, rng = CostModel(graph), np.random.default_rng(0)
    params, macs, units, nbytes = (counted_terms(graph, kind(0.5)) for kind in (Params, Macs, Units, Bytes))
    assert params.exact and macs.exact
    assert params.terms and max(len(term.groups) for term in params.terms) <= 3
    for _ in range(10):
        counts, keep = draw(graph, rng)
        assert params(counts) == model(keep).params
        assert nbytes(counts) == model(keep).bytes
        assert macs(counts) == pytest.approx(model(keep).macs, rel=1e-14)
        assert units(counts) == sum(map(len, keep.values()))


@pytest.mark.parametrize("of", ["body", "prunable"])
def test_parameters_are_counted_as_the_budget_says(of: Literal["body", "prunable"]) -> None:
    args, kwargs = BANK["Small GPT, tied"].example()
    graph = trace(BANK["Small GPT, tied"].build(), args, (), kwargs)
    budget, rng = Params(0.5, of=of), np.random.default_rng(1)
    counts, keep = draw(graph, rng)
    assert counted_terms(graph, budget)(counts) == counted_amount(graph, budget)(keep)


def test_groups_that_keep_equal_counts_are_one_variable() -> None:
    graph = network(5, 4, 3)
    names = {name for term in counted_terms(graph, Macs(0.5)).terms for name in term.groups}
    assert names == {"h1", "h2", "h5"}


def test_a_layer_between_two_groups_is_one_term_of_two() -> None:
    graph = mlp([3, 5, 7, 2])
    terms = {term.groups: term for term in counted_terms(graph, Params(0.5)).terms}
    names = tuple(group.name for group in graph.groups)
    table = terms[names].table([np.array([1, 2]), np.array([3, 4, 5])])
    assert table.tolist() == [[3, 4, 5], [6, 8, 10]]


def test_uneven_owners_give_the_mean_and_are_not_exact() -> None:
    """One unit of a shares three indices with b, the other shares one and owns two alone."""
    a, b = np.array([[0, 1, 2], [3, 4, 5]]), np.array([[0], [1], [2], [3]])
    slots = Slot("w", 0, a, "out"), Slot("w", 0, b, "out")
    groups = Group("a", 2, slots[:1]), Group("b", 4, slots[1:])
    graph = PruningGraph(groups, (), (), {"w": (6,)}, ("w",))
    terms = counted_terms(graph, Params(0.5))
    assert not terms.exact
    model = CostModel(graph)
    found = [
        model({"a": np.array([i]), "b": np.delete(np.arange(4), j)}).params
        for i in range(2)
        for j in range(4)
    ]
    assert terms({"a": 1, "b": 3}) == pytest.approx(np.mean(found))


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.5, 8))
def test_weighted_sizes_add_up(n: int, m: int, weight: float) -> None:
    graph = mlp([3, 9, 9, 2])
    counts = dict(zip((g.name for g in graph.groups), (n, m), strict=True))
    first, second = size_terms(graph, {"1.weight": weight}), size_terms(graph, {"1.bias": 2.0})
    assert (first + second)(counts) == pytest.approx(weight * n * m + 2 * m)


def concatenation(parts: int, size: int) -> PruningGraph:
    """Several groups side by side on the input axis of one weight whose outputs are one more group."""
    groups = [Group(f"g{i}", size, (Slot("w", 1, rows(size) + i * size, "in"),)) for i in range(parts)]
    last = Group("out", 4, (Slot("w", 0, rows(4), "out"),))
    layer = Layer("layer", "linear", "w")
    return PruningGraph((*groups, last), (), (layer,), {"w": (4, parts * size)}, ("w",))


def test_a_function_of_lengths_is_one_term_while_few_groups_meet() -> None:
    graph = concatenation(2, 6)
    terms = length_terms(graph, "w", (1, 0), lambda n, m: np.maximum(n, 7) * m)
    assert terms.exact and [term.groups for term in terms.terms] == [("g0", "g1", "out")]
    assert terms({"g0": 2, "g1": 3, "out": 4}) == 28
    assert terms({"g0": 6, "g1": 3, "out": 2}) == 18


def test_a_function_of_a_long_concatenation_is_linear_in_its_length() -> None:
    graph, rng = concatenation(4, 6), np.random.default_rng(0)
    linear = length_terms(graph, "w", (1, 0), lambda n, m: (3 * n + 5) * m**2)
    curved = length_terms(graph, "w", (1, 0), lambda n, m: n**2 * m)
    assert not linear.exact and max(len(term.groups) for term in linear.terms) == 2
    for _ in range(5):
        counts = {g.name: int(rng.integers(0, g.size + 1)) for g in graph.groups}
        n, m = sum(counts.values()) - counts["out"], counts["out"]
        assert linear(counts) == pytest.approx((3 * n + 5) * m**2)
        assert curved(counts) == pytest.approx((24**2 + (n - 24) * (24 + 12)) * m)


def test_a_layer_without_groups_is_a_constant() -> None:
    """Scope "program" under milliseconds met such layers as terms of no group, and stopped."""
    graph = PruningGraph((), (), (Layer("layer", "linear", "w"),), {"w": (4, 6)}, ("w",))
    terms = length_terms(graph, "w", (1, 0), lambda n, m: n + 10 * m)
    assert terms.terms == () and terms.constant == 46.0


def test_a_network_without_groups_costs_a_constant() -> None:
    found = counted_terms(PruningGraph((), (), (), {"w": (3, 2)}, ("w",)), Params(0.5))
    assert (found.constant, found.terms, found({})) == (6.0, (), 6.0)
