"""How many stay: exact counts, stable ties, floors, costs and searches against brute force."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.allocation import (
    CostModel,
    allocate,
    erk_densities,
    graph_cost,
    group_costs,
    prunable,
    ranked,
    top,
    weight_sizes,
)
from secateur.allocation.schedule import remaining_budget
from secateur.apply.compose import restrict
from secateur.core import (
    Frozen,
    Group,
    InputError,
    Layer,
    Macs,
    NothingToPrune,
    Params,
    PlanError,
    PruningGraph,
    Slot,
    Units,
    Weights,
)

BUDGETS = settings(derandomize=True, deadline=None, max_examples=60)
WIDTHS = st.lists(st.integers(1, 24), min_size=3, max_size=6)
SHARES = st.floats(0.02, 1.0)


def rows(count: int, per: int = 1) -> np.ndarray:
    return np.arange(count * per).reshape(count, per)


def mlp(widths: list[int], positions: tuple[float, ...] = ()) -> PruningGraph:
    """Describe an MLP with biases, hidden widths as groups."""
    shapes, layers, slots = {}, [], {i: [] for i in range(1, len(widths) - 1)}
    for i, (n_in, n_out) in enumerate(pairwise(widths)):
        shapes |= {f"{i}.weight": (n_out, n_in), f"{i}.bias": (n_out,)}
        layers.append(
            Layer(str(i), "linear", f"{i}.weight", f"{i}.bias", positions=positions[i] if positions else 1.0)
        )
        if i + 1 in slots:
            slots[i + 1] += [Slot(f"{i}.{tensor}", 0, rows(n_out), "out") for tensor in ("weight", "bias")]
        if i in slots:
            slots[i] += [Slot(f"{i}.weight", 1, rows(n_in), "in")]
    groups = tuple(Group(f"h{i}", widths[i], tuple(s)) for i, s in slots.items())
    return PruningGraph(groups, (Frozen("0.weight", 1, "input"),), tuple(layers), shapes, tuple(shapes))


def vectors(graph: PruningGraph, seed: int, levels: int = 0) -> dict[str, torch.Tensor]:
    """Scores of each group; with few levels there are many ties."""
    generator = torch.Generator().manual_seed(seed)
    if levels:
        draw = {g.name: torch.randint(levels, (g.size,), generator=generator) for g in graph.groups}
        return {k: v.double() for k, v in draw.items()}
    return {g.name: torch.rand(g.size, generator=generator, dtype=torch.float64) for g in graph.groups}


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


def test_the_cost_of_a_large_transformer_takes_milliseconds() -> None:
    graph = llama()
    assert len(graph.groups) == 160
    model = CostModel(graph)
    keep = {g.name: np.arange(g.size // 2) for g in graph.groups}
    whole = model({})
    assert whole.params == sum(int(np.prod(s)) for s in graph.shapes.values())
    assert whole.macs == 9.0 * whole.params
    start = time.process_time()
    for _ in range(10):
        found = model(keep)
    assert (time.process_time() - start) / 10 < 0.05
    block = found.params // 32
    assert block == 1024 * 4096 * 2 + 512 * 4096 + 4 * 64 * 4096 + 3 * 7168 * 4096


def test_a_budget_can_give_each_layer_its_share() -> None:
    graph = mlp([3, 10, 20, 30, 2])
    found = allocate(graph, Units({"h1": 0.5, "h?": 0.2, "h3": 1.0}))
    assert found.counts == {"h1": 5, "h2": 4, "h3": 30}
    assert found.reached == found.target == 39 / 60
    assert allocate(graph, Units({"h2": 0.21}, round_to=8)).counts == {"h1": 10, "h2": 8, "h3": 30}
    assert allocate(graph, Units({"0": 0.5})).counts == {"h1": 5, "h2": 20, "h3": 30}  # a module's name


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"h4": 0.5}, "no group or module 'h4'; did you mean"),
        ({"x*": 0.5}, r"no group or module matches the pattern 'x\*'"),
        ({"h*": 0.5, "h[12]": 0.2}, "group 'h1' has several shares"),
        ({"h1": 0.5, "floor": 1.0}, "no group or module 'floor'"),
    ],
)
def test_shares_for_layers_that_do_not_exist(keep: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        allocate(mlp([3, 4, 5, 2]), Units(keep))


def test_steps_of_a_budget_by_layer_end_in_its_counts() -> None:
    graph, budget = mlp([3, 10, 20, 30, 2]), Units({"h1": 0.3, "h2": 0.55})
    left = graph
    for step in (1, 2, 3):
        counts = allocate(left, remaining_budget(graph, left, budget.after(step / 3))).counts
        left = restrict(left, {name: np.arange(n) for name, n in counts.items()})
    assert [g.size for g in left.groups] == list(allocate(graph, budget).counts.values()) == [3, 11, 30]


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


def test_what_a_group_costs_is_what_its_removal_saves() -> None:
    costs = group_costs(mlp([4, 8, 6, 3]))
    assert sorted(c[:2] for c in costs.values()) == [
        (6 * 8 + 6 + 3 * 6, 6 * 8 + 3 * 6),
        (8 * 4 + 8 + 6 * 8, 8 * 4 + 6 * 8),
    ]
    whole = 5 * 8 + 9 * 6 + 7 * 3
    assert sorted(c.params_share for c in costs.values()) == [72 / whole, 88 / whole]
    assert sorted(c.macs_share for c in costs.values()) == [66 / 98, 80 / 98]
