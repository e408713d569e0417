"""Groups that must keep equal counts do, under every budget, and in every plan."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.allocation import allocate, graph_cost, make_equal, ranked
from secateur.allocation.schedule import remaining_budget
from secateur.apply.compose import compose, restrict
from secateur.core import (
    Group,
    InputError,
    Layer,
    Macs,
    Params,
    Plan,
    PlanError,
    PruningGraph,
    Slot,
    Statistics,
    Units,
)
from secateur.formats.plan_json import plan_from_json, plan_to_json
from secateur.methods.base import ScoreMethod
from secateur.methods.matroid.upper_bound import Offer, capped_plan

BUDGETS = settings(derandomize=True, deadline=None, max_examples=60)


def network(tied: int, free: int, other: int) -> PruningGraph:
    """A chain of linear layers of widths tied, free, tied, tied, other; the tied keep equal counts."""
    widths = [3, tied, free, tied, tied, other, 2]
    shapes = {f"w{i}": (widths[i + 1], widths[i]) for i in range(6)}
    layers = tuple(Layer(str(i), "linear", f"w{i}", positions=float(i + 1)) for i in range(6))
    groups = []
    for i in range(1, 6):
        rows = np.arange(widths[i])[:, None]
        slots = (Slot(f"w{i - 1}", 0, rows, "out"), Slot(f"w{i}", 1, rows, "in"))
        groups.append(Group(f"h{i}", widths[i], slots))
    return PruningGraph(tuple(groups), (), layers, shapes, tuple(shapes), equal_counts=(("h1", "h3", "h4"),))


def draw_scores(graph: PruningGraph, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.rand(g.size, generator=generator, dtype=torch.float64) for g in graph.groups}


def amount(graph: PruningGraph, unit: str, counts: dict[str, int], scores: dict[str, torch.Tensor]) -> float:
    if unit == "units":
        return sum(counts.values())
    return getattr(graph_cost(graph, {n: np.sort(ranked(scores[n])[:c]) for n, c in counts.items()}), unit)


WIDTHS = st.tuples(st.integers(2, 12), st.integers(2, 12), st.integers(2, 12))


@given(
    WIDTHS,
    st.sampled_from([Units, Params, Macs]),
    st.sampled_from(["layer", "global", "erk"]),
    st.floats(0.05, 1.0),
    st.integers(1, 2),
    st.integers(1, 4),
    st.integers(0, 99),
)
@BUDGETS
def test_counts_are_equal_allowed_and_within_the_budget(
    widths: tuple[int, int, int], kind: Any, scope: Any, keep: float, floor: int, step: int, seed: int
) -> None:
    graph = network(*widths)
    budget, scores = kind(keep, scope, floor, step), draw_scores(graph, seed)
    try:
        found = allocate(graph, budget, scores)
    except InputError as error:
        assert "cannot be reached" in str(error)
        return
    counts = dict(found.counts)
    assert list(counts) == [g.name for g in graph.groups]
    assert counts["h1"] == counts["h3"] == counts["h4"]
    for group in graph.groups:
        count = counts[group.name]
        assert count == group.size or (count % step == 0 and floor <= count)
    whole = amount(graph, budget.unit, {g.name: g.size for g in graph.groups}, scores)
    assert found.reached == pytest.approx(amount(graph, budget.unit, counts, scores) / whole)
    if kind is not Units or scope != "layer":
        assert found.reached * whole <= max(keep * whole, int(keep * whole + 0.5)) + 1e-6


@given(WIDTHS, st.floats(0.35, 1.0), st.integers(0, 99))
@BUDGETS
def test_global_ranking_matches_brute_force(widths: tuple[int, int, int], keep: float, seed: int) -> None:
    """The k-th best units of the tied groups join together, at their mean score."""
    graph = network(*widths)
    scores = draw_scores(graph, seed)
    falling = {n: s.sort(descending=True).values.numpy() for n, s in scores.items()}
    together = [["h1", "h3", "h4"], ["h2"], ["h5"]]
    blocks = [
        (-np.mean([falling[n][k] for n in names]), i)
        for i, names in enumerate(together)
        for k in range(1, len(falling[names[0]]))
    ]
    counts = dict.fromkeys(scores, 1)
    wanted = int(keep * sum(g.size for g in graph.groups) + 0.5 + 1e-9)
    if wanted < 5:
        return
    for _, i in sorted(blocks):
        if sum(counts.values()) + len(together[i]) > wanted:
            break
        for name in together[i]:
            counts[name] += 1
    assert dict(allocate(graph, Units(keep, "global"), scores).counts) == counts


def test_units_that_may_not_join_keep_the_others_out() -> None:
    graph, scores = network(4, 4, 4), draw_scores(network(4, 4, 4), 0)
    scores["h3"][1:] = -torch.inf
    scores["h1"][0] = torch.inf
    counts = allocate(graph, Units(0.9, "global"), scores).counts
    assert counts == {"h1": 1, "h2": 4, "h3": 1, "h4": 1, "h5": 4}


def test_a_share_for_one_is_a_share_for_all_of_its_set() -> None:
    graph = network(8, 6, 6)
    expected = {"h1": 4, "h2": 6, "h3": 4, "h4": 4, "h5": 6}
    assert allocate(graph, Units({"h3": 0.5})).counts == expected
    assert allocate(graph, Units({"h1": 0.5, "h3": 0.5})).counts == expected
    with pytest.raises(InputError, match="'h1', 'h3', 'h4' must keep equally many units; got the shares"):
        allocate(graph, Units({"h1": 0.5, "h3": 0.25}))


@pytest.mark.parametrize("scope", ["layer", "global", "erk"])
@pytest.mark.parametrize("kind", [Units, Params, Macs])
def test_steps_keep_equal_counts(kind: Any, scope: Any) -> None:
    graph = left = network(11, 9, 7)
    for progress in (1 / 3, 2 / 3, 1.0):
        budget = remaining_budget(graph, left, kind(0.4, scope).after(progress))
        scores = draw_scores(left, 1)
        counts = allocate(left, budget, scores).counts
        assert counts["h1"] == counts["h3"] == counts["h4"]
        left = restrict(left, {n: np.sort(ranked(scores[n])[:c]) for n, c in counts.items()})
    assert left.equal_counts == graph.equal_counts
    assert len(left.counted_together()[0]) == 3


UNEQUAL = {"h1": np.arange(3), "h3": np.arange(3), "h2": np.arange(2)}


def test_a_plan_with_unequal_counts_is_refused() -> None:
    graph = network(4, 4, 4)
    with pytest.raises(PlanError, match=r"'h1', 'h3', 'h4' must keep equally many units.*\[3, 3, 4\]"):
        Plan(graph, "by hand", UNEQUAL)
    plan = Plan(graph, "by hand", {**UNEQUAL, "h4": np.array([0, 2, 3])})
    document = json.loads(plan_to_json(plan))
    del document["plan"]["keep"]["h4"]
    with pytest.raises(PlanError, match="must keep equally many"):
        plan_from_json(json.dumps(document))
    left = restrict(graph, plan.keep)
    with pytest.raises(PlanError, match=r"\[2, 3, 3\]"):
        Plan(left, "second", {"h1": np.arange(2)})
    both = compose(plan, Plan(left, "second", {n: np.array([1]) for n in graph.equal_counts[0]}))
    assert [both.keep[n].tolist() for n in graph.equal_counts[0]] == [[1], [1], [2]]


def test_documents_hold_the_sets_and_do_without() -> None:
    graph = network(4, 4, 4)
    text = plan_to_json(Plan(graph, "by hand", {"h2": np.arange(2)}))
    assert plan_from_json(text).graph.equal_counts == graph.equal_counts
    document = json.loads(text)
    del document["plan"]["graph"]["equal_counts"]
    assert plan_from_json(json.dumps(document)).graph.equal_counts == ()
    document["plan"]["graph"]["equal_counts"] = {"$tuple": [{"$tuple": ["h1", "nothing"]}]}
    with pytest.raises(PlanError):
        plan_from_json(json.dumps(document))


def test_what_is_on_offer_goes_in_equal_numbers() -> None:
    graph = network(6, 6, 6)
    offers = {n: Offer(np.arange(k)) for n, k in {"h1": 3, "h3": 2, "h4": 4, "h2": 1}.items()}
    plan = capped_plan("rows", graph, Statistics({}), Units(0.5), offers, "")
    assert {n: plan.removed(n).tolist() for n in plan.keep} == {
        "h1": [0, 1],
        "h2": [0],
        "h3": [0, 1],
        "h4": [0, 1],
    }
    assert plan.notes["h1"] == {"asked": 3, "removed": 2}
    del offers["h3"]
    assert set(capped_plan("rows", graph, Statistics({}), Units(0.5), offers, "").keep) == {"h2"}


def test_counts_are_raised_to_the_largest_of_their_set() -> None:
    counts = {"h1": 2, "h2": 1, "h3": 5, "h4": 3, "h5": 4}
    assert make_equal(network(6, 6, 6), counts) == {"h1": 5, "h2": 1, "h3": 5, "h4": 5, "h5": 4}
    alone = replace(network(6, 6, 6), equal_counts=())
    assert make_equal(alone, counts) == counts
    assert [len(s) for s in alone.counted_together()] == [1] * 5


@dataclass(frozen=True, kw_only=True)
class ByHand(ScoreMethod):
    """A method of a user's own that knows nothing of equal counts."""

    name = "by hand"

    def needs(self, budget: Any) -> frozenset[str]:
        return frozenset()

    def unit_scores(self, graph: PruningGraph, statistics: Statistics) -> dict[str, torch.Tensor]:
        return draw_scores(graph, 5)


@pytest.mark.parametrize(
    "budget", [Units(0.5), Units(0.5, "global"), Macs(0.4, "erk"), Params(0.3, "global")]
)
def test_methods_of_ones_own_need_not_know(budget: Any) -> None:
    graph = network(10, 8, 6)
    keep = ByHand().plan(graph, Statistics({}), budget).keep
    assert len(keep["h1"]) == len(keep["h3"]) == len(keep["h4"]) < 10
    assert keep["h1"].tolist() != keep["h3"].tolist()


# --- even budgets


def blocks(sizes: list[int]) -> PruningGraph:
    """Blocks of a layer that reads a stream of 6 and one that writes to it, without equal counts."""
    shapes, groups, layers = {}, [], []
    for i, size in enumerate(sizes):
        rows = np.arange(size)[:, None]
        names = f"blocks.{i}.fc1.weight", f"blocks.{i}.fc2.weight"
        shapes |= {names[0]: (size, 6), names[1]: (6, size)}
        layers += [Layer(name.removesuffix(".weight"), "linear", name) for name in names]
        groups.append(Group(f"g{i}", size, (Slot(names[0], 0, rows, "out"), Slot(names[1], 1, rows, "in"))))
    return PruningGraph(tuple(groups), (), tuple(layers), shapes, tuple(shapes))


def test_repeated_layers_of_one_size_are_counted_together() -> None:
    graph = blocks([8, 8, 4, 8, 4])
    assert graph.equal_counts == () and graph.with_even_layers().equal_counts == (
        ("g0", "g1", "g3"),
        ("g2", "g4"),
    )
    tied = replace(graph, equal_counts=(("g1", "g3"),)).with_even_layers()
    assert tied.equal_counts == graph.with_even_layers().equal_counts
    assert tied.with_even_layers().equal_counts == tied.equal_counts
    other = replace(graph.groups[1], slots=graph.groups[1].slots[:1])
    apart = replace(graph, groups=(graph.groups[0], other, *graph.groups[2:]))
    assert apart.with_even_layers().equal_counts == (("g0", "g3"), ("g2", "g4"))


@pytest.mark.parametrize("scope", ["layer", "global", "erk", "loss"])
def test_even_budgets_keep_equal_counts_in_a_network(scope: Any) -> None:
    import secateur as sc

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        *(
            torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.ReLU(), torch.nn.Linear(9, 6))
            for _ in range(3)
        )
    )
    data = [torch.randn(8, 6) for _ in range(6)]
    budget = Params(0.6, scope, even=True)
    for keep in (
        sc.prune(model, data[0], budget, data, method="magnitude", repair=None).plan.keep,
        sc.plan(sc.trace(model, data[0], ["*.2"]), "magnitude", budget, data).keep,
    ):
        assert len({len(keep.get(f"{i}.0", range(9))) for i in range(3)}) == 1


def test_even_is_checked_and_shown() -> None:
    assert repr(Params(0.5, even=True)) == "Params(0.5, even=True)"
    assert Units(0.25, even=True).after(0.5) == Units(0.5, even=True)
    with pytest.raises(InputError, match="even must be True or False"):
        Units(0.5, even="yes")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="must keep equally many"):
        allocate(blocks([8, 8]).with_even_layers(), Units({"g0": 0.5, "g1": 0.25}, even=True))
