"""What a budget of parameters counts: all, all but the embeddings, or what can go."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.allocation.allocation import allocate
from secateur.core import InputError, PruningGraph


class TinyLanguageModel(nn.Module):
    """Table of tokens, a hidden layer, and an output matrix of the table's shape; tied or not."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(30, 6), nn.LayerNorm(6)
        self.up, self.down = nn.Linear(6, 20), nn.Linear(20, 6)
        self.head = nn.Linear(6, 30, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head(self.norm(x + self.down(self.up(x).relu())))


def traced(tied: bool) -> PruningGraph:
    return sc.trace(TinyLanguageModel(tied), torch.randint(30, (2, 5)), ["embed"])


@pytest.mark.parametrize("tied", [True, False])
def test_the_body_is_all_but_the_embeddings(tied: bool) -> None:
    graph = traced(tied)
    assert graph.embeddings() == {"embed.weight"} | (set() if tied else {"head.weight"})
    # A hidden unit owns 6 + 1 + 6 parameters; the norm and the second bias, 18, stay.
    body, unit = 13 * 20 + 18, 13
    for keep in (0.8, 0.5):
        allocation = allocate(graph, sc.Params(keep, of="body"))
        assert allocation.counts["up"] == int((keep * body - 18) // unit)
        assert allocation.reached == pytest.approx((allocation.counts["up"] * unit + 18) / body)


def test_the_share_of_what_can_go() -> None:
    allocation = allocate(traced(tied=True), sc.Params(0.5, of="prunable"))
    assert allocation.counts["up"] == 10 and allocation.reached == 0.5


@pytest.mark.parametrize("of", ["body", "prunable"])
def test_steps_reach_what_one_shot_reaches(of: str) -> None:
    budget = sc.Params(0.5, of=of)  # type: ignore[arg-type]
    whole, step = (allocate(traced(tied=True), x).counts["up"] for x in (budget, sc.Params(1.0, of=of)))  # type: ignore[arg-type]
    assert step == 20
    options = {"method": "magnitude", "ignored_layers": ["embed"]}
    result = sc.prune(
        TinyLanguageModel(tied=True), torch.randint(30, (2, 5)), budget, schedule=sc.Steps(3), **options
    )
    assert len(result.plan.keep["up"]) == whole
    assert repr(budget) == f"Params(0.5, of={of!r})"


def test_what_is_counted_is_checked() -> None:
    with pytest.raises(InputError, match="'body'"):
        sc.Params(0.5, of="bodies")  # type: ignore[arg-type]
