"""Formal contexts: attribute gaps, tolerance, elimination, and the concepts library."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampled import sampled

from secateur.structures.order import (
    Poset,
    attribute_gaps,
    cuts,
    eliminate_attributes,
)

QUIET = settings(derandomize=True, deadline=None, max_examples=60)


@QUIET
@given(st.integers(0, 10**6))
def test_attribute_gap_is_zero_iff_the_extent_is_an_intersection_of_others(seed):
    rng = np.random.default_rng(seed)
    table = rng.random((int(rng.integers(1, 80)), int(rng.integers(1, 9)))) < rng.uniform(0.2, 0.8)
    gaps = attribute_gaps(table)
    for m, gap in enumerate(gaps):
        others = [table[:, k] for k in range(table.shape[1]) if k != m and (table[:, k] >= table[:, m]).all()]
        meet = np.logical_and.reduce(others) if others else np.ones(len(table), bool)
        assert gap == pytest.approx((meet != table[:, m]).mean())


def test_tolerance_makes_nearly_redundant_attributes_reducible():
    rng = np.random.default_rng(0)
    table = rng.random((1000, 3)) < 0.5
    noisy = np.column_stack([table, table[:, 0] & table[:, 1]])
    noisy[rng.choice(1000, 10, replace=False), 3] ^= True
    exact, tolerant = attribute_gaps(noisy), attribute_gaps(noisy, tolerance=0.02)
    assert exact[3] > 0.1 and tolerant[3] <= 0.01 < tolerant[:3].min()
    assert eliminate_attributes(noisy, tolerance=0.02, largest_gap=0.02).sequence[0] == 3


def test_elimination_recounts_after_each_removal():
    column = np.random.default_rng(0).random(50) < 0.5
    twins = np.column_stack([column, column, ~column])
    result = eliminate_attributes(twins, largest_gap=0.0)
    assert result.sequence.tolist() == [1, 0, 2] and result.gaps.tolist() == [0.0]
    assert eliminate_attributes(twins, keep=1).gaps[1] > 0.3
    for bad in (np.full((2, 2), 0.5), np.zeros((0, 2)), np.zeros(3)):
        with pytest.raises(ValueError, match="boolean table"):
            attribute_gaps(bad)
    with pytest.raises(ValueError, match="tolerance"):
        attribute_gaps(twins, tolerance=1.0)


def _context_of(concepts, table):
    objects, attributes = ([f"{kind}{i}" for i in range(table.shape["gm".index(kind)])] for kind in "gm")
    return concepts.Context(objects, attributes, [tuple(map(bool, row)) for row in table])


@pytest.mark.parametrize("block", sampled(range(34), *range(4)))
def test_1020_contexts_equal_the_concepts_library(block):
    concepts = pytest.importorskip("concepts")
    for seed in range(30 * block, 30 * block + 30):
        rng = np.random.default_rng(seed)
        poset = Poset.from_digraph(np.triu(rng.random((8, 8)) < rng.uniform(0.2, 0.6), 1))
        theirs = _context_of(concepts, poset.relation()).lattice
        ours = {frozenset(f"g{i}" for i in cut) for cut in cuts(poset)}
        assert {frozenset(concept.extent) for concept in theirs} == ours
        single = {c.extent for c in theirs if len(c.upper_neighbors) == 1}
        irreducible = {tuple(f"g{i}" for i in poset.down_set(int(m))) for m in poset.meet_irreducibles()}
        assert irreducible == single
        table = rng.random((9, 6)) < rng.uniform(0.3, 0.8)
        whole = _context_of(concepts, table).lattice
        reduced = eliminate_attributes(table, largest_gap=0.0)
        kept = np.sort(reduced.sequence[len(reduced.gaps) :])
        assert len(kept) == sum(len(c.upper_neighbors) == 1 for c in whole)
        if len(kept):
            assert len(_context_of(concepts, table[:, kept]).lattice) == len(whole)
