"""Labels against a slow truth: every assignment of dead atoms, checked by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.tracing.labels import LabelAlgebra, concatenate
from secateur.tracing.propagate import Propagation, TensorAxes, factor_groups


def alive(algebra: LabelAlgebra, label, dead: set[int], n: int) -> tuple[bool, ...]:
    """Which indices of an axis are alive when these free roots are dead."""
    normal = algebra.normal(label)
    if normal is None:
        return (True,) * n
    return tuple(not any(int(a) in dead for a in row) for row in normal)


def roots(algebra: LabelAlgebra, *labels) -> list[int]:
    found: set[int] = set()
    for label in labels:
        normal = algebra.normal(label)
        if normal is not None:
            found |= set(normal.ravel().tolist()) - {0}
    return sorted(found)


def assignments(algebra: LabelAlgebra, *labels):
    free = roots(algebra, *labels)
    assert len(free) <= 12
    for k in range(len(free) + 1):
        yield from (set(c) for c in itertools.combinations(free, k))


@given(st.integers(1, 4), st.integers(1, 4))
def test_split_then_merge_is_the_same_axis(outer: int, inner: int) -> None:
    algebra = LabelAlgebra()
    label = algebra.label(outer * inner)
    e, f = algebra.split(label, outer, inner)
    merged = algebra.merge(e, outer, f, inner)
    n = outer * inner
    for dead in assignments(algebra, label, merged):
        assert alive(algebra, label, dead, n) == alive(algebra, merged, dead, n)


@given(st.integers(1, 3), st.integers(1, 4))
def test_a_feature_lives_iff_its_head_and_its_position_live(outer: int, inner: int) -> None:
    algebra = LabelAlgebra()
    label = algebra.label(outer * inner)
    e, f = algebra.split(label, outer, inner)
    for dead in assignments(algebra, label, e, f):
        heads, positions = alive(algebra, e, dead, outer), alive(algebra, f, dead, inner)
        expected = tuple(h and p for h in heads for p in positions)
        if label is not None:
            assert alive(algebra, label, dead, outer * inner) == expected


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=12))
def test_unions_are_an_equivalence(pairs: list[tuple[int, int]]) -> None:
    algebra = LabelAlgebra()
    a = algebra.new(8)
    truth = list(range(8))
    for i, j in pairs:
        algebra.unite(a[[i]], a[[j]])
        truth = [truth[j] if t == truth[i] else t for t in truth]
    found = algebra.find(a)
    for i, j in itertools.combinations(range(8), 2):
        assert (found[i] == found[j]) == (truth[i] == truth[j])


def test_freezing_a_conjunction_freezes_both_parts_and_says_why() -> None:
    algebra = LabelAlgebra()
    label = algebra.label(6)
    heads, inner = algebra.split(label, 2, 3)
    algebra.freeze(label[:1], "an output")
    assert "an output" in algebra.reason(heads) and "an output" in algebra.reason(inner)
    assert algebra.normal(label[:1]) is None


def test_two_views_of_one_axis_tie_what_both_need() -> None:
    """12 features seen as 3 x 4 and as 4 x 3: whatever is alive must be alive in both readings."""
    algebra = LabelAlgebra()
    label = algebra.label(12)
    a, b = algebra.split(label, 3, 4)
    c, d = algebra.split(label, 4, 3)
    for dead in assignments(algebra, label, a, b, c, d):
        x = [p and q for p in alive(algebra, a, dead, 3) for q in alive(algebra, b, dead, 4)]
        y = [p and q for p in alive(algebra, c, dead, 4) for q in alive(algebra, d, dead, 3)]
        assert list(alive(algebra, label, dead, 12)) == x == y


def test_an_atom_equal_to_its_own_conjunction_frees_nothing() -> None:
    """U = u and w holds for every u where w is TRUE."""
    algebra = LabelAlgebra()
    u, w = algebra.new(3), algebra.new(3)
    algebra.define(u, u, w)
    assert algebra.normal(w[:, None]) is None
    assert algebra.normal(u[:, None]) is not None


def test_equating_with_an_axis_that_stays_freezes() -> None:
    algebra = LabelAlgebra()
    label = algebra.label(4)
    algebra.why = "the reason"
    algebra.equate(label, None)
    assert algebra.normal(label) is None and algebra.reason(label) == ["the reason"]


@given(st.integers(2, 3), st.integers(2, 3), st.booleans())
def test_equated_axes_lose_the_same_indices(outer: int, inner: int, split_first: bool) -> None:
    algebra = LabelAlgebra()
    n = outer * inner
    a, b = algebra.label(n), algebra.label(n)
    if split_first:
        algebra.split(a, outer, inner)
    algebra.equate(a, b)
    algebra.split(b, outer, inner)
    for dead in assignments(algebra, a, b):
        assert alive(algebra, a, dead, n) == alive(algebra, b, dead, n)


def test_cyclic_definitions_freeze_instead_of_looping() -> None:
    algebra = LabelAlgebra()
    u, v, w = algebra.new(1), algebra.new(1), algebra.new(1)
    algebra.define(u, v, w)
    algebra.define(v, u, w)
    assert algebra.normal(u[:, None]) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [((2, 12), (2, 3, 4)), ((2, 1, 12), (24,)), ((4, 6), (6, 4)), ((2, 3), (2, 1, 3, 1)), ((5,), (5,))],
)
def test_factor_groups_cover_both_shapes_with_equal_products(old, new) -> None:
    groups = factor_groups(old, new)
    assert [i for left, _ in groups for i in left] == list(range(len(old)))
    assert [j for _, right in groups for j in right] == list(range(len(new)))
    for left, right in groups:
        assert np.prod([old[i] for i in left]) == np.prod([new[j] for j in right])


@given(st.permutations([2, 3, 4]), st.sampled_from([(6, 4), (24,), (2, 12), (8, 3), (2, 2, 6), (3, 2, 4)]))
def test_reshape_moves_labels_as_it_moves_entries(old, new) -> None:
    """A tensor of alive flags, reshaped, is the flags of the reshaped labels."""
    propagation = Propagation()
    labels = tuple(propagation.algebra.label(n) for n in old)
    state = TensorAxes(tuple(old), labels, (True,) * 3)
    result = propagation.reshape(state, new)
    rng = np.random.default_rng(0)
    for _ in range(20):
        dead = rng.random(propagation.algebra.size) < 0.3
        dead[0] = False
        before = _flags(propagation, state.labels, old, dead).reshape(new)
        assert (before == _flags(propagation, result.labels, new, dead)).all()


def _flags(propagation: Propagation, labels, shape, dead) -> np.ndarray:
    flags = np.ones(shape, dtype=bool)
    for axis, label in enumerate(labels):
        normal = propagation.algebra.normal(label)
        if normal is not None:
            flags &= (~dead[normal].any(1)).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return flags


def test_concatenation_keeps_what_has_no_label_alive() -> None:
    algebra = LabelAlgebra()
    label = algebra.label(3)
    joined = concatenate([None, label, None], [2, 3, 1])
    assert alive(algebra, joined, set(roots(algebra, label)), 6) == (True, True, False, False, False, True)
