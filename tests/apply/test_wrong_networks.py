"""Networks that depend on their widths in ways that no capture sees: the check must find every one."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.apply.mask import mask
from secateur.apply.shrink import shrink
from secateur.core import ExactnessError, NothingToPrune, Plan
from secateur.tracing.trace import trace


class Wrong(nn.Module):
    """An MLP beside a layer that stays; `step` and `last` say what is wrong and how it hides."""

    def __init__(self, step: Step, last: Step) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.beside = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(6, 3)
        self.gain, self.calls, self.step, self.last = nn.Parameter(torch.zeros(3)), 0, step, last

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        return self.last(self.b(self.step(self.a(x).relu(), self)), self)


Step = Callable[[Tensor, Wrong], Any]
STEPS: dict[str, Step] = {
    "a root of the width": lambda h, net: h / math.sqrt(h.shape[-1]),
    "a branch on the width": lambda h, net: h if h.shape[-1] > 4 else -h,
    "a width in an offset": lambda h, net: h + (0.5 if h.shape[1] == 8 else 0.25),
    "a table of widths": lambda h, net: h * {8: 1.0, 4: 2.0}.get(h.shape[-1], 3.0),
    "at another batch size": lambda h, net: h if len(h) == 2 or h.shape[-1] > 4 else h / 2,
    "in the second call": lambda h, net: h * (2 if net.calls > 1 and h.shape[-1] > 4 else 1),
    "of a tiny scale": lambda h, net: h * (1e-300 if h.shape[-1] > 4 else 2e-300),
}
LASTS: dict[str, Step] = {
    "plain": lambda y, net: y,
    "integers": lambda y, net: (y / y.abs().max() * 100).long(),
    "booleans": lambda y, net: (y > y.mean(),),
    "complex": lambda y, net: torch.complex(y, -y),
    "in a dict": lambda y, net: {"a": {"b": [None, y]}},
    "beside a constant": lambda y, net: (torch.full((3,), 1e6), y),
    "saturated": lambda y, net: torch.sigmoid(y * 1e6 + 1e9),
    "zeros": lambda y, net: y * 0,
    "NaN": lambda y, net: y * float("nan"),
    "infinite": lambda y, net: y.exp() * float("inf"),
    "a softmax of one": lambda y, net: y[:, :1].softmax(-1),
    "behind a gain of zero": lambda y, net: net.gain * y + net.beside(y.new_ones(len(y), 6)),
}


def outputs(net: nn.Module, calls: list[Tensor]) -> list[Tensor]:
    net = copy.deepcopy(net).double().eval()
    with torch.no_grad():
        leaves = [leaf for x in calls for leaf in tree_leaves(net(x)) if isinstance(leaf, Tensor)]
    return [torch.view_as_real(x) if x.is_complex() else x.double() for x in leaves]


def really_equal(masked: nn.Module, small: nn.Module) -> bool:
    """Compare three calls of each of three batch sizes on values of their own."""
    generator = torch.Generator().manual_seed(1)
    for rows in (2, 5, 1):
        calls = [torch.randn(rows, 6, generator=generator, dtype=torch.float64) for _ in range(3)]
        for a, b in zip(outputs(masked, calls), outputs(small, calls), strict=True):
            scale = a.nan_to_num(0).abs().max().clamp_min(torch.finfo(a.dtype).tiny)
            if not torch.allclose(a / scale, b / scale, atol=1e-9, rtol=0, equal_nan=True):
                return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("last", LASTS.values(), ids=LASTS)
def test_no_wrong_network_passes(last: Step) -> None:
    for name, step in STEPS.items():
        net, x = Wrong(step, last).eval(), torch.linspace(-2, 2, 12).reshape(2, 6)
        graph = trace(net, x)
        net.calls = 0
        plan = Plan(graph, "half", {g.name: np.arange(g.size // 2) for g in graph.groups})
        try:
            small = shrink(net, plan)
        except (ExactnessError, NothingToPrune):
            continue
        with torch.no_grad():
            net.gain.fill_(1)
            small.gain.fill_(1)  # type: ignore[union-attr,operator]
        assert really_equal(mask(net, plan), small), name
