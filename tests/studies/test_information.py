"""Mutual information and rate-distortion on known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.core import InputError
from secateur_studies.lattice.information import (
    decoded_information,
    entropy,
    pattern_information,
    quantise,
    rate_at,
    rate_distortion,
    unit_information,
)


def h(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


@pytest.mark.parametrize("p", [0.5, 0.3, 0.1])
@pytest.mark.parametrize("slope", [1.5, 3.0, 6.0])
def test_blahut_arimoto_equals_h_p_minus_h_d_for_bits_with_hamming_distortion(p, slope):
    point = rate_distortion([p, 1 - p], 1 - np.eye(2), slope)
    D = 1 / (1 + math.exp(slope))
    expected = (h(p) - h(D), D) if min(p, 1 - p) > D else (0.0, min(p, 1 - p))
    assert (point.rate, point.distortion) == pytest.approx(expected, abs=2e-6)
    assert point.gap <= 1e-9
    assert np.allclose(point.channel.sum(1), 1)


@pytest.mark.parametrize("D", [0.02, 0.1, 0.25])
def test_rate_at_a_distortion_equals_the_formula_for_bits_and_for_uniform_symbols(D):
    assert rate_at([0.4, 0.6], 1 - np.eye(2), D).rate == pytest.approx(h(0.4) - h(D), abs=1e-4)
    k = 5
    symbols = math.log(k) - h(D) - D * math.log(k - 1)
    assert rate_at(np.full(k, 1 / k), 1 - np.eye(k), D).rate == pytest.approx(symbols, abs=1e-4)


def test_gaussian_source_on_a_grid_approaches_half_log_variance_over_d():
    grid = np.linspace(-4, 4, 41)
    p = np.exp(-(grid**2) / 2)
    point = rate_at(p / p.sum(), (grid[:, None] - grid[None]) ** 2, 0.25, tolerance=1e-3)
    assert point.rate == pytest.approx(0.5 * math.log(1 / 0.25), abs=4e-3)


def test_no_rate_is_needed_beyond_the_largest_useful_distortion():
    point = rate_at([0.2, 0.8], 1 - np.eye(2), 0.5)
    assert (point.rate, point.distortion) == pytest.approx((0.0, 0.2))


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.integers(0, 10**6))
def test_rate_falls_and_distortion_rises_as_the_slope_falls_and_no_random_channel_does_better(seed):
    rng = np.random.default_rng(seed)
    p, d = rng.dirichlet(np.ones(4)), rng.random((4, 3))
    steep, flat = rate_distortion(p, d, 20.0, 1e-7), rate_distortion(p, d, 4.0, 1e-7)
    assert steep.rate >= flat.rate - 1e-6 and steep.distortion <= flat.distortion + 1e-6
    for _ in range(20):
        channel = rng.dirichlet(np.ones(3), 4)
        q = p @ channel
        rate = float((p[:, None] * channel * np.log(channel / q)).sum())
        D = float((p[:, None] * channel * d).sum())
        assert rate + 4.0 * D >= flat.rate + 4.0 * flat.distortion - 1e-6


@pytest.mark.parametrize(
    "p, d, slope",
    [
        ([0.5, 0.6], 1 - np.eye(2), 1.0),
        ([0.5, 0.5], np.ones((3, 2)), 1.0),
        ([0.5, 0.5], 1 - np.eye(2), 0.0),
        ([0.5, 0.5], np.full((2, 2), np.nan), 1.0),
        ([0.5, 0.5], np.zeros((2, 2)), 1.0),
    ],
)
def test_bad_sources_are_refused(p, d, slope):
    with pytest.raises(InputError):
        rate_distortion(p, d, slope)


def test_an_impossible_distortion_and_an_open_gap_are_refused():
    with pytest.raises(InputError, match="least distortion"):
        rate_at([0.5, 0.5], 1 - np.eye(2), 0.0)
    with pytest.raises(ArithmeticError, match="after 1 iterations"):
        rate_distortion([0.3, 0.7], 1 - np.eye(2), 3.0, iterations=1)


def test_unit_information_is_entropy_for_a_copy_and_about_0_for_noise():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 4000)
    y = np.column_stack([labels + 0.01 * rng.random(4000), rng.random(4000), np.zeros(4000)])
    copy, noise, constant = unit_information(y, labels, bins=16)
    assert copy == pytest.approx(entropy(labels), abs=0.01)
    assert noise < 0.003 and constant == 0


def test_the_correction_removes_most_of_the_bias_of_the_plug_in_estimate():
    rng = np.random.default_rng(1)
    labels, y = rng.integers(0, 10, 1000), rng.random((1000, 40))
    plug_in = [pattern_information(y[:, [k]], labels, bins=16)[1] for k in range(40)]
    assert np.mean(plug_in) > 0.05 > 0.01 > unit_information(y, labels, bins=16).mean()


def test_pattern_information_of_a_quantised_pair_and_its_saturation():
    labels = np.repeat([0, 1, 2, 3], 25)
    y = np.column_stack([labels // 2, labels % 2]).astype(float)
    assert pattern_information(y, labels) == pytest.approx((math.log(4), math.log(4)))
    noise = np.random.default_rng(0).random((100, 60))
    assert pattern_information(noise, labels) == pytest.approx((math.log(100), math.log(4)))


def test_decoded_information_bounds_from_below_and_sees_what_is_there():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 600)
    centres = 6 * np.eye(3)[labels]
    assert entropy(labels) - 0.05 < decoded_information(centres + rng.normal(size=(600, 3)), labels)
    assert decoded_information(rng.normal(size=(600, 3)), labels) < 0.01


def test_theorem_6_needs_its_chain_removing_a_weight_can_raise_the_information():
    x = np.array([-1.0, 1.0] * 50)
    before = np.sign(x + 2.0 * np.ones_like(x))[:, None]
    after = np.sign(x + 0.0)[:, None]
    labels = (x > 0).astype(int)
    assert pattern_information(before, labels)[1] == 0
    assert pattern_information(after, labels)[1] == pytest.approx(math.log(2))


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.integers(0, 10**6))
def test_the_chain_from_fewer_units_never_raises_it(seed):
    rng = np.random.default_rng(seed)
    y, labels = rng.integers(0, 2, (40, 5)).astype(float), rng.integers(0, 3, 40)
    whole, part = pattern_information(y, labels), pattern_information(y[:, :3], labels)
    assert part[0] <= whole[0] + 1e-12 and part[1] <= whole[1] + 1e-12


def test_quantise_fills_its_bins_and_refuses_bad_input():
    assert quantise([[0.0], [0.5], [1.0]], 2).tolist() == [[0], [1], [1]]
    with pytest.raises(InputError, match="bins"):
        quantise([[0.0]], 0)
    with pytest.raises(InputError, match="finite"):
        quantise([[np.nan]], 2)
    with pytest.raises(InputError, match="as many labels"):
        unit_information([[0.0], [1.0]], [0])
    with pytest.raises(InputError, match="2 classes"):
        decoded_information(np.zeros((10, 2)), np.zeros(10))
