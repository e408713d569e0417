"""The integer program against every choice of counts, and as a scope."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from plain_graphs import mlp
from test_equal_counts import network
from test_least_loss import curve

from secateur.allocation import CostTerms, Term, allocate, counted_terms
from secateur.allocation.amounts import Amounts
from secateur.allocation.counts import AllowedCounts
from secateur.allocation.least_loss import predicted_losses
from secateur.allocation.program import ProgramSolution, choose_counts, solve_program
from secateur.core import (
    Bytes,
    Group,
    InputError,
    Latency,
    LatencyTable,
    LayerTimes,
    Macs,
    Params,
    PruningGraph,
    Slot,
    Units,
)

Budgets = Sequence[tuple[CostTerms, float]]


def random_program(seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], Budgets, dict[str, int]]:
    """Draw 2 to 4 groups of 1 to 5 choices, one to three budgets of terms of one to three groups each."""
    rng = np.random.default_rng(seed)
    names = [f"g{i}" for i in range(rng.integers(2, 5))]
    choices = {n: np.sort(rng.choice(np.arange(1, 20), rng.integers(1, 6), replace=False)) for n in names}
    losses = {n: -np.sort(-rng.choice([0, 1, 2, 3, 5, 7.5], len(x))) for n, x in choices.items()}
    start = {n: int(x[0]) for n, x in choices.items()}
    budgets = []
    for _ in range(rng.integers(1, 4)):
        terms = []
        for _ in range(rng.integers(1, 6)):
            met = tuple(rng.choice(names, rng.integers(1, min(4, len(names) + 1)), replace=False).tolist())
            # Steps, as latencies have: a cost need not be a product.
            step, factor = int(rng.integers(1, 4)), float(rng.integers(1, 9))
            terms.append(
                Term(
                    met,
                    lambda *n, s=step, f=factor: (
                        f * np.prod(np.broadcast_arrays(*[-(-x // s) for x in n]), 0)
                    ),
                )
            )
        cost = CostTerms(float(rng.integers(0, 5)), tuple(terms))
        least, most = (cost({n: int(x[i]) for n, x in choices.items()}) for i in (0, -1))
        budgets.append((cost, least + float(rng.uniform(0, 1)) * (most - least)))
    return choices, losses, budgets, start


def least_loss(
    choices: Mapping[str, np.ndarray], losses: Mapping[str, np.ndarray], budgets: Budgets
) -> float:
    """Try every combination."""
    best = np.inf
    for chosen in itertools.product(*(range(len(x)) for x in choices.values())):
        counts = {n: int(x[i]) for (n, x), i in zip(choices.items(), chosen, strict=True)}
        if all(cost(counts) <= limit for cost, limit in budgets):
            best = min(best, float(sum(losses[n][i] for n, i in zip(choices, chosen, strict=True))))
    return best


@pytest.mark.parametrize("block", range(8))
def test_equal_to_brute_force(block: int) -> None:
    for seed in range(25 * block, 25 * block + 25):
        choices, losses, budgets, start = random_program(seed)
        found = solve_program(choices, losses, budgets, start, gap=0.0)
        assert all(cost(found.counts) <= limit * (1 + 1e-8) for cost, limit in budgets), seed
        assert found.loss == pytest.approx(least_loss(choices, losses, budgets)), seed
        assert found.loss == sum(losses[n][list(choices[n]).index(c)] for n, c in found.counts.items())
        assert found.gap <= 1e-6 and found.ending == "optimal", seed


def chain(
    groups: int, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], Budgets, dict[str, int]]:
    """Return a chain of layers, each group of 16 choices, under parameters and multiply-accumulates."""
    rng = np.random.default_rng(seed)
    sizes = rng.choice([64, 128, 256], groups)
    names = [f"g{i:02}" for i in range(groups)]
    choices = {n: np.arange(1, 17) * (s // 16) for n, s in zip(names, sizes, strict=True)}
    losses = {n: rng.lognormal() * (1 - x / x[-1]) ** rng.uniform(1.2, 3) for n, x in choices.items()}
    uses = np.sort(rng.choice([49.0, 196.0, 784.0], groups))[::-1]
    budgets = []
    for positions, share in ((np.ones(groups), 0.6), (uses, 0.5)):
        pairs = zip(itertools.pairwise(names), positions, strict=False)
        terms = tuple(Term(pair, lambda a, b, p=p: p * a * b) for pair, p in pairs)
        cost = CostTerms(0.0, terms)
        budgets.append((cost, share * cost({n: int(x[-1]) for n, x in choices.items()})))
    return choices, losses, budgets, {n: int(x[0]) for n, x in choices.items()}


def test_the_gap_is_proven_and_the_result_is_the_same_at_every_run() -> None:
    first, second = (solve_program(*chain(12, 0)) for _ in range(2))
    assert first == second
    assert first.gap <= 0.01 and first.loss <= solve_program(*chain(12, 0), gap=0.2).loss * 1.011


def test_the_start_is_kept_where_there_is_no_time() -> None:
    choices, losses, budgets, start = chain(6, 1)
    found = solve_program(choices, losses, budgets, start, seconds=0.0)
    assert found.loss <= sum(losses[n][0] for n in choices)
    assert all(cost(found.counts) <= limit for cost, limit in budgets)


def test_nothing_to_lose_needs_no_solver() -> None:
    choices, losses, _, _ = chain(3, 0)
    whole = {n: int(x[-1]) for n, x in choices.items()}
    assert solve_program(choices, losses, [], whole) == ProgramSolution(whole, 0.0, 0.0, "optimal")


def test_groups_that_meet_many_have_fewer_choices() -> None:
    names = [f"g{i}" for i in range(60)]
    allowed, start = dict.fromkeys(names, AllowedCounts(100)), dict.fromkeys(names, 50)
    terms = tuple(Term(pair, lambda a, b: a * b) for pair in itertools.combinations(names, 2))
    few = choose_counts(allowed, start, [CostTerms(0.0, terms)])
    assert 3 <= max(map(len, few.values())) < 16
    assert all(50 in x and x[0] == 1 and x[-1] == 100 for x in few.values())


@pytest.mark.parametrize(
    "budget",
    [
        Units(0.6, "program"),
        Params(0.5, "program"),
        Macs(0.5, "program", round_to=4),
        [Macs(0.6, "program"), Bytes(0.4, "program"), Units(0.7, "program")],
    ],
)
@pytest.mark.parametrize("graph", [mlp([8, 40, 20, 30, 3]), network(12, 20, 9)], ids=["mlp", "equal counts"])
def test_never_worse_than_the_prices(graph: PruningGraph, budget) -> None:
    graph = replace(graph, element_sizes=dict.fromkeys(graph.shapes, 2))
    sets = [s[0] for s in graph.counted_together()]
    losses = {g.name: curve(g.size, 0.1 * 3**i, 1.5 + 0.5 * i) for i, g in enumerate(sets)}
    found = allocate(graph, budget, losses=losses)
    parts = budget if isinstance(budget, list) else [budget]
    prices = allocate(graph, [part.with_scope("loss") for part in parts], losses=losses)
    assert found.loss is not None and prices.loss is not None
    assert found.loss <= prices.loss * (1 + 1e-9)
    each = [
        len(s) * predicted_losses(losses[s[0].name])[found.counts[s[0].name]] / len(s)
        for s in graph.counted_together()
    ]
    assert found.loss == pytest.approx(sum(each))
    keep = {name: np.arange(count) for name, count in found.counts.items()}
    for part in parts:
        amounts = Amounts(graph, part)
        limit = part.keep * amounts.whole[0]
        assert amounts(keep)[0] <= (np.floor(limit + 0.5) if isinstance(part, Units) else limit) * (1 + 1e-9)
        assert all(c % part.round_to == 0 or c == graph.group(n).size for n, c in found.counts.items())
    note = found.notes["program"]
    assert note["ending"] == "optimal" and note["proven gap among them"] <= 0.01
    tied = [found.counts[g.name] for s in graph.counted_together() for g in s if len(s) > 1]
    assert len(set(tied)) <= 1


def test_a_cost_that_depends_on_which_units_stay_is_met() -> None:
    """The terms are a mean; the program is tightened until the true cost holds."""
    a, b = np.arange(24).reshape(6, 4), np.concatenate([np.arange(12), np.arange(12)]).reshape(12, 2)
    groups = (
        Group("a", 6, (Slot("w", 0, a, "out"), Slot("v", 0, np.arange(6)[:, None], "out"))),
        Group("b", 12, (Slot("w", 0, b, "out"), Slot("u", 0, np.arange(12)[:, None], "out"))),
    )
    graph = PruningGraph(groups, (), (), {"w": (24, 5), "v": (6, 3), "u": (12, 3)}, ("w", "v", "u"))
    losses = {"a": curve(6, 1.0), "b": curve(12, 0.3)}
    scores = {"a": torch.arange(6.0), "b": torch.arange(12.0)}
    budget = Params(0.6, "program")
    assert not counted_terms(graph, budget).exact
    found = allocate(graph, budget, scores, losses)
    keep = {n: np.arange(graph.group(n).size)[-c:] for n, c in found.counts.items()}
    amounts = Amounts(graph, budget)
    assert amounts(keep)[0] <= 0.6 * amounts.whole[0]


def test_milliseconds_with_steps_are_met() -> None:
    """A layer whose time rises in steps of 8: widths between two steps are dominated or no faster."""
    graph = mlp([8, 40, 24, 3])
    names = [group.name for group in graph.groups]
    knots = (0, 8, 9, 16, 17, 24, 25, 32, 33, 40)
    stairs = tuple(float(-(-n // 8)) for n in knots)
    layer = LayerTimes("0.weight", (1, 0), (0, 8), knots, (tuple(0.0 for _ in knots), stairs))
    wide = LayerTimes("1.weight", (1, 0), (0, 40), (0, 24), ((0.0, 0.0), (0.0, 6.0)))
    budget = [
        Latency(0.6, scope="program", table=LatencyTable((layer, wide), constant=0.5)),
        Macs(0.7, "program"),
    ]
    losses = {names[0]: curve(40, 1.0), names[1]: curve(24, 1.0)}
    found = allocate(graph, budget, losses=losses)
    keep = {name: np.arange(count) for name, count in found.counts.items()}
    for part in budget:
        amounts = Amounts(graph, part)
        assert amounts(keep)[0] <= part.keep * amounts.whole[0] * (1 + 1e-9)
    assert found.loss is not None and found.loss <= allocate(
        graph, [part.with_scope("loss") for part in budget], losses=losses
    ).loss * (1 + 1e-9)


def test_a_budget_that_no_counts_meet_is_refused() -> None:
    graph = mlp([8, 20, 20, 3])
    losses = {g.name: curve(20, 1.0) for g in graph.groups}
    with pytest.raises(InputError, match="cannot be reached"):
        allocate(graph, Params(0.01, "program"), losses=losses)
    with pytest.raises(InputError, match="scope='program' needs the measured losses"):
        allocate(graph, Params(0.5, "program"))
