"""What removing units of one group alone costs at the output."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.apply.shrink import shrink
from secateur.core import InputError, Plan
from secateur.repair import loss_curves
from secateur.repair.consumer_fit import RIDGES
from secateur.repair.fold import fold
from secateur.repair.loss_curves import Divergence, measure_loss_curves
from secateur.statistics.collect import collect_statistics


def data(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def model() -> nn.Module:
    """Return an MLP whose second hidden layer hardly matters: the third reads little of it."""
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 4)).double()
    with torch.no_grad():
        mlp[4].weight[:, 4:] *= 1e-3
    return mlp


def test_a_trial_is_the_folded_model(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """The masked and folded trial computes what the shrunk and folded model does, with the same ridges."""
    monkeypatch.setattr("secateur.repair.loss_curves.RIDGES", RIDGES)
    graph, x, held = sc.trace(model, data(2)), data(300), data(80, seed=1)
    statistics, guard = (collect_statistics(model, graph, [(x, None)], {"gram"}) for x in (x, held))
    scores = {g.name: torch.arange(g.size, 0, -1).double() for g in graph.groups}
    curves = measure_loss_curves(model, graph, scores, statistics, [(held, None)], guard)
    divergence = Divergence(model, [(held, None)])
    for group in graph.groups:
        curve = curves[group.name]
        assert curve.counts == (17, 12, 7, 2) and curve.size == 20
        for count, loss in zip(curve.counts, curve.losses, strict=True):
            plan = Plan(graph, "alone", {group.name: np.arange(count)})
            small, _ = fold(model, shrink(model, plan), plan, statistics, guard)
            assert divergence(small) == pytest.approx(loss, rel=1e-6)
    assert divergence(model) == pytest.approx(0, abs=1e-12)


def test_without_gram_matrices_units_are_masked_only(model: nn.Module) -> None:
    graph, x = sc.trace(model, data(2)), data(80)
    statistics = collect_statistics(model, graph, None, set())
    scores = {g.name: torch.arange(g.size, 0, -1).double() for g in graph.groups}
    curve = measure_loss_curves(model, graph, scores, statistics, [(x, None)])[graph.groups[0].name]
    plan = Plan(graph, "alone", {graph.groups[0].name: np.arange(curve.counts[1])})
    assert Divergence(model, [(x, None)])(shrink(model, plan)) == pytest.approx(curve.losses[1], rel=1e-6)


@pytest.mark.parametrize("budget", [sc.Params(0.7), sc.Macs(0.7, "program"), sc.Units(0.7, "loss")])
def test_the_group_that_hardly_matters_gives_most(model: nn.Module, budget: sc.Budget) -> None:
    batches = [(part, None) for part in data(320).split(32)]
    by_loss = sc.prune(model, data(2), budget, batches, progress=False)
    even = sc.prune(model, data(2), type(budget)(0.7, scope="layer"), batches, progress=False)
    kept = {group: entry["kept"] for group, entry in by_loss.report.groups.items()}
    assert kept["2"] < kept["0"]
    assert 0 < by_loss.plan.notes["predicted loss"] < 1
    assert 0 < by_loss.plan.notes["measured loss"] < 2 * by_loss.plan.notes["predicted loss"] + 0.1
    assert "divergence of the outputs" in repr(by_loss) and "predicted" in repr(by_loss)
    far = Divergence(model, [(data(200, seed=5), None)])
    assert far(by_loss.model) < far(even.model)
    plan = sc.plan(sc.trace(model, data(2)), "matroid", budget, batches, model=model)
    assert {name: list(k) for name, k in plan.keep.items()} == {
        name: list(k) for name, k in by_loss.plan.keep.items()
    }


def test_scope_loss_says_what_it_needs(model: nn.Module) -> None:
    with pytest.raises(InputError, match="pass data=batches"):
        sc.prune(model, data(2), sc.Macs(0.7, scope="loss"), method="magnitude")
    with pytest.raises(InputError, match="no order of units"):
        sc.prune(model, data(2), sc.Macs(0.7, scope="loss"), [(data(64), None)], method="synflow")


def test_trials_of_a_language_model_are_bounded() -> None:
    """All trials together see at most twice as many tokens as they may, and others all batches."""
    tokens = [torch.zeros(8, 512, dtype=torch.int64)] * 4
    for sets in (1, 2, 8, 36):
        batches, shares = loss_curves._affordable(tokens, sets)
        each = sum(batch.numel() for batch in batches)
        assert loss_curves.LEAST <= each <= loss_curves.MOST
        assert shares == loss_curves.FEW
    images = [torch.zeros(8, 512)] * 4
    assert loss_curves._affordable(images, 36) == (images, loss_curves.KEPT)
