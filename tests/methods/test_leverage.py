"""Ridge leverage against a dense regression."""

from __future__ import annotations

import pytest
import torch
from scoring import close, make
from torch import nn

from secateur.methods import (
    RidgeLeverage,
)
from secateur.statistics.collect import collect_statistics
from secateur.tracing.trace import trace


@pytest.mark.parametrize("bias", [True, False])
def test_leverage_is_the_diagonal_of_a_ridge_regression(bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3, bias=bias)).double()
    x = torch.randn(40, 5, dtype=torch.float64)
    graph = trace(model, x)
    statistics = collect_statistics(model, graph, [(x, None)], {"gram"})
    hidden = model[:2](x).detach()
    # Only a bias can take what is constant.
    hidden = hidden - hidden.mean(0) if bias else hidden
    G = hidden.T @ hidden
    inverse = torch.linalg.inv(G + 0.3 * G.diagonal().mean() * torch.eye(12, dtype=torch.float64))
    close(RidgeLeverage(ridge=0.3).unit_scores(graph, statistics)["0"], (G @ inverse).diagonal())


def test_leverage_of_units_that_are_dead_or_copies() -> None:
    model, graph, batches = make("mlp")
    with torch.no_grad():
        model[0].weight[:3], model[0].bias[:3] = 0.0, -1.0
        model[0].weight[5], model[0].bias[5] = model[0].weight[4], model[0].bias[4]
    statistics = collect_statistics(model, graph, batches, {"gram"})
    found = RidgeLeverage().unit_scores(graph, statistics)["0"]
    close(found[:3], torch.zeros(3))
    close(found[5], found[4])
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(-1.0)
    dead = collect_statistics(model, graph, batches, {"gram"})
    assert not RidgeLeverage().unit_scores(graph, dead)["0"].any()
