"""Points that forward passes give: feasible in the valid form, and the gradient that looks for them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.special import logsumexp

from secateur.structures.relu_mip import Affine, Chain, MaxPool, ReLU, build, minimise
from secateur.structures.relu_mip.incumbents import _gradient, descend, raise_scores, starting_scores


def dense(seed: int, sizes: tuple[int, ...] = (4, 7, 6, 5, 3)):
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=(b, a)) for a, b in itertools.pairwise(sizes)]
    chain = Chain.dense(weights, [0.3 * rng.normal(size=b) for b in sizes[1:]])
    x = rng.normal(size=(2, sizes[0]))
    return chain, x, chain.logits(x).argmax(1)


def pooled(seed: int):
    """Feature maps that share scores, maxima, a ReLU without scores, a hidden layer."""
    rng = np.random.default_rng(seed)
    maps = lambda *shape: sparse.csr_array(rng.normal(size=shape))  # noqa: E731
    chain = Chain(
        (
            Affine(maps(8, 3), rng.normal(size=8)),
            ReLU("maps", np.repeat([0, 1], 4)),
            MaxPool(np.array([[0, 1], [2, 3], [4, 5], [6, 7], [5, 6], [3, -1]])),
            Affine(maps(5, 6), rng.normal(size=5)),
            ReLU("fixed", np.arange(5), scored=False),
            Affine(maps(4, 5), rng.normal(size=4)),
            ReLU("hidden", np.arange(4)),
            Affine(maps(3, 4), rng.normal(size=3)),
        ),
        3,
    )
    x = rng.normal(size=(2, 3))
    return chain, x, chain.logits(x).argmax(1)


def random_scores(chain: Chain, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {name: rng.random(size) * (rng.random(size) < 0.7) for name, size in chain.layers.items()}


@settings(max_examples=60, derandomize=True, deadline=None)
@given(seed=st.integers(0, 10_000), pool=st.booleans())
def test_raised_scores_are_feasible_and_no_higher_than_needed(seed, pool):
    chain, x, labels = pooled(seed) if pool else dense(seed)
    program = build(chain, x, labels, kind="valid")
    rng = np.random.default_rng(seed)
    scores = random_scores(chain, rng)
    raised = raise_scores(program, scores)
    assert program.violation(program.complete(raised)) <= 1e-7
    assert all((raised[n] >= scores[n]).all() and (raised[n] <= 1).all() for n in scores)
    if program.violation(program.complete(scores)) <= 1e-9:
        assert all(np.allclose(raised[n], scores[n], atol=1e-6) for n in scores)
    # the first score that was raised is the least that is feasible
    for name in chain.layers:
        up = np.flatnonzero(raised[name] > scores[name] + 1e-3)
        if len(up):
            less = {**raised, name: raised[name].copy()}
            less[name][up[0]] -= 1e-3
            assert program.violation(program.complete(less)) > 1e-9
            break


@pytest.mark.parametrize("kind", ["valid", "free"])
@pytest.mark.parametrize("network", [dense, pooled])
@pytest.mark.parametrize("seed", range(4))
def test_gradient_equals_finite_differences(kind, network, seed):
    chain, x, labels = network(seed)
    program = build(chain, x, labels, kind=kind)
    rng = np.random.default_rng(seed)
    scores = {name: 0.2 + 0.7 * rng.random(size) for name, size in chain.layers.items()}

    def value(at):
        outputs = chain.outputs(x, at, program.drops, program.caps)[-1]
        loss = (logsumexp(outputs, axis=1) - outputs[np.arange(len(x)), labels]).mean()
        means = [(s - 2).mean() for s in at.values()]
        return 5 * loss + (sum(means) - min(means) if len(means) > 1 else means[0])

    gradient = _gradient(program, scores)
    for name, size in chain.layers.items():
        for i in range(size):
            up, down = ({**scores, name: scores[name] + sign * 1e-6 * np.eye(size)[i]} for sign in (1, -1))
            assert gradient[name][i] == pytest.approx((value(up) - value(down)) / 2e-6, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_descent_improves_and_never_beats_the_proven_bound(seed):
    chain, x, labels = dense(seed, (3, 5, 4, 3))
    program = build(chain, x, labels, kind="valid")
    ones = {name: np.ones(size) for name, size in chain.layers.items()}
    values = [program.value(program.complete(scores)) for scores in descend(program, ones)]
    exact = minimise(program, gap=1e-5)
    assert min(values) <= program.value(program.complete(ones)) + 1e-9
    assert min(values) >= exact.bound - 1e-6


def test_the_published_form_starts_without_its_dead_units_only():
    chain, x, labels = dense(0)
    program = build(chain, x, labels)
    (only,) = starting_scores(program)
    assert all((only[name] == ~program.dead[name]).all() for name in only)
    assert raise_scores(program, only) is only
