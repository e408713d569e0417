"""Mixtures of experts: features of all experts go together, exactly; grouped products refuse float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateur import Macs, Units, prune
from secateur.allocation.cost import graph_cost
from secateur.apply.mask import mask
from secateur.apply.shrink import shrink
from secateur.core import Plan
from secateur.measure.cost import macs
from secateur.tracing.trace import trace

needs_grouped = pytest.mark.skipif(not hasattr(nn.functional, "grouped_mm"), reason="torch has no grouped_mm")


class Experts(nn.Module):
    """Two of four experts for each row; gates and values are halves of a layer, or every other feature.

    torch.export takes a grouped product of bfloat16 only.
    """

    def __init__(self, interleaved: bool = False, width: int = 16, inner: int = 32, experts: int = 4) -> None:
        super().__init__()
        self.interleaved = interleaved
        self.embed, self.router = nn.Linear(5, width), nn.Linear(width, experts)
        self.up = nn.Parameter(torch.randn(experts, 2 * inner, width) / 3)
        self.up_bias = nn.Parameter(torch.randn(experts, 2 * inner) / 3)
        self.down = nn.Parameter(torch.randn(experts, width, inner) / 3)
        self.last = nn.Linear(width, 3)
        self.bfloat16()

    def gated(self, h: Tensor) -> Tensor:
        """Gate the hidden features."""
        gate, value = (h[..., ::2], h[..., 1::2]) if self.interleaved else h.chunk(2, -1)
        return nn.functional.silu(gate) * value

    def forward(self, x: Tensor) -> Tensor:
        """Map [rows, 5] to [rows, 3]."""
        x = self.embed(x)
        weights, chosen = self.router(x).softmax(-1).topk(2)
        experts, order = chosen.reshape(-1).sort()
        count = torch.histc(experts.float(), bins=self.router.out_features, min=0, max=len(self.up) - 1)
        ends = count.cumsum(0).to(torch.int32)
        h = nn.functional.grouped_mm(x[order // 2], self.up.transpose(-2, -1), offs=ends)
        h = self.gated(h + self.up_bias[experts])
        y = nn.functional.grouped_mm(h, self.down.transpose(-2, -1), offs=ends)
        y = (y * weights.reshape(-1)[order, None])[order.argsort()]
        return self.last(x + y.view(len(x), 2, -1).sum(1))


def slow(model: Experts, x: Tensor) -> Tensor:
    """Compute the same, row by row and expert by expert, in float64."""
    state = {name: t.detach().double() for name, t in model.state_dict().items()}

    def linear(name: str, h: Tensor) -> Tensor:
        return nn.functional.linear(h, state[f"{name}.weight"], state[f"{name}.bias"])

    x = linear("embed", x.double())
    weights, chosen = linear("router", x).softmax(-1).topk(2)
    rows = []
    for row, scales, numbers in zip(x, weights, chosen, strict=True):
        for scale, e in zip(scales, numbers.tolist(), strict=True):
            hidden = model.gated(state["up"][e] @ x[len(rows)] + state["up_bias"][e])
            row = row + scale * (state["down"][e] @ hidden)
        rows.append(row)
    return linear("last", torch.stack(rows))


@needs_grouped
@pytest.mark.parametrize("interleaved", [False, True])
def test_features_of_experts_go_exactly(interleaved: bool) -> None:
    torch.manual_seed(0)
    model, x = Experts(interleaved), torch.randn(6, 5).bfloat16()
    assert torch.allclose(model.float()(x.float()).double(), slow(model, x), atol=1e-5)
    model.bfloat16()
    graph = trace(model, x)
    assert {g.name: g.size for g in graph.groups} == {"down": 16, "up": 32}
    plan = Plan(graph, "test", {g.name: np.arange(g.size)[::2] for g in graph.groups})
    small = prune(model, x, Units(0.5), method="magnitude").model
    assert small.up.shape == (4, 32, 8)
    assert small.down.shape == (4, 8, 16)
    small = shrink(model, plan)
    assert torch.allclose(slow(small, x), slow(mask(model, plan), x), rtol=0, atol=1e-12)
    assert not torch.allclose(slow(small, x), slow(model, x), atol=1e-3)


@needs_grouped
def test_experts_themselves_stay_and_say_so() -> None:
    graph = trace(Experts(), torch.randn(6, 5).bfloat16())
    reasons = {(f.tensor, f.axis): f.reason for f in graph.frozen}
    assert "addressed by number" in reasons["up", 0]
    assert "addressed by number" in reasons["down", 0]
    assert ("router.weight", 0) in reasons


@pytest.mark.slow
@pytest.mark.parametrize("family", ["Mixtral", "Qwen3Moe", "GptOss"])
def test_mixtures_of_transformers(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 31}
    experts = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "use_cache": False}
    config = getattr(transformers, f"{family}Config")(**sizes, **heads, **experts)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    ids = {"input_ids": torch.randint(31, (2, 7), generator=torch.Generator().manual_seed(0))}
    result = prune(model, ids, Units(0.5), method="magnitude")
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, result.model))
    assert after < 0.5 * before
    assert any("experts" in name for name in result.plan.keep)


@needs_grouped
def test_a_budget_counts_the_products_of_experts_and_keeps_widths_that_they_take() -> None:
    torch.manual_seed(0)
    model, x = Experts(width=32, inner=64), torch.randn(8, 5).bfloat16()
    graph = trace(model, x)
    assert graph_cost(graph).macs == macs(model, x) / len(x)
    result = prune(model, x, Macs(0.5), method="magnitude", repair=None, progress=False)
    counts = {group.name: len(result.plan.keep[group.name]) for group in graph.groups}
    assert all(count % 8 == 0 for count in counts.values()), counts  # rows of 16 bytes
    before, after = (cost.cost.macs for cost in (result.report.before, result.report.after))
    assert 0.3 < after / before <= 0.5


class Stacked(nn.Module):
    """Matrices stacked along an axis, in three forms of products."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 12)
        self.each = nn.Parameter(torch.randn(3, 12, 10))
        self.other = nn.Parameter(torch.randn(3, 10, 8))
        self.both = nn.Bilinear(8, 8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Map [rows, 5] to [rows, 4]."""
        x = self.first(x).relu()
        h = torch.einsum("bi,eih->ebh", x, self.each).relu()
        h = torch.bmm(h, self.other).sum(0)
        return self.both(h, h)


def test_a_budget_counts_stacked_matrices_as_the_report_does() -> None:
    model, x = Stacked(), torch.randn(6, 5)
    graph = trace(model, x)
    assert graph_cost(graph).macs == macs(model, x) / len(x)
    result = prune(model, x, Macs(0.5), method="magnitude", repair=None, progress=False)
    small = trace(result.model, x)
    assert graph_cost(graph, result.plan.keep).macs == graph_cost(small).macs == macs(result.model, x) / 6
