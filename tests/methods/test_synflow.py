"""SynFlow: conservation, rounds, exact counts."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from scoring import make
from torch import Tensor, nn

from secateur.core import (
    Statistics,
    Units,
    Weights,
)
from secateur.methods import (
    SynFlow,
)
from secateur.statistics.collect import collect_statistics
from secateur.tracing.trace import trace


def test_synflow_conserves_and_empties_no_layer() -> None:
    torch.manual_seed(0)
    widths = [20, 100, 100, 100, 10]
    parts = [nn.Linear(a, b, bias=False) for a, b in pairwise(widths)]
    model = nn.Sequential(*[x for p in parts for x in (p, nn.ReLU())][:-1]).double()
    graph = trace(model, torch.randn(2, 20, dtype=torch.float64))
    statistics = collect_statistics(model, graph, None, {"flow"})
    total = sum(p.weight.numel() for p in parts)
    masks = SynFlow().plan(graph, statistics, Weights(0.01, "global")).masks
    assert sum(int(m.sum()) for m in masks.values()) == round(0.01 * total)
    # Paths from input to output are left, and R with them, although 99 % is gone.
    flow = statistics.flow({k: torch.from_numpy(m) for k, m in masks.items()})
    assert float(flow["0.weight"].sum()) > 0
    once = SynFlow(rounds=1).plan(graph, statistics, Weights(0.01, "global")).masks
    left = statistics.flow({k: torch.from_numpy(m) for k, m in once.items()})
    assert float(left["0.weight"].sum()) < float(flow["0.weight"].sum())


def test_synflow_in_one_round_is_its_score() -> None:
    model, graph, batches = make("mlp")
    statistics = collect_statistics(model, graph, batches, {"flow"})
    flow = SynFlow().unit_scores(graph, statistics)["0"]
    kept = SynFlow(rounds=1).plan(graph, statistics, Units(0.5)).keep["0"]
    assert kept.tolist() == sorted(torch.argsort(flow, descending=True, stable=True)[:6].tolist())


def test_synflow_rounds_are_nested_and_exact() -> None:
    model, graph, batches = make("lstm")
    statistics = collect_statistics(model, graph, batches, {"flow"})
    seen: list[dict[str, Tensor]] = []

    def spy(masks: dict[str, Tensor], **options: Any) -> Any:
        seen.append({k: m.clone() for k, m in masks.items()})
        return statistics.flow(masks, **options)

    watched = Statistics(statistics.weights, flow=spy)
    found = SynFlow(rounds=7).plan(graph, watched, Units(0.4, "global"))
    assert len(found.keep[graph.groups[0].name]) == 4
    assert len(seen) == 7
    for earlier, later in pairwise(seen[1:]):
        assert all((later[k] <= earlier[k]).all() for k in earlier)
    assert int((~seen[-1]["head.weight"]).sum()) > 0
