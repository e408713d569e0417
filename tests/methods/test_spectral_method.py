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
from torch import Tensor, nn

import secateur as sc
from secateur import zoo
from secateur.apply.compose import compose
from secateur.apply.mask import mask
from secateur.apply.shrink import shrink
from secateur.core import InputError, NothingToPrune, Plan, PlanError, PruningGraph, Units, Weights
from secateur.methods import prune_every
from secateur.methods.spectral import Spectral, edge_scores, layer_leverages, network_leverages
from secateur.methods.spectral.connectivity import layer_connectivity
from secateur.statistics.collect import collect_statistics
from secateur.structures.spectral import Link, chain_resistance, connectivity, layer_graph, leverage
from secateur.tracing.trace import trace


def setting(
    model: nn.Module, *shape: int, needs: set[str] | None = None, seed: int = 0
) -> tuple[PruningGraph, Any]:
    x = torch.randn(32, *shape, generator=torch.Generator().manual_seed(1))
    model.eval()
    graph = trace(model, x[:2])
    return graph, collect_statistics(model, graph, [(x, torch.arange(32) % 3)], needs or set(), seed)


def kept(plan: Plan) -> dict[str, int]:
    return {name: int(m.sum()) for name, m in plan.masks.items()}


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


def by_hand(model: nn.Module, links: dict[str, tuple[int, int]]) -> dict[str, Tensor]:
    parts = [Link(model.get_parameter(x).detach().abs(), s, t) for x, (s, t) in links.items()]
    return dict(zip(links, chain_resistance(parts).leverage(parts), strict=True))


class WithEmptyHead(nn.Module):
    """A second head without outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.none = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 1)
        self.none.weight, self.none.bias = nn.Parameter(torch.empty(0, 8)), nn.Parameter(torch.empty(0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.a(x).relu()
        return self.b(x), self.none(x)


@pytest.mark.parametrize("kind", ["layer", "network"])
def test_layers_without_entries_are_passed_over(kind: Any) -> None:
    model, x = WithEmptyHead().eval(), torch.randn(5, 6)
    graph = trace(model, x)
    statistics = collect_statistics(model, graph, [x], set())
    plan = Spectral(graph=kind).plan(graph, statistics, Weights(0.5))
    assert kept(plan) == {"a.weight": 24, "b.weight": 12}


def test_network_graph_contracts_what_tracing_couples() -> None:
    model = zoo.small_cnn(width=4, hidden=12, seed=0)
    graph, statistics = setting(model, 1, 8, 8)
    scores = edge_scores(graph, statistics, "magnitude")
    convs = [f"{i}.weight" for i, m in enumerate(model) if isinstance(m, nn.Conv2d | nn.Linear)]
    truth = by_hand(model, {name: (i, i + 1) for i, name in enumerate(convs)})
    found = network_leverages(graph, scores)
    for name in convs:
        assert torch.allclose(found.values[name], truth[name], rtol=1e-5)
    assert set(found.nodes.values()) == {1 + 4 + 8 + 12 + 10}


def test_network_graph_merges_residual_additions_and_gates() -> None:
    model = zoo.resnet18(width=2, seed=0)
    graph, statistics = setting(model, 3, 8, 8)
    found = network_leverages(graph, edge_scores(graph, statistics, "magnitude"))
    units = sum(g.size for g in graph.groups)
    assert set(found.nodes.values()) == {3 + units + 10}
    total = sum(float(v.double().sum()) for v in found.values.values())
    assert total == pytest.approx(3 + units + 10 - 1, rel=1e-4)
    recurrent = zoo.lstm(hidden=6, side=5, classes=3)
    graph, statistics = setting(recurrent, 1, 5, 5)
    found = network_leverages(graph, edge_scores(graph, statistics, "magnitude"))
    assert set(found.nodes.values()) == {5 + 6 + 3}


GROUPED = {
    "groups": [(3, 8, 1), (8, 8, 4), (8, 12, 2), (12, 6, 1)],
    "wide groups": [(3, 12, 1), (12, 6, 3), (6, 6, 3), (6, 9, 3)],
    "depthwise": [(3, 6, 1), (6, 6, 6), (6, 4, 1), (4, 4, 4), (4, 4, 4), (4, 5, 1)],
    "multiplier": [(3, 4, 1), (4, 8, 4), (8, 8, 8), (8, 5, 1)],
}


@pytest.mark.parametrize("kind", GROUPED)
def test_network_graph_keeps_apart_what_grouped_convolutions_couple(kind: str) -> None:
    """Tracing couples channel i of every group; the nodes of the graph are the channels."""
    convs = [nn.Conv2d(i, o, 3, groups=g, padding=1) for i, o, g in GROUPED[kind]]
    layers = [x for conv in convs for x in (conv, nn.ReLU())]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(convs[-1].out_channels * 9, 3))
    graph, statistics = setting(model, convs[0].in_channels, 3, 3)
    names = [name for name, p in model.named_parameters() if p.dim() > 1]
    links = [
        Link(
            model.get_parameter(name).detach().abs(),
            i,
            i + 1,
            getattr(model[int(name.split(".")[0])], "groups", 1),
        )
        for i, name in enumerate(names)
    ]
    truth = chain_resistance(links)
    found = network_leverages(graph, edge_scores(graph, statistics, "magnitude"))
    for name, values in zip(names, truth.leverage(links), strict=True):
        assert torch.allclose(found.values[name], values, rtol=1e-5)
    assert set(found.nodes.values()) == {truth.nodes}


class DepthwiseBranch(nn.Module):
    """A residual branch that starts with a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 5, 3, padding=1, groups=5)
        self.wide, self.back, self.head = nn.Conv2d(5, 7, 1), nn.Conv2d(7, 5, 1), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.back(self.wide(self.depthwise(x)).relu()))


def test_a_depthwise_convolution_in_a_residual_branch_is_a_bridge_of_its_own() -> None:
    """It reads a stream that more is added to: its channels get ends of their own, and leverages of 1."""
    model = DepthwiseBranch()
    graph, statistics = setting(model, 3, 4, 4)
    found = network_leverages(graph, edge_scores(graph, statistics, "magnitude"))
    w = model.depthwise.weight.detach().abs()
    assert torch.allclose(found.values["depthwise.weight"], w / w.sum((1, 2, 3), keepdim=True), rtol=1e-5)
    assert set(found.nodes.values()) == {3 + 5 + 7 + 2 + 2 * 5}


def test_layer_graphs_follow_groups_and_gates() -> None:
    recurrent = zoo.lstm(hidden=6, side=5, classes=3)
    graph, statistics = setting(recurrent, 1, 5, 5)
    scores = edge_scores(graph, statistics, "magnitude")
    found = layer_leverages(graph, scores)
    name = "rnn.weight_ih_l0"
    forget = leverage(scores[name][6:12].T)
    assert torch.allclose(found.values[name][6:12], forget.T, rtol=1e-4)
    assert found.nodes[name] == 11


def test_layers_of_one_shape_together_give_what_each_alone_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does, done here on the processor."""
    model = nn.Sequential(*[m for _ in range(3) for m in (nn.Linear(50, 50), nn.ReLU())], nn.Linear(50, 3))
    graph, statistics = setting(model, 50)
    scores = edge_scores(graph, statistics, "magnitude")
    alone = layer_leverages(graph, scores, tol=1e-5)
    monkeypatch.setattr("secateur.methods.spectral.graphs._batched", lambda _: True)
    together = layer_leverages(graph, scores, tol=1e-5)
    assert list(together.values) == list(alone.values)
    assert together.nodes == alone.nodes
    assert "0.weight" in together.notes
    for name, value in alone.values.items():
        assert torch.allclose(together.values[name], value, rtol=1e-4)


def test_attention_projections_are_graphs_of_their_matrices() -> None:
    """Queries, keys and values stacked are one layer that reads the same features."""
    model = nn.Sequential(nn.Linear(6, 8), nn.TransformerEncoderLayer(8, 2, 12, batch_first=True))
    graph, statistics = setting(model, 5, 6)
    found = layer_leverages(graph, edge_scores(graph, statistics, "magnitude"))
    w = model[1].self_attn.in_proj_weight.detach().abs()
    name = "1.self_attn.in_proj_weight"
    assert torch.allclose(found.values[name], leverage(w.T).T, rtol=1e-4)
    assert (found.nodes[name], found.nodes["1.self_attn.out_proj.weight"]) == (8 + 24, 16)


@pytest.mark.parametrize("mode", ["systematic", "coverage", "top"])
def test_queries_keys_and_values_of_each_head_are_graphs(mode: Any) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.TransformerEncoderLayer(8, 2, 12, batch_first=True))
    graph, statistics = setting(model, 5, 6)
    name = "1.self_attn.in_proj_weight"
    found = layer_leverages(graph, edge_scores(graph, statistics, "magnitude"), heads=True)
    w = model[1].self_attn.in_proj_weight.detach().abs()
    blocks = [leverage(part.T).T for part in w.split(4)]  # 3 x 2 heads of 4
    assert torch.allclose(found.values[name], torch.cat(blocks), rtol=1e-4)
    assert (found.nodes[name], found.nodes["1.linear1.weight"]) == (8 + 4, 8 + 12)
    plan = Spectral(graph="head", mode=mode).plan(graph, statistics, Weights(0.5, scope="layer"))
    assert kept(plan)[name] == 96
    weights = model.state_dict()
    whole = layer_connectivity(graph, weights, heads=True)[name]
    assert whole.components == 6 and whole.edges == 24 * 8
    worst = min(connectivity(part.T).lambda2 for part in w.split(4))
    assert whole.lambda2 == pytest.approx(worst)
    if mode == "coverage":
        assert layer_connectivity(graph, weights, plan.masks, heads=True)[name].components == 6


def test_the_network_graph_of_a_transformer_has_a_node_for_each_head() -> None:
    """Residual stream, heads and feed-forward units, against the pseudo-inverse of the dense Laplacian."""
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    model = nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(8, 3)).eval()
    graph, statistics = setting(model, 5, 6)
    found = network_leverages(graph, edge_scores(graph, statistics, "magnitude"))
    stream, head, hidden = 6 + np.arange(8), 14 + np.arange(8) // 4, 16 + np.arange(12)
    ends = {  # outputs, inputs
        "0.weight": (stream, np.arange(6)),
        "1.self_attn.in_proj_weight": (np.tile(head, 3), stream),
        "1.self_attn.out_proj.weight": (stream, head),
        "1.linear1.weight": (hidden, stream),
        "1.linear2.weight": (stream, hidden),
        "2.weight": (28 + np.arange(3), stream),
    }
    assert set(found.nodes.values()) == {31}
    laplacian, weights = np.zeros((31, 31)), {}
    for name, (rows, columns) in ends.items():
        weights[name] = model.get_parameter(name).detach().abs().double().numpy()
        for a, row in zip(rows, weights[name], strict=True):
            for b, w in zip(columns, row, strict=True):
                laplacian[[a, b, a, b], [a, b, b, a]] += (w, w, -w, -w)
    inverse = np.linalg.pinv(laplacian)
    for name, (rows, columns) in ends.items():
        diagonal = np.diag(inverse)
        resistance = diagonal[rows][:, None] + diagonal[columns] - 2 * inverse[np.ix_(rows, columns)]
        assert np.allclose(found.values[name], weights[name] * resistance, rtol=1e-4)


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
