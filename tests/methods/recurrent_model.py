"""A recurrent layer with a reader, its trace and its weights as statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.core import (
    PruningGraph,
    Statistics,
)
from secateur.methods.lattice.method import Lattice
from secateur.tracing.trace import trace

WEIGHTS = Lattice(adjacency="weights", centrality="mu", density=0.2)


class Recurrent(nn.Module):
    """A recurrent layer and a linear reader of all its outputs."""

    def __init__(self, kind: type[nn.RNNBase], hidden: int = 6, **options: object) -> None:
        super().__init__()
        self.rnn = kind(3, hidden, **options)
        self.fc = nn.Linear(hidden * (2 if self.rnn.bidirectional else 1), 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rnn(x)[0])


def evidence_of(model: nn.Module, graph: PruningGraph, **more: object) -> Statistics:
    return Statistics({**dict(model.named_parameters()), **dict(model.named_buffers())}, **more)


def traced(model: nn.Module, *shape: int) -> tuple[PruningGraph, Statistics]:
    graph = trace(model, torch.randn(*shape, dtype=next(model.parameters()).dtype))
    return graph, evidence_of(model, graph)
