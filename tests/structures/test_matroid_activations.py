"""Bases of activations and parametrizations."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.linalg import qr
from torch import nn

from secateur.structures.matroid import (
    LinearMatroid,
    activation_basis,
    center_gram,
    exchange_units,
    express,
    gaussian,
    output_error,
    parametrize_linear,
    tp_exponential,
)


def activations(units: int = 12, samples: int = 200, rank: int | None = None, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    inner = torch.randn(samples, rank or units, generator=generator, dtype=torch.float64)
    mixed = inner @ torch.randn(rank or units, units, generator=generator, dtype=torch.float64)
    return mixed + torch.rand(units, generator=generator, dtype=torch.float64) if rank else mixed.relu()


def moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.T @ x / len(x), x.mean(0)


def test_pivoted_cholesky_is_pivoted_qr_of_the_activations():
    x = activations()
    gram, mean = moments(x)
    basis = activation_basis(gram, mean)
    _, r, order = qr((x - mean).numpy() / len(x) ** 0.5, pivoting=True, mode="economic")
    assert basis.order.tolist() == order.tolist()
    tails = [(r[m:, m:] ** 2).sum() for m in range(len(order) + 1)]
    np.testing.assert_allclose(basis.residuals, tails, rtol=1e-9, atol=1e-12)
    assert basis.rank == len(order)


def test_rank_is_found_and_the_rest_follows():
    x = activations(units=20, rank=5)
    gram, mean = moments(x)
    basis = activation_basis(gram, mean, rtol=1e-10)
    assert basis.rank == 5
    assert sorted(basis.order.tolist()) == list(range(20))
    found = express(gram, basis.order[:5], mean, ridge=0.0)
    restored = x[:, found.kept] @ found.coefficients.T + found.offset
    torch.testing.assert_close(restored, x[:, found.removed], rtol=0, atol=1e-9)
    assert float(found.residual.max()) < 1e-9


def test_output_greedy_takes_the_best_unit_at_each_step():
    x = activations(units=8)
    gram, mean = moments(x)
    g = center_gram(gram, mean)
    reader = torch.randn(3, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    q = reader.T @ reader
    basis = activation_basis(gram, mean, consumer=q)
    for m in range(8):
        kept = basis.order[:m].tolist()
        errors = {j: output_error(g, [*kept, j], q) for j in range(8) if j not in kept}
        assert min(errors, key=errors.__getitem__) == int(basis.order[m])
        assert float(basis.residuals[m + 1]) == pytest.approx(min(errors.values()), abs=1e-9)


def test_output_error_is_what_refitting_the_reader_leaves():
    x = activations(units=9)
    gram, mean = moments(x)
    reader = torch.randn(4, 9, dtype=torch.float64)
    kept = [0, 3, 5]
    target = (x - mean) @ reader.T
    fit = torch.linalg.lstsq((x - mean)[:, kept], target).solution
    left = float(((x - mean)[:, kept] @ fit - target).square().sum(1).mean())
    assert output_error(center_gram(gram, mean), kept, reader.T @ reader) == pytest.approx(left)


def test_swaps_only_improve_and_end_where_no_round_helps():
    x = activations(units=10, seed=3)
    g = center_gram(*moments(x))
    reader = torch.randn(2, 10, dtype=torch.float64)
    q = reader.T @ reader
    worst = max(combinations(range(10), 4), key=lambda kept: output_error(g, kept, q))
    kept, errors = exchange_units(g, worst, q)
    assert len(set(kept.tolist())) == 4
    assert (errors.diff() < 0).all()
    assert len(errors) > 1
    assert float(errors[-1]) == pytest.approx(output_error(g, kept, q))
    best = min(output_error(g, c, q) for c in combinations(range(10), 4))
    assert float(errors[-1]) <= 1.5 * best


KINDS = ["relu", "low rank", "near low rank", "twins", "near twins", "dead"]


def layer_outputs(kind: str, units: int, seed: int = 0) -> torch.Tensor:
    """ReLU features of correlated inputs, or inputs of low rank; twins are units that equal others."""
    rng = torch.Generator().manual_seed(seed)
    inner = torch.randn(3 * units, max(2, units // 8), generator=rng, dtype=torch.float64)
    x = inner @ torch.randn(inner.shape[1], units, generator=rng, dtype=torch.float64)
    noise = torch.randn(x.shape, generator=rng, dtype=torch.float64)
    if kind == "low rank":
        return x
    if kind == "near low rank":
        return x + 1e-3 * noise
    x = (x + 0.3 * noise + torch.rand(units, generator=rng, dtype=torch.float64)).relu()
    half = units // 2
    if kind == "twins":
        x[:, half : 2 * half] = x[:, :half]
    elif kind == "near twins":
        x[:, half : 2 * half] = x[:, :half] + 1e-4 * noise[:, :half]
    elif kind == "dead":
        x[:, ::3] = 0.0
    return x


def weights(outputs: int, units: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(outputs, units, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def left_by(x: torch.Tensor, kept: list[int], w: torch.Tensor) -> float:
    """Return the mean squared error of the output, refitted to the kept units by least squares."""
    x = x - x.mean(0)
    target = x @ w.T
    if kept:
        fit = torch.linalg.lstsq(x[:, kept], target, driver="gelsd").solution
        target = target - x[:, kept] @ fit
    return float(target.square().sum(1).mean())


def naive_order(g: torch.Tensor, w: torch.Tensor | None, count: int, rtol: float) -> list[int]:
    """Update the whole of S in every step; of equal units take the first."""
    s, own, order = g.clone(), g.diagonal().clone(), []
    for _ in range(count):
        part = s.diagonal().clone()
        part[order] = 0.0
        gain = part if w is None else ((w @ s) ** 2).sum(0) / part
        gain = torch.where(part > rtol * own, gain, -torch.inf)
        if gain.max() == -torch.inf:
            break
        pivot = int((gain >= gain.max() * (1 - 1e-9)).byte().argmax())
        s = s - torch.outer(s[:, pivot], s[pivot]) / s[pivot, pivot]
        order.append(pivot)
    return order


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outputs", [0, 1, 5, 200])
def test_blocks_of_steps_choose_what_single_steps_choose(kind, outputs):
    x = layer_outputs(kind, units=150)
    g = center_gram(*moments(x))
    w = weights(outputs, 150) if outputs else None
    consumer = None if w is None else w.T @ w
    truth = naive_order(g, w, 150, rtol=1e-11)
    # At the end of an exact rank, all units explain the same rest, and rounding decides among them.
    clear = len(truth) - 3 if kind == "low rank" else len(truth)
    for count in (0, 1, 64, 65, 107, 150):
        basis = activation_basis(g, consumer=consumer, count=count, rtol=1e-11)
        assert basis.order[:clear].tolist() == truth[: min(count, clear)]
        assert len(set(basis.order.tolist())) == count
        assert len(basis.residuals) == count + 1
        assert basis.rank == len(truth)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("seed", range(3))
def test_residuals_at_every_count_are_those_of_least_squares(kind, dtype, seed):
    x, w = layer_outputs(kind, 14, seed), weights(4, 14, seed)
    gram, mean = moments(x)
    exact = dtype == torch.float64
    basis = activation_basis(gram.to(dtype), mean.to(dtype), consumer=(w.T @ w).to(dtype), count=9)
    units = activation_basis(gram.to(dtype), mean.to(dtype), count=9)
    for m in range(10):
        near = {"rel": 1e-6 if exact else 1e-3, "abs": (1e-10 if exact else 1e-4) * left_by(x, [], w)}
        assert float(basis.residuals[m]) == pytest.approx(left_by(x, basis.order[:m].tolist(), w), **near)
        left = left_by(x, units.order[:m].tolist(), torch.eye(14, dtype=torch.float64))
        assert float(units.residuals[m]) == pytest.approx(left, **near)


@pytest.mark.parametrize("outputs", [0, 3])
def test_equal_units_are_taken_in_the_order_of_their_index(outputs):
    x = layer_outputs("twins", 150, seed=4)
    w = weights(outputs, 150)
    w[:, 75:] = w[:, :75]
    basis = activation_basis(*moments(x), consumer=w.T @ w if outputs else None)
    assert basis.rank == 75
    assert sorted(basis.order[:75].tolist()) == list(range(75))
    assert activation_basis(torch.eye(5), count=3).order.tolist() == [0, 1, 2]
    assert activation_basis(torch.eye(5), consumer=torch.eye(5)).order.tolist() == [0, 1, 2, 3, 4]
    assert activation_basis(torch.eye(3), consumer=torch.zeros(3, 3)).residuals.tolist() == [0.0] * 4


def test_one_unit_no_unit_and_units_without_variance():
    one = activation_basis(torch.tensor([[4.0]]), consumer=torch.tensor([[9.0]]))
    assert (one.order.tolist(), one.residuals.tolist(), one.rank) == ([0], [36.0, 0.0], 1)
    none = activation_basis(torch.tensor([[4.0]]), count=0)
    assert (none.order.tolist(), none.residuals.tolist(), none.rank) == ([], [4.0], 1)
    dead = activation_basis(torch.zeros(3, 3), count=2)
    assert (dead.order.tolist(), dead.residuals.tolist(), dead.rank) == ([0, 1], [0.0, 0.0, 0.0], 0)


def test_progress_is_reported_and_an_interrupt_passes():
    gram = center_gram(*moments(layer_outputs("relu", 150)))
    counts: list[int] = []
    activation_basis(gram, count=140, on_step=counts.append)
    assert counts == [64, 128, 140]

    def stop(taken: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        activation_basis(gram, on_step=stop)


def naive_exchange(g: torch.Tensor, kept: list[int], q: torch.Tensor, limit: int) -> list[list[int]]:
    """Compute the error of each candidate of each round by least squares."""
    path = [sorted(kept)]
    for _ in range(limit):
        kept, others = path[-1], [j for j in range(len(g)) if j not in path[-1]]
        best = min(others, key=lambda j: output_error(g, [*kept, j], q))
        sets = [sorted({*kept, best} - {j}) for j in [*kept, best]]
        smallest = min(sets, key=lambda k: output_error(g, k, q))
        if output_error(g, smallest, q) >= output_error(g, kept, q) * (1 - 1e-9):
            break
        path.append(smallest)
    return path


@pytest.mark.parametrize("kind", ["relu", "near low rank", "near twins"])
@pytest.mark.parametrize("seed", range(4))
def test_exchanges_by_updates_are_those_of_least_squares(kind, seed):
    g = center_gram(*moments(layer_outputs(kind, 24, seed)))
    w = weights(3, 24, seed)
    start = list(range(9))
    path = naive_exchange(g, start, w.T @ w, 12)
    kept, errors = exchange_units(g, start, w.T @ w, limit=12)
    assert kept.tolist() == path[-1]
    assert len(path) > 2
    truth = [output_error(g, k, w.T @ w) for k in path]
    np.testing.assert_allclose(errors, truth, rtol=1e-6)


def test_many_exchanges_keep_their_accuracy():
    g = center_gram(*moments(layer_outputs("near twins", 120)))
    w = weights(30, 120)
    start = [*range(20), *range(60, 80)]  # pairs that are equal to within 1e-4
    for consumer in (w.T @ w, None):
        kept, errors = exchange_units(g, start, consumer)
        assert len(errors) > 25
        assert float(errors[-1]) == pytest.approx(output_error(g, kept, consumer), rel=1e-6)


def test_kept_units_that_follow_from_others_go_first():
    g = center_gram(*moments(layer_outputs("twins", 20)))
    w = weights(2, 20)
    kept, errors = exchange_units(g, [0, 1, 10, 11], w.T @ w)
    assert len(kept) == 4 and len({int(j) % 10 for j in kept}) == 4
    assert (errors.diff() < 0).all()
    assert float(errors[-1]) == pytest.approx(output_error(g, kept, w.T @ w))


def test_no_exchange_where_the_rest_follows():
    g = center_gram(*moments(layer_outputs("low rank", 24)))
    basis = activation_basis(g, count=10)
    assert basis.rank == 3
    kept, errors = exchange_units(g, basis.order)
    assert kept.tolist() == sorted(basis.order.tolist()) and len(errors) == 1


def test_the_residual_of_an_expression_is_its_mean_squared_error():
    x = activations(units=7)
    gram, mean = moments(x)
    found = express(gram, [1, 4, 6], mean)
    error = (x[:, found.kept] @ found.coefficients.T + found.offset - x[:, found.removed]).square().mean(0)
    torch.testing.assert_close(found.residual, error)
    assert found.removed.tolist() == [0, 2, 3, 5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: activation_basis(torch.ones(2, 3)), "square"),
        (lambda: activation_basis(torch.tensor([[1.0, torch.nan], [torch.nan, 1.0]])), "finite"),
        (lambda: activation_basis(torch.tensor([[1.0, 2.0], [0.0, 1.0]])), "symmetric"),
        (lambda: activation_basis(torch.eye(2), torch.ones(3)), "mean"),
        (lambda: activation_basis(torch.eye(2), consumer=torch.eye(3)), "consumer"),
        (lambda: activation_basis(torch.eye(2), rtol=1.0), "rtol"),
        (lambda: activation_basis(torch.eye(2), count=3), "count"),
        (lambda: activation_basis(torch.eye(2), count=-1), "count"),
        (lambda: express(torch.eye(2), [2]), "kept"),
        (lambda: express(torch.eye(2), [0], ridge=-1.0), "ridge"),
        (lambda: exchange_units(torch.eye(2), []), "at least one"),
    ],
)
def test_bad_grams_are_refused_in_words(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("kind", ["tp_exponential", "cauchy", "gaussian"])
def test_totally_positive_weights_have_positive_minors(kind):
    layer = parametrize_linear(nn.Linear(3, 6).double(), kind, np.random.default_rng(0))
    w = layer.weight.detach().numpy()
    for size in (1, 2, 3):
        for rows in combinations(range(6), size):
            for columns in combinations(range(3), size):
                assert np.linalg.det(w[np.ix_(rows, columns)]) > 0


def test_the_gaussian_kernel_is_the_exponential_with_positive_factors():
    a, b = torch.linspace(-2, 3, 7).double(), torch.linspace(-1, 2, 4).double()
    rows, columns = torch.exp(-a.square() / 2), torch.exp(-b.square() / 2)
    torch.testing.assert_close(gaussian(a, b), rows[:, None] * tp_exponential(a, b) * columns)
    layer = parametrize_linear(nn.Linear(64, 100).double(), "gaussian", np.random.default_rng(0))
    assert 0 <= layer.weight.min() < layer.weight.max() <= 1


def test_negated_bidiagonal_is_the_product_it_claims():
    layer = parametrize_linear(nn.Linear(2, 5).double(), "negated_bidiagonal", np.random.default_rng(0))
    plain = parametrize_linear(nn.Linear(2, 5).double(), "tp_exponential", np.random.default_rng(0))
    b = np.eye(5)
    for i in range(4):
        b[i + 1, i] = (-1) ** (i + 1) * 1.5
    np.testing.assert_allclose(layer.weight.detach(), b @ plain.weight.detach().numpy(), rtol=1e-14)


def test_parametrized_layers_train_and_keep_their_form():
    layer = parametrize_linear(nn.Linear(2, 4).double(), "cauchy", np.random.default_rng(0))
    before = layer.weight.detach().clone()
    layer(torch.ones(1, 2, dtype=torch.float64)).sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    after = layer.weight.detach()
    assert not torch.equal(before, after)
    assert LinearMatroid(1 / after[:, :1] - 1 / after[:, 1:], rtol=1e-9).rank() == 1
    spread = (1 / after[:, 0] - 1 / after[:, 1]).numpy()
    np.testing.assert_allclose(spread, spread[0], rtol=1e-12)


def test_parametrizations_refuse_what_they_cannot_hold():
    with pytest.raises(OverflowError, match="float64"):
        parametrize_linear(nn.Linear(2, 200), "tp_exponential", np.random.default_rng(0))
    with pytest.raises(ValueError, match="known"):
        parametrize_linear(nn.Linear(2, 4), "polynomial", np.random.default_rng(0))
    layer = parametrize_linear(nn.Linear(2, 4).double(), "cauchy", np.random.default_rng(0))
    with pytest.raises(ValueError, match="raw parameters"):
        layer.weight = torch.ones(4, 2, dtype=torch.float64)
