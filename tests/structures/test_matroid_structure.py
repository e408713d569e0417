"""Linear and interval matroids against brute force over the rationals, and the axioms."""

from __future__ import annotations

from fractions import Fraction
from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sampled import sampled

from secateur.structures.matroid import (
    FiniteMatroid,
    IntervalMatroid,
    LinearMatroid,
    parallel_rows,
    window_ranks,
)
from secateur.structures.matroid.modular import PRIMES, rank_mod, residues

SMALL = settings(max_examples=60, deadline=None, derandomize=True)


def true_rank(rows: np.ndarray) -> int:
    """Eliminate over the rationals."""
    left = [[Fraction(float(x)) for x in row] for row in rows]
    rank = 0
    for c in range(rows.shape[1]):
        lead = next((i for i in range(rank, len(left)) if left[i][c]), None)
        if lead is None:
            continue
        left[rank], left[lead] = left[lead], left[rank]
        for i in range(rank + 1, len(left)):
            factor = left[i][c] / left[rank][c]
            left[i] = [x - factor * y for x, y in zip(left[i], left[rank], strict=True)]
        rank += 1
    return rank


@st.composite
def matrices(draw: st.DrawFn, rows: int = 8, columns: int = 4) -> np.ndarray:
    """Small matrices rich in loops, parallel rows, coloops, and other coincidences."""
    n, d = draw(st.integers(1, rows)), draw(st.integers(1, columns))
    base = draw(arrays(np.float64, (n, d), elements=st.integers(-1, 1)))
    scale = draw(arrays(np.float64, (n, 1), elements=st.sampled_from([1.0, -2.0, 0.375, 3.0])))
    return base * scale


def subsets(n: int) -> chain:
    return chain.from_iterable(combinations(range(n), size) for size in range(n + 1))


class ByTable(FiniteMatroid):
    """Ranks looked up: the slow truth in the shape of a matroid."""

    def __init__(self, rows: np.ndarray) -> None:
        self.elements = tuple(range(len(rows)))
        self.table = {s: true_rank(rows[list(s)]) if s else 0 for s in subsets(len(rows))}

    def _rank(self, subset: tuple[int, ...]) -> int:
        return self.table[subset]


def test_every_interval_of_a_thousand_small_cases_has_its_true_rank():
    generator = np.random.default_rng(7)
    wrong, cases = 0, 1000
    for case in range(cases):
        n, d = generator.integers(1, 8), generator.integers(1, 5)
        n = d if case % 5 == 0 else n
        rows = generator.integers(-1, 2, (n, d)) * generator.choice([0.0, 0.5, 1.0, -3.0], (n, 1))
        matroid = IntervalMatroid(rows)
        for start in range(n):
            for size in range(1, n + 1):
                around = [(start + t) % n for t in range(size)]
                wrong += matroid.interval_rank(start, around[-1]) != true_rank(rows[around])
    assert wrong == 0


@SMALL
@given(matrices())
def test_windows_agree_with_intervals_exactly_and_numerically(rows):
    matroid = IntervalMatroid(rows)
    n = len(rows)
    for size in range(1, n + 1):
        direct = [matroid.interval_rank(i, (i + size - 1) % n) for i in range(n)]
        assert matroid.window_ranks(size, cyclic=True).tolist() == direct
        assert matroid.window_ranks(size).tolist() == direct[: n - size + 1]
        assert window_ranks(rows, size, cyclic=True).ranks.tolist() == direct


@SMALL
@given(matrices())
def test_the_affine_permutation_is_one_and_the_necklace_holds_the_first_bases(rows):
    matroid, n = IntervalMatroid(rows), len(rows)
    f = matroid.bounded_affine_permutation
    assert sorted(f % n) == list(range(n))
    assert ((f >= np.arange(n)) & (f <= np.arange(n) + n)).all()
    linear = LinearMatroid(rows, exact=True)
    assert matroid.rank == linear.rank()
    assert matroid.decorated_permutation.loops == linear.loops()
    assert matroid.decorated_permutation.coloops == linear.coloops()
    for i, basis in enumerate(matroid.grassmann_necklace):
        assert tuple(sorted(basis)) == linear.basis([-((e - i) % n) for e in range(n)])


@SMALL
@given(matrices(), st.booleans())
def test_ranks_of_all_subsets(rows, exact):
    matroid = LinearMatroid(rows, exact=exact)
    truth = ByTable(rows)
    for subset in subsets(len(rows)):
        assert matroid.rank(subset) == truth.table[subset]


@pytest.mark.parametrize("block", sampled(range(20), 0))
def test_1000_linear_matroids_equal_brute_force(block):
    """Ranks of all subsets, bases, circuits, loops, coloops and closures, exactly and in float64."""
    for seed in range(50 * block, 50 * (block + 1)):
        generator = np.random.default_rng(seed)
        n, d = generator.integers(1, 7), generator.integers(1, 5)
        rows = generator.integers(-2, 3, (n, d)) * generator.choice([0.0, 0.5, 1.0, -3.0], (n, 1))
        truth = ByTable(rows)
        for matroid in (LinearMatroid(rows, exact=True), LinearMatroid(rows)):
            assert {s: matroid.rank(s) for s in truth.table} == truth.table
        exact = LinearMatroid(rows, exact=True)
        assert set(exact.bases()) == set(truth.bases())
        assert set(exact.circuits()) == set(truth.circuits())
        assert (exact.loops(), exact.coloops()) == (truth.loops(), truth.coloops())
        assert all(exact.closure(s) == truth.closure(s) for s in truth.table)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(matrices(rows=10))
def test_everything_derived_agrees_with_the_table(rows):
    matroid, truth = LinearMatroid(rows, exact=True), ByTable(rows)
    assert set(matroid.bases()) == set(truth.bases())
    assert set(matroid.circuits()) == set(truth.circuits())
    assert matroid.basis() == truth.basis()
    assert matroid.components() == truth.components()
    assert matroid.parallel_classes() == truth.parallel_classes()
    for subset in list(subsets(len(rows)))[:64]:
        assert matroid.closure(subset) == truth.closure(subset)


@SMALL
@given(matrices(rows=6), st.data())
def test_rank_axioms(rows, data):
    matroid = LinearMatroid(rows, exact=True)
    pick = st.sets(st.integers(0, len(rows) - 1))
    x, y = data.draw(pick), data.draw(pick)
    assert 0 <= matroid.rank(x) <= len(x)
    assert matroid.rank(x) <= matroid.rank(x | y)
    assert matroid.rank(x | y) + matroid.rank(x & y) <= matroid.rank(x) + matroid.rank(y)


@SMALL
@given(matrices(rows=6))
def test_exchange_and_circuit_elimination(rows):
    matroid = LinearMatroid(rows, exact=True)
    bases, circuits = list(matroid.bases()), list(matroid.circuits())
    for a in bases:
        for b in bases:
            for x in a - b:
                assert any((a - {x}) | {y} in bases for y in b - a)
    for c in circuits:
        for d in circuits:
            for e in c & d if c != d else ():
                assert any(z <= (c | d) - {e} for z in circuits)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(matrices(rows=6), st.data())
def test_duals_and_minors(rows, data):
    matroid = LinearMatroid(rows, exact=True)
    whole = set(matroid.elements)
    assert {frozenset(whole - b) for b in matroid.bases()} == set(matroid.dual().bases())
    assert matroid.dual().loops() == matroid.coloops()
    s = data.draw(st.sets(st.sampled_from(sorted(whole)), max_size=3))
    minor, other = matroid.contract(s), matroid.dual().delete(s).dual()
    for subset in combinations(minor.elements, min(2, len(minor.elements))):
        assert minor.rank(subset) == other.rank(subset)
        assert minor.rank(subset) == matroid.rank({*subset, *s}) - matroid.rank(s)


@SMALL
@given(matrices())
def test_fundamental_circuits_sum_to_zero(rows):
    exact, numeric = LinearMatroid(rows, exact=True), LinearMatroid(rows)
    basis = exact.basis()
    for e in set(exact.elements) - set(basis):
        circuit = exact.fundamental_circuit(basis, e)
        assert circuit.coefficients[e] == -1
        assert all(circuit.coefficients.values())
        for column in rows.T:
            assert sum(c * Fraction(float(column[i])) for i, c in circuit.coefficients.items()) == 0
        near = numeric.fundamental_circuit(basis, e)
        assert near.elements == circuit.elements
        combined = sum(c * rows[i] for i, c in near.coefficients.items())
        np.testing.assert_allclose(combined, 0, atol=1e-12)


def test_a_maximum_weight_basis_beats_all_others():
    rows = np.random.default_rng(3).integers(-1, 2, (8, 3)).astype(float)
    weights = np.random.default_rng(4).normal(size=8)
    matroid = LinearMatroid(rows, exact=True)
    best = max(sum(weights[list(b)]) for b in matroid.bases())
    assert sum(weights[list(matroid.basis(weights))]) == pytest.approx(best)
    assert LinearMatroid(rows).basis(weights) == matroid.basis(weights)


def test_floats_are_dyadic_rationals_not_approximations():
    rows = np.array([[0.1, 0.3], [0.2, 0.6], [0.1 * 3, 0.3 * 3]])
    assert LinearMatroid(rows[:2], exact=True).rank() == 1
    assert LinearMatroid(rows[[0, 2]], exact=True).rank() == true_rank(rows[[0, 2]]) == 2
    assert LinearMatroid(rows[[0, 2]]).rank() == 1
    assert LinearMatroid([[2.0**31, 1.0], [1.0, 1.0]], exact=True).rank() == 2
    assert IntervalMatroid([[1e308, 5e-324], [1e300, 5e-324]]).rank == 2


def test_two_is_a_primitive_root_of_every_prime():
    for p in PRIMES:
        assert all(p % q for q in range(2, 40_000) if q < p)
        left, factors = p - 1, set()
        for q in range(2, 40_000):
            while left % q == 0:
                factors.add(q)
                left //= q
        factors |= {left} - {1}
        assert all(pow(2, (p - 1) // q, p) != 1 for q in factors)
        assert p < 2**30


def test_residues_are_the_images_of_the_fractions():
    rows = np.random.default_rng(0).normal(size=(4, 5)) * 10.0 ** np.arange(-300, 200, 100)
    for p in PRIMES[:2]:
        expected = [[Fraction(float(x)) for x in row] for row in rows]
        wanted = [[f.numerator * pow(f.denominator, -1, p) % p for f in row] for row in expected]
        assert residues(rows, p).tolist() == wanted


def test_an_unlucky_prime_is_outvoted():
    rows = np.array([[1.0, 0.0], [0.0, float(PRIMES[0])], [1.0, 1.0]])
    assert rank_mod(rows[:2], PRIMES[0]) == 1
    assert LinearMatroid(rows[:2], exact=True).rank() == 2
    assert IntervalMatroid(rows[:2]).rank == 2
    assert LinearMatroid(rows[:2], exact=True).basis() == (0, 1)


def test_rational_confirmation():
    pytest.importorskip("flint")
    rows = np.random.default_rng(5).integers(-2, 3, (12, 4)) * 0.1
    proven, likely = IntervalMatroid(rows, confirm="rational"), IntervalMatroid(rows)
    assert (proven.bounded_affine_permutation == likely.bounded_affine_permutation).all()
    both = float(PRIMES[0]) * float(PRIMES[1])
    fooled = np.array([[1.0, 0.0], [0.0, 1.0]]) * [[1.0], [2.0]]
    fooled[1, 1] = both - both % 2**12
    assert LinearMatroid(fooled, exact=True, confirm="rational").rank() == 2
    verdict = LinearMatroid([[1.0, 2.0], [2.0, 4.0]], exact=True, confirm="rational").verdict()
    assert (verdict.rank, verdict.reason) == (1, "over the rationals")


def test_numerical_verdicts_state_their_gap():
    matroid = LinearMatroid(np.diag([1.0, 1e-3, 1e-9]), rtol=1e-6)
    verdict = matroid.verdict()
    assert (verdict.rank, verdict.above, verdict.below) == (2, pytest.approx(1e-3), pytest.approx(1e-9))
    assert verdict.gap == pytest.approx(1e3)


def test_the_screen_spares_decompositions_without_changing_verdicts():
    generator = np.random.default_rng(11)
    rows = generator.normal(size=(120, 9))
    rows[50] = rows[48] + rows[49]
    rows[80] = rows[79] * (1 + 1e-14)
    for size in (5, 9, 12):
        fast, slow = window_ranks(rows, size), window_ranks(rows, size, screen=False)
        assert (fast.ranks == slow.ranks).all()
        assert (fast.above <= slow.above * (1 + 1e-9)).all()
        assert fast.decompositions < 30 < slow.decompositions
        truth = [np.linalg.matrix_rank(rows[i : i + size]) for i in range(len(rows) - size + 1)]
        assert slow.ranks.tolist() == truth
    assert (window_ranks(rows, 9).ranks < 9).sum() == 7 + 8


def test_ill_conditioned_windows_are_decided_by_their_singular_values():
    generator = np.random.default_rng(2)
    rows = np.exp(np.outer(np.linspace(1, 12, 60), [0.5, 0.8, 1.1]))
    rows[::7] *= generator.normal(size=(9, 3))
    for normalize in (False, True):
        fast = window_ranks(rows, 3, normalize=normalize)
        slow = window_ranks(rows, 3, normalize=normalize, screen=False)
        assert (fast.ranks == slow.ranks).all()


@SMALL
@given(matrices())
def test_parallel_rows_are_exactly_the_positive_multiples(rows):
    result = parallel_rows(rows)
    where = {i: k for k, group in enumerate(result.classes) for i in group}
    assert sorted([*where, *result.zeros]) == list(range(len(rows)))
    for i, j in combinations(where, 2):
        positive = true_rank(rows[[i, j]]) == 1 and rows[i] @ rows[j] > 0
        assert (where[i] == where[j]) == positive
    for group, scales in zip(result.classes, result.scales, strict=True):
        np.testing.assert_allclose(np.outer(scales, rows[group[0]]), rows[list(group)], rtol=1e-15)


def test_signed_parallel_classes_of_a_matroid():
    rows = [[1.0, -1.0], [-1.0, 1.0], [2.0, -2.0], [0.0, 0.0]]
    for exact in (True, False):
        matroid = LinearMatroid(rows, exact=exact)
        assert matroid.parallel_classes() == ((0, 1, 2),)
        assert matroid.parallel_classes(signed=True) == ((0, 2), (1,))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LinearMatroid([[1.0, np.nan]]), "finite"),
        (lambda: IntervalMatroid([[np.inf]]), "finite"),
        (lambda: LinearMatroid(np.zeros((0, 3))), "rows and columns"),
        (lambda: IntervalMatroid(np.zeros(3)), "rows and columns"),
        (lambda: LinearMatroid([[1.0]], rtol=1.5), "rtol"),
        (lambda: LinearMatroid([[1.0]], exact=True, rtol=1e-9), "exact"),
        (lambda: LinearMatroid([[1.0]], exact=True, normalize=True), "exact"),
        (lambda: LinearMatroid([[1.0]], exact=True, confirm="luck"), "confirm"),
        (lambda: LinearMatroid([[2**60 + 1]]), "integers"),
        (lambda: window_ranks([[1.0]], 2), "window"),
        (lambda: IntervalMatroid([[1.0]]).window_ranks(0), "window"),
        (lambda: window_ranks([[1.0]], 1, rtol=-1.0), "rtol"),
        (lambda: IntervalMatroid([[1.0]]).interval_rank(0, 1), "interval"),
        (lambda: LinearMatroid([[1.0]]).rank([1]), "elements"),
        (lambda: LinearMatroid([[1.0]]).circuit([0]), "independent"),
        (lambda: LinearMatroid([[1.0], [2.0]]).fundamental_circuit([0, 1], 1), "independent"),
        (lambda: LinearMatroid([[1.0, 0.0], [0.0, 1.0]]).fundamental_circuit([0], 1), "span"),
        (lambda: LinearMatroid([[1.0]]).basis([np.nan]), "weight"),
        (lambda: parallel_rows([[1.0]], tolerance=-1.0), "tolerance"),
    ],
)
def test_bad_input_is_refused_in_words(call, message):
    with pytest.raises(ValueError, match=message):
        call()
