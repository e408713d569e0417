"""Positroids, total positivity and regions of arrangements against their definitions."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from sampled import sampled

from secateur.structures.matroid import (
    IntervalMatroid,
    LinearMatroid,
    TooMany,
    cauchy,
    cell_dimension,
    count_regions,
    is_positroid,
    is_totally_positive,
    is_uniform,
    maximal_minor_signs,
    necklace_bases,
    tp_exponential,
)


def small(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(2, 7)), int(rng.integers(1, 4))
    return rng.integers(-2, 3, (n, d)).astype(float)


BLOCKS = sampled(range(20), 0, 1)


@pytest.mark.parametrize("block", BLOCKS)
def test_1000_sequences_equal_the_definitions(block: int) -> None:
    for seed in range(50 * block, 50 * (block + 1)):
        rows = small(seed)
        linear, interval = LinearMatroid(rows, exact=True), IntervalMatroid(rows)
        bases = set(linear.bases())
        k, n = linear.rank(), len(rows)
        assert is_uniform(linear) == (len(bases) == len(list(combinations(range(n), k))))
        envelope = set(necklace_bases(interval.grassmann_necklace))
        assert bases <= envelope
        assert is_positroid(linear) == (bases == envelope)
        # Nothing that the envelope has beyond the matroid can be missing from a necklace: it is the largest.
        same = [tuple(min(envelope, key=lambda b, i=i: sorted((e - i) % n for e in b))) for i in range(n)]
        assert [frozenset(s) for s in same] == list(interval.grassmann_necklace)


def test_totally_non_negative_points_have_positroids_and_others_may_not() -> None:
    """All maximal minors of [1 | x | x^2] with rising x are positive; crossing parallels are no positroid."""
    x = np.array([0.0, 1.0, 2.0, 4.0, 7.0])
    rows = np.stack([x**0, x, x**2], 1)
    assert maximal_minor_signs(rows).negative == maximal_minor_signs(rows).zero == 0
    assert is_positroid(LinearMatroid(rows, exact=True))
    assert is_uniform(LinearMatroid(rows, exact=True))
    assert cell_dimension(IntervalMatroid(rows)) == 3 * 2
    assert not is_positroid(LinearMatroid([[1, 0], [0, 1], [1, 0], [0, 1]], exact=True))


def test_the_dimension_of_a_cell_is_the_rank_of_its_tangent_directions() -> None:
    """For rank 2: vectors in classes of neighbours; each class has one direction, each vector a length."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        classes = int(rng.integers(2, 5))
        sizes = rng.integers(1, 4, classes)
        angles = np.repeat(np.arange(classes), sizes)
        lengths = rng.integers(1, 9, len(angles))
        rows = np.stack([lengths, lengths * angles], 1).astype(float)
        # Lengths and directions, less the group GL(2) that acts on the columns.
        free = len(rows) + classes - 4 + (1 if classes == 1 else 0)
        assert cell_dimension(IntervalMatroid(rows)) == free


def test_initial_minors_decide_total_positivity() -> None:
    rng, seen = np.random.default_rng(0), set()
    for _ in range(300):
        n, d = rng.integers(1, 4, 2)
        a, b = np.sort(rng.normal(size=n)), np.sort(rng.normal(size=d))
        matrix = np.round(np.exp(np.outer(a, b)) + rng.normal(size=(n, d)) * rng.choice([0, 0.02, 0.3]), 3)
        every = all(
            np.linalg.det(matrix[np.ix_(r, c)]) > 1e-12
            for k in range(1, min(n, d) + 1)
            for r, c in product(combinations(range(n), k), combinations(range(d), k))
        )
        close = any(
            abs(np.linalg.det(matrix[np.ix_(r, c)])) <= 1e-12
            for k in range(1, min(n, d) + 1)
            for r, c in product(combinations(range(n), k), combinations(range(d), k))
        )
        if not close:
            assert is_totally_positive(matrix) == every
            seen.add(every)
    assert seen == {True, False}


@pytest.mark.parametrize("seed", range(40))
def test_regions_are_the_sign_vectors_that_occur(seed: int) -> None:
    """In the plane: signs at the midpoints of a fine set of points in all regions."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 6))
    rows = rng.integers(-2, 3, (n, 3)).astype(float)
    lines = rows[(rows[:, :2] != 0).any(1)]
    corners = [
        np.linalg.solve(lines[[i, j], :2], -lines[[i, j], 2])
        for i, j in combinations(range(len(lines)), 2)
        if abs(np.linalg.det(lines[[i, j], :2])) > 1e-9
    ]
    feet = [-row[2] * row[:2] / (row[:2] @ row[:2]) for row in lines]
    centres = np.array([*corners, *feet, np.zeros(2)])
    angles = np.linspace(0, 2 * np.pi, 721)[:-1] + 1e-3
    around = np.stack([np.cos(angles), np.sin(angles)], 1)
    x = np.concatenate([centres[:, None] + r * around for r in (1e-3, 0.05, 1e3)]).reshape(-1, 2)
    signs = np.sign(x @ lines[:, :2].T + lines[:, 2])
    assert count_regions(rows) == len(np.unique(signs, axis=0)) if len(lines) else count_regions(rows) == 1


def test_general_position_has_the_most_regions() -> None:
    rows = np.random.default_rng(1).normal(size=(7, 4))
    assert count_regions(rows) == 1 + 7 + 21 + 35
    parallel = np.vstack([rows, 2 * rows[:1] + [0, 0, 0, 1.0]])
    assert count_regions(parallel) < 1 + 8 + 28 + 56
    assert count_regions(np.vstack([rows, 4 * rows])) == count_regions(rows)


def test_kernels_are_totally_positive_and_their_rows_with_a_bias_are_not() -> None:
    """W of an exponential or Cauchy kernel is totally positive; [W | b] has minors of both signs."""
    import torch

    a, b = torch.arange(1.0, 7.0).double() / 4, torch.tensor([0.3, 0.8]).double()
    bias = np.random.default_rng(0).normal(size=(6, 1))
    for weight in (tp_exponential(a, b).numpy(), cauchy(a, b.flip(0)).numpy()[::-1][:, ::-1]):
        falling = weight if is_totally_positive(weight) else weight[::-1]
        assert is_totally_positive(falling)
        signs = maximal_minor_signs(np.hstack([weight, bias]))
        assert signs.positive and signs.negative


def test_what_is_too_large_is_refused() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 12))
    with pytest.raises(TooMany, match="sets of 12 of 40"):
        is_uniform(LinearMatroid(rows))
    wide = np.random.default_rng(0).normal(size=(32, 65))  # 2^32 regions: fewer hyperplanes than dimensions
    for arrangement, dimensions in ((rows, 11), (wide, 64)):
        with pytest.raises(TooMany, match=f"hyperplanes in {dimensions} dimensions"):
            count_regions(arrangement)
