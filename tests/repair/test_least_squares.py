"""The ridge regression for a correction, against the normal equations of explicit rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from secateur.repair.least_squares import RIDGES, InputSums, OriginalSums, TargetSums, solve


def sums(z: Tensor, t: Tensor, centred: bool) -> TargetSums:
    inputs = InputSums(z[:7], centred)
    targets = TargetSums(inputs, t[:7])
    for part, goal in zip(z.split(50), t.split(50), strict=True):
        inputs.add(part)
        targets.add(part, goal)
    return targets


def problem(
    seed: int, n: int = 90, blocks: int = 2, features: int = 5
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, blocks, features, generator=g, dtype=torch.float64) + 1
    W = torch.randn(blocks, 3, features, generator=g, dtype=torch.float64)
    noise = torch.randn(n, blocks, 3, generator=g, dtype=torch.float64)
    t = torch.einsum("nbf,bof->nbo", z, W) + 2 + noise
    return z, t, W + torch.randn(W.shape, generator=g, dtype=torch.float64), torch.zeros(blocks, 3).double()


def by_rows(z: Tensor, t: Tensor, V: Tensor, c: Tensor, ridge: float, centred: bool) -> tuple[Tensor, Tensor]:
    """Solve one block from its rows: ordinary least squares with sqrt(n r s) I below them."""
    mean = z.mean(0) if centred else z.new_zeros(z.shape[1])
    goal = t.mean(0) if centred else t.new_zeros(t.shape[1])
    x = z - mean
    scale = x.square().mean()
    rest = (t - goal) - x @ V.mT
    below = (len(z) * ridge * scale).sqrt() * torch.eye(z.shape[1], dtype=z.dtype)
    A, b = torch.cat([x, below]), torch.cat([rest, rest.new_zeros(len(below), rest.shape[1])])
    U = torch.from_numpy(np.linalg.lstsq(A.numpy(), b.numpy(), rcond=None)[0]).mT
    return V + U, (goal - (V + U) @ mean if centred else c)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_the_ridge_and_the_weight_are_those_of_explicit_rows(seed: int, centred: bool) -> None:
    z, t, V, c = problem(seed, n=16)
    z_apart, t_apart, _, _ = problem(seed + 10, n=60)
    found = solve(sums(z, t, centred), sums(z_apart, t_apart, centred), V, c)
    for block in range(2):
        trials = [(torch.inf, V[block], c[block])]
        trials += [(r, *by_rows(z[:, block], t[:, block], V[block], c[block], r, centred)) for r in RIDGES]
        errors = [
            float((z_apart[:, block] @ v.mT + k - t_apart[:, block]).square().sum(1).mean())
            for _, v, k in trials
        ]
        ridge, weight, constant = trials[int(np.argmin(errors))]
        assert float(found.ridge[block]) == ridge
        torch.testing.assert_close(found.V[block], weight)
        torch.testing.assert_close(found.c[block], constant)
    assert found.after <= found.before


@pytest.mark.parametrize("centred", [True, False])
def test_errors_are_those_of_explicit_rows(centred: bool) -> None:
    z, t, V, c = problem(4)
    wanted = (torch.einsum("nbf,bof->nbo", z, V) + c + 1 - t).square().sum(2).mean(0)
    torch.testing.assert_close(sums(z, t, centred).error(V, c + 1), wanted)


def test_what_is_no_better_apart_stays() -> None:
    z, t, V, c = problem(5)
    true = torch.einsum("nbf,bof->nbo", z, V) + c
    found = solve(sums(z, t, True), sums(z, true, True), V, c)
    assert bool(found.ridge.isinf().all()) and torch.equal(found.V, V) and torch.equal(found.c, c)
    assert 0 <= found.after == found.before < 1e-12


def test_errors_are_never_negative_and_a_large_mean_costs_little() -> None:
    z, _, V, c = problem(6, n=5000)
    z = (z + 300).float()
    t = torch.einsum("nbf,bof->nbo", z.double(), V)
    found = solve(sums(z, t.float(), True), None, V + 0.1, c)
    assert 0 <= found.after < 1e-6 < found.before
    torch.testing.assert_close(found.V, V, rtol=1e-3, atol=1e-3)


def test_dead_and_duplicated_features_do_no_harm() -> None:
    z, t, V, c = problem(7)
    z[:, 0, 1], z[:, 1, 2] = 0, z[:, 1, 3]
    found = solve(sums(z, t, True), None, V, c)
    assert bool(found.V.isfinite().all()) and found.after < found.before
    one = solve(sums(z[:1], t[:1], True), None, V, c)  # a single row has no covariance
    assert bool(one.V.isfinite().all())


@pytest.mark.parametrize("centred", [True, False])
def test_sums_over_the_original_give_those_of_any_target(centred: bool) -> None:
    z, x, V, c = problem(0, features=6)
    W = torch.randn(2, 3, x.shape[2], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = sums(z, torch.einsum("nbf,bof->nbo", x, W), centred)
    inputs = InputSums(z[:9], centred)
    originals = OriginalSums(inputs, x[:9])
    for part, other in zip(z.split(40), x.split(40), strict=True):
        inputs.add(part)
        originals.add(part, other)
    found = originals.targets(W)
    torch.testing.assert_close(found.cross(), expected.cross())
    torch.testing.assert_close(found.mean() + found.shift, expected.mean() + expected.shift)
    torch.testing.assert_close(found.error(V, c), expected.error(V, c))
    assert found.count == expected.count and abs(found.square() / expected.square() - 1) < 1e-9
    assert found.finite() and originals.finite()
    originals.add(z[:1], torch.full_like(x[:1], torch.nan))
    assert not originals.finite()
