"""Counts of least predicted loss under a budget."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_graphs import mlp

from secateur.allocation import allocate
from secateur.allocation.counts import AllowedCounts
from secateur.allocation.least_loss import counts_of_least_loss, predicted_losses
from secateur.core import InputError, LossCurve, Macs, Params, Units, Weights

SIZES = st.lists(st.integers(16, 40), min_size=1, max_size=2)


def curve(size: int, scale: float, power: float = 2.0) -> LossCurve:
    counts = sorted({max(1, round(share * size)) for share in (0.85, 0.6, 0.35, 0.1)} - {size}, reverse=True)
    return LossCurve(size, tuple(counts), tuple(scale * (1 - c / size) ** power for c in counts))


def test_a_power_law_is_found_again() -> None:
    losses = predicted_losses(curve(100, 0.5, 1.7))
    assert losses[10:] == pytest.approx(0.5 * (1 - np.arange(10, 101) / 100) ** 1.7, rel=1e-6, abs=1e-8)
    assert losses[0] > 2 * losses[10]  # nothing was tried there


def test_a_group_of_one_unit_has_no_trials_and_costs_all() -> None:
    """After a step, a group may have one unit left."""
    assert predicted_losses(LossCurve(1, (), ()), ruin=3.0).tolist() == [3.0, 0.0]


def test_what_was_not_tried_is_not_free() -> None:
    losses = predicted_losses(LossCurve(256, (154, 26), (1e-12, 1e-9)), ruin=4.0)
    assert losses[26] == pytest.approx(1e-9, rel=1e-6)
    assert losses[[0, 13]] == pytest.approx([4.0, 2.0], rel=1e-6)


@given(st.integers(2, 40), st.lists(st.floats(0, 5), min_size=1, max_size=3), st.floats(0, 9))
def test_predictions_never_rise_with_the_count_and_pass_through_the_measurements(
    size: int, values: list[float], ruin: float
) -> None:
    counts = sorted({max(1, round(share * size)) for share in (0.85, 0.6, 0.35, 0.1)} - {size}, reverse=True)
    losses = np.maximum.accumulate(np.array((values * 4)[: len(counts)]) + 1e-6)
    found = predicted_losses(LossCurve(size, tuple(counts), tuple(losses)), ruin)
    assert len(found) == size + 1 and found[-1] == 0
    assert (np.diff(found) <= 1e-12).all()
    assert found[counts] == pytest.approx(losses)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.floats(0.4, 0.95), st.integers(0, 10**6))
def test_near_the_best_of_all_counts(sizes: list[int], share: float, seed: int) -> None:
    """Against every combination: never over the target, and no single group can keep more."""
    rng = np.random.default_rng(seed)
    losses = [predicted_losses(curve(n, float(rng.uniform(0.1, 3)))) for n in sizes]
    costs = rng.uniform(0.5, 2, len(sizes))
    amount = lambda counts: float(np.dot(costs, counts))  # noqa: E731
    allowed = [AllowedCounts(n) for n in sizes]
    target = max(share * amount(sizes), amount([1] * len(sizes)))
    counts = counts_of_least_loss(allowed, losses, amount, target)
    assert amount(counts) <= target * (1 + 1e-9)
    for i, n in enumerate(sizes):
        more = [*counts[:i], counts[i] + 1, *counts[i + 1 :]]
        assert counts[i] == n or amount(more) > target
    loss = sum(x[c] for x, c in zip(losses, counts, strict=True))
    every = itertools.product(*(range(1, n + 1) for n in sizes))
    best = min(sum(x[c] for x, c in zip(losses, k, strict=True)) for k in every if amount(list(k)) <= target)
    worst = sum(x[1] for x in losses)
    assert loss <= best + 0.05 * (worst - best) + 1e-9


@pytest.mark.parametrize("budget", [Units(0.6, scope="loss"), Params(0.6), Macs(0.6)])
def test_the_group_that_costs_least_gives_most(budget) -> None:
    graph = mlp([8, 20, 20, 3])
    names = [group.name for group in graph.groups]
    losses = {names[0]: curve(20, 10.0), names[1]: curve(20, 0.01)}
    found = allocate(graph, budget, losses=losses)
    assert found.counts[names[0]] > found.counts[names[1]]
    assert found.reached <= 0.6 + 1e-9 and found.loss is not None
    even = allocate(graph, type(budget)(0.6, scope="layer"))
    predicted = sum(predicted_losses(losses[n])[even.counts[n]] for n in names)
    assert found.loss < predicted


def test_a_group_with_one_unit_left_stays() -> None:
    graph = mlp([8, 1, 20, 3])
    first, second = (group.name for group in graph.groups)
    found = allocate(graph, Params(0.6), losses={first: LossCurve(1, (), ()), second: curve(20, 1.0)})
    assert found.counts[first] == 1 and found.counts[second] < 20


def test_without_losses_auto_is_the_same_share_everywhere() -> None:
    graph = mlp([8, 20, 20, 3])
    assert allocate(graph, Params(0.5)).counts == allocate(graph, Params(0.5, scope="layer")).counts
    with pytest.raises(InputError, match="measured losses"):
        allocate(graph, Units(0.5, scope="loss"))
    with pytest.raises(InputError, match="no measured loss"):
        allocate(graph, Units(0.5, scope="loss"), losses={"other": curve(3, 1.0)})
    with pytest.raises(InputError, match="scope='loss'"):
        Weights(0.5, scope="loss")
