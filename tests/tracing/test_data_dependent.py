"""Operations whose results, or their lengths, depend on values: nothing fails, and nothing wrong goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateur.apply.mask import mask
from secateur.apply.shrink import shrink
from secateur.core import Plan
from secateur.tracing.propagate import Propagation, TensorAxes
from secateur.tracing.rules import RULES
from secateur.tracing.trace import trace


class Between(nn.Module):
    """Something done between three linear layers."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.act = act
        self.first, self.second, self.last = nn.Linear(10, 16), nn.Linear(16, 18), nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(self.act(torch.relu(self.first(x))))))


TWICE = torch.tensor([2, 1, 1, 1, 1, 2])
ALONG: dict[str, Callable[[Tensor], Tensor]] = {
    "kthvalue": lambda h: h + h.kthvalue(1, 1, keepdim=True).values,
    "kthvalue of the last axis": lambda h: h + h.kthvalue(1, keepdim=True).values,
    "mode": lambda h: h + h.mode(keepdim=True).values,
    "median": lambda h: h + h.median(1, keepdim=True).values,
    "quantile": lambda h: h + h.quantile(0.3, 1, keepdim=True),
    "several quantiles": lambda h: h + h.quantile(torch.tensor([0.3, 0.5]).to(h), 1, keepdim=True).sum(0),
    "repeats by tensor": lambda h: h.repeat_interleave(torch.tensor([2] * 8 + [0] * 8), 1),
    "scatter by values": lambda h: torch.zeros_like(h).scatter_add(1, (h[:, ::2] > 0).long(), h[:, ::2]),
    "scatter by order": lambda h: torch.zeros_like(h).scatter_add(1, h[:, ::2].argsort(1), h[:, ::2]),
    "running extreme": lambda h: h.cummax(1).values,
}
BESIDE: dict[str, Callable[[Tensor], Tensor]] = {
    "kthvalue": lambda h: h + h.kthvalue(1, 0, keepdim=True).values,
    "mode": lambda h: h + h.mode(0, keepdim=True).values,
    "quantile": lambda h: h + h.quantile(0.3, 0, keepdim=True),
    "repeats by tensor": lambda h: h.sum(1, keepdim=True).repeat_interleave(TWICE, 0)[:6] + h,
    "nonzero": lambda h: h[(h.sum(1) > -1).nonzero()[:, 0]],
    "boolean mask": lambda h: h[h.sum(1) > -1],
}


def check(act: Callable[[Tensor], Tensor], units: int) -> None:
    torch.manual_seed(0)
    model = Between(act).double()
    graph = trace(model, torch.randn(6, 10, dtype=torch.float64))
    assert sum(g.size for g in graph.groups) == units
    plan = Plan(graph, "test", {g.name: np.arange(g.size)[::2] for g in graph.groups})
    small, masked = shrink(model, plan), mask(model, plan)
    for _ in range(3):
        x = 3 * torch.randn(6, 10, dtype=torch.float64)
        assert torch.allclose(small(x), masked(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ALONG)
def test_the_axis_of_a_statistic_stays(name: str) -> None:
    check(ALONG[name], 18)


@pytest.mark.parametrize("name", BESIDE)
def test_units_beside_the_axis_of_a_statistic_go(name: str) -> None:
    check(BESIDE[name], 34)


def test_a_rule_that_predicts_another_shape_freezes(monkeypatch) -> None:
    monkeypatch.setitem(RULES, "relu", lambda propagation, out, x: x.without([0]))
    check(lambda h: h, 18)


def test_a_rule_whose_labels_do_not_fit_freezes(monkeypatch) -> None:
    def short(propagation: Propagation, out: list[tuple[int, ...]], x: TensorAxes) -> TensorAxes:
        return replace(x, labels=tuple(label if label is None else label[:4] for label in x.labels))

    monkeypatch.setitem(RULES, "relu", short)
    check(lambda h: h, 18)
