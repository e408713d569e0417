"""The spectral method on traced networks."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spectral_setting import kept, setting
from torch import nn

import secateur as sc
from secateur import zoo
from secateur.apply.compose import compose
from secateur.apply.mask import mask
from secateur.apply.shrink import shrink
from secateur.core import InputError, NothingToPrune, Plan, PlanError, Units, Weights
from secateur.methods import prune_every
from secateur.methods.spectral import Spectral, edge_scores
from secateur.structures.spectral import connectivity, layer_graph

MLP = zoo.mlp((12, 20, 16, 3), seed=1)
NAMES = ("1.weight", "3.weight", "5.weight")


@pytest.mark.parametrize("mode", ["systematic", "paper", "coverage", "top"])
@pytest.mark.parametrize("kind", ["layer", "network"])
@pytest.mark.parametrize("allocation", ["one-epsilon", "uniform", "erk", "global", None])
def test_counts_are_exact(mode: Any, kind: Any, allocation: Any) -> None:
    if (mode, kind) == ("coverage", "network"):
        with pytest.raises(InputError, match="coverage"):
            Spectral(mode=mode, graph=kind)
        return
    graph, statistics = setting(MLP, 12)
    method = Spectral(mode=mode, graph=kind, allocation=allocation)
    total = sum(MLP.get_parameter(x).numel() for x in NAMES)
    for density in (0.05, 0.3, 0.9):
        plan = method.plan(graph, statistics, Weights(density))
        got = sum(kept(plan).get(x, MLP.get_parameter(x).numel()) for x in NAMES)
        assert abs(got - density * total) <= (2 if allocation in (None, "uniform") else 0.5)
        assert all(n > 0 for n in kept(plan).values())
        assert plan.notes["reached"]["weights"] == pytest.approx(got / total)


def test_seeds_decide_and_layers_differ() -> None:
    twin = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    twin[2].weight = nn.Parameter(twin[0].weight.detach().clone())
    plans = []
    for seed in (0, 0, 1):
        graph, statistics = setting(twin, 6, seed=seed)
        plans.append(Spectral().plan(graph, statistics, Weights(0.4)).masks)
    assert all(np.array_equal(plans[0][k], plans[1][k]) for k in plans[0])
    assert not np.array_equal(plans[0]["0.weight"], plans[2]["0.weight"])
    assert not np.array_equal(plans[0]["0.weight"], plans[0]["2.weight"])


def test_one_epsilon_balances_leverage() -> None:
    """What a layer keeps on average is what one epsilon gives it; uniform shares differ."""
    graph, statistics = setting(MLP, 12)
    found = Spectral().leverages(graph, statistics)
    plan = Spectral(allocation="one-epsilon").plan(graph, statistics, Weights(0.2))
    counts = kept(plan)

    def means(epsilon: float) -> list[float]:
        return [
            float((found.values[x].double() * 5 * math.log(found.nodes[x]) * epsilon).clamp(max=1).sum())
            for x in NAMES
        ]

    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(means(middle)) < sum(counts.values()) else (low, middle)
    assert all(abs(counts[x] - n) <= 1 for x, n in zip(NAMES, means(low), strict=True))


def test_scores_are_what_they_say() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    graph, statistics = setting(model, 4, 4, 4, needs={"moments", "gradients", "flow"})
    w = model[0].weight.detach()
    assert torch.equal(edge_scores(graph, statistics, "magnitude")["0.weight"], w.abs())
    assert torch.equal(edge_scores(graph, statistics, "magnitude", 2)["0.weight"], w.abs() ** 2)
    sensitivity = (w.double() * statistics.gradients["0.weight"]).abs()
    assert torch.equal(edge_scores(graph, statistics, "snip")["0.weight"], sensitivity)
    norm = statistics.moments["0.weight"].second.sqrt()
    read = edge_scores(graph, statistics, "activation")["0.weight"]
    for o, c in ((0, 0), (2, 1), (3, 0), (5, 1)):
        feature = (o // 3) * 2 + c
        assert torch.allclose(read[o, c].double(), (w[o, c].abs() * norm[feature]).double(), rtol=1e-5)
    flow = edge_scores(graph, statistics, "synflow", masks={"0.weight": w > 0})["0.weight"]
    assert (flow[w <= 0] == 0).all()
    assert (flow[w > 0] > 0).all()


@pytest.mark.parametrize("score", ["activation", "snip", "synflow"])
def test_other_scores_plan(score: Any) -> None:
    model = zoo.small_cnn(width=4, hidden=12, seed=0)
    graph, statistics = setting(model, 1, 8, 8, needs={"moments", "gradients", "flow"})
    method = Spectral(score=score, rounds=3 if score == "synflow" else 1)
    assert method.needs(Weights(0.1)) <= {"moments", "gradients", "flow"}
    plan = method.plan(graph, statistics, Weights(0.1, scope="global"))
    total = sum(int(np.prod(graph.shapes[x.weight])) for x in graph.prunable_weights())
    removed = sum(int((~m).sum()) for m in plan.masks.values())
    assert abs(total - removed - 0.1 * total) <= 0.5


def test_missing_or_dead_evidence_is_an_error() -> None:
    graph, statistics = setting(MLP, 12)
    for score in ("snip", "activation", "synflow"):
        with pytest.raises(InputError, match="needs"):
            Spectral(score=score).plan(graph, statistics, Weights(0.5))  # type: ignore[arg-type]
    dead = zoo.mlp((12, 20, 3))
    nn.init.zeros_(dead[1].weight)
    graph, statistics = setting(dead, 12)
    with pytest.raises(InputError, match=r"1\.weight.*all zero"):
        Spectral().plan(graph, statistics, Weights(0.5))
    sparse = zoo.mlp((12, 20, 3))
    with torch.no_grad():
        sparse[1].weight[:, 3:] = 0
    graph, statistics = setting(sparse, 12)
    with pytest.raises(InputError, match="positive score"):
        Spectral(allocation="one-epsilon").plan(graph, statistics, Weights(0.9))
    uniform = Spectral().plan(graph, statistics, Weights(0.5))
    assert uniform.masks["1.weight"][:, :3].all()
    assert kept(uniform)["1.weight"] == 120


def test_units_are_scored_by_the_leverage_of_their_edges() -> None:
    graph, statistics = setting(MLP, 12)
    lev = Spectral().leverages(graph, statistics).values
    group = next(g for g in graph.groups if g.size == 20)
    for over in ("producers", "consumers", "both"):
        scores = Spectral(over=over).unit_scores(graph, statistics)[group.name]
        made, read = lev["1.weight"].sum(1).double(), lev["3.weight"].sum(0).double()
        truth = {"producers": made, "consumers": read, "both": made + read}[over]
        assert torch.allclose(scores, truth, rtol=1e-6)
    plan = Spectral().plan(graph, statistics, Units(0.25))
    small = shrink(MLP, plan)
    assert small[1].weight.shape == (5, 12)


@pytest.mark.parametrize("pattern", ["2:4", "1:4"])
def test_patterns(pattern: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )
    graph, statistics = setting(model, 3, 6, 6)
    n = int(pattern[0])
    plan = Spectral(pattern=pattern).plan(graph, statistics, Weights(n / 4))
    assert set(plan.masks) == {"2.weight", "5.weight"}
    assert (plan.masks["2.weight"].reshape(4, 2, 4, 3, 3).sum(2) == n).all()
    assert (plan.masks["5.weight"].reshape(3, 4, 4).sum(2) == n).all()
    lev = Spectral().leverages(graph, statistics).values["5.weight"].reshape(3, 4, 4)
    stays = torch.from_numpy(plan.masks["5.weight"].reshape(3, 4, 4))
    assert (lev.masked_fill(~stays, 2).amin(2) >= lev.masked_fill(stays, -1).amax(2)).all()
    with pytest.raises(InputError, match="keeps"):
        Spectral(pattern=pattern).plan(graph, statistics, Weights(0.3))


def test_a_pattern_that_fits_no_width_says_so() -> None:
    graph, statistics = setting(zoo.mlp((63, 31, 3)), 63)
    with pytest.raises(NothingToPrune, match=r"multiples of 4, and the layers have .*: 63, .*: 31"):
        Spectral(pattern="2:4").plan(graph, statistics, Weights(0.5))


def test_reweighting_keeps_the_expected_output() -> None:
    """Over many seeds, kept weights times their factors average to the weights."""
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    w, mean, draws = model[0].weight.detach(), torch.zeros(5, 6), 600
    graph, statistics = setting(model, 6)
    for seed in range(draws):
        own = type(statistics)(weights=statistics.weights, seed=seed)
        plan = Spectral(reweight=True).plan(graph, own, Weights(0.4))
        mean += mask(model, plan)[0].weight.detach() / draws
    assert ((mean - w).abs() <= 0.25 * w.abs() + 0.02).all()
    assert plan.factors["0.weight"].min() == 1
    assert (plan.factors["0.weight"][~plan.masks["0.weight"]] == 1).all()


def test_factors_travel_with_the_plan(tmp_path: Path) -> None:
    """A reweighted sparsifier is masked, shrunk, saved, loaded and trained like any other pruned model."""
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    x = torch.randn(4, 6)
    method = Spectral(reweight=True)
    result = sc.prune(model, x, Weights(0.4), method=method, repair=None)
    plain = mask(model, replace(result.plan, factors={}))
    for name, factor in result.plan.factors.items():
        expected = plain.get_parameter(name) * torch.from_numpy(factor).float()
        assert torch.equal(result.model.get_parameter(name), expected)
    result.save(tmp_path / "run")
    loaded = sc.load(tmp_path / "run", lambda: copy.deepcopy(model))
    assert torch.equal(loaded(x), result.model(x))
    trained, _ = sc.finetune(loaded, [(x, torch.tensor([0, 1, 2, 0]))], epochs=2, masks=result.plan.masks)
    for name, stays in result.plan.masks.items():
        assert not trained.get_parameter(name)[~torch.from_numpy(stays)].any()
    graph = sc.trace(model, x)
    with pytest.raises(PlanError, match="cannot follow another"):
        compose(Plan(graph, "none"), result.plan)
    with pytest.raises(PlanError, match="shape of its mask"):
        replace(result.plan, masks={})
    with pytest.raises(InputError, match="only masks are applied"):
        prune_every(1, method, graph, Weights(0.4))(1, model)
    with pytest.raises(PlanError, match="prune in one step"):
        sc.prune(model, x, Weights(0.4), method=method, repair=None, schedule=sc.Steps(2))


def test_epsilon_is_the_input_of_algorithm_2() -> None:
    graph, statistics = setting(MLP, 12)
    leverages = Spectral().leverages(graph, statistics)
    mean, draws = dict.fromkeys(leverages.values, 0.0), 40
    for mode in ("paper", "systematic"):
        for seed in range(draws // 2):
            own = type(statistics)(weights=statistics.weights, seed=seed)
            plan = Spectral(epsilon=2.5, mode=mode).plan(graph, own, Weights(0.01))
            for name in mean:
                mean[name] += plan.masks[name].sum() / draws
    for name, lev in leverages.values.items():
        p = (5 * math.log(leverages.nodes[name]) * lev.double() / 2.5**2).clamp(max=1)
        assert mean[name] == pytest.approx(
            float(p.sum()), abs=4 * float((p * (1 - p)).sum() / draws) ** 0.5 + 0.5
        )
    with pytest.raises(InputError, match="less than Weights"):
        Spectral(epsilon=9.0).plan(graph, statistics, Weights(0.9))
    for options in ({"epsilon": 2.5}, {"reweight": True}):
        with pytest.raises(InputError, match="budget in Weights"):
            Spectral(**options).plan(graph, statistics, Units(0.5))
    with pytest.raises(NothingToPrune):
        Spectral(epsilon=0.01).plan(graph, statistics, Weights(0.01))


def test_connectivity_survives_where_greedy_collapses() -> None:
    """At 5 % of a skewed layer, top-k of magnitudes leaves a third of the outputs dead."""
    model = zoo.mlp((64, 128, 10), seed=0)
    with torch.no_grad():
        model[1].weight *= torch.linspace(0.02, 1, 64)
    graph, statistics = setting(model, 64)
    plan = Spectral(mode="coverage").plan(graph, statistics, Weights(0.05))
    weight = model[1].weight.detach().abs()
    grown = connectivity(layer_graph(weight * torch.from_numpy(plan.masks["1.weight"])).scores[0])
    greedy = weight * (
        weight >= weight.flatten().kthvalue(weight.numel() - kept(plan)["1.weight"] + 1).values
    )
    assert (grown.components, grown.dead_inputs, grown.dead_outputs) == (1, 0, 0)
    assert connectivity(greedy).dead_outputs > 40


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"score": "size"}, "score"),
        ({"mode": "best"}, "mode"),
        ({"graph": "all"}, "graph"),
        ({"allocation": "even"}, "allocation"),
        ({"over": "none"}, "over"),
        ({"power": 0}, "positive"),
        ({"rounds": 0}, "rounds"),
        ({"rounds": 5}, "synflow"),
        ({"pattern": "4:2"}, "pattern"),
        ({"pattern": "half"}, "pattern"),
        ({"epsilon": 0.0}, "positive"),
        ({"epsilon": 0.5, "allocation": "erk"}, "decides how many"),
        ({"epsilon": 0.5, "mode": "top"}, "decides how many"),
        ({"epsilon": 0.5, "pattern": "2:4"}, "decides how many"),
        ({"reweight": True, "mode": "coverage"}, "probabilities"),
    ],
)
def test_options_are_checked(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        Spectral(**options)
