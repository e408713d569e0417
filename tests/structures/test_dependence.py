"""A basis among rows against exact ranks, and combinations that give the other rows."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.structures.matroid import LinearMatroid, row_basis


@pytest.mark.parametrize("seed", range(60))
def test_the_basis_has_the_exact_rank_and_gives_the_other_rows(seed):
    rng = np.random.default_rng(seed)
    n, d, rank = int(rng.integers(1, 9)), int(rng.integers(1, 6)), int(rng.integers(0, 5))
    rows = (rng.integers(-2, 3, (n, rank)) @ rng.integers(-2, 3, (rank, d))).astype(float)
    rows *= 2.0 ** rng.integers(-200, 200, (n, 1))  # the lengths of rows say nothing
    found = row_basis(rows)
    assert len(found.kept) == LinearMatroid(rows, exact=True).rank()
    assert sorted([*found.kept, *found.removed]) == list(range(n))
    lengths = np.linalg.norm(rows, axis=1)
    left = np.abs(rows[found.removed] - found.coefficients @ rows[found.kept]).max(1, initial=0)
    assert (left <= 1e-13 * lengths[found.removed]).all()
    assert found.deviation < 1e-13


def test_the_tolerance_counts_relative_to_the_length_of_a_row():
    rows = np.array([[1.0, 0.0], [1e-8, 1e-11]])
    assert row_basis(rows, 1e-4).kept.tolist() == [0, 1]
    found = row_basis(rows, 1e-2)
    assert found.kept.tolist() == [0] and found.deviation == pytest.approx(1e-3, rel=1e-3)
    with pytest.raises(ValueError, match="tolerance"):
        row_basis(rows, -1.0)
