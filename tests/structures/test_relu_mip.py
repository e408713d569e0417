"""The program against enumeration of its binaries and forward passes; bounds; bad arguments."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import linprog
from scipy.special import logsumexp, softmax
from small_chains import tiny

from secateur.structures.relu_mip import (
    Affine,
    Bounds,
    Chain,
    MaxPool,
    ReLU,
    average,
    balanced_images,
    bounds,
    build,
    imbalanced_images,
    importance_scores,
    minimise,
    tighten_by_lp,
)


def intervals(weights, biases, x, kind, epsilon):
    """Bounds before every ReLU and D, by loops over single numbers."""
    half = epsilon if kind == "paper" else 0.0
    low, high, nominal = list(x - half), list(x + half), list(x)
    result = []
    for W, b in zip(weights[:-1], biases[:-1], strict=True):
        L = [b[i] + sum(min(w * low[j], w * high[j]) for j, w in enumerate(row)) for i, row in enumerate(W)]
        U = [b[i] + sum(max(w * low[j], w * high[j]) for j, w in enumerate(row)) for i, row in enumerate(W)]
        a = [b[i] + sum(w * nominal[j] for j, w in enumerate(row)) for i, row in enumerate(W)]
        D = [max(u, 0) for u in U] if kind == "paper" else [max(v, 0) for v in a]
        result.append((L, U, D))
        low = [max(v if kind == "paper" else v - d, 0) for v, d in zip(L, D, strict=True)]
        high, nominal = [max(u, 0) for u in U], [max(v, 0) for v in a]
    return result


def enumerate_optimum(
    weights, biases, x, labels, kind, epsilon, lam=5.0, rescale=2.0, objective="layer_mean"
):
    """Solve once for every value of all binaries; rows as printed in the paper, columns s, then h, tau, t."""
    sizes = [len(b) for b in biases[:-1]]
    n, images = sum(sizes), len(x)
    s_at = np.cumsum([0, *sizes])
    width = n + n * images + 1 + images
    h_at = lambda image, layer, i: n + image * n + s_at[layer] + i  # noqa: E731
    tau, t_at = n + n * images, n + n * images + 1
    known = [intervals(weights, biases, image, kind, epsilon) for image in x]

    def preactivation(image, layer, i):
        row, const = np.zeros(width), biases[layer][i]
        for j, w in enumerate(weights[layer][i]):
            if layer == 0:
                const += w * x[image][j]
            else:
                row[h_at(image, layer - 1, j)] += w
        return row, const

    best = np.inf
    places = [
        (image, layer, i)
        for image in range(images)
        for layer in range(len(sizes))
        for i in range(sizes[layer])
    ]
    for pattern in itertools.product((0, 1), repeat=len(places)):
        A, ub = [], []

        def less(row, const, A=A, ub=ub):
            A.append(row), ub.append(-const)

        for (image, layer, i), z in zip(places, pattern, strict=True):
            L, U, D = (v[i] for v in known[image][layer])
            M = L if kind == "paper" else L - D
            a, const = preactivation(image, layer, i)
            h, s = np.eye(width)[h_at(image, layer, i)], np.eye(width)[s_at[layer] + i]
            less(h - a - D * s, (1 - z) * M - const + D)  # (2a)
            low = max(U, 0) if kind == "free" else D
            less(a + low * s - h, const - low)  # (2b)
            less(h, -z * max(U, 0))  # (1d)
            if kind != "paper":
                less(h - max(U, 0) * s, 0)
        count = len(sizes)
        for left in range(count) if count > 1 else [None]:
            row, const = -np.eye(width)[tau], 0.0
            for k in range(count):
                if k != left:
                    w = 1 / (n if objective == "paper" else sizes[k])
                    row[s_at[k] : s_at[k + 1]] += w
                    const -= w * rescale * sizes[k]
            less(row, const)
        best = min(
            best,
            _convex(A, ub, x, labels, weights, biases, preactivation, tau, t_at, width, lam, objective, best),
        )
    return best


def _convex(A, ub, x, labels, weights, biases, preactivation, tau, t_at, width, lam, objective, best):
    """Cutting planes for one pattern, with scipy's linprog."""
    last, images = len(weights) - 1, len(x)
    outs = [[preactivation(image, last, c) for c in range(len(biases[-1]))] for image in range(images)]
    E = [np.stack([row for row, _ in out]) for out in outs]
    d = [np.array([const for _, const in out]) for out in outs]
    weight = lam if objective == "paper" else lam / images
    cost, offset = np.eye(width)[tau], 0.0
    for image in range(images):
        cost = cost + weight * (np.eye(width)[t_at + image] - E[image][labels[image]])
        offset -= weight * d[image][labels[image]]
    box = [(0, 1)] * len(np.concatenate(biases[:-1])) + [(0, None)] * (tau - len(np.concatenate(biases[:-1])))
    box += [(None, None)] + [(-1e3, None)] * images
    A, ub = list(A), list(ub)
    for _ in range(500):
        answer = linprog(cost, np.array(A), np.array(ub), bounds=box, method="highs")
        if answer.status == 2 or answer.fun + offset >= best:
            return np.inf
        assert answer.status == 0, answer.message
        v, worst = answer.x, 0.0
        for image in range(images):
            o = E[image] @ v + d[image]
            p = softmax(o)
            worst = max(worst, logsumexp(o) - v[t_at + image])
            A.append(p @ E[image] - np.eye(width)[t_at + image])
            ub.append(-(logsumexp(o) - p @ o) - p @ d[image])
        if worst < 5e-7:
            return answer.fun + offset
    raise AssertionError("cutting planes did not converge")


@pytest.mark.parametrize("kind", ["paper", "valid", "free"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("sizes", "images"), [((3, 3, 2, 2), 1), ((2, 3, 3), 2)])
def test_optimum_equals_enumeration_over_the_binaries(kind, seed, sizes, images):
    chain, weights, biases, x, labels = tiny(seed, sizes, images)
    epsilon = 0.05  # wide, so that binaries stay free in the published form too
    truth = enumerate_optimum(weights, biases, x, labels, kind, epsilon)
    program = build(chain, x, labels, epsilon=epsilon, kind=kind)
    result = minimise(program, gap=1e-5)
    assert result.objective == pytest.approx(truth, abs=5e-5)
    assert result.bound <= truth + 1e-6
    assert result.status == "optimal"


@pytest.mark.parametrize("objective", ["paper", "layer_mean"])
@pytest.mark.parametrize("rescale", [2.0, 1.0, 0.0])
def test_objective_variants_equal_enumeration(objective, rescale):
    chain, weights, biases, x, labels = tiny(7, (2, 2, 2, 2))
    truth = enumerate_optimum(weights, biases, x, labels, "valid", 0.0, rescale=rescale, objective=objective)
    result = minimise(build(chain, x, labels, kind="valid", objective=objective, rescale=rescale), gap=1e-5)
    assert result.objective == pytest.approx(truth, abs=5e-5)


@settings(max_examples=25, derandomize=True, deadline=None)
@given(seed=st.integers(0, 10_000), images=st.integers(1, 3))
def test_every_forward_pass_is_feasible_in_the_free_form(seed, images):
    chain, _, _, x, labels = tiny(seed, (4, 7, 6, 5, 3), images)
    program = build(chain, x, labels, kind="free")
    rng = np.random.default_rng(seed)
    for scores in (
        {name: rng.random(size) for name, size in chain.layers.items()},
        {name: (rng.random(size) < 0.5).astype(float) for name, size in chain.layers.items()},
    ):
        assert program.violation(program.complete(scores)) <= 1e-9


@settings(max_examples=25, derandomize=True, deadline=None)
@given(seed=st.integers(0, 10_000), pool=st.booleans())
def test_binary_scores_are_the_pruned_network(seed, pool):
    chain, x, labels = pooled(seed) if pool else (lambda t: (t[0], t[3], t[4]))(tiny(seed, (4, 6, 5, 3), 2))
    rng = np.random.default_rng(seed)
    keep = {name: rng.random(size) < 0.6 for name, size in chain.layers.items()}
    program = build(chain, x, labels, kind="free")
    v = program.complete({name: kept.astype(float) for name, kept in keep.items()})
    np.testing.assert_allclose(program.logits_of(v), chain.logits(x, keep), atol=1e-9)
    assert program.violation(v) <= 1e-9


def pooled(seed: int):
    """Two feature maps of four places, maxima of overlapping windows, a hidden layer, logits."""
    rng = np.random.default_rng(seed)
    units = np.repeat([0, 1], 4)
    windows = np.array([[0, 1], [2, 3], [4, 5], [6, 7], [5, 6], [3, -1]])
    chain = Chain(
        (
            Affine(_sparse(rng.normal(size=(8, 3))), rng.normal(size=8)),
            ReLU("maps", units),
            MaxPool(windows),
            Affine(_sparse(rng.normal(size=(4, 6))), rng.normal(size=4)),
            ReLU("hidden", np.arange(4)),
            MaxPool(np.array([[0, 1], [2, 3]])),
            Affine(_sparse(rng.normal(size=(2, 2))), rng.normal(size=2)),
        ),
        3,
    )
    x = rng.normal(size=(1, 3))
    return chain, x, chain.logits(x).argmax(1)


def _sparse(W: np.ndarray) -> sparse.csr_array:
    return sparse.csr_array(W)


@pytest.mark.parametrize("kind", ["paper", "valid", "free"])
@pytest.mark.parametrize("seed", range(3))
def test_solutions_are_what_forward_passes_give_and_bounds_hold(kind, seed):
    chain, x, labels = pooled(seed)
    program = build(chain, x, labels, kind=kind, epsilon=0.05)
    result = minimise(program, gap=1e-5)
    assert result.status == "optimal"
    best = program.complete(program.scores(result.v))
    if kind == "paper":  # there a solution is determined by its scores
        assert program.violation(best) <= 1e-5
        assert program.value(best) == pytest.approx(result.objective, abs=1e-4)
    rng = np.random.default_rng(seed)
    for _ in range(300):  # no score that anybody tries beats the proven bound
        point = program.complete({n: rng.random(s) ** rng.integers(0, 4) for n, s in chain.layers.items()})
        if program.violation(point) <= 1e-7:
            assert program.value(point) >= result.bound - 1e-6


def test_relaxation_is_a_lower_bound_and_tightened_bounds_are_tighter():
    chain, _, _, x, labels = tiny(3, (4, 6, 6, 5, 3), 2)
    plain = build(chain, x, labels, kind="free")
    tight = build(chain, x, labels, kind="free", tighten=tighten_by_lp)
    relaxed, better = minimise(plain, relax=True, gap=1e-6), minimise(tight, relax=True, gap=1e-6)
    exact = minimise(plain, gap=1e-4, seconds=20)
    assert relaxed.status == "relaxed"
    assert relaxed.bound <= exact.objective + 1e-6
    assert sum(caps.sum() for caps in tight.caps.values()) < sum(caps.sum() for caps in plain.caps.values())
    assert better.bound >= relaxed.bound - 1e-6
    rng = np.random.default_rng(0)
    for _ in range(50):  # and they still hold
        scores = {n: rng.random(s) for n, s in chain.layers.items()}
        assert tight.violation(tight.complete(scores)) <= 1e-6


def test_valid_bounds_hold_for_every_score():
    chain, _, _, x, _ = tiny(5, (4, 6, 5, 3), 3)
    result = bounds(chain, x, "valid")
    rng = np.random.default_rng(0)
    for _ in range(200):
        scores = {n: rng.random(s) for n, s in chain.layers.items()}
        outputs = [x, *chain.outputs(x, scores, result.drops)]
        for value, low, high in zip(outputs, result.lower, result.upper, strict=True):
            assert (value >= low - 1e-9).all() and (value <= high + 1e-9).all()


def test_published_bounds_hold_one_in_place_where_the_valid_let_it_go():
    """One live unit feeds a nominally inactive one: as published it cannot go, though it does nothing."""
    W = [np.eye(2), np.eye(2), np.array([[0.0, 4.0], [0.0, -4.0]])]
    chain = Chain.dense(W, [np.zeros(2), np.array([-3.0, 0.0]), np.zeros(2)])
    x, y = np.array([[1.0, 1.0]]), np.array([0])
    held = importance_scores(chain, x, y, bounds="paper", epsilon=1e-5)
    free = importance_scores(chain, x, y, bounds="valid", lam=20.0)
    assert held.scores["layer1"][0] > 0.99
    assert free.scores["layer1"][0] < 0.01


def test_ties_are_broken_towards_the_least_total_and_spread_says_which_scores_are_free():
    # units 0 and 1 do the same, and only the sum of their scores matters: (1 + e^2S)/2 = 2, S = log(3) / 2
    W = [np.array([[1.0], [1.0], [-1.0]]), np.array([[1.0, 1.0, 0.0], [-1.0, -1.0, 0.0]])]
    chain = Chain.dense(W, [np.zeros(3), np.zeros(2)])
    options = {"lam": 2 / 3, "epsilon": 0.0, "spread": True, "gap": 1e-6}
    result = importance_scores(chain, np.array([[1.0]]), np.array([0]), **options)
    scores = result.scores["layer1"]
    assert result.dead["layer1"].tolist() == [False, False, True]
    assert scores[2] == pytest.approx(0, abs=1e-6)
    assert scores[:2].sum() == pytest.approx(np.log(3) / 2, abs=2e-2)
    assert result.undetermined["layer1"].tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((2, 4))}, r"images must be \[images, 3\]"),
        ({"x": np.full((1, 3), np.nan)}, "NaN"),
        ({"labels": np.array([2])}, "label 2 is out of range"),
        ({"labels": np.array([-1])}, "label -1 is out of range"),
        ({"labels": np.array([0.5])}, "integers"),
        ({"labels": np.array([0, 1])}, "1 integers"),
        ({"epsilon": -1.0}, "epsilon must be"),
        ({"lam": float("nan")}, "lam must be"),
        ({"bounds": "loose"}, "bounds must be"),
        ({"objective": "other"}, "objective must be"),
        ({"solver": "gurobi"}, "solver must be"),
        ({"memory": 10.0}, r"the program would need about .* GB"),
        ({"tighten": True}, "needs bounds='valid'"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    chain, _, _, x, labels = tiny(0)
    given = {"x": x, "labels": labels} | change
    with pytest.raises(ValueError, match=message):
        importance_scores(chain, given.pop("x"), given.pop("labels"), **given)


def test_bounds_that_cross_are_refused():
    with pytest.raises(ValueError, match="cross"):
        Bounds((np.ones((1, 2)),), (np.zeros((1, 2)),), {})


def test_chains_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="values come in"):
        Chain.dense([np.zeros((3, 2)), np.zeros((2, 4))], [np.zeros(3), np.zeros(2)])
    with pytest.raises(ValueError, match="NaN"):
        Chain.dense([np.full((3, 2), np.nan), np.zeros((2, 3))], [np.zeros(3), np.zeros(2)])
    with pytest.raises(ValueError, match="no scored ReLU"):
        Chain((Affine(_sparse(np.eye(2)), np.zeros(2)),), 2)


def test_wrong_and_missing_classes_are_warned_of():
    chain, _, _, x, labels = tiny(0, (3, 4, 3), 2)
    with pytest.warns(UserWarning, match="misclassifies 1 of 1"):
        importance_scores(chain, x[:1], (labels[:1] + 1) % 3)
    two = np.array([labels[0], (labels[0] + 1) % 3])
    with pytest.warns(UserWarning, match="no image of class"):
        importance_scores(chain, x, two)


def test_averages_and_draws():
    chain, _, _, x, labels = tiny(0, (3, 4, 3), 2)
    results = [importance_scores(chain, x[[i]], labels[[i]]) for i in range(2)]
    mean = average(results)
    np.testing.assert_allclose(
        mean.scores["layer1"], (results[0].scores["layer1"] + results[1].scores["layer1"]) / 2
    )
    with pytest.raises(ValueError, match="nothing to average"):
        average([])
    y = np.repeat(np.arange(5), 20)
    picked = balanced_images(y, 10, np.random.default_rng(0))
    assert np.bincount(y[picked]).tolist() == [2] * 5 and len(set(picked)) == 10
    uneven = imbalanced_images(y, 4, np.random.default_rng(0))
    assert set(np.bincount(y[uneven])) <= {1, 2, 3, 4} and len(set(np.bincount(y[uneven]))) > 1
