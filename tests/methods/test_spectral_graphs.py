"""The graphs of layers and networks that the spectral method ranks edges of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from spectral_setting import kept, setting
from torch import Tensor, nn

from secateur import zoo
from secateur.core import Weights
from secateur.methods.spectral import Spectral, edge_scores, layer_leverages, network_leverages
from secateur.methods.spectral.connectivity import layer_connectivity
from secateur.statistics.collect import collect_statistics
from secateur.structures.spectral import Link, chain_resistance, connectivity, leverage
from secateur.tracing.trace import trace


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
