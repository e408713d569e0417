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
    centered,
    express,
    output_error,
    parametrize_linear,
    swapped,
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
    g = centered(gram, mean)
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
    assert output_error(centered(gram, mean), kept, reader.T @ reader) == pytest.approx(left)


def test_swaps_only_improve_and_end_where_no_round_helps():
    x = activations(units=10, seed=3)
    g = centered(*moments(x))
    reader = torch.randn(2, 10, dtype=torch.float64)
    q = reader.T @ reader
    worst = max(combinations(range(10), 4), key=lambda kept: output_error(g, kept, q))
    kept, errors = swapped(g, worst, q)
    assert len(set(kept.tolist())) == 4
    assert (errors.diff() < 0).all()
    assert len(errors) > 1
    assert float(errors[-1]) == pytest.approx(output_error(g, kept, q))
    best = min(output_error(g, c, q) for c in combinations(range(10), 4))
    assert float(errors[-1]) <= 1.5 * best


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
        (lambda: express(torch.eye(2), [2]), "kept"),
        (lambda: express(torch.eye(2), [0], ridge=-1.0), "ridge"),
        (lambda: swapped(torch.eye(2), []), "at least one"),
    ],
)
def test_bad_grams_are_refused_in_words(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("kind", ["tp_exponential", "cauchy"])
def test_totally_positive_weights_have_positive_minors(kind):
    layer = parametrize_linear(nn.Linear(3, 6).double(), kind, np.random.default_rng(0))
    w = layer.weight.detach().numpy()
    for size in (1, 2, 3):
        for rows in combinations(range(6), size):
            for columns in combinations(range(3), size):
                assert np.linalg.det(w[np.ix_(rows, columns)]) > 0


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
