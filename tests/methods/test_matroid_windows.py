"""Windows over the rows of recurrent layers and kernels, and their default order."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.core import NothingToPrune, Units
from secateur.methods.matroid import Matroid, partitions
from secateur.statistics.collect import collect_statistics
from secateur.structures.matroid import Tail
from secateur.tracing.trace import trace


def looked_at(model: nn.Module, x: torch.Tensor):
    graph = trace(model, x)
    return graph, collect_statistics(model, graph, [(x, None)], Matroid(ground="windows").needs(Units(0.5)))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module], **options: object) -> None:
        super().__init__()
        self.cells = kind(3, 12, batch_first=True, **options)
        self.out = nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.cells(x)[0][:, -1])


def planted(model: nn.Module, x: torch.Tensor, names: dict[str, int], gates: int = 1) -> Tail:
    """Make units 4 to 6 depend on one another in all tensors that produce them; return the tail."""
    with torch.no_grad():
        for name, axis in names.items():
            tensor = dict(model.named_parameters())[name].movedim(axis, 0)
            for gate in range(gates):
                rows = tensor[gate * len(tensor) // gates :]
                rows[6] = rows[4] + 2 * rows[5]
    graph, statistics = looked_at(model, x)
    (tail,) = partitions(graph, statistics, exact=True).values()
    return tail


@pytest.mark.parametrize(("kind", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_windows_over_recurrent_rows(kind, gates, bias):
    torch.manual_seed(0)
    model = Recurrent(kind, bias=bias).double()
    names = {"cells.weight_ih_l0": 0, "cells.weight_hh_l0": 0}
    names |= {"cells.bias_ih_l0": 0, "cells.bias_hh_l0": 0} if bias else {}
    free = partitions(*looked_at(model, torch.randn(2, 4, 3).double()), exact=True)
    tail = planted(model, torch.randn(2, 4, 3).double(), names, gates)
    assert not len(free["cells"].tail)
    assert tail.rank == 11 and tail.tail.tolist() == list(range(12))  # windows of 11 hold all three


@pytest.mark.parametrize("transposed", [False, True])
def test_windows_over_kernels(transposed):
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(1, 12, 2) if transposed else nn.Conv2d(1, 12, 2)
    model = nn.Sequential(layer, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 2)).double()
    tail = planted(model, torch.randn(2, 1, 6, 6).double(), {"0.weight": int(transposed), "0.bias": 0})
    assert tail.rank == 5 and tail.tail.tolist() == [2, 3, 4, 5, 6, 7, 8]  # windows of 5 that hold 4, 5 and 6


def test_windows_need_rows_of_one_layer():
    model = nn.Sequential(
        nn.Conv2d(4, 8, 1, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )
    graph, statistics = looked_at(model, torch.randn(2, 4, 3, 3))
    with pytest.raises(NothingToPrune, match="not single rows of one linear, convol"):
        partitions(graph, statistics)


def test_the_default_order_is_by_the_number_of_windows():
    tail = planted(
        nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 2)).double(),
        torch.randn(2, 4).double(),
        {"0.weight": 0, "0.bias": 0},
    )
    assert tail.windows[tail.tail].tolist() == [1, 2, 3, 3, 3, 2, 1]
    assert (
        tail.removal_order().tolist() == tail.removal_order("most-windows").tolist() == [4, 5, 6, 3, 7, 2, 8]
    )
    assert Matroid().order == "most-windows"
