"""Gram matrices of units against their definition, for consumers of every kind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.methods.unit_grams import reading
from secateur.statistics.collect import collect_statistics
from secateur.tracing.trace import trace


def conv(groups: int, transposed: bool) -> nn.Sequential:
    torch.manual_seed(0)
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    return nn.Sequential(nn.Conv2d(2, 6, 1), nn.ReLU(), kind(6, 4, 3, groups=groups)).double().eval()


@pytest.mark.parametrize(("groups", "transposed"), [(1, False), (2, False), (1, True)])
def test_channels_are_weighed_by_what_reads_them(groups: int, transposed: bool) -> None:
    """Channel c of group g = c // 3: what it is, and the weights of its own group that read it."""
    model = conv(groups, transposed)
    x = torch.randn(32, 2, 5, 5, dtype=torch.float64)
    graph = trace(model, x[:2])
    [group] = [g for g in graph.groups if g.name == "0"]
    statistics = collect_statistics(model, graph, [(x, None)], {"gram"}, max_patch=0)
    matrices = reading(graph, statistics, group)
    maps = model[:2](x).detach().movedim(1, -1).flatten(0, 2)
    maps = maps if transposed else maps - maps.mean(0)
    w, width = model[2].weight.detach(), 6 // groups
    reads = w.transpose(0, 1) if transposed else torch.cat(list(w.chunk(groups)), 1)  # [out, channel, taps]
    index = torch.from_numpy(graph.consumers(group)[0][1].index)
    channels = index if transposed else torch.cat([index + g * width for g in range(groups)], 1)
    gram, consumer = torch.zeros_like(matrices.gram), torch.zeros_like(matrices.gram)
    for c in channels.T:
        gram += maps[:, c].T @ maps[:, c] / len(maps)
        product = torch.einsum("oixy,ojxy->ij", reads[:, c], reads[:, c])
        # Channels of different groups meet in no output.
        consumer += product * (c[:, None] // width == c[None] // width)
    torch.testing.assert_close(matrices.gram / matrices.gram.trace(), gram / gram.trace())
    torch.testing.assert_close(matrices.consumer / matrices.consumer.trace(), consumer / consumer.trace())
