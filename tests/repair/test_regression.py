"""Fits of removed features and their output errors, against explicit rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secateur.repair.regression import OutputError, Regression, SecondMoments

KEPT, REMOVED = np.array([0, 2, 3]), np.array([1, 4, 5, 6])


def features(seed: int) -> torch.Tensor:
    x = torch.randn(40, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1
    x[:, 4] = 0.0
    x[:, 5] = 3 * x[:, 2]
    return x


@pytest.mark.parametrize("ridge", [1e-6, 0.1, 1.0])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("root", [True, False])
def test_fits_and_errors_are_those_of_explicit_rows(ridge: float, centred: bool, root: bool) -> None:
    x, other = features(0), features(1)
    W = torch.randn(3, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    gram, mean = x.T @ x / len(x), x.mean(0)
    fit = Regression(gram, mean if centred else torch.zeros(7).double(), KEPT, REMOVED).fit(ridge)
    assert (fit.dead, fit.parallel) == (1, 1)
    shift = mean if centred else torch.zeros(7).double()
    z, y = x[:, KEPT] - shift[KEPT], x[:, [1, 6]] - shift[[1, 6]]
    size = ridge * z.square().mean() * len(x)
    expected = torch.linalg.solve(z.T @ z + size * torch.eye(3).double(), z.T @ y).T
    torch.testing.assert_close(fit.coefficients[[0, 3]], expected)
    torch.testing.assert_close(fit.coefficients[2], torch.tensor([0.0, 3.0, 0.0]).double())
    second = SecondMoments(other / len(other) ** 0.5, True)
    second = second if root else SecondMoments(second.matrix.T @ second.matrix, False)
    judge = OutputError(W, second, other.mean(0), KEPT, REMOVED)
    gone = other[:, REMOVED]
    wrong = (gone - other[:, KEPT] @ fit.coefficients.T - fit.offset) @ W[:, REMOVED].T
    assert judge.folded(fit) == pytest.approx(float(wrong.square().sum(1).mean()))
    assert judge.plain == pytest.approx(float((gone @ W[:, REMOVED].T).square().sum(1).mean()))
    assert judge.total() == pytest.approx(float((other @ W.T).square().sum(1).mean()))
