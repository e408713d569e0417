"""The program against enumeration of its binaries, forward passes, and other solvers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.special import logsumexp, softmax

from secateur.structures.relu_mip import (
    Chain,
    build,
    minimise,
)


def tiny(seed: int, sizes: tuple[int, ...] = (3, 3, 2, 2), images: int = 1):
    """A random dense chain, with images that it classifies as labelled."""
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=(b, a)) for a, b in itertools.pairwise(sizes)]
    biases = [0.3 * rng.normal(size=b) for b in sizes[1:]]
    chain = Chain.dense(weights, biases)
    x = rng.normal(size=(images, sizes[0]))
    return chain, weights, biases, x, chain.logits(x).argmax(1)


def intervals(weights, biases, x, kind, epsilon):
    """Bounds before every ReLU and D, by loops over single numbers."""
    half = epsilon if kind == "paper" else 0.0
    low, high, nominal = list(x - half), list(x + half), list(x)
    found = []
    for W, b in zip(weights[:-1], biases[:-1], strict=True):
        L = [b[i] + sum(min(w * low[j], w * high[j]) for j, w in enumerate(row)) for i, row in enumerate(W)]
        U = [b[i] + sum(max(w * low[j], w * high[j]) for j, w in enumerate(row)) for i, row in enumerate(W)]
        a = [b[i] + sum(w * nominal[j] for j, w in enumerate(row)) for i, row in enumerate(W)]
        D = [max(u, 0) for u in U] if kind == "paper" else [max(v, 0) for v in a]
        found.append((L, U, D))
        low = [max(v if kind == "paper" else v - d, 0) for v, d in zip(L, D, strict=True)]
        high, nominal = [max(u, 0) for u in U], [max(v, 0) for v in a]
    return found


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
            less(a + D * s - h, const - D)  # (2b)
            less(h, -z * max(U, 0))  # (1d)
            if kind == "valid":
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


@pytest.mark.parametrize("kind", ["paper", "valid"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("sizes", "images"), [((3, 3, 2, 2), 1), ((2, 3, 3), 2)])
def test_optimum_equals_enumeration_over_the_binaries(kind, seed, sizes, images):
    chain, weights, biases, x, labels = tiny(seed, sizes, images)
    epsilon = 0.05  # wide, so that binaries stay free in the published form too
    truth = enumerate_optimum(weights, biases, x, labels, kind, epsilon)
    program = build(chain, x, labels, epsilon=epsilon, kind=kind)
    found = minimise(program, gap=1e-5)
    assert found.objective == pytest.approx(truth, abs=5e-5)
    assert found.bound <= truth + 1e-6
    assert found.status == "optimal"


@pytest.mark.parametrize("objective", ["paper", "layer_mean"])
@pytest.mark.parametrize("rescale", [2.0, 1.0, 0.0])
def test_objective_variants_equal_enumeration(objective, rescale):
    chain, weights, biases, x, labels = tiny(7, (2, 2, 2, 2))
    truth = enumerate_optimum(weights, biases, x, labels, "valid", 0.0, rescale=rescale, objective=objective)
    found = minimise(build(chain, x, labels, kind="valid", objective=objective, rescale=rescale), gap=1e-5)
    assert found.objective == pytest.approx(truth, abs=5e-5)
