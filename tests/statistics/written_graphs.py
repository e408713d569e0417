"""Networks written by hand, and the statistics of what their weights read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from secateur.core import Group, Layer, Moments, PruningGraph
from secateur.statistics.collect import collect_statistics


def reading(model: nn.Module, *layers: Layer, groups: tuple[Group, ...] = ()) -> PruningGraph:
    """A network by hand, with these layers."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {k: tuple(t.shape) for k, t in tensors.items()}
    return PruningGraph(groups, (), layers, shapes, tuple(k for k, _ in model.named_parameters()))


def moments(model: nn.Module, inputs: Any, *layers: Layer, **options: Any) -> dict[str, Moments]:
    """Statistics over two batches of double precision."""
    graph = reading(model, *layers)
    names = [graph.input_key(layer) for layer in layers]
    batches = inputs if isinstance(inputs, list) else [(inputs, None)]
    return dict(collect_statistics(model, graph, batches, {"gram"}, grams=names, **options).moments)


def agree(found: Moments, rows: Tensor) -> None:
    """Compare statistics with those of all rows at once."""
    rows = rows.detach().double()
    assert found.count == len(rows)
    mean, gram = rows.mean(0), rows.T @ rows / len(rows)
    for ours, theirs in (
        (found.mean, mean),
        (found.absolute, rows.abs().mean(0)),
        (found.second, rows.square().mean(0)),
        (found.gram, gram),
        (found.gram_mean, mean),
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert found.gram is not None and torch.equal(found.gram, found.gram.T)
