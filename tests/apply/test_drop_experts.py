"""Whole experts: what is left equals the mixture whose router never chooses the others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.apply import experts as module_under_test
from secateur.apply.experts import Mixture, drop_experts, find_mixtures
from secateur.core import ExactnessError, InputError, PlanError

WIDTH, COUNT, CHOSEN = 6, 5, 2


class Stacked(nn.Module):
    """Experts in one tensor."""

    def __init__(self, count: int = COUNT) -> None:
        super().__init__()
        self.num_experts = count
        self.weight = nn.Parameter(torch.randn(count, WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ti,eoi->teo", x, self.weight).tanh()


class Listed(nn.ModuleList):
    """Experts in a list."""

    def __init__(self, count: int = COUNT) -> None:
        super().__init__([nn.Linear(WIDTH, WIDTH) for _ in range(count)])

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([expert(x) for expert in self], 1)


class Mixing(nn.Module):
    """The chosen experts' outputs, weighted by a softmax over all logits (`how`: or by what it names)."""

    def __init__(self, experts: type[nn.Module] = Stacked, how: str = "softmax", count: int = COUNT) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(WIDTH, count), experts(count)
        self.top_k, self.how = CHOSEN, how

    def forward(self, x: Tensor) -> Tensor:
        logits = self.gate(x)
        weights = logits.sigmoid() + 1 if self.how == "shifted" else logits.softmax(-1)
        value, index = weights.topk(self.top_k, -1)
        chosen = self.experts(x).gather(1, index[..., None].expand(-1, -1, WIDTH))
        return x + (value[..., None] * chosen).sum(1)


X = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(3))


def model_of(*blocks: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*blocks).eval()


def truth(mixing: Mixing, x: Tensor, kept: list[int]) -> Tensor:
    """Route by loops over tokens, among the kept experts only."""
    every, logits = mixing.experts(x).detach(), mixing.gate(x).detach()
    rows = []
    for token in range(len(x)):
        total = sum(float(logits[token, e].exp()) for e in kept)
        best = sorted(kept, key=lambda e: -float(logits[token, e]))[:CHOSEN]
        rows.append(x[token] + sum(logits[token, e].exp() / total * every[token, e] for e in best))
    return torch.stack(rows)


@pytest.mark.parametrize("experts", [Stacked, Listed])
@pytest.mark.parametrize("kept", [[0, 1], [1, 3, 4], [0, 1, 2, 3, 4]])
def test_the_router_chooses_among_what_is_left(experts: type[nn.Module], kept: list[int]) -> None:
    model = model_of(Mixing(experts)).double()
    before = [p.clone() for p in model.parameters()]
    small = drop_experts(model, {"0": kept}, X.double())
    assert torch.allclose(small(X.double()), truth(model[0], X.double(), kept), atol=1e-12)
    assert small[0].gate.out_features == len(kept)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_only_the_named_mixture_loses_experts() -> None:
    model = model_of(Mixing(), Mixing(Listed))
    small = drop_experts(model, {"1": [0, 2, 4]}, X)
    assert small[0].experts.num_experts == COUNT and len(small[1].experts) == 3
    assert find_mixtures(small)["1"] == Mixture("1.experts", "1.gate", 3, CHOSEN)


def test_a_router_that_may_choose_an_expert_at_minus_infinity_is_refused() -> None:
    # sigmoid(-inf) + 1 = 1 is a weight like any other only if no other exceeds it: here all do.
    model = model_of(Mixing(how="shifted"))
    drop_experts(model, {"0": [0, 1, 2]}, X)

    class Ranked(Mixing):
        def forward(self, x: Tensor) -> Tensor:
            index = (-self.gate(x)).topk(self.top_k, -1).indices  # the lowest logits
            return x + self.experts(x).gather(1, index[..., None].expand(-1, -1, WIDTH)).sum(1)

    with pytest.raises(ExactnessError, match=r"-inf"):
        drop_experts(model_of(Ranked()), {"0": [0, 1, 2]}, X)


def test_the_check_notices_wrong_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    select = module_under_test._select_experts
    wrong = [0, 1, 3]
    monkeypatch.setattr(module_under_test, "_select_experts", lambda *a: select(*a[:3], wrong))
    with pytest.raises(ExactnessError, match="deviates"):
        drop_experts(model_of(Mixing()), {"0": [0, 1, 2]}, X)


@pytest.mark.parametrize(
    ("keep", "error", "problem"),
    [
        ({"1": [0, 1]}, InputError, "no mixture '1'"),
        ({"0": [0]}, InputError, "keep at least 2"),
        ({"0": [0, 7]}, PlanError, "unit 7"),
        ({"0": [1, 0]}, PlanError, "comes after"),
        ([0, 1], InputError, "must map"),
    ],
)
def test_bad_experts_are_errors(keep: Any, error: type[Exception], problem: str) -> None:
    with pytest.raises(error, match=problem):
        drop_experts(model_of(Mixing()), keep, X)


class Grouped(Mixing):
    """Two groups of three experts, of which the router first chooses one, by biased scores (DeepSeek-V3)."""

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__(count=6)
        self.n_group, self.topk_group = 2, 1
        self.gate.correction_bias = nn.Buffer(bias * torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.gate(x).sigmoid()
        choice = (scores + self.gate.correction_bias).reshape(len(x), self.n_group, -1)
        group = choice.topk(2).values.sum(-1).topk(self.topk_group).indices
        open_groups = torch.zeros(len(x), self.n_group, dtype=torch.bool).scatter(1, group, True)
        choice = choice.masked_fill(~open_groups[..., None], -torch.inf).flatten(1)
        index = choice.topk(self.top_k).indices
        chosen = self.experts(x).gather(1, index[..., None].expand(-1, -1, WIDTH))
        return x + (scores.gather(1, index)[..., None] * chosen).sum(1)


@pytest.mark.parametrize("bias", [0.0, 5.0])
def test_groups_of_experts_keep_equally_many(bias: float) -> None:
    """With a bias, a score of 0 would often be among the largest."""
    model = model_of(Grouped(bias)).double()
    assert find_mixtures(model)["0"] == Mixture("0.experts", "0.gate", 6, CHOSEN, groups=2, open=1)
    kept = [0, 2, 3, 4]
    small = drop_experts(model, {"0": kept}, X.double())
    assert torch.equal(small[0].gate.correction_bias, model[0].gate.correction_bias[kept])
    every, scores = model[0].experts(X.double()).detach(), model[0].gate(X.double()).detach().sigmoid()
    ranked, rows = scores + model[0].gate.correction_bias, []
    for token in range(len(X)):
        sums = [float(ranked[token, pair].sum()) for pair in ([0, 2], [3, 4])]
        pair = [0, 2] if sums[0] >= sums[1] else [3, 4]
        rows.append(X[token].double() + sum(scores[token, e] * every[token, e] for e in pair))
    assert torch.allclose(small(X.double()), torch.stack(rows), atol=1e-12)


@pytest.mark.parametrize(
    ("kept", "problem"),
    [
        ([0, 1, 2, 3], r"groups of experts of '0' would keep \[3, 1\]"),
        ([0, 2, 4], "keep a multiple of 2"),
        ([0, 3], "chooses 2 for each token from 1 of 2 groups: keep at least 4"),
    ],
)
def test_unequal_groups_are_refused(kept: list[int], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        drop_experts(model_of(Grouped()), {"0": kept}, X)


def test_a_list_of_layers_beside_a_head_is_no_mixture() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.head = nn.ModuleList([Mixing(), Mixing(Listed)]), nn.Linear(WIDTH, 2)

            self.scan = nn.ModuleDict({"conv": nn.Conv1d(8, 8, 3, groups=8), "in": nn.Linear(WIDTH, 8)})

    assert set(find_mixtures(Net())) == {"layers.0", "layers.1"}


@pytest.mark.parametrize("experts", [Stacked, Listed])
def test_nothing_is_shared_with_the_model(experts: type[nn.Module]) -> None:
    model = model_of(Mixing(experts))
    model.append(model[0])  # its tensors have two names
    for dropped in (model, model[0]):
        small = drop_experts(dropped, {"0" if dropped is model else "": [0, 2, 4]})
        own = {p.data_ptr() for p in model.parameters()}
        assert not own & {p.data_ptr() for p in small.parameters()}


@pytest.mark.parametrize("family", ["Mixtral", "Qwen2Moe", "Olmoe"])
def test_mixtures_of_transformers_stay_ordinary_models(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32}
    count = {"num_local_experts" if family == "Mixtral" else "num_experts": 6, "num_experts_per_tok": 2}
    config = getattr(transformers, f"{family}Config")(**sizes, **heads, **count)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    ids = torch.arange(1, 15).reshape(2, 7)
    mixtures = find_mixtures(model)
    assert [(x.count, x.chosen) for x in mixtures.values()] == [(6, 2), (6, 2)]
    small = drop_experts(model, {name: [0, 2, 5] for name in mixtures}, {"input_ids": ids})
    fresh = type(model)(small.config).eval()
    fresh.load_state_dict(small.state_dict())
    assert torch.equal(fresh(ids).logits, small(ids).logits)
    assert not torch.allclose(model(ids).logits, small(ids).logits, atol=1e-3)
