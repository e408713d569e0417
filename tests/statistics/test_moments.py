"""Gram matrices of wide layers, which are made a few hundred columns at a time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.statistics.collect import collect_statistics
from secateur.statistics.moments import SQUARE


@pytest.mark.parametrize("features", [SQUARE - 1, SQUARE, 2 * SQUARE + 5])
def test_a_gram_matrix_is_the_product_of_all_rows(features: int) -> None:
    model = nn.Sequential(nn.Linear(3, features), nn.ReLU(), nn.Linear(features, 2))
    batches = [torch.randn(n, 3) for n in (7, 20)]
    graph = sc.trace(model, batches[0])
    moments = collect_statistics(model, graph, batches, {"gram"}).moments["2.weight"]
    rows = torch.cat([model[:2](x) for x in batches]).detach().double()
    wanted = rows.T @ rows / len(rows)
    assert torch.allclose(moments.gram, wanted, rtol=1e-12, atol=1e-14)
    assert moments.gram.equal(moments.gram.T)
