"""The kind of each group: found from what it owns, not from names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur import Units, prune
from secateur.core import KINDS, InputError, PruningGraph
from secateur.formats.plan_json import plan_from_json, plan_to_json
from secateur.report import Report
from secateur.tracing.trace import trace
from secateur.zoo import lenet5, lstm, mlp, resnet20, transformer

WIDTH, HEADS, SHARED, LENGTH = 24, 6, 2, 4


class Block(nn.Module):
    """Attention with shared keys and values, or one each, and a gated MLP; names say nothing."""

    def __init__(self, shared: int, fused: bool, order: str) -> None:
        super().__init__()
        self.shared, self.fused, self.order = shared, fused, order
        self.a, self.b = nn.Linear(WIDTH, HEADS * LENGTH), nn.Linear(WIDTH, shared * LENGTH)
        self.c, self.d = nn.Linear(WIDTH, shared * LENGTH), nn.Linear(HEADS * LENGTH, WIDTH)
        self.e, self.f, self.g = nn.Linear(WIDTH, 40), nn.Linear(WIDTH, 40), nn.Linear(40, WIDTH)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (-1, LENGTH)).transpose(1, 2) for y in (self.a(x), self.b(x), self.c(x)))
        times = q.shape[1] // k.shape[1]
        if self.order == "interleave" and times > 1:
            k, v = (y.repeat_interleave(times, dim=1) for y in (k, v))
        if self.fused:
            y = functional.scaled_dot_product_attention(q, k, v, enable_gqa=self.order == "kernel")
        else:
            y = (q @ k.transpose(-1, -2) * 0.5).softmax(-1) @ v
        return self.d(y.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(x)
        return x + self.g(self.e(x) * self.f(x).sigmoid())


class Network(nn.Module):
    """An embedding, two blocks and a head; `patches` reads images by a convolution instead."""

    def __init__(
        self, shared: int = HEADS, fused: bool = True, order: str = "", patches: bool = False
    ) -> None:
        super().__init__()
        self.read = nn.Conv2d(3, WIDTH, 4, 4) if patches else nn.Embedding(11, WIDTH)
        self.blocks = nn.ModuleList([Block(shared, fused, order) for _ in range(2)])
        self.out = nn.Linear(WIDTH, 5)
        self.patches = patches

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x).flatten(2).transpose(1, 2) if self.patches else self.read(x)
        for block in self.blocks:
            x = block(x)
        return self.out(x)


IDS = torch.arange(14).reshape(2, 7) % 11


def kinds(graph: PruningGraph) -> dict[str, str]:
    return {group.name: group.kind for group in graph.groups}


@pytest.mark.parametrize("fused", [True, False])
def test_heads_hidden_and_inner_units(fused: bool) -> None:
    found = kinds(trace(Network(fused=fused), IDS))
    block = {"a (heads)": "heads", "e": "ffn"}
    expected = {f"blocks.{i}.{name}": kind for i in range(2) for name, kind in block.items()}
    assert found == {"read": "hidden", **expected}


@pytest.mark.parametrize(("order", "fused"), [("interleave", True), ("interleave", False), ("kernel", True)])
def test_query_heads_and_groups_that_share_keys_and_values(order: str, fused: bool) -> None:
    graph = trace(Network(SHARED, fused, order), IDS)
    shared, queries = graph.group("blocks.0.a (key-value groups)"), graph.group("blocks.0.a (heads)")
    assert (shared.size, queries.size) == (SHARED, HEADS // SHARED)
    assert (shared.kind, queries.kind) == ("key-value groups", "heads")
    owners = [{slot.tensor for slot in group.slots} for group in (shared, queries)]
    assert "blocks.0.b.weight" in owners[0] and "blocks.0.b.weight" not in owners[1]


def test_patches_of_images_are_hidden_width() -> None:
    graph = trace(Network(patches=True), torch.randn(2, 3, 8, 16))
    assert kinds(graph)["read"] == "hidden"


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (mlp, {"ffn"}),
        (lenet5, {"channels", "ffn"}),
        (resnet20, {"channels"}),
        (lstm, {"recurrent"}),
        (transformer, {"hidden", "heads", "ffn"}),
    ],
)
def test_networks_of_the_zoo(make: Callable[..., Any], expected: set[str]) -> None:
    graph = trace(make(), make.example_inputs)
    assert set(graph.by_kind()) <= expected
    assert [g for groups in graph.by_kind().values() for g in groups] == sorted(
        graph.groups, key=lambda g: list(graph.by_kind()).index(g.kind)
    )


def test_embedding_read_by_one_layer() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.inner, self.out = nn.Embedding(11, 12), nn.Linear(12, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.inner(self.table(x).mean(1)).relu())

    assert kinds(trace(Bag(), IDS)) == {"table": "embedding", "inner": "ffn"}


def test_a_layer_that_runs_twice_does_not_make_its_inner_units_residual() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.out = (nn.Linear(*n) for n in ((5, 8), (8, 12), (12, 8), (8, 3)))

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            for _ in range(2):
                x = x + self.c(self.b(x).relu())
            return self.out(x)

    assert kinds(trace(Twice(), torch.randn(2, 5))) == {"a": "hidden", "b": "ffn"}


@pytest.mark.parametrize(
    ("ignored", "left"),
    [
        ("kind:hidden", {"heads", "ffn"}),
        ("kind:h*", {"ffn"}),
        ("kind:[!f]*", {"ffn"}),
        ("kind:channels", {"hidden", "heads", "ffn"}),
    ],
)
def test_a_kind_can_stay_whole(ignored: str, left: set[str]) -> None:
    graph = trace(Network(), IDS, ignored_layers=[ignored])
    assert set(graph.by_kind()) == left
    hidden = any(f"ignored_layers has '{ignored}'" in frozen.reason for frozen in graph.frozen)
    assert hidden is (left != {"hidden", "heads", "ffn"})


@pytest.mark.parametrize("name", ["kind:", "kind:head", "kind:x*"])
def test_an_unknown_kind_is_an_error(name: str) -> None:
    with pytest.raises(InputError, match="no kind of groups"):
        trace(Network(), IDS, ignored_layers=[name])


def test_the_report_says_what_each_kind_gave() -> None:
    model = Network()
    result = prune(model, IDS, Units(0.5), method="magnitude", ignored_layers=["kind:hidden"], progress=False)
    found = result.report.kinds
    assert {kind: (x["groups"], x["units"], x["kept"]) for kind, x in found.items()} == {
        "heads": (2, 12, 6),
        "ffn": (2, 80, 40),
    }
    before, after = result.report.before.cost.parameters, result.report.after.cost.parameters
    assert before - after == sum(x["parameters"] for x in found.values())  # no weight is between the two
    assert "units gone (parameters with them): heads 6 of 12" in repr(result.report)
    assert "ffn" in result.report.to_markdown() and Report.from_json(result.report.to_json()) == result.report
    assert "kinds" in result.report.to_dict() and "by kind" in repr(result.graph)


def test_kinds_are_saved_with_a_plan() -> None:
    result = prune(Network(), IDS, Units(0.5), method="magnitude", progress=False)
    read = plan_from_json(plan_to_json(result.plan))
    assert [g.kind for g in read.graph.groups] == [g.kind for g in result.graph.groups]
    assert set(kinds(read.graph).values()) <= set(KINDS)
    old = plan_to_json(result.plan).replace('"kind": "hidden"', '"note": ""')  # written before kinds
    assert plan_from_json(old).graph.groups[0].kind == "other"
