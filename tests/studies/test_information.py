"""Mutual information on known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from secateur.core import InputError
from secateur_studies.lattice.information import (
    decoded_information,
    entropy,
    measure_distortion,
    quantise,
    rate_distortion,
    unit_information,
)


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
    plug_in = [mutual_info_score(labels, quantise(y[:, [k]], 16)[:, 0]) for k in range(40)]
    assert np.mean(plug_in) > 0.05 > 0.01 > unit_information(y, labels, bins=16).mean()


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
    assert unit_information(before, labels, bins=2) == 0
    assert unit_information(after, labels, bins=2) == pytest.approx(math.log(2), abs=0.01)


def _blahut_arimoto(p: np.ndarray, slope: float) -> tuple[float, float]:
    """Return D and R(D) where the curve falls by `slope`, by iteration."""
    d, q = 1 - np.eye(len(p)), np.full(len(p), 1 / len(p))
    for _ in range(20_000):
        channel = q * np.exp(-slope * d)
        channel /= channel.sum(1, keepdims=True)
        q = p @ channel
    ratio = np.where(channel > 1e-300, channel / np.maximum(q, 1e-300), 1.0)
    return float((p[:, None] * channel * d).sum()), float((p[:, None] * channel * np.log(ratio)).sum())


def test_r_of_d_equals_the_iteration_of_blahut_and_arimoto():
    rng = np.random.default_rng(0)
    for slope in (0.8, 2.0, 4.0):
        for letters in (2, 3, 5):
            p = rng.dirichlet(np.ones(letters))
            D, rate = _blahut_arimoto(p, slope)
            assert rate_distortion(p, D) == pytest.approx(rate, abs=2e-5)


def test_no_reproduction_has_a_rate_below_r_of_d():
    rng = np.random.default_rng(1)
    for _ in range(300):
        whole = rng.integers(0, 5, 200) * rng.integers(0, 2, 200)
        pruned = np.where(rng.random(200) < rng.random(), whole, rng.integers(0, 5, 200))
        found = measure_distortion(whole, pruned)
        assert found["rate"] >= found["R(D)"] - 1e-9
    same = measure_distortion(whole, whole)
    assert same["distortion"] == 0 and same["rate"] == pytest.approx(same["R(D)"]) == entropy(whole)


@pytest.mark.parametrize(("p", "D"), [([0.5, 0.6], 0.1), ([0.5, 0.5], -0.1), ([1.5, -0.5], 0.1)])
def test_sources_that_are_no_distribution_are_refused(p, D):
    with pytest.raises(InputError, match=r"R\(D\) needs"):
        rate_distortion(p, D)


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
