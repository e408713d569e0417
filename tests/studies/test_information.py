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
    quantise,
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
