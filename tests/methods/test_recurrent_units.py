"""Recurrent units go exactly: masked equals shrunk, padded and packed, and in dynamical systems."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cohen_grossberg import CohenGrossberg, CohenGrossbergSystem
from recurrent_model import WEIGHTS, Recurrent, evidence_of, traced
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from secateur.apply.mask import mask
from secateur.apply.shrink import shrink
from secateur.core import (
    InputError,
    Plan,
    Units,
)
from secateur.tracing.trace import trace
from secateur_studies.lattice.dynamics import lyapunov_spectrum

pytestmark = pytest.mark.filterwarnings("ignore:.*order is uninformative", "ignore:.*units are irreducible")


CASES = [
    (kind, layers, two, first)
    for kind in (nn.RNN, nn.GRU, nn.LSTM)
    for layers in (1, 2, 3)
    for two in (False, True)
    for first in (False, True)
]


@pytest.mark.parametrize("kind, layers, two, first", CASES, ids=lambda v: getattr(v, "__name__", str(v)))
def test_masked_equals_shrunk_for_recurrent_layers(kind, layers, two, first):
    model = Recurrent(kind, 8, num_layers=layers, bidirectional=two, batch_first=first).double()
    graph, statistics = traced(model, 4, 5, 3)
    plan = WEIGHTS.plan(graph, statistics, Units(0.5))
    small, masked = shrink(model, plan), mask(model, plan)
    assert small.rnn.hidden_size == 4 and model.rnn.hidden_size == 8
    for shape in ((4, 5, 3), (6, 2, 3), (1, 9, 3)):
        x = torch.randn(*shape, dtype=torch.float64)
        scale = masked(x).abs().max()
        assert (small(x) - masked(x)).abs().max() <= 1e-12 * scale
        if layers == 1:
            assert (oracle(model, plan, x) - masked(x)).abs().max() <= 1e-12 * scale


def oracle(model: nn.Module, plan: Plan, x: Tensor) -> Tensor:
    """Run the whole model step by step, the state of every removed unit set to zero."""
    rnn = model.rnn
    sequence = x.transpose(0, 1) if rnn.batch_first else x
    outputs = []
    for suffix, group in (("", "rnn"), ("_reverse", "rnn #2"))[: 1 + rnn.bidirectional]:
        gone = torch.as_tensor(plan.removed(group))
        cell = {nn.RNN: nn.RNNCell, nn.GRU: nn.GRUCell, nn.LSTM: nn.LSTMCell}[type(rnn)](3, 8).double()
        cell.load_state_dict({k: getattr(rnn, f"{k}_l0{suffix}") for k in cell.state_dict()})
        state = sequence.new_zeros(sequence.shape[1], 8)
        state = (state, state) if isinstance(rnn, nn.LSTM) else state
        steps = []
        for u in sequence.flip(0) if suffix else sequence:
            state = cell(u, state)
            parts = [s.index_fill(1, gone, 0) for s in (state if isinstance(state, tuple) else (state,))]
            state = tuple(parts) if isinstance(state, tuple) else parts[0]
            steps.append(parts[0])
        y = torch.stack(steps)
        outputs.append(y.flip(0) if suffix else y)
    y = torch.cat(outputs, -1)
    return model.fc(y.transpose(0, 1) if rnn.batch_first else y)


class PackedRecurrent(Recurrent):
    """Packs what the recurrent layer reads, and gives its outputs with their final states."""

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        packed = pack_padded_sequence(x, lengths, self.rnn.batch_first, enforce_sorted=False)
        y, state = self.rnn(packed)
        y, _ = pad_packed_sequence(y, self.rnn.batch_first)
        last = state[0] if isinstance(state, tuple) else state
        directions = 2 if self.rnn.bidirectional else 1
        return self.fc(y), self.fc(last[-directions:].transpose(0, 1).flatten(1))


PACKED = [pytest.param(*case, marks=() if case[2] == case[3] else pytest.mark.slow) for case in CASES]


@pytest.mark.parametrize("kind, layers, two, first", PACKED, ids=lambda v: getattr(v, "__name__", str(v)))
def test_masked_equals_shrunk_on_packed_sequences(kind, layers, two, first):
    model = PackedRecurrent(kind, 8, num_layers=layers, bidirectional=two, batch_first=first).double()
    graph = trace(model, (torch.randn(5, 5, 3).double(), torch.tensor([2, 5, 1, 3, 3])))
    plan = WEIGHTS.plan(graph, evidence_of(model, graph), Units(0.5))
    small, masked = shrink(model, plan), mask(model, plan)
    assert small.rnn.hidden_size == 4 and model.rnn.hidden_size == 8
    x, lengths = torch.randn(6, 6, 3, dtype=torch.float64), torch.tensor([6, 4, 1, 6, 2, 3])
    for ours, theirs in zip(small(x, lengths), masked(x, lengths), strict=True):
        assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max()
    # The last states of both directions are read side by side, which ties these two; the rest is as without.
    whole = Recurrent(kind, 8, num_layers=layers, bidirectional=two, batch_first=first).double()
    whole.load_state_dict(model.state_dict())
    kept = WEIGHTS.plan(*traced(whole, 4, 5, 3), Units(0.5)).keep
    alike = list(plan.keep)[: len(kept) - 2] if two else list(kept)
    assert all(np.array_equal(kept[name], plan.keep[name]) for name in alike)
    assert len(plan.keep) == len(kept) - two


def test_a_packed_example_input_is_refused_and_a_padded_one_will_do():
    class Outputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(3, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[1]

    packed = pack_padded_sequence(torch.randn(6, 3, 3), [6, 4, 1])
    with pytest.raises(InputError, match="trace with a padded tensor"):
        trace(Outputs(), packed)
    with pytest.raises(InputError, match="trace with a padded tensor"):
        trace(Outputs(), {"x": packed})


@pytest.mark.parametrize("method", ["euler", "rk4"])
@pytest.mark.parametrize("activation", [torch.tanh, torch.sigmoid])
def test_cohen_grossberg_units_go_exactly_and_the_smaller_layer_is_a_smaller_system(method, activation):
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = CohenGrossberg(3, 8, dt=0.2, method=method, activation=activation)
            self.fc = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.layer(x)[0])

    model = Reader().double()
    graph, statistics = traced(model, 4, 5, 3)
    plan = WEIGHTS.plan(graph, statistics, Units(0.5))
    small, masked = shrink(model, plan), mask(model, plan)
    x = torch.randn(3, 5, 3, dtype=torch.float64)
    assert (small(x) - masked(x)).abs().max() < 1e-14
    start = torch.zeros(4, dtype=torch.float64)
    spectrum = lyapunov_spectrum(CohenGrossbergSystem(small.layer), start, steps=20)
    assert spectrum.exponents.shape == (4,)
