"""Plans in sequence: the network that is left equals the one traced anew, two plans equal one."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from bank import BANK
from oracles import half_plan
from torch import nn

from secateur.apply.compose import compose, narrow_masks, restrict
from secateur.apply.mask import mask
from secateur.apply.shrink import shrink
from secateur.core import Group, Plan, PlanError, PruningGraph, Slot
from secateur.core.indices import kept_axes, kept_shapes
from secateur.tracing.trace import trace

NAMES = (
    "LeNet-5, permute before flatten",
    "Tied autoencoder",
    "ResNeXt (grouped convolution)",
    "MobileNetV2 (depthwise)",
    "Pixel shuffle",
    "LSTM, 2 layers, bidirectional, time first",
    "GRU feeding LSTM",
    "nn.MultiheadAttention",
    "Fused qkv (timm)",
    "Grouped queries, expand",
    "Rotary positions",
)


def units(graph: PruningGraph) -> set[frozenset]:
    """Return what each unit owns, whatever its group's name and its number."""
    return {
        frozenset((s.tensor, s.axis, s.role, tuple(sorted(s.index[u].tolist()))) for s in group.slots)
        for group in graph.groups
        for u in range(group.size)
    }


def sizes(graph: PruningGraph) -> set[tuple[str, str, int]]:
    return {(size.module, size.attribute, size.value) for size in graph.sizes}


@pytest.mark.parametrize("name", NAMES)
def test_what_a_plan_leaves_is_what_tracing_finds_in_the_shrunk_model(name: str) -> None:
    entry = BANK[name]
    model, (args, kwargs) = entry.build(), entry.example()
    plan = half_plan(trace(model, args, example_kwargs=kwargs), seed=1)
    small = shrink(model, plan, check=False)
    left, traced = restrict(plan.graph, plan.keep), trace(small, args, example_kwargs=kwargs)
    # A normalisation that was narrowed keeps its statistics of all: tracing anew finds it frozen.
    narrowed = "NarrowNorm" in str(small)
    assert units(traced) <= units(left) if narrowed else units(left) == units(traced)
    assert dict(left.shapes) == dict(traced.shapes) == kept_shapes(plan.graph, plan.keep)
    if not narrowed and "Attention" not in str(small):  # attention that lost heads has sizes of its own
        assert sizes(left) == sizes(traced)
        assert {(x.weight, x.groups) for x in left.layers} == {(x.weight, x.groups) for x in traced.layers}


@pytest.mark.parametrize("name", NAMES)
def test_two_plans_in_sequence_are_one_on_the_original(name: str) -> None:
    entry = BANK[name]
    model, (args, kwargs) = entry.build(), entry.example()
    first = half_plan(trace(model, args, example_kwargs=kwargs), seed=1)
    second = half_plan(restrict(first.graph, first.keep), seed=2)
    both = compose(first, second)
    assert {g: len(k) for g, k in both.keep.items() if g in second.keep} == {
        g: len(k) for g, k in second.keep.items()
    }
    small = shrink(model, both)
    step = dict(shrink(model, first, check=False).state_dict())
    for (tensor, axis), stays in kept_axes(second.graph, second.keep).items():
        step[tensor] = step[tensor].index_select(axis, torch.from_numpy(np.flatnonzero(stays)))
    now = small.state_dict()
    assert all(torch.equal(step[tensor], now[tensor]) for tensor in both.graph.shapes if tensor in now)


def test_masks_of_two_steps_are_joined_in_the_original_shape() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    graph = trace(model, torch.randn(2, 3).double())
    (group,) = graph.groups
    before = np.ones((2, 6), bool)
    before[0, 1] = False
    first = Plan(graph, "a", {group.name: np.array([1, 2, 5])}, {"2.weight": before})
    left = restrict(graph, first.keep)
    after = np.ones((2, 3), bool)
    after[1, 2] = False
    second = Plan(
        left, "b", {group.name: np.array([0, 2])}, {"2.weight": after, "0.weight": np.ones((3, 3), bool)}
    )
    both = compose(first, second)
    assert both.keep[group.name].tolist() == [1, 5]
    assert np.argwhere(~both.masks["2.weight"]).tolist() == [[0, 1], [1, 5]]
    assert both.masks["0.weight"].all()
    assert both.method == "b"
    assert before[1, 5]
    narrow = narrow_masks(both)
    assert narrow["2.weight"].tolist() == [[False, True], [True, False]]
    x = torch.randn(4, 3).double()
    small = shrink(model, both)
    assert torch.allclose(small(x), mask(model, both)(x), atol=1e-14)
    assert torch.equal(small[2].weight != 0, torch.from_numpy(narrow["2.weight"]))


def test_plans_that_do_not_follow_one_another() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    graph = trace(model, torch.randn(2, 3))
    name = graph.groups[0].name
    first = Plan(graph, "a", {name: np.array([1, 2, 5])})
    with pytest.raises(PlanError, match="units 0 to 2"):
        compose(first, Plan(graph, "b", {name: np.array([0, 4])}))
    with pytest.raises(PlanError, match=r"shape \(2, 6\)"):
        compose(first, Plan(graph, "b", {}, {"2.weight": np.ones((2, 6), bool)}))
    for units_ in ([0, 0], [6], [-1]):
        with pytest.raises(PlanError, match=r"units 0 to 5|there twice"):
            restrict(graph, {name: np.array(units_)})


def test_units_that_would_become_unlike_are_refused() -> None:
    """Unit 0 of `a` shares an index with unit 0 of `b`, unit 1 of `a` does not: they cannot both be a row."""
    a = Group("a", 2, (Slot("w", 0, np.array([[0, 1], [2, 3]]), "out"),))
    b = Group("b", 2, (Slot("w", 0, np.array([[0], [5]]), "out"),))
    graph = PruningGraph((a, b), (), (), {"w": (6, 1)}, ("w",))
    with pytest.raises(PlanError, match="unequal numbers"):
        restrict(graph, {"b": np.array([1])})


def test_nothing_is_changed_in_place() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    graph = trace(model, torch.randn(2, 3))
    before = copy.deepcopy([s.index for s in graph.groups[0].slots])
    plan = Plan(graph, "a", {graph.groups[0].name: np.array([1, 2])})
    compose(plan, Plan(restrict(graph, plan.keep), "b", {graph.groups[0].name: np.array([1])}))
    assert plan.keep[graph.groups[0].name].tolist() == [1, 2]
    after = [s.index for s in graph.groups[0].slots]
    assert all(np.array_equal(x, y) for x, y in zip(before, after, strict=True))
