"""The cost of a plan against masks of every entry, and budgets of cost against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_graphs import mlp, vectors

from secateur.allocation import (
    CostModel,
    allocate,
    graph_cost,
    group_costs,
)
from secateur.core import (
    Group,
    InputError,
    Layer,
    Macs,
    Params,
    PlanError,
    PruningGraph,
    Slot,
    Units,
)


@st.composite
def overlapping(draw: st.DrawFn) -> tuple[PruningGraph, dict[str, np.ndarray]]:
    """A network whose slots overlap at random, and what stays of each group."""
    lengths = st.integers(1, 6)
    shapes = {f"t{i}": tuple(draw(st.lists(lengths, min_size=int(i < 2), max_size=3))) for i in range(4)}
    groups, keep = [], {}
    for g in range(draw(st.integers(1, 3))):
        size = draw(st.integers(1, 4))
        slots = []
        for name, shape in shapes.items():
            for axis, length in enumerate(shape):
                if draw(st.booleans()):
                    index = st.integers(0, length - 1)
                    per = draw(st.integers(1, 2))
                    flat = draw(st.lists(index, min_size=size * per, max_size=size * per))
                    slots.append(Slot(name, axis, np.array(flat).reshape(size, per), "out"))
        groups.append(Group(f"g{g}", size, tuple(slots)))
        keep[f"g{g}"] = np.array(sorted(draw(st.sets(st.integers(0, size - 1)))), dtype=np.int64)
    layers = (Layer("", "linear", "t0", positions=3.0), Layer("", "conv", "t1"), Layer("", "linear", "t1"))
    layers += (Layer("", "embedding", "t2", in_axis=None), Layer("", "norm", "t3", out_axis=None))
    return PruningGraph(tuple(groups), (), layers, shapes, ("t0", "t1", "t2")), keep


@given(overlapping())
@settings(derandomize=True, deadline=None, max_examples=200)
def test_cost_equals_a_mask_of_every_entry(case: tuple[PruningGraph, dict[str, np.ndarray]]) -> None:
    graph, keep = case
    left = {}
    for name, shape in graph.shapes.items():
        alive = np.ones(shape, dtype=bool)
        for group in graph.groups:
            for slot in group.slots:
                if slot.tensor == name:
                    gone = np.setdiff1d(np.arange(group.size), keep[group.name])
                    np.moveaxis(alive, slot.axis, 0)[slot.index[gone].ravel()] = False
        left[name] = int(alive.sum())
    found = graph_cost(graph, keep)
    assert found.params == left["t0"] + left["t1"] + left["t2"]
    assert found.macs == 3 * left["t0"] + 2 * left["t1"]


def test_cost_names_what_is_wrong() -> None:
    graph = mlp([3, 4, 2])
    with pytest.raises(InputError, match=r"no group 'h2'.*'h1'"):
        graph_cost(graph, {"h2": np.array([0])})
    for units in ([0, 4], [-1], [1, 1]):
        with pytest.raises(PlanError, match=r"units 0 to 3|there twice"):
            graph_cost(graph, {"h1": np.array(units)})


@pytest.mark.parametrize("budget", [Params, Macs])
@pytest.mark.parametrize("keep", [0.3, 0.5, 0.83])
@pytest.mark.parametrize("step", [1, 3])
def test_cost_budgets_take_the_best_share_from_below(budget: type, keep: float, step: int) -> None:
    graph = mlp([5, 9, 12, 3], positions=(4.0, 2.0, 1.0))
    field = budget.__name__.lower()
    total = getattr(graph_cost(graph), field)
    found = allocate(graph, budget(keep, round_to=step))
    reached = {}
    for share in np.linspace(0, 1, 1001):
        counts = allocate(graph, Units(max(share, 1e-9), round_to=step)).counts
        keeps = {k: np.arange(n) for k, n in counts.items()}
        reached[tuple(counts.values())] = getattr(graph_cost(graph, keeps), field) / total
    assert found.reached == pytest.approx(max(x for x in reached.values() if x <= keep))
    assert found.reached == pytest.approx(reached[tuple(found.counts.values())])


@pytest.mark.parametrize("budget", [Params, Macs])
@pytest.mark.parametrize("keep", [0.4, 0.7])
def test_cost_budgets_remove_the_lowest_ranked_units(budget: type, keep: float) -> None:
    graph = mlp([5, 9, 12, 3], positions=(4.0, 2.0, 1.0))
    scores = vectors(graph, 3)
    field, total = budget.__name__.lower(), getattr(graph_cost(graph), budget.__name__.lower())
    found = allocate(graph, budget(keep, "global"), scores)
    best = 0.0
    for number in range(2, 22):
        counts = allocate(graph, Units(number / 21, "global"), scores).counts
        share = getattr(graph_cost(graph, {k: np.arange(n) for k, n in counts.items()}), field) / total
        if share <= keep:
            best, expected = share, counts
    assert found.counts == expected
    assert found.reached == pytest.approx(best)


@pytest.mark.parametrize("scope", ["layer", "erk"])
def test_a_larger_cost_keeps_no_group_smaller(scope: str) -> None:
    graph = mlp([30, 40, 20, 60, 10])
    previous = {g.name: 0 for g in graph.groups}
    for keep in np.linspace(0.1, 1, 30):
        counts = allocate(graph, Params(float(keep), scope)).counts
        assert all(counts[k] >= previous[k] for k in counts)
        previous = counts
    assert previous == {"h1": 40, "h2": 20, "h3": 60}


def test_heads_and_dimensions_cost_their_product() -> None:
    heads, dims = np.arange(24).reshape(4, 6), np.arange(24).reshape(4, 6).T
    groups = (
        Group("heads", 4, (Slot("q", 0, heads, "out"),)),
        Group("dims", 6, (Slot("q", 0, dims, "out"),)),
    )
    graph = PruningGraph(groups, (), (Layer("", "linear", "q"),), {"q": (24, 7)}, ("q",))
    assert graph_cost(graph, {"heads": np.array([1, 2]), "dims": np.array([0, 3, 5])}).params == 2 * 3 * 7
    assert allocate(graph, Params(0.5)).reached <= 0.5


def llama(
    blocks: int = 32, width: int = 4096, hidden: int = 14336, kv: int = 8, rep: int = 4
) -> PruningGraph:
    """Five groups a block, of which three share the axes of the attention."""
    dim = width // (kv * rep)
    shapes, groups, layers = {}, [], []
    q = np.arange(width).reshape(kv, rep, dim)
    k = np.arange(kv * dim).reshape(kv, dim)
    for i in range(blocks):
        names = {
            "q": (width, width),
            "k": (kv * dim, width),
            "v": (kv * dim, width),
            "o": (width, width),
            "gate": (hidden, width),
            "up": (hidden, width),
            "down": (width, hidden),
        }
        shapes |= {f"{i}.{name}": shape for name, shape in names.items()}
        layers += [Layer(f"{i}.{name}", "linear", f"{i}.{name}", positions=9.0) for name in names]
        by_rep = q.transpose(1, 0, 2).reshape(rep, -1)
        kv_slots = [Slot(f"{i}.q", 0, q.reshape(kv, -1), "out"), Slot(f"{i}.o", 1, q.reshape(kv, -1), "in")]
        kv_slots += [Slot(f"{i}.k", 0, k, "out"), Slot(f"{i}.v", 0, k, "out")]
        groups.append(Group(f"{i}.kv", kv, tuple(kv_slots)))
        groups.append(
            Group(f"{i}.rep", rep, (Slot(f"{i}.q", 0, by_rep, "out"), Slot(f"{i}.o", 1, by_rep, "in")))
        )
        groups.append(Group(f"{i}.vdim", dim, (Slot(f"{i}.v", 0, k.T.copy(), "out"),)))
        for part in range(2):
            half = np.arange(hidden // 2)[:, None] + part * hidden // 2
            slots = [Slot(f"{i}.{name}", 0, half, "out") for name in ("gate", "up")]
            slots.append(Slot(f"{i}.down", 1, half, "in"))
            groups.append(Group(f"{i}.hidden{part}", hidden // 2, tuple(slots)))
    return PruningGraph(tuple(groups), (), tuple(layers), shapes, tuple(shapes))


def test_the_cost_of_a_large_transformer_is_that_of_its_matrices() -> None:
    graph = llama()
    assert len(graph.groups) == 160
    model = CostModel(graph)
    keep = {g.name: np.arange(g.size // 2) for g in graph.groups}
    whole = model({})
    assert whole.params == sum(int(np.prod(s)) for s in graph.shapes.values())
    assert whole.macs == 9.0 * whole.params
    found = model(keep)
    block = found.params // 32
    assert block == 1024 * 4096 * 2 + 512 * 4096 + 4 * 64 * 4096 + 3 * 7168 * 4096


def test_what_a_group_costs_is_what_its_removal_saves() -> None:
    costs = group_costs(mlp([4, 8, 6, 3]))
    assert sorted(c[:2] for c in costs.values()) == [
        (6 * 8 + 6 + 3 * 6, 6 * 8 + 3 * 6),
        (8 * 4 + 8 + 6 * 8, 8 * 4 + 6 * 8),
    ]
    whole = 5 * 8 + 9 * 6 + 7 * 3
    assert sorted(c.params_share for c in costs.values()) == [72 / whole, 88 / whole]
    assert sorted(c.macs_share for c in costs.values()) == [66 / 98, 80 / 98]
