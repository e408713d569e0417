"""The lattice method: strengths, orders, contexts and budgets."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from recurrent_model import WEIGHTS, Recurrent, evidence_of, traced
from torch import Tensor, nn

from secateur import zoo
from secateur.apply.mask import mask
from secateur.apply.shrink import shrink
from secateur.core import (
    InputError,
    NothingToPrune,
    Plan,
    SecateurError,
    Units,
    Weights,
)
from secateur.methods import METHODS
from secateur.methods.lattice.connection_strength import across, entering, onto_consumers, within
from secateur.methods.lattice.method import Lattice
from secateur.statistics.collect import collect_statistics
from secateur.structures.order import Poset, feedback_operator, strongest_edges
from secateur.tracing.trace import trace

pytestmark = pytest.mark.filterwarnings("ignore:.*order is uninformative", "ignore:.*units are irreducible")


def recurrent_weights(W: np.ndarray) -> nn.Module:
    """An RNN whose recurrent matrix has W[j, i] from j to i."""
    model = Recurrent(nn.RNN, len(W)).double()
    with torch.no_grad():
        model.rnn.weight_hh_l0.copy_(torch.from_numpy(W.T))
    return model


def test_strengths_of_a_recurrent_layer_are_norms_over_its_gates():
    model = Recurrent(nn.LSTM, 5, num_layers=2).double()
    graph, statistics = traced(model, 4, 7, 3)
    lower, upper = graph.groups
    own, between, top = (
        getattr(model.rnn, name).detach().reshape(4, 5, 5).square().sum(0).sqrt().T.numpy()
        for name in ("weight_hh_l0", "weight_ih_l1", "weight_hh_l1")
    )
    assert np.allclose(within(graph, statistics, lower), own, atol=1e-12)
    assert np.allclose(
        across(graph, statistics, [lower, upper]), np.block([[own, between], [0 * own, top]]), atol=1e-12
    )
    assert np.allclose(onto_consumers(graph, statistics, lower), np.hstack([own, between]))
    assert np.allclose(
        onto_consumers(graph, statistics, upper)[:, -2:], model.fc.weight.detach().abs().T.numpy()
    )
    inputs = model.rnn.weight_ih_l0.detach().reshape(4, 5, 3).square().sum(0).sqrt().sum(1)
    assert np.allclose(entering(graph, statistics, lower), inputs.numpy() + own.sum(0))
    assert np.allclose(entering(graph, statistics, upper), between.sum(0) + top.sum(0))


def test_strengths_across_layers_of_a_convolutional_network_follow_the_data():
    maps = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.ReLU())
    model = nn.Sequential(*maps, nn.Flatten(), nn.Linear(16, 2))
    graph, statistics = traced(model, 2, 1, 5, 5)
    first, second = graph.groups
    assert within(graph, statistics, first) is None
    whole = across(graph, statistics, [first, second])
    expected = model[2].weight.detach().double().square().sum((2, 3)).sqrt().T.numpy()
    assert np.allclose(whole[:3, 3:], expected) and not whole[3:].any() and not whole[:3, :3].any()


def test_algorithm_1_keeps_irreducible_units_then_those_of_largest_mu():
    W = np.zeros((5, 5))  # the pentagon 0 < 1 < 2 < 4, 0 < 3 < 4: 1, 2 and 3 are meet-irreducible
    for i, j, w in ((0, 1, 1.0), (1, 2, 1.0), (2, 4, 1.0), (0, 3, 2.0), (3, 4, 3.0)):
        W[i, j] = w
    model = recurrent_weights(W)
    graph, statistics = traced(model, 4, 7, 3)
    order = Lattice(adjacency="weights", density=0.25).orders(graph, statistics)["rnn"]
    assert np.flatnonzero(order.irreducible).tolist() == [1, 2, 3]
    assert order.centrality("mu").tolist() == [np.inf, 1, 1, 0.5, 0.25]
    assert order.centrality("in-strength").tolist() == [0, 1, 1, 2, 4]
    assert order.centrality("moebius").tolist() == [1, 1, 0, 1, 1]
    for keep, kept in ((0.6, [1, 2, 3]), (0.8, [0, 1, 2, 3]), (0.4, [1, 2])):
        paper = Lattice(adjacency="weights", density=0.25, centrality="mu")
        plan = paper.plan(graph, statistics, Units(keep))
        assert plan.keep["rnn"].tolist() == kept
    top = Lattice(adjacency="weights", density=0.25, include_top=True).orders(graph, statistics)["rnn"]
    assert np.flatnonzero(top.irreducible).tolist() == [1, 2, 3, 4]
    other = Lattice(adjacency="weights", density=0.25, prefer="reducible", centrality="mu")
    assert other.plan(graph, statistics, Units(0.4)).keep["rnn"].tolist() == [0, 4]
    alone = Lattice(adjacency="weights", density=0.25, prefer="neither", centrality="in-strength")
    assert alone.plan(graph, statistics, Units(0.4)).keep["rnn"].tolist() == [3, 4]


def test_tau_is_the_threshold_of_algorithm_1():
    """Irreducible units stay; of the others those with mu of at least tau, and what the budget asks for."""
    W = np.zeros((5, 5))
    for i, j, w in ((0, 1, 1.0), (1, 2, 1.0), (2, 4, 1.0), (0, 3, 2.0), (3, 4, 3.0)):
        W[i, j] = w
    graph, statistics = traced(recurrent_weights(W), 4, 7, 3)
    for tau, keep, kept in ((0.2, 0.01, None), (0.3, 0.01, [0, 1, 2, 3])):
        method = Lattice(adjacency="weights", density=0.25, centrality="mu", tau=tau)
        if kept is None:
            with pytest.raises(NothingToPrune):
                method.plan(graph, statistics, Units(keep))
        else:
            assert method.plan(graph, statistics, Units(keep)).keep["rnn"].tolist() == kept
            masks = method.plan(graph, statistics, Weights(keep)).masks
            assert np.flatnonzero(masks["rnn.weight_hh_l0"].all(1)).tolist() == kept
    literal = Lattice(adjacency="binary", centrality="mu", tau=100.0)
    mask_of_algorithm_2 = literal.plan(graph, statistics, Weights(0.01)).masks["rnn.weight_hh_l0"]
    assert mask_of_algorithm_2.all(1).tolist() == [True, True, True, False, False]
    assert not mask_of_algorithm_2[3:].any()


def test_the_moebius_function_of_the_lattice_is_not_that_of_the_poset():
    """Line 3 of Algorithm 1: 0, 1 < 2, 3 < 4 has two more elements in its completion."""
    W = np.zeros((5, 5))
    for i, j in ((0, 2), (0, 3), (1, 2), (1, 3), (2, 4), (3, 4)):
        W[i, j] = 1
    graph, statistics = traced(recurrent_weights(W), 4, 7, 3)
    order = Lattice(adjacency="weights", density=0.3).orders(graph, statistics)["rnn"]
    completion = order.poset.completion()
    assert order.centrality("moebius").tolist() == [1, 1, 1, 1, 1]
    assert order.centrality("lattice-moebius").tolist() == [1, 1, 0, 0, 0]
    full = completion.lattice.moebius()
    assert order.centrality("lattice-moebius").tolist() == np.abs(full[0, completion.embedding]).tolist()


def test_top_down_feedback_is_one_digraph_and_units_go_exactly():
    """Definition III.4: both layers, what the upper one reads, and what it feeds back."""
    model = zoo.top_down(6, side=5, classes=3).double().eval()
    graph, statistics = traced(model, 4, 1, 5, 5)
    lower, upper = graph.groups
    whole = across(graph, statistics, [lower, upper])
    assert whole[:6, 6:].all()  # bottom-up
    back = model.lower.weight_ih.detach()[:, 5:].reshape(3, 6, 6).square().sum(0).sqrt().T.numpy()
    assert np.allclose(whole[6:, :6], back)
    plan = Lattice(adjacency="weights", span="network", density=0.1).plan(graph, statistics, Units(0.5))
    assert {name: len(kept) for name, kept in plan.keep.items()} == {lower.name: 3, upper.name: 3}
    x = torch.randn(3, 1, 5, 5, dtype=torch.float64)
    assert (shrink(model, plan)(x) - mask(model, plan)(x)).abs().max() < 1e-14


def test_the_operator_of_a_network_keeps_meets_and_not_always_joins():
    """Definition III.4 assumes both; T is derived from the feedback weights."""
    joins_kept = []
    for seed in range(12):
        model = zoo.top_down(5, side=4, classes=2, seed=seed).eval()
        graph, statistics = traced(model, 2, 1, 4, 4)
        lower, upper = graph.groups
        whole = across(graph, statistics, [lower, upper])
        cut = [strongest_edges(part, 0.3) for part in (whole[:5, :5], whole[5:, 5:])]
        below, above = (Poset.from_digraph(edges).completion() for edges in cut)
        T = feedback_operator(above, below, whole[5:, :5] > np.quantile(whole[5:, :5], 0.8))
        lattice, elements = below.lattice, range(len(below))
        pairs = [(x, a, b) for x in range(len(above)) for a in elements for b in elements]
        assert all(T[x, lattice.meet(a, b)] == lattice.meet(T[x, a], T[x, b]) for x, a, b in pairs)
        joins_kept.append(
            all(T[x, lattice.join(a, b)] == lattice.join(T[x, a], T[x, b]) for x, a, b in pairs)
        )
    assert 0 < sum(joins_kept) < len(joins_kept)


def test_units_on_a_cycle_are_one_element():
    W = np.zeros((4, 4))
    W[0, 1] = W[1, 0] = W[1, 2] = W[1, 3] = 1
    graph, statistics = traced(recurrent_weights(W), 4, 7, 3)
    order = Lattice(adjacency="weights", density=0.5).orders(graph, statistics)["rnn"]
    assert order.irreducible.tolist() == [False, False, True, True]


@pytest.mark.parametrize("seed", range(8))
def test_unrolled_units_are_irreducible_by_their_successor_sets(seed):
    rng = np.random.default_rng(seed)
    model = recurrent_weights(rng.normal(size=(8, 8)))
    graph, statistics = traced(model, 4, 7, 3)
    method = Lattice(adjacency="weights", reading="unrolled", density=0.3)
    onto = onto_consumers(graph, statistics, graph.groups[0])
    kept = onto >= np.sort(onto, axis=None)[-round(0.3 * onto.size)]
    successors = [set(np.flatnonzero(row)) for row in kept]
    expected = [
        len(s) <= 1 or any(s <= t for k, t in enumerate(successors) if k != i)
        for i, s in enumerate(successors)
    ]
    assert method.orders(graph, statistics)["rnn"].irreducible.tolist() == expected


def test_feed_forward_units_are_read_unrolled_and_networks_as_one_digraph():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    graph, statistics = traced(model, 2, 4)
    plan = WEIGHTS.plan(graph, statistics, Units(0.5))
    assert {n["reading"] for n in plan.notes["order"].values()} == {"unrolled"}
    whole = Lattice(adjacency="weights", span="network", density=0.1).orders(graph, statistics)
    assert whole["0"].notes["profile"] == whole["2"].notes["profile"]
    assert whole["2"].poset is whole["0"].poset and len(whole["0"].poset) == 14
    with pytest.raises(InputError, match="leaves no edge"):
        Lattice(adjacency="weights", density=1e-6).plan(graph, statistics, Units(0.5))


class Redundant(nn.Module):
    """Hidden units 0 and 1 fire on two inputs, 2 where both are large, 3 never."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 5), nn.Linear(5, 2)
        with torch.no_grad():
            self.a.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [0, 0], [0, 0], [-1, 1]]))
            self.a.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.b(h)


def test_a_unit_that_fires_where_two_others_do_is_redundant_and_so_is_a_dead_one():
    h = (torch.rand(400, 5) < 0.5).float()
    h[:, 2] = h[:, 0] * h[:, 1]
    h[:, 3] = 0
    model = Redundant()
    graph = trace(model, torch.randn(3, 2))
    statistics = evidence_of(model, graph, activations={"a": h})
    order = Lattice(quantile=0.5, tolerance=0.0).orders(graph, statistics)["a"]
    assert order.irreducible.tolist() == [True, True, False, True, True]
    exact = Lattice(quantile=0.5, tolerance=0.0).plan(graph, statistics, Units(0.8))
    assert exact.removed("a").tolist() == [2]
    tolerant = Lattice(quantile=0.5, tolerance=0.2, centrality="gap")
    assert tolerant.plan(graph, statistics, Units(0.6)).removed("a").tolist() == [2, 3]
    noted = tolerant.plan(graph, statistics, Units(0.6)).notes["order"]["a"]
    assert noted["objects"] == 400 and noted["reading"] == "context from data"


def test_flow_is_what_leaves_a_unit_times_how_active_it_is():
    h = torch.tensor([[3.0, 1, 0, 0, 2], [-4, 1, 0, 0, 2]])
    model = Redundant()
    graph = trace(model, torch.randn(3, 2))
    statistics = evidence_of(model, graph, activations={"a": h})
    order = Lattice().orders(graph, statistics)["a"]
    expected = model.b.weight.detach().abs().sum(0) * torch.tensor([12.5**0.5, 1, 0, 0, 2])
    assert np.allclose(order.centrality("flow"), expected.numpy())
    assert Lattice().centrality == "flow" and Lattice(adjacency="weights").centrality == "in-strength"
    kept = Lattice(prefer="neither").plan(graph, statistics, Units(0.4)).keep["a"]
    assert kept.tolist() == sorted(np.argsort(-expected.numpy())[:2].tolist())


def test_activations_are_collected_from_the_state_and_evenly():
    model = Recurrent(nn.GRU, 6, batch_first=True)
    graph = trace(model, torch.randn(4, 7, 3))
    batches = [(torch.randn(50, 7, 3), None) for _ in range(2)]
    rows = collect_statistics(model, graph, batches, {"activations"}).activations["rnn"]
    states = torch.cat([model.rnn(x)[0][:, :-1] for x, _ in batches]).detach()
    expected = torch.cat([torch.zeros(100, 1, 6), states], 1).reshape(-1, 6)
    assert torch.allclose(rows, expected, atol=1e-6)
    many = collect_statistics(
        model, graph, [(torch.randn(900, 7, 3), None)] * 8, {"activations"}
    ).activations["rnn"]
    assert many.shape == (4096, 6)
    maps = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    graph = trace(maps, torch.randn(2, 1, 2, 2))
    x = torch.randn(5, 1, 2, 2)
    rows = collect_statistics(maps, graph, [(x, None)], {"activations"}).activations["0"]
    assert torch.allclose(rows, maps[:2](x).permute(0, 2, 3, 1).reshape(-1, 3))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"adjacency": "weights"},
        {"adjacency": "weights", "reading": "unrolled", "centrality": "moebius"},
        {"adjacency": "weights", "span": "network", "density": 0.1},
        {"adjacency": "binary"},
        {"adjacency": "continuous", "centrality": "mu"},
        {"centrality": "gap"},
        {"centrality": "moebius"},
    ],
    ids=str,
)
def test_every_variant_keeps_exact_counts_twice_the_same_and_nests(options):
    model = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 2))
    graph = trace(model, torch.randn(2, 4))
    statistics = collect_statistics(model, graph, [(torch.randn(60, 4), None)], {"activations"}, seed=3)
    method = Lattice(**options)
    plans = [method.plan(graph, statistics, Units(keep)) for keep in (0.75, 0.5, 0.25)]
    assert [len(plan.keep["0"]) for plan in plans] == [9, 6, 3]
    assert set(plans[2].keep["2"]) < set(plans[1].keep["2"]) < set(plans[0].keep["2"])
    again = method.plan(graph, statistics, Units(0.5))
    assert all(np.array_equal(again.keep[name], kept) for name, kept in plans[1].keep.items())
    assert len(method.plan(graph, statistics, Units(0.5, scope="global")).keep) >= 1
    json.dumps(dict(plans[0].notes))


def test_dense_recurrent_weights_raise_a_warning_and_the_profile_says_why():
    model = Recurrent(nn.LSTM, 24)
    graph, statistics = traced(model, 4, 7, 3)
    with pytest.warns(UserWarning, match="'rnn': at density 0.5 the order is uninformative.*24 of 24"):
        plan = Lattice(adjacency="weights", density=0.5).plan(graph, statistics, Units(0.5))
    profile = plan.notes["order"]["rnn"]["profile"]
    assert [p["density"] for p in profile] == [0.005, 0.01, 0.02, 0.03, 0.06, 0.12, 0.25]
    assert profile[0]["largest"] < profile[-1]["largest"] == 24
    assert plan.notes["order"]["rnn"]["warning"] in str(plan.explain())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Lattice(adjacency="weights", density=0.03).plan(graph, statistics, Units(0.5))


def test_weight_budgets_zero_rows_of_recurrent_matrices_and_nothing_else():
    model = Recurrent(nn.LSTM, 8, num_layers=2)
    graph, statistics = traced(model, 4, 7, 3)
    plan = Lattice(adjacency="continuous", centrality="mu").plan(graph, statistics, Weights(0.25))
    assert set(plan.masks) == {"rnn.weight_hh_l0", "rnn.weight_hh_l1"} and not plan.keep
    rows = plan.masks["rnn.weight_hh_l0"].reshape(4, 8, 8)
    assert (rows == rows[:1, :, :1]).all() and rows[0, :, 0].sum() == 2
    masked = mask(model, plan)
    x = torch.randn(5, 4, 3)
    assert (masked(x) - model(x)).abs().max() > 1e-4
    binary = Lattice(adjacency="binary").plan(graph, statistics, Weights(0.5)).masks["rnn.weight_hh_l0"]
    assert (binary.reshape(4, 8, 8) == binary[:8]).all() and 0.3 < binary.mean() < 0.7
    other = Lattice(adjacency="binary").plan(graph, evidence_of(model, graph, seed=1), Weights(0.5))
    assert not np.array_equal(other.masks["rnn.weight_hh_l0"], binary)
    feed_forward = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(InputError, match="recurrent matrices"):
        WEIGHTS.plan(*traced(feed_forward, 2, 3), Weights(0.5))


def test_zeroed_rows_leave_a_unit_alive_where_removal_does_not():
    model = Recurrent(nn.LSTM, 8).double()
    graph, statistics = traced(model, 4, 7, 3)
    kept = Lattice(adjacency="continuous").plan(graph, statistics, Units(0.5)).keep["rnn"]
    rows = np.zeros((4, 8, 8), bool)
    rows[:, kept] = True
    literal = mask(model, Plan(graph, "x", masks={"rnn.weight_hh_l0": rows.reshape(32, 8)}))
    removed = shrink(model, Plan(graph, "x", keep={"rnn": kept}))
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    assert (literal(x) - removed(x)).abs().max() > 1e-3


@pytest.mark.parametrize(
    "options, message",
    [
        ({"adjacency": "weight"}, r"Lattice\.adjacency is 'data', 'weights', .*; got 'weight'"),
        ({"reading": "folded"}, r"Lattice\.reading"),
        ({"density": 0.0}, "density"),
        ({"quantile": 1.0}, "quantile"),
        ({"tolerance": -0.1}, "tolerance"),
        ({"adjacency": "weights", "centrality": "gap"}, "has no centrality 'gap'"),
        ({"adjacency": "binary", "centrality": "flow"}, "has no centrality 'flow'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Lattice(**options)


def test_bad_evidence_is_refused():
    model = Recurrent(nn.GRU, 6)
    graph, statistics = traced(model, 4, 7, 3)
    with pytest.raises(InputError, match="activations"):
        Lattice().plan(graph, statistics, Units(0.5))
    broken = evidence_of(model, graph, activations={"rnn": torch.full((3, 6), torch.nan)})
    with pytest.raises(InputError, match="NaN"):
        Lattice().plan(graph, broken, Units(0.5))
    with torch.no_grad():
        model.rnn.weight_hh_l0[0, 0 + 1] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        WEIGHTS.plan(graph, evidence_of(model, graph), Units(0.5))


def test_silent_units_do_not_count_and_are_reported():
    model = Recurrent(nn.RNN, 6)
    graph, _ = traced(model, 4, 7, 3)
    silent = evidence_of(model, graph, activations={"rnn": torch.zeros(10, 6)})
    with pytest.warns(UserWarning, match="no unit ever fires"):
        Lattice().plan(graph, silent, Units(0.5))


def test_projections_empty_sequences_and_fixed_states_are_refused_by_name():
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(3, 6, proj_size=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0]

    graph = trace(Projected(), torch.randn(4, 7, 3))
    frozen = {f.tensor: f.reason for f in graph.frozen}
    assert any("rnn" in name for name in frozen)
    if not graph.groups:
        with pytest.raises(NothingToPrune, match="rnn"):
            WEIGHTS.plan(graph, evidence_of(Projected(), graph), Units(0.5))
    with pytest.raises(SecateurError):
        trace(Recurrent(nn.LSTM), torch.randn(0, 7, 3))


def test_the_lattice_is_a_registered_method():
    assert METHODS["lattice"] is Lattice
