"""Blocks chosen together with counts: equal to brute force, costs without blocks as those of what is left."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateur.allocation.allocation import loss_by_count
from secateur.allocation.block_choice import choose_blocks
from secateur.allocation.cost import graph_cost
from secateur.apply.blocks import drop_blocks
from secateur.core import Budget, InputError, LossCurve, Macs, Params, PruningGraph, Units
from secateur.core.budget import as_budget
from secateur.tracing.trace import trace

NAMES = tuple(f"blocks.{i}" for i in range(3))
X = torch.ones(2, 4)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(self.inner(x).relu())


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Residual(width) for width in (4, 5, 6)])
        self.out = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.out(x)


@cache
def without(names: tuple[str, ...]) -> PruningGraph:
    """Return the graph of the stack without some blocks."""
    return trace(drop_blocks(Stack(), names), X, ignored_layers=["out"])


@pytest.fixture(scope="module")
def graph() -> PruningGraph:
    return without(())


def least_loss(
    graph: PruningGraph, budget: Budget, losses: Mapping[str, LossCurve], blocks: Mapping[str, float]
) -> set[tuple[str, ...]]:
    """Return the sets of blocks that go in the choices of least loss, by trying all of them."""
    whole = _amount(graph_cost(graph), budget)
    hidden = {g.name: g.size for g in graph.groups if g.size in (4, 5, 6) and g.name in losses}
    found: dict[tuple[str, ...], float] = {}
    for gone in product((0, 1), repeat=len(blocks)):
        names = tuple(name for name, x in zip(blocks, gone, strict=True) if x)
        inside = tuple(f"{name}." for name in names)
        left = without(names)
        free = [n for n in hidden if not n.startswith(inside)] if inside else list(hidden)
        for counts in product(*(range(1, hidden[n] + 1) for n in free)):
            keep = {_renamed(n, names): np.arange(c) for n, c in zip(free, counts, strict=True)}
            if _amount(graph_cost(left, keep), budget) > budget.keep * whole * (1 + 1e-12):
                continue
            lost = [loss_by_count(losses, [n])[c] for n, c in zip(free, counts, strict=True)]
            loss = sum(blocks[n] for n in names) + float(sum(lost))
            found[names] = min(found.get(names, np.inf), loss)
    best = min(found.values())
    return {names for names, loss in found.items() if loss <= best * 1.011 + 1e-12}


def _renamed(group: str, gone: tuple[str, ...]) -> str:
    """Return the name of a group after blocks before it have gone."""
    number = group.split(".")[1]
    before = sum(name < f"blocks.{number}" for name in gone)
    return group.replace(f"blocks.{number}", f"blocks.{int(number) - before}", 1)


def _amount(cost: object, budget: Budget) -> float:
    return float(getattr(cost, "params" if isinstance(budget, Params) else "macs"))


@pytest.mark.parametrize("seed", range(12))
def test_equal_to_brute_force(graph: PruningGraph, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kind = (Params, Macs)[seed % 2]
    budget = kind(float(rng.uniform(0.45, 0.8)), "program")
    losses = {g.name: LossCurve(g.size, (1,), (float(rng.uniform(0.1, 1)),)) for g in graph.groups}
    blocks = {name: float(rng.uniform(0.02, 0.6)) for name in NAMES[:2]}
    assert choose_blocks(graph, budget, losses, blocks) in least_loss(graph, budget, losses, blocks)


def test_no_block_goes_where_units_lose_less(graph: PruningGraph) -> None:
    losses = {g.name: LossCurve(g.size, (1,), (0.1,)) for g in graph.groups}
    assert choose_blocks(graph, Macs(0.8), losses, dict.fromkeys(NAMES, 9.0)) == ()
    assert choose_blocks(graph, as_budget([Macs(0.8), Params(0.7)]), losses, {NAMES[1]: 1e-6}) == NAMES[1:2]


def test_units_do_not_count_blocks(graph: PruningGraph) -> None:
    with pytest.raises(InputError, match="counts units"):
        choose_blocks(graph, Units(0.5), {}, {"blocks.0": 1.0})
