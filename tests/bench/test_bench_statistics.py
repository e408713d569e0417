"""Statistics of comparisons: against scipy and slow truth, laws, coverage, false differences."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from secateur.bench.statistics import (
    area,
    bootstrap,
    compare,
    holm,
    largest_removed,
    paired_p,
    rank,
)
from secateur.core import InputError

numbers = st.floats(-1, 1).map(lambda x: round(x, 3))
samples = st.lists(numbers, min_size=2, max_size=5)
probabilities = st.lists(st.floats(0, 1), min_size=1, max_size=8)


# --- intervals


@given(samples)
def test_few_values_count_every_resample_once(values: list[float]) -> None:
    n = len(values)
    means = sorted(sum(chosen) / n for chosen in itertools.product(values, repeat=n))
    tail = stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1))
    found = bootstrap(values)
    inside = math.floor(tail * (len(means) - 1))  # resamples that may lie outside on either side
    assert [found.low, found.high] == pytest.approx([means[inside], means[-1 - inside]], abs=1e-12)
    assert found.estimate == pytest.approx(sum(values) / n)
    assert found.low - 1e-12 <= found.estimate <= found.high + 1e-12


@given(st.lists(numbers, min_size=2, max_size=12), st.floats(-3, 3), st.floats(0.1, 5))
def test_intervals_move_and_stretch_with_the_values(values: list[float], shift: float, scale: float) -> None:
    one, other = bootstrap(values), bootstrap([scale * v + shift for v in values])
    assert [other.low, other.high] == pytest.approx(
        [scale * one.low + shift, scale * one.high + shift], abs=1e-9
    )


def test_many_values_agree_with_scipy() -> None:
    values = np.random.default_rng(0).normal(1.0, 2.0, 400)
    other = stats.bootstrap((values,), np.mean, method="percentile", rng=1, n_resamples=9999)
    found = bootstrap(values)
    assert found.low == pytest.approx(other.confidence_interval.low, abs=0.03)
    assert found.high == pytest.approx(other.confidence_interval.high, abs=0.03)
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3) != bootstrap(values, seed=4)


def test_intervals_of_ten_normal_values_cover_as_they_say() -> None:
    rng = np.random.default_rng(0)
    found = [bootstrap(rng.normal(0, 1, 10), draws=2000, seed=s) for s in range(400)]
    covered = np.mean([x.low <= 0 <= x.high for x in found])
    assert 0.92 <= covered <= 0.98


def test_one_value_has_no_interval() -> None:
    found = bootstrap([0.5])
    assert found.estimate == 0.5 and math.isnan(found.low) and found.count == 1


@pytest.mark.parametrize("wrong", [[], [float("nan"), 1.0], [float("inf")]])
def test_invalid_samples(wrong: list[float]) -> None:
    with pytest.raises(InputError, match="finite numbers"):
        bootstrap(wrong)


# --- tests and their correction


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=9).filter(lambda x: np.ptp(x) > 1e-6))
def test_p_is_that_of_the_t_test(values: list[float]) -> None:
    t = np.mean(values) / (np.std(values, ddof=1) / math.sqrt(len(values)))
    assert paired_p(values) == pytest.approx(2 * stats.t.sf(abs(t), len(values) - 1), rel=1e-6, abs=1e-12)


@given(probabilities)
def test_holm_against_its_definition(p: list[float]) -> None:
    order, m = sorted(range(len(p)), key=lambda i: p[i]), len(p)
    truth = [0.0] * m
    for position, at in enumerate(order):
        truth[at] = max(min(1.0, (m - j) * p[order[j]]) for j in range(position + 1))
    found = holm(p)
    assert found == pytest.approx(truth)
    assert all(a >= b - 1e-15 and a <= min(1.0, m * b) + 1e-12 for a, b in zip(found, p, strict=True))


def test_holm_leaves_out_what_is_missing() -> None:
    assert holm([0.01, math.nan, 0.02])[::2] == [0.02, 0.02] and math.isnan(holm([math.nan])[0])


# --- who wins


@st.composite
def tables(draw):
    names, seeds = draw(st.integers(2, 4)), draw(st.integers(2, 5))
    return {f"m{i}": {s: draw(numbers) for s in range(seeds)} for i in range(names)}


@given(tables())
def test_pairs_are_antisymmetric_and_the_order_of_methods_does_not_matter(scores: dict) -> None:
    backward = dict(reversed(scores.items()))
    turned = {"better": "worse", "worse": "better"}
    found = {(d.second, d.first): turned.get(d.verdict, d.verdict) for d in compare(backward)}
    assert {(d.first, d.second): d.verdict for d in compare(scores)} == found
    one, other = rank(scores), rank(backward)
    if len({round(sum(v.values()), 9) for v in scores.values()}) == len(scores):
        assert (one.leader, set(one.tied)) == (other.leader, set(other.tied))


@given(tables())
def test_a_copy_ties_with_its_original(scores: dict) -> None:
    found = rank({**scores, "copy": scores["m0"]})
    pair = next(d for d in found.differences if {d.first, d.second} == {"m0", "copy"})
    assert pair.verdict == "tie" and pair.mean.estimate == 0 and pair.adjusted == 1
    assert ("m0" in found.tied) == ("copy" in found.tied)


def test_a_clear_winner_wins_and_few_seeds_are_reported() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.01, (6, 5))
    scores = {f"m{i}": dict(enumerate(0.7 + noise[i])) for i in range(5)}
    found = rank({**scores, "planted": dict(enumerate(0.9 + noise[5]))})
    assert (found.leader, found.verdict, found.tied) == ("planted", "wins", ("planted",))
    single = rank({"a": {0: 0.9}, "b": {0: 0.1}})
    assert single.verdict == "too few seeds" and single.tied == ("a", "b")
    assert rank({"alone": {0: 0.5}, "failed": {}}).verdict == "alone"
    with pytest.raises(InputError, match="no method"):
        rank({"failed": {}})


def test_equal_methods_are_rarely_distinguished() -> None:
    rng, false = np.random.default_rng(1), 0
    for _ in range(300):
        values = rng.normal(0, 1, (5, 4))
        scores = {f"m{i}": dict(enumerate(row)) for i, row in enumerate(values)}
        false += any(d.verdict != "tie" for d in compare(scores))
    assert false / 300 <= 0.07


# --- curves


@given(
    st.lists(st.tuples(st.floats(0.01, 0.99), st.floats(0, 1)), min_size=1, max_size=6), st.floats(0.05, 1)
)
def test_area_against_a_fine_sum(points: list[tuple[float, float]], share: float) -> None:
    curve = [(0.0, 0.9), *{round(x, 2): y for x, y in points}.items()]
    upto = share * max(x for x, _ in curve)
    xs, ys = zip(*sorted(curve), strict=True)
    grid = np.linspace(0, upto, 20001)
    assert area(curve, upto) == pytest.approx(float(np.interp(grid, xs, ys).mean()), abs=2e-3)


@given(
    st.lists(st.tuples(st.floats(0.01, 0.99), st.floats(0, 1)), min_size=1, max_size=6), st.floats(0.1, 0.9)
)
def test_no_point_before_the_largest_removed_is_below(
    points: list[tuple[float, float]], least: float
) -> None:
    curve = [(0.0, 0.9), *{round(x, 2): y for x, y in points}.items()]
    xs, ys = zip(*sorted(curve), strict=True)
    at = largest_removed(curve, least)
    assert at is not None
    grid = np.linspace(0, at, 500)
    assert (np.interp(grid, xs, ys) >= least - 1e-9).all()
    assert at == xs[-1] or np.interp(min(at + 1e-6, xs[-1]), xs, ys) <= least + 1e-3


def test_invalid_curves() -> None:
    with pytest.raises(InputError, match="reaches from"):
        area([(0.0, 1.0), (0.5, 1.0)], 0.6)
    with pytest.raises(InputError, match="needs a point"):
        largest_removed([], 0.5)
    with pytest.raises(InputError, match="finite"):
        area([(0.0, math.nan), (0.5, 1.0)], 0.5)


def test_one_example_that_all_seeds_share_is_one_example() -> None:
    differences = [1 / 100] * 30
    assert paired_p(differences, examples=100) < 0.05  # thirty examples, one for each seed
    assert paired_p(differences, examples=100 / 30) > 0.3  # the same one thirty times


def test_the_leader_leads_on_the_seeds_that_all_have() -> None:
    found = rank({"a": {0: 0.99, 1: 0.98, 2: 0.97}, "b": {0: 0.999, 1: 0.989, 2: 0.979, 3: 0.1, 4: 0.1}})
    assert (found.leader, found.verdict) == ("b", "wins")


def test_a_method_without_rivals_wins_nothing() -> None:
    assert rank({"a": {0: 0.5, 1: 0.6}}).verdict == "alone"
