"""Pruning while the network trains."""

from __future__ import annotations

import pytest
import torch
from recurrent_model import WEIGHTS, Recurrent, evidence_of
from torch import nn

from secateur.core import (
    InputError,
    Units,
    Weights,
)
from secateur.methods.during_training import prune_every
from secateur.methods.lattice.method import Lattice
from secateur.repair.finetune import finetune
from secateur.tracing.trace import trace

pytestmark = pytest.mark.filterwarnings("ignore:.*order is uninformative", "ignore:.*units are irreducible")


@pytest.mark.parametrize("adjacency", ["binary", "continuous"])
@pytest.mark.parametrize("persist", [True, False])
def test_algorithms_2_and_3_prune_every_few_epochs_while_the_network_trains(adjacency, persist):
    model = Recurrent(nn.LSTM, 8, batch_first=True)
    graph = trace(model, torch.randn(4, 5, 3))
    batches = [(torch.randn(16, 5, 3), torch.randn(16, 5, 2)) for _ in range(2)]
    method = Lattice(adjacency=adjacency, centrality="mu")
    zeros = []

    def watched(epoch: int, trained: nn.Module):
        masks = hook(epoch, trained)
        zeros.append(int((trained.rnn.weight_hh_l0 == 0).sum()))
        return masks

    hook = prune_every(2, method, graph, Weights(0.5), persist=persist, seed=5)
    options = {"loss": nn.functional.mse_loss, "progress": False}
    trained, _ = finetune(model, batches, epochs=5, after_epoch=watched, **options)
    expected = method.plan(graph, evidence_of(model, graph, seed=5), Weights(0.5)).masks
    gone = ~torch.from_numpy(expected["rnn.weight_hh_l0"])
    count = int(gone.sum())
    assert zeros == ([0, 0, count, count, count] if persist else [0, count, 0, count, 0])
    assert bool((trained.rnn.weight_hh_l0[gone] == 0).all()) is persist
    assert trained.rnn.weight_ih_l0.all()


def test_pruning_during_training_refuses_what_it_cannot_do():
    model = Recurrent(nn.GRU, 6)
    graph = trace(model, torch.randn(4, 7, 3))
    for epochs, method, budget, message in (
        (0, WEIGHTS, Weights(0.5), "at least 1"),
        (3, WEIGHTS, Units(0.5), "budget in Weights"),
        (3, Lattice(), Weights(0.5), "needs activations"),
    ):
        with pytest.raises(InputError, match=message):
            prune_every(epochs, method, graph, budget)
