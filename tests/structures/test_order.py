"""Posets, completions, irreducibles, laws and contexts against slow truth, known lattices and `concepts`."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampled import sampled
from scipy import sparse

from secateur.structures.order import (
    CompletionTooLarge,
    Poset,
    cuts,
    decompose,
    density_profile,
    modular_violation,
    strongest_edges,
    unroll,
)

QUIET = settings(derandomize=True, deadline=None, max_examples=60)


def digraph(n: int, *edges: tuple[int, int]) -> np.ndarray:
    adjacency = np.zeros((n, n), bool)
    for i, j in edges:
        adjacency[i, j] = True
    return adjacency


def boolean_lattice(n: int) -> np.ndarray:
    sets = np.arange(2**n)
    return (sets[:, None] & sets[None]) == sets[:, None]


def crown(n: int) -> np.ndarray:
    adjacency = np.zeros((2 * n, 2 * n), bool)
    adjacency[:n, n:] = ~np.eye(n, dtype=bool)
    return adjacency


N5 = digraph(5, (0, 1), (1, 2), (2, 4), (0, 3), (3, 4))
M3 = digraph(5, (0, 1), (0, 2), (0, 3), (1, 4), (2, 4), (3, 4))


def reachable(adjacency: np.ndarray) -> np.ndarray:
    """Reflexive-transitive closure by Warshall's loops."""
    r = adjacency | np.eye(len(adjacency), dtype=bool)
    for k in range(len(r)):
        for i in range(len(r)):
            if r[i, k]:
                r[i] |= r[k]
    return r


def brute_order(adjacency: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Element of each vertex, and the order on elements, from the definitions."""
    r = reachable(adjacency)
    first = [min(np.flatnonzero(r[v] & r[:, v])) for v in range(len(r))]
    elements = sorted(set(first))
    return [elements.index(f) for f in first], r[np.ix_(elements, elements)]


def brute_completion(leq: np.ndarray) -> set[frozenset[int]]:
    """All intersections of principal down-sets, the empty one included."""
    n = len(leq)
    result = {frozenset(range(n))}
    for x in range(n):
        result |= {cut & frozenset(np.flatnonzero(leq[:, x]).tolist()) for cut in result}
    return result


def brute_irreducibles(leq: np.ndarray, meet: bool) -> list[int]:
    """Elements whose cut has exactly one neighbour above (below) it in the whole completion."""
    lattice = brute_completion(leq)
    result = []
    for x in range(len(leq)):
        cut = frozenset(np.flatnonzero(leq[:, x]).tolist())
        beyond = [c for c in lattice if (c > cut if meet else c < cut)]
        nearest = [c for c in beyond if not any((d < c if meet else d > c) for d in beyond)]
        if len(nearest) == 1:
            result.append(x)
    return result


def random_digraph(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 10))
    a = rng.random((n, n)) < rng.uniform(0.05, 0.5)
    if seed % 3:
        a = np.triu(a, 1)
        shuffle = rng.permutation(n)
        a = a[np.ix_(shuffle, shuffle)]
    return a


@pytest.mark.parametrize("block", sampled(range(30), *range(10)))
def test_1500_random_digraphs_equal_brute_force(block):
    for seed in range(50 * block, 50 * block + 50):
        adjacency = random_digraph(seed)
        component, leq = brute_order(adjacency)
        poset = Poset.from_digraph(adjacency)
        assert poset.component.tolist() == component
        assert np.array_equal(poset.relation(), leq)
        assert poset.meet_irreducibles().tolist() == brute_irreducibles(leq, meet=True)
        assert poset.join_irreducibles().tolist() == brute_irreducibles(leq, meet=False)
        assert {frozenset(c.tolist()) for c in cuts(poset)} == brute_completion(leq)
        assert len(poset.completion()) == len(brute_completion(leq))


@pytest.mark.parametrize("seed", range(0, 40))
def test_covers_heights_bounds_and_dual_equal_their_definitions(seed):
    poset = Poset.from_digraph(random_digraph(seed))
    leq = poset.relation()
    n = len(poset)
    reduction = nx.transitive_reduction(nx.DiGraph(np.argwhere(leq & ~np.eye(n, dtype=bool)).tolist()))
    covers = {(i, int(j)) for i in range(n) for j in poset.upper_covers(i)}
    assert covers == set(reduction.edges)
    assert covers == {(int(i), j) for j in range(n) for i in poset.dual.upper_covers(j)}
    assert [poset.rank[i] < poset.rank[j] for i, j in covers].count(False) == 0
    graph = nx.DiGraph(list(covers))
    graph.add_nodes_from(range(n))
    assert poset.height == nx.dag_longest_path_length(graph)
    meets, joins = poset.meet_table(), poset.join_table()
    for a in range(n):
        assert poset.up_set(a).tolist() == np.flatnonzero(leq[a]).tolist()
        assert poset.down_set(a).tolist() == np.flatnonzero(leq[:, a]).tolist()
        for b in range(n):
            assert poset.less_equal(a, b) == leq[a, b]
            lower = [x for x in range(n) if leq[x, a] and leq[x, b]]
            upper = [x for x in range(n) if leq[a, x] and leq[b, x]]
            meet = [x for x in lower if all(leq[y, x] for y in lower)]
            join = [x for x in upper if all(leq[x, y] for y in upper)]
            assert poset.meet(a, b) == (meet[0] if meet else None)
            assert poset.join(a, b) == (join[0] if join else None)
            assert meets[a, b] == (meet[0] if meet else -1)
            assert joins[a, b] == (join[0] if join else -1)


@QUIET
@given(st.integers(0, 10**6))
def test_sparse_and_dense_wide_digraphs_agree_and_cross_the_word_boundary(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(60, 140))
    a = rng.random((n, n)) < rng.uniform(0.002, 0.02)
    dense, thin = Poset.from_digraph(a), Poset.from_digraph(sparse.coo_array(a.astype(float)))
    _, leq = brute_order(a)
    irreducible = set(dense.meet_irreducibles().tolist())
    assert np.array_equal(dense.relation(), leq)
    assert np.array_equal(thin.up, dense.up) and np.array_equal(thin.down, dense.down)
    assert np.array_equal(dense.relation(), dense.dual.relation().T)
    down = [set(np.flatnonzero(leq[:, x])) for x in range(len(leq))]
    for x in range(len(leq)):
        above = [down[y] for y in np.flatnonzero(leq[x]) if y != x]
        below_all = set.intersection(*above) if above else set(range(len(leq)))
        assert (x in irreducible) == (below_all != down[x])


def test_toy_lattice_of_figure_1_has_a_and_b_irreducible_and_c_only_by_the_literal_definition():
    toy = Poset.from_digraph(digraph(3, (0, 2), (1, 2)))
    assert toy.meet_irreducibles().tolist() == [0, 1]
    assert toy.meet_irreducibles(include_top=True).tolist() == [0, 1, 2]
    assert toy.join(0, 1) == 2 and toy.meet(0, 1) is None
    assert len(toy.completion()) == 4


def is_lattice(poset):
    return bool((poset.meet_table() >= 0).all() and (poset.join_table() >= 0).all())


def is_distributive(lattice):
    meets, joins = lattice.meet_table(), lattice.join_table()
    every = range(len(lattice))
    return all(
        meets[a, joins[b, c]] == joins[meets[a, b], meets[a, c]] for a in every for b in every for c in every
    )


def test_theorem_1_is_false_n5_is_its_own_completion_and_not_modular():
    n5 = Poset.from_digraph(N5)
    assert is_lattice(n5) and len(n5.completion()) == 5
    v = modular_violation(n5)
    assert v is not None and n5.less_equal(v.a, v.c) and not n5.less_equal(v.right, v.left)
    assert n5.join(v.a, n5.meet(v.b, v.c)) == v.left
    assert n5.meet(n5.join(v.a, v.b), v.c) == v.right
    assert not is_distributive(n5)


def test_m3_is_modular_and_not_distributive_and_boolean_lattices_are_both():
    m3 = Poset.from_digraph(M3)
    assert modular_violation(m3) is None
    assert not is_distributive(m3)
    b4 = Poset.from_digraph(boolean_lattice(4))
    assert modular_violation(b4) is None and is_distributive(b4)


def test_most_completions_of_random_dependency_graphs_are_not_modular():
    rng = np.random.default_rng(0)
    modular = 0
    for _ in range(100):
        dag = np.triu(rng.random((7, 7)) < 0.5, 1)
        modular += modular_violation(Poset.from_digraph(dag).completion().lattice) is None
    assert 0 < modular < 15


@pytest.mark.parametrize("seed", range(20))
def test_modularity_by_triples_equals_the_search_for_n5(seed):
    dag = np.triu(np.random.default_rng(seed).random((6, 6)) < 0.4, 1)
    lattice = Poset.from_digraph(dag).completion().lattice
    leq, meets, joins = lattice.relation(), lattice.meet_table(), lattice.join_table()
    pentagon = any(
        leq[a, c] and a != c and not leq[b, a] and meets[a, b] == meets[c, b] and joins[a, b] == joins[c, b]
        for a in range(len(leq))
        for b in range(len(leq))
        for c in range(len(leq))
    )
    assert (modular_violation(lattice) is not None) == pentagon


def test_laws_refuse_a_poset_that_is_no_lattice():
    with pytest.raises(ValueError, match="elements 0 and 1 have no meet"):
        modular_violation(Poset.from_digraph(digraph(2)))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_moebius_of_boolean_lattices_is_the_sign_of_the_difference(n):
    mu = Poset.from_digraph(boolean_lattice(n)).moebius()
    assert mu[0, -1] == (-1) ** n
    sizes = np.array([bin(s).count("1") for s in range(2**n)])
    signs = 1 - 2 * ((sizes[None] - sizes[:, None]) % 2)
    assert np.array_equal(mu, np.where(boolean_lattice(n), signs, 0))


@pytest.mark.parametrize("seed", range(20))
def test_moebius_inverts_the_order_and_philip_hall_counts_chains(seed):
    poset = Poset.from_digraph(random_digraph(seed))
    leq = poset.relation().astype(np.int64)
    assert np.array_equal(poset.moebius() @ leq, np.eye(len(poset), dtype=np.int64))
    n = len(poset)
    bounded = np.zeros((n + 1, n + 1), np.int64)
    bounded[:n, :n] = leq
    bounded[n] = 1
    strict = bounded - np.eye(n + 1, dtype=np.int64)
    chains, total = np.eye(n + 1, dtype=np.int64), np.zeros_like(bounded)
    for k in range(n + 2):
        total += (-1) ** k * chains
        chains = chains @ strict
    if poset.least() is None:
        assert poset.moebius_from_bottom().tolist() == total[n, :n].tolist()
    else:
        assert poset.moebius_from_bottom().tolist() == poset.moebius()[poset.least()].tolist()


def test_moebius_and_the_papers_mu_are_two_things():
    strength = digraph(3, (0, 2), (1, 2)) * 2.0
    assert (1 / strength.sum(0)[2:]).tolist() == [0.25]  # 1 / in-strength
    assert Poset.from_digraph(strength).moebius_from_bottom().tolist() == [-1, -1, 1]


def test_moebius_values_beyond_64_bits_are_refused():
    levels, width = 22, 10  # mu from the bottom of an ordinal sum of antichains is +-9^k
    a = np.zeros((levels * width,) * 2, bool)
    for k in range(levels - 1):
        a[k * width : (k + 1) * width, (k + 1) * width : (k + 2) * width] = True
    with pytest.raises(OverflowError, match="64-bit"):
        Poset.from_digraph(a).moebius_from_bottom()
    few = Poset.from_digraph(a[:50, :50]).moebius_from_bottom()
    assert few[-1] == (-1) ** 5 * (width - 1) ** 4


def test_crown_completes_to_a_boolean_lattice_and_irreducibles_do_not_need_it():
    s12 = Poset.from_digraph(crown(12))
    assert len(s12.completion()) == 4096
    assert s12.meet_irreducibles().tolist() == list(range(12, 24))
    assert s12.join_irreducibles().tolist() == list(range(12))
    with pytest.raises(CompletionTooLarge, match="at least 1001 elements") as refused:
        s12.completion(limit=1000)
    assert refused.value.lower_bound == 1001
    huge = Poset.from_digraph(crown(200))
    assert len(huge.meet_irreducibles()) == 200
    assert [len(c) for _, c in zip(range(3), cuts(huge), strict=False)] == [0, 1, 1]


@pytest.mark.parametrize("seed", range(15))
def test_completion_is_a_lattice_that_embeds_the_poset_and_keeps_its_irreducibles(seed):
    poset = Poset.from_digraph(random_digraph(seed))
    completion = poset.completion()
    lattice, where = completion.lattice, completion.embedding
    assert is_lattice(lattice)
    assert np.array_equal(lattice.relation()[np.ix_(where, where)], poset.relation())
    assert sorted(where[poset.meet_irreducibles()]) == lattice.meet_irreducibles().tolist()
    assert completion.cut(int(where[0])).tolist() == poset.down_set(0).tolist()
    if len(poset) > 1 and len(lattice) == len(poset):
        assert is_lattice(poset)


@pytest.mark.parametrize("seed", range(25))
def test_independent_parts_in_threads_equal_the_whole(seed):
    rng = np.random.default_rng(seed)
    blocks = [np.triu(rng.random((k, k)) < 0.5, 1) for k in rng.integers(1, 5, 3)]
    shuffle = rng.permutation(sum(map(len, blocks)))
    whole = sparse.block_diag(blocks).toarray()[np.ix_(shuffle, shuffle)]
    parts, poset = decompose(whole, jobs=2), Poset.from_digraph(whole)
    assert len(parts) >= 3 and sorted(np.concatenate(parts.vertices)) == list(range(len(whole)))
    assert parts.completion_size() == len(poset.completion())
    irreducible = np.flatnonzero(np.isin(poset.component, poset.meet_irreducibles()))
    assert parts.meet_irreducible_vertices().tolist() == irreducible.tolist()
    with pytest.raises(CompletionTooLarge):
        parts.completion_size(limit=parts.completion_size() - 1)


@QUIET
@given(st.integers(0, 10**6))
def test_unrolled_source_is_irreducible_iff_its_successors_are_at_most_one_or_inside_anothers(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 9))
    a = rng.random((n, n)) < rng.uniform(0.1, 0.6)
    poset = Poset.from_digraph(unroll(a))
    successors = [set(np.flatnonzero(row)) for row in a]
    expected = {
        i
        for i in range(n)
        if len(successors[i]) <= 1 or any(successors[i] <= successors[j] for j in range(n) if j != i)
    }
    assert len(poset) == 2 * n
    assert set(poset.meet_irreducibles()[poset.meet_irreducibles() < n]) == expected


def test_unrolled_longer_counts_walks():
    a = digraph(3, (0, 1), (1, 2), (2, 0))
    poset = Poset.from_digraph(unroll(a, steps=4))
    assert poset.up_set(0).tolist() == [0, 4, 8, 9] and poset.height == 3


def test_operator_that_restricts_keeps_meets_and_loses_joins_where_distributivity_fails():
    """Definition III.4 of arXiv 2502.16525 assumes operators that keep meets and joins; meet may not."""
    for lattice, keeps in ((Poset.from_digraph(M3), False), (Poset.from_digraph(boolean_lattice(3)), True)):
        elements = range(len(lattice))
        meet, join = lattice.meet, lattice.join
        triples = [(x, a, b) for x in elements for a in elements for b in elements]
        assert all(meet(x, meet(a, b)) == meet(meet(x, a), meet(x, b)) for x, a, b in triples)
        assert all(meet(x, join(a, b)) == join(meet(x, a), meet(x, b)) for x, a, b in triples) == keeps


def test_the_hasse_diagram_shows_covers_only():
    chain = Poset.from_digraph(digraph(3, (0, 1), (1, 2), (0, 2)))
    dot = chain.to_dot(['a"', "b", "c"])
    assert '0 [label="a\\""' in dot and "0 -> 1;" in dot and "0 -> 2;" not in dot
    with pytest.raises(ValueError, match="3 elements need as many labels"):
        chain.to_dot(["a"])


@pytest.mark.parametrize(
    "bad, message",
    [
        (np.zeros((2, 3)), r"square.*\(2, 3\)"),
        (np.zeros((0, 0)), "at least one vertex"),
        (np.full((2, 2), np.nan), "NaN"),
        (sparse.csr_array(np.full((2, 2), np.nan)), "NaN"),
    ],
)
def test_bad_adjacency_is_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        Poset.from_digraph(bad)


def test_bad_strengths_and_densities_are_refused():
    s = np.arange(9.0).reshape(3, 3)
    with pytest.raises(ValueError, match="must not be negative"):
        strongest_edges(s - 4, 0.5)
    with pytest.raises(ValueError, match="NaN"):
        strongest_edges(np.full((2, 2), np.nan), 0.5)
    with pytest.raises(ValueError, match="leaves no edge among 3 vertices"):
        strongest_edges(s, 0.01)
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        strongest_edges(s, 1.5)
    with pytest.raises(ValueError, match="leaves an edge"):
        density_profile(s, [0.01])
    with pytest.raises(ValueError, match=r"elements are 0\.\.2"):
        Poset.from_digraph(digraph(3)).up_set(3)
    with pytest.raises(ValueError, match="limit"):
        Poset.from_digraph(digraph(3)).completion(limit=0)


def test_strongest_edges_counts_exactly_without_diagonal_and_with_stable_ties():
    s = np.ones((4, 4))
    a = strongest_edges(s, 0.5)
    assert a.sum() == 6 and not a.diagonal().any()
    assert np.argwhere(a).tolist() == [[0, 1], [0, 2], [0, 3], [1, 0], [1, 2], [1, 3]]
    s[0, 1:] = [5, 6, 7]
    assert np.argwhere(strongest_edges(s, 0.17)).tolist() == [[0, 2], [0, 3]]


def test_profile_shows_one_component_swallowing_dense_random_graphs():
    s = np.random.default_rng(0).random((64, 64))
    thin, thick = density_profile(s, [0.01, 0.3])
    assert thin.informative and thin.largest < 8 and thin.elements > 55
    assert not thick.informative and thick.largest == 64 and thick.irreducible == 0
    assert thick.as_dict()["edges"] == round(0.3 * 64 * 63)
