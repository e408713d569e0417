"""Layers and directions of a recurrent module: free but for their number, or tied with a reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from oracles import half_plan
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from secateur.apply.deviating_operation import find_deviating_operation
from secateur.apply.mask import mask
from secateur.apply.shrink import shrink
from secateur.core import Plan, PlanError, PruningGraph
from secateur.tracing.trace import trace

X, LENGTHS = torch.randn(3, 7, 4), torch.tensor([2, 7, 3])


class Net(nn.Module):
    """A recurrent module of 2 layers and 2 directions with 10 units, read as `body` says."""

    def __init__(self, kind: type[nn.RNNBase], body: Callable[[Any, Tensor], Tensor], reads: int) -> None:
        super().__init__()
        self.rnn = kind(4, 10, 2, bidirectional=True, batch_first=True)
        self.width, self.body, self.last = 10, body, nn.Linear(reads, 3)
        self.start = nn.Parameter(torch.randn(4, 1, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Return the body's result."""
        return self.body(self, x)


def state(net: Net, x: Tensor) -> Tensor:
    """Run the module; return the last hidden states."""
    h = net.rnn(x)[1]
    return h[0] if isinstance(h, tuple) else h


def given(net: Net, x: Tensor, h: Tensor) -> Tensor:
    """Run the module from a state; return the outputs."""
    return net.rnn(x, (h, h.clone()) if isinstance(net.rnn, nn.LSTM) else h)[0]


def packed(net: Net, x: Tensor) -> tuple[Tensor, Any]:
    rows = pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
    y, h = net.rnn(rows)
    return pad_packed_sequence(y, batch_first=True)[0], h[0] if isinstance(h, tuple) else h


ALL, NONE = ["rnn", "rnn #2", "rnn #3", "rnn #4"], []
FREE = {
    "outputs": (lambda m, x: m.last(m.rnn(x)[0]), 20),
    "last states one by one": (lambda m, x: m.last(torch.cat([state(m, x)[-2], state(m, x)[3]], 1)), 20),
    "states of a layer, then one": (lambda m, x: m.last(state(m, x)[2:][0]), 10),
    "states taken apart": (lambda m, x: m.last(torch.cat([*state(m, x)][2:], 1)), 20),
    "halves": (lambda m, x: m.last(torch.cat(m.rnn(x)[0].chunk(2, -1)[::-1], -1)), 20),
    "split by the size": (lambda m, x: m.last(m.rnn(x)[0].split(m.rnn.hidden_size, -1)[1]), 10),
    "cut by the size": (lambda m, x: m.last(m.rnn(x)[0][..., m.width :]), 10),
    "a computed size": (lambda m, x: m.last(m.rnn(x)[0].reshape(-1, 2 * m.rnn.hidden_size)), 20),
    "zeros given": (lambda m, x: m.last(given(m, x, x.new_zeros(4, len(x), m.width))), 20),
    "zeros expanded": (
        lambda m, x: m.last(given(m, x, torch.zeros(4, 1, m.width).expand(-1, len(x), -1).contiguous())),
        20,
    ),
    "packed": (lambda m, x: m.last(packed(m, x)[0]), 20),
    "packed, last states": (lambda m, x: m.last(torch.cat([*packed(m, x)[1][2:4].squeeze(1)[:1]], 1)), 10),
    "no batch": (lambda m, x: m.last(m.rnn(x[0])[0]), 20),
}
TIED = {
    "all states together": (lambda m, x: m.last(state(m, x)), 10),
    "states side by side": (lambda m, x: m.last(state(m, x).transpose(0, 1).flatten(1)), 40),
    "a learnt state": (lambda m, x: m.last(given(m, x, m.start.expand(-1, len(x), -1).contiguous())), 20),
    "states given back": (lambda m, x: m.last(given(m, x, torch.tanh(state(m, x)))), 20),
    "directions on an axis": (lambda m, x: m.last(m.rnn(x)[0].view(*x.shape[:2], 2, m.width).flatten(2)), 20),
}


def traced(kind: type[nn.RNNBase], body: Any, reads: int) -> tuple[Net, PruningGraph]:
    torch.manual_seed(0)
    net = Net(kind, body, reads)
    return net, trace(net, X)


@pytest.mark.parametrize("name", FREE)
def test_layers_and_directions_lose_units_of_their_own(name: str) -> None:
    net, graph = traced(nn.GRU if name.startswith("packed") else nn.LSTM, *FREE[name])
    assert graph.equal_counts == (tuple(ALL),)
    plan = half_plan(graph, seed=3)
    assert len({tuple(plan.keep[n]) for n in ALL}) > 1
    small = shrink(net, plan)
    assert small.rnn.hidden_size == 5


@pytest.mark.parametrize("name", TIED)
def test_a_state_that_is_used_as_a_whole_ties_them(name: str) -> None:
    net, graph = traced(nn.LSTM if name.startswith("states") else nn.GRU, *TIED[name])
    assert [g.size for g in graph.groups] == [10]
    assert graph.equal_counts == ()
    assert shrink(net, half_plan(graph)).rnn.hidden_size == 5


def test_one_layer_that_ties_its_directions_leaves_the_other_free() -> None:
    body = lambda m, x: m.last(m.rnn(x)[0].unflatten(-1, (2, -1)).sum(-2))  # noqa: E731
    net, graph = traced(nn.LSTM, lambda m, x: m.last(sum(m.rnn(x)[0].chunk(2, -1))), 10)
    assert graph.equal_counts == (("rnn", "rnn #2", "rnn #3"),)
    assert {s.tensor for s in graph.group("rnn #3").slots_with("out")} >= {
        "rnn.weight_ih_l1",
        "rnn.weight_ih_l1_reverse",
    }
    shrink(net, half_plan(graph))
    assert traced(nn.LSTM, body, 10)[1].equal_counts == ()


def test_what_freezes_one_freezes_all_and_says_why() -> None:
    _, graph = traced(nn.GRU, lambda m, x: state(m, x)[1], 10)
    assert not graph.groups
    reasons = {f.tensor: f.reason for f in graph.frozen if f.axis == 0}
    assert "an output of the model" in reasons["rnn.weight_hh_l0_reverse"]
    assert "one hidden_size for all layers and directions of rnn" in reasons["rnn.weight_hh_l0"]
    whole = traced(nn.GRU, state, 10)[1]
    assert all("an output of the model" in f.reason for f in whole.frozen if f.tensor == "rnn.weight_hh_l0")


def test_a_unit_that_stays_in_one_layer_stays_in_all() -> None:
    _, graph = traced(nn.GRU, lambda m, x: m.last(m.rnn(x)[0][..., 2:3].expand(-1, -1, 10)), 10)
    assert graph.equal_counts == ()
    assert {g.size for g in graph.groups} == {7}


@pytest.mark.parametrize("ignored", ["rnn #2", "rnn*", "rnn.weight_hh_l1"])
def test_ignoring_one_keeps_all_whole(ignored: str) -> None:
    net = traced(nn.LSTM, *FREE["outputs"])[0]
    graph = trace(net, X, ignored_layers=[ignored])
    assert not graph.groups
    assert graph.equal_counts == ()
    assert any("ignored_layers" in f.reason for f in graph.frozen)


class Translator(nn.Module):
    """A decoder that starts from the encoder's states, layer by layer."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.LSTM(4, 10, 3, batch_first=True), nn.LSTM(4, 10, 3, batch_first=True)
        self.last = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, 4] to [B, T, 3]."""
        return self.last(self.decoder(x, self.encoder(x)[1])[0])


def test_states_that_pass_from_module_to_module_tie_layer_with_layer() -> None:
    net = Translator()
    graph = trace(net, X)
    assert [g.size for g in graph.groups] == [10, 10, 10]
    assert graph.equal_counts == (("encoder", "encoder #2", "encoder #3"),)
    assert all(any(s.tensor.startswith("decoder") for s in g.slots) for g in graph.groups)
    small = shrink(net, half_plan(graph))
    assert small.encoder.hidden_size == small.decoder.hidden_size == 5


def test_a_plan_must_keep_equally_many_in_every_layer() -> None:
    graph = traced(nn.LSTM, *FREE["outputs"])[1]
    with pytest.raises(PlanError, match=r"'rnn', 'rnn #2', 'rnn #3', 'rnn #4' must keep equally many units"):
        Plan(graph, "by hand", {"rnn": np.arange(3)})
    assert "equally many units stay in rnn, rnn #2, rnn #3, rnn #4" in graph.summary()


def test_the_diagnosis_passes_over_states_whose_rows_differ() -> None:
    """The states of the masked model are compared row by row with those of the shrunk one."""
    net, graph = traced(nn.LSTM, *FREE["last states one by one"])
    plan = half_plan(graph, seed=3)
    small = shrink(net, plan)
    with torch.no_grad():
        small.last.weight.mul_(2)
    assert "'last.weight' gives other values" in find_deviating_operation(mask(net, plan), small, plan)
