"""How many stay: exact counts, stable ties and floors, against brute force."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_graphs import mlp, vectors

from secateur.allocation import (
    allocate,
    erk_densities,
    prunable,
    ranked,
    top,
    weight_sizes,
)
from secateur.core import (
    InputError,
    Macs,
    NothingToPrune,
    Params,
    PruningGraph,
    Units,
    Weights,
)

BUDGETS = settings(derandomize=True, deadline=None, max_examples=60)
WIDTHS = st.lists(st.integers(1, 24), min_size=3, max_size=6)
SHARES = st.floats(0.02, 1.0)


def kept(scores: dict[str, torch.Tensor], counts: dict[str, int]) -> dict[str, set[int]]:
    return {k: set(ranked(scores[k])[:n].tolist()) for k, n in counts.items()}


@given(st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 0.5000001, 3.0, np.inf]), min_size=1), st.data())
@BUDGETS
def test_top_is_the_head_of_a_stable_sort(values: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(values)))
    scores = torch.tensor(values, dtype=torch.float64)
    order = np.argsort(-np.array(values), kind="stable")
    assert ranked(scores).tolist() == order.tolist()
    assert torch.nonzero(top(scores, count)).ravel().tolist() == sorted(order[:count].tolist())
    assert (top(scores.to(torch.bfloat16), count).sum()) == count


def test_top_refuses_more_than_there_are() -> None:
    with pytest.raises(InputError, match="cannot take 4 of 3"):
        top(torch.ones(3), 4)


@given(WIDTHS, SHARES, st.integers(1, 3), st.integers(1, 8))
@BUDGETS
def test_uniform_counts_are_the_nearest_allowed(
    widths: list[int], keep: float, floor: int, step: int
) -> None:
    graph = mlp(widths)
    budget = Units(keep, floor=floor, round_to=step)
    if floor > min(g.size for g in graph.groups):
        with pytest.raises(InputError, match="floor"):
            allocate(graph, budget)
        return
    counts = allocate(graph, budget).counts
    for group in graph.groups:
        allowed = [n for n in range(floor, group.size + 1) if n % step == 0 or n == group.size]
        nearest = min(abs(n - keep * group.size) for n in allowed)
        assert counts[group.name] in allowed
        assert abs(counts[group.name] - keep * group.size) <= nearest + 1e-6


@pytest.mark.parametrize(("keep", "size", "count"), [(0.5, 5, 3), (0.29, 50, 15), (0.3, 5, 2), (0.001, 9, 1)])
def test_halves_go_up_and_one_always_stays(keep: float, size: int, count: int) -> None:
    assert allocate(mlp([3, size, 2]), Units(keep)).counts == {"h1": count}


@given(WIDTHS, SHARES, st.integers(0, 3), st.integers(0, 1000))
@BUDGETS
def test_global_units_match_brute_force(widths: list[int], keep: float, levels: int, seed: int) -> None:
    graph = mlp(widths)
    scores = vectors(graph, seed, levels)
    total = sum(g.size for g in graph.groups)
    wanted = int(keep * total + 0.5 + 1e-9)
    if wanted < len(graph.groups):
        with pytest.raises(InputError, match="at least"):
            allocate(graph, Units(keep, "global"), scores)
        return
    found = allocate(graph, Units(keep, "global"), scores)
    # The best of each group is safe; the others compete, ties by group and rank.
    ranks = {g.name: ranked(scores[g.name]) for g in graph.groups}
    others = [
        (-float(scores[g.name][u]), i, rank)
        for i, g in enumerate(graph.groups)
        for rank, u in enumerate(ranks[g.name])
        if rank
    ]
    chosen = sorted(others)[: wanted - len(graph.groups)]
    assert list(found.counts.values()) == [1 + sum(i == j for _, i, _ in chosen) for j in range(len(ranks))]
    assert sum(found.counts.values()) == wanted
    assert found.reached == pytest.approx(wanted / total)


@given(WIDTHS, st.tuples(SHARES, SHARES), st.integers(0, 2), st.integers(0, 1000))
@BUDGETS
def test_global_selections_are_nested(
    widths: list[int], keeps: tuple[float, float], levels: int, seed: int
) -> None:
    graph = mlp(widths)
    scores = vectors(graph, seed, levels)
    small, large = sorted(keeps)
    if small * sum(g.size for g in graph.groups) < len(graph.groups):
        return
    few, many = (kept(scores, allocate(graph, Units(k, "global"), scores).counts) for k in (small, large))
    assert all(few[name] <= many[name] for name in few)


@given(WIDTHS, SHARES, st.integers(1, 6), st.integers(0, 1000))
@BUDGETS
def test_global_rounding_stays_below_and_close(widths: list[int], keep: float, step: int, seed: int) -> None:
    graph = mlp(widths)
    total = sum(g.size for g in graph.groups)
    budget = Units(keep, "global", round_to=step)
    try:
        found = allocate(graph, budget, vectors(graph, seed))
    except InputError:
        least = sum(min(g.size, step) for g in graph.groups)
        assert least > int(keep * total + 0.5 + 1e-9)
        return
    assert all(n % step == 0 or n == graph.group(k).size for k, n in found.counts.items())
    left = int(keep * total + 0.5 + 1e-9) - sum(found.counts.values())
    assert 0 <= left < step


def test_scores_of_minus_infinity_stay_only_for_the_floor() -> None:
    graph = mlp([2, 3, 3, 2])
    scores = {"h1": torch.full((3,), -torch.inf), "h2": torch.tensor([1.0, -torch.inf, 2.0])}
    found = allocate(graph, Units(1.0, "global"), scores)
    assert found.counts == {"h1": 1, "h2": 2}
    assert found.reached == 0.5


@given(WIDTHS, st.floats(0.05, 1.0), st.integers(1, 3))
@BUDGETS
def test_erk_units_are_exact(widths: list[int], keep: float, floor: int) -> None:
    graph = mlp(widths)
    total = sum(g.size for g in graph.groups)
    wanted = int(keep * total + 0.5 + 1e-9)
    try:
        counts = allocate(graph, Units(keep, "erk", floor=floor)).counts
    except InputError:
        assert floor > min(g.size for g in graph.groups) or wanted < floor * len(graph.groups)
        return
    assert sum(counts.values()) == wanted
    assert all(floor <= n <= graph.group(k).size for k, n in counts.items())


def rigl(dims: list[tuple[int, ...]], density: float) -> list[float]:
    """The loop of the paper's code: saturate the densest layer, and solve for epsilon again."""
    raw = [sum(d) / np.prod(d) for d in dims]
    sizes = [float(np.prod(d)) for d in dims]
    dense: set[int] = set()
    while True:
        free = [i for i in range(len(dims)) if i not in dense]
        if not free:
            return [1.0] * len(dims)
        epsilon = (density * sum(sizes) - sum(sizes[i] for i in dense)) / sum(raw[i] * sizes[i] for i in free)
        over = {i for i in free if epsilon * raw[i] > 1 and raw[i] == max(raw[j] for j in free)}
        if not over:
            return [1.0 if i in dense else epsilon * raw[i] for i in range(len(dims))]
        dense |= over


@given(
    st.lists(st.lists(st.integers(1, 64), min_size=2, max_size=4).map(tuple), min_size=1, max_size=8),
    st.floats(0.001, 0.999),
)
@BUDGETS
def test_erk_densities_are_those_of_the_papers_loop(dims: list[tuple[int, ...]], density: float) -> None:
    ours = erk_densities({str(i): d for i, d in enumerate(dims)}, density)
    assert list(ours.values()) == pytest.approx(rigl(dims, density), rel=1e-9)


@given(WIDTHS, st.floats(0.05, 1.0), st.sampled_from(["layer", "global", "erk"]), st.integers(0, 99))
@BUDGETS
def test_weights_are_exact(widths: list[int], density: float, scope: str, seed: int) -> None:
    graph = mlp(widths)
    sizes = weight_sizes(graph)
    generator = torch.Generator().manual_seed(seed)
    scores = {k: torch.randint(4, graph.shapes[k], generator=generator).float() for k in sizes}
    wanted = int(density * sum(sizes.values()) + 0.5 + 1e-9)
    if wanted < len(sizes) and (scope != "layer" or not wanted):
        with pytest.raises(InputError, match="possible"):
            allocate(graph, Weights(density, scope), scores)
        return
    counts = allocate(graph, Weights(density, scope), scores).counts
    if scope == "layer":
        assert all(counts[k] == max(1, int(density * n + 0.5 + 1e-9)) for k, n in sizes.items())
        return
    assert sum(counts.values()) == wanted
    if scope == "global":
        rest = []
        for i, k in enumerate(sizes):
            flat = scores[k].reshape(-1)
            rest += [(-float(flat[j]), i, j) for j in sorted(ranked(flat)[1:].tolist())]
        chosen = sorted(rest)[: wanted - len(sizes)]
        assert list(counts.values()) == [1 + sum(i == j for _, i, _ in chosen) for j in range(len(sizes))]


def test_tied_weights_count_once() -> None:
    graph = mlp([3, 4, 3])
    twice = PruningGraph(graph.groups, (), (*graph.layers, graph.layers[0]), graph.shapes, graph.parameters)
    assert weight_sizes(twice) == {"0.weight": 12, "1.weight": 12}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Params({"h1": 0.5}), "Units takes a mapping"),
        (lambda: Units({"h1": 0.5}, "global"), "scope must be 'layer'"),
        (lambda: Units({"h1": 1.5}), r"keep\['h1'\] must be a number in"),
        (lambda: Units({}), "must map names"),
        (lambda: Weights(0.5, density=0.5), "not both"),
    ],
)
def test_impossible_budgets(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_density_is_the_old_name_of_keep() -> None:
    with pytest.warns(DeprecationWarning, match="keep"):
        assert Weights(density=0.25) == Weights(0.25)


def test_a_graph_without_groups_lists_what_is_frozen() -> None:
    graph = mlp([3, 4, 5, 2])
    none = PruningGraph((), graph.frozen, graph.layers, graph.shapes, graph.parameters)
    with pytest.raises(NothingToPrune, match=r"0.weight\[1\]: input"):
        prunable(none)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (0.01, "a budget must say what it counts: Units, Params"),
        (Units(0.5, "global"), "needs scores"),
        (Units(0.5, floor=5), "floor 5 is more than the 4 units of 'h1'"),
        (Units(0.1, "erk"), "at least 2 of 9 units stay, a share of 0.2223"),
        (Params(0.01), r"at least \d+ of 53 params stay"),
        (Macs(0.01, "erk"), "at least"),
        (Weights(0.001), "a density of .* or more is possible"),
        (Weights(0.05, "erk"), "a density of 0.0714 or more is possible"),
        (Weights(0.5, floor=11), "floor 11 is more than the 10 weights of '2.weight'"),
    ],
)
def test_impossible_requests_say_what_is_possible(budget: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        allocate(mlp([3, 4, 5, 2]), budget)  # type: ignore[arg-type]


def test_scores_are_checked() -> None:
    graph = mlp([3, 4, 5, 2])
    good = vectors(graph, 0)
    for bad, message in (
        ({"h1": good["h1"]}, "no scores for 'h2'; given: 'h1'"),
        (good | {"h2": torch.ones(3)}, "5 entries to rank, but 3 scores"),
        (good | {"h2": torch.full((5,), torch.nan)}, "'h2' hold NaN"),
    ):
        with pytest.raises(InputError, match=message):
            allocate(graph, Units(0.5), bad)


@pytest.mark.parametrize("scope", ["layer", "global", "erk"])
def test_float32_and_float64_scores_allocate_alike(scope: str) -> None:
    graph = mlp([6, 20, 30, 4])
    scores = {k: torch.round(v * 2**20) / 2**20 for k, v in vectors(graph, 1).items()}
    low = {k: v.float() for k, v in scores.items()}
    for keep, budget in product((0.3, 0.6), (Units, Params, Macs)):
        args = (graph, budget(keep, scope))
        assert allocate(*args, scores) == allocate(*args, low)
