"""Statements of arXiv 2502.16525 on lattices that do not hold: a counterexample each."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.structures.order import Poset, modular_violation


def lattices(count: int, seed: int = 0) -> list[Poset]:
    """Return completions of random acyclic digraphs."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        n = int(rng.integers(3, 7))
        dag = np.triu(rng.random((n, n)) < rng.uniform(0.2, 0.7), 1)
        found.append(Poset.from_digraph(dag).completion().lattice)
    return found


@pytest.mark.parametrize("n", [2, 5, 40])
def test_theorems_1_and_3_are_vacuous_for_fully_connected_networks(n: int) -> None:
    """All units reach one another: by Definition III.1 one element, and none is meet-irreducible, not n."""
    whole = Poset.from_digraph(np.ones((n, n)))
    assert len(whole) == len(whole.completion()) == 1
    assert modular_violation(whole) is None
    assert len(whole.meet_irreducibles()) == 0


def test_theorem_2_is_false_removing_a_reducible_element_never_leaves_a_sublattice() -> None:
    """An element x = a ^ b that is removed takes the meet of a and b away, both of which stay."""
    removed = 0
    for lattice in lattices(250):
        meets = lattice.meet_table()
        reducible = np.setdiff1d(np.arange(len(lattice)), lattice.meet_irreducibles(include_top=True))
        for x in reducible:
            a, b = np.nonzero(meets == x)
            pairs = (a != x) & (b != x)
            removed += 1
            assert pairs.any()
    assert removed > 100


def test_lemma_1_is_false_a_bottleneck_may_be_reducible() -> None:
    """In a -> v -> c, d everything passes through v = c ^ d; c and d, the ends, are irreducible."""
    a, v, c, d = range(4)
    edges = np.zeros((4, 4), bool)
    edges[[a, v, v], [v, c, d]] = True
    poset = Poset.from_digraph(edges)
    assert poset.meet(c, d) == v
    assert {v} & set(poset.meet_irreducibles().tolist()) == set()
    assert {c, d} <= set(poset.meet_irreducibles().tolist())
    without = edges.copy()
    without[v] = without[:, v] = False
    assert not without.any()


def test_theorem_4_is_false_reducible_elements_of_high_mu_keep_their_connections() -> None:
    """|M| = 0 for a fully connected network, so O(|M|^2) is 0; where mu >= tau all n^2 connections stay."""
    n, weight, tau = 6, 0.1, 1.0
    W = np.full((n, n), weight)
    poset = Poset.from_digraph(W)
    mu = 1 / W.sum(0)
    pruned = (mu < tau) & ~np.isin(poset.component, poset.meet_irreducibles())
    assert len(poset.meet_irreducibles()) == 0
    assert np.count_nonzero(W[~pruned][:, ~pruned]) == n**2


def test_irreducible_elements_alone_do_not_generate_the_lattice() -> None:
    """The completion of M alone is often smaller than L; that of M and the join-irreducibles is L."""
    smaller = 0
    for lattice in lattices(60, seed=1):
        relation = lattice.relation()
        meet, join = lattice.meet_irreducibles(), lattice.join_irreducibles()
        both = np.union1d(meet, join)
        if len(meet):
            smaller += len(Poset.from_digraph(relation[np.ix_(meet, meet)]).completion()) < len(lattice)
            assert len(Poset.from_digraph(relation[np.ix_(both, both)]).completion()) == len(lattice)
    assert smaller > 10
