"""Bytes, and several budgets at once: the search against brute force and the real model."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_graphs import mlp
from torch import nn

import secateur as sc
from secateur.allocation import Amounts, allocate, reached, with_shares
from secateur.allocation.least_loss import predicted_losses
from secateur.core import InputError, LossCurve, NothingToPrune
from secateur.core.budget import as_budget
from secateur.measure.cost import nbytes

SCOPES = ["layer", "global", "erk", "loss"]
X = torch.ones(2, 3, 12, 12)


def network() -> nn.Module:
    """Return a network with two stored types, buffers and a scalar buffer (BatchNorm counts its batches)."""
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5))
    body = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.BatchNorm2d(24)]
    return nn.Sequential(*body, nn.ReLU(), head)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_those_of_the_real_model(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    for budget in (sc.Bytes(0.4, scope="global"), sc.Bytes(megabytes=0.4e-6 * nbytes(model))):
        result = sc.prune(model, X.to(dtype), budget, method="magnitude", check=False)
        share = nbytes(result.model) / nbytes(model)
        assert 0.3 < share <= 0.4
        assert result.plan.notes["reached"]["bytes"] == pytest.approx(share)


def losses(graph: Any, seed: int) -> dict[str, LossCurve]:
    rng = np.random.default_rng(seed)
    curves = {}
    for group in graph.groups:
        counts = sorted({max(1, round(s * group.size)) for s in (0.8, 0.5, 0.2)} - {group.size})[::-1]
        scale = rng.uniform(0.1, 3)
        curves[group.name] = LossCurve(
            group.size, tuple(counts), tuple(scale * (1 - c / group.size) ** 2 for c in counts)
        )
    return curves


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(6, 14), min_size=4, max_size=4),
    st.sampled_from(SCOPES),
    st.floats(0.3, 0.9),
    st.floats(0.3, 0.9),
    st.integers(0, 99),
)
def test_all_budgets_hold_and_none_is_needlessly_small(
    widths: list[int], scope: Any, macs: float, params: float, seed: int
) -> None:
    """Under "loss" the counts also are nearly the best of all combinations."""
    graph = mlp(widths, positions=(16.0, 4.0, 1.0))
    budget = as_budget([sc.Macs(macs, scope), sc.Params(params, scope)])
    amounts, curves = Amounts(graph, budget), losses(graph, seed)
    limits = amounts.whole * [macs, params]
    first = amounts({g.name: np.arange(1) for g in graph.groups})
    scores = {g.name: torch.arange(g.size).double() for g in graph.groups}
    if (first > limits).any():
        with pytest.raises(InputError, match="cannot be reached"):
            allocate(graph, budget, scores, curves)
        return
    found = allocate(graph, budget, scores, curves)
    used = amounts({n: np.arange(c) for n, c in found.counts.items()})
    assert (used <= limits * (1 + 1e-9)).all()
    assert found.reached <= found.target + 1e-9
    if scope == "loss":
        tables = [predicted_losses(curves[g.name]) for g in graph.groups]
        best = np.inf
        for counts in itertools.product(*(range(1, g.size + 1) for g in graph.groups)):
            keep = {g.name: np.arange(c) for g, c in zip(graph.groups, counts, strict=True)}
            if (amounts(keep) <= limits * (1 + 1e-9)).all():
                best = min(best, sum(t[c] for t, c in zip(tables, counts, strict=True)))
        assert found.loss is not None and found.loss <= 3 * best + 0.3


def test_one_budget_that_does_not_bind_changes_nothing() -> None:
    graph = mlp([5, 9, 12, 3], positions=(4.0, 2.0, 1.0))
    alone = allocate(graph, sc.Macs(0.5))
    both = allocate(graph, [sc.Params(1.0), sc.Macs(0.5)])
    assert (both.counts, both.what, both.target) == (alone.counts, "macs", 0.5)


def test_steps_reach_several_budgets() -> None:
    model = network()
    budgets = [sc.Macs(0.4), sc.Bytes(0.5)]
    result = sc.prune(model, X, budgets, method="magnitude", schedule=sc.Steps(2))
    shares = reached(result.plan)
    assert shares["macs"] <= 0.4 and shares["bytes"] <= 0.5
    assert max(shares["macs"] / 0.4, shares["bytes"] / 0.5) > 0.85
    assert result.report.budget == "[Macs(0.4), Bytes(0.5)]"


def test_a_graph_without_types_has_no_bytes() -> None:
    with pytest.raises(InputError, match="trace again"):
        with_shares(mlp([3, 4, 2]), sc.Bytes(megabytes=1))


def test_a_limit_that_the_network_is_within_is_refused() -> None:
    with pytest.raises(NothingToPrune, match=r"already within Bytes\(megabytes=20\)"):
        sc.prune(network(), X, sc.Bytes(megabytes=20), method="magnitude", progress=False)
