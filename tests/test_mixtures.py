"""Whole experts from a model to a saved result: chosen, dropped, carried by the plan, reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateur import Params, Steps, Tolerance, Units, load, mask, prune, shrink
from secateur.apply.experts import Mixture, drop_experts, find_mixtures
from secateur.core import ExactnessError, InputError, Plan, PlanError, SecateurError
from secateur.formats.certificate import verify_folder
from secateur.formats.plan_json import plan_from_json, plan_to_json
from secateur.formats.store import load_plan
from secateur.measure.expert_use import measure_expert_use
from secateur.mixtures import Experts, choose_experts
from secateur.repair.loss_curves import Divergence
from secateur.result import load_report
from secateur.tracing.trace import trace

WIDTH, COUNT, CHOSEN = 8, 4, 2


class Expert(nn.Module):
    def __init__(self, gain: float) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)
        with torch.no_grad():
            self.down.weight.mul_(gain)
            self.down.bias.mul_(gain)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


class Mixing(nn.Module):
    """A residual mixture; the gains say how much each expert adds."""

    def __init__(self, gains: tuple[float, ...] = (1.0, 0.01, 2.0, 1.0)) -> None:
        super().__init__()
        self.gate, self.top_k = nn.Linear(WIDTH, len(gains), bias=False), CHOSEN
        self.experts = nn.ModuleList([Expert(gain) for gain in gains])

    def forward(self, x: Tensor) -> Tensor:
        value, index = self.gate(x).softmax(-1).topk(self.top_k, -1)
        weights = torch.zeros(x.shape[0], len(self.experts), dtype=x.dtype).scatter(-1, index, value)
        outputs = torch.stack([expert(x) for expert in self.experts], -1)
        return x + (outputs * weights[:, None, :]).sum(-1)


class Net(nn.Module):
    def __init__(self, *gains: tuple[float, ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.read = nn.Linear(6, WIDTH)
        self.layers = nn.ModuleList([Mixing(*gains) for _ in range(2)])
        self.out = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x)
        for layer in self.layers:
            x = layer(x)
        return self.out(x)


X = torch.randn(24, 6, generator=torch.Generator().manual_seed(1))
BATCHES = [X, X + 1, 2 * X]
MIXTURES = ("layers.0", "layers.1")


def numbers(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def pruned(budget: Any = None, data: Any = BATCHES, **options: Any) -> Any:
    options = {"method": "magnitude", "repair": None, "progress": False, **options}
    return prune(Net().eval(), X, budget or Params(0.4), data, **options)


@pytest.fixture(scope="module")
def result() -> Any:
    return pruned(experts=3)


def test_the_experts_of_the_largest_saliency_stay(result: Any) -> None:
    use = measure_expert_use(Net().eval(), BATCHES)
    for name in MIXTURES:
        best = use[name].total.argsort(descending=True)[:3].sort().values
        assert result.plan.experts[name].tolist() == best.tolist()
        assert best.tolist() == [0, 2, 3]  # the second adds next to nothing
    assert {x.count for x in find_mixtures(result.model).values()} == {3}
    assert result.graph is result.plan.graph and len(result.original.layers[0].experts) == COUNT


@pytest.mark.parametrize("by", ["total", "mean", "tokens"])
def test_experts_are_chosen_by_what_is_asked_for(by: Any) -> None:
    """The fourth expert adds much to few tokens."""

    class Uneven(Net):
        def __init__(self) -> None:
            super().__init__((1.0, 0.5, 0.01, 9.0))
            with torch.no_grad():
                for layer in self.layers:
                    layer.gate.weight[3] *= 0.1  # type: ignore[union-attr, index, operator]

    model = Uneven().eval()
    use = measure_expert_use(model, BATCHES)
    options = {"method": "magnitude", "repair": None, "progress": False}
    result = prune(model, X, Units(1.0), BATCHES, experts=Experts(3, by), **options)
    for name in MIXTURES:
        saliency = getattr(use[name], by)
        expected = choose_experts(saliency, Mixture("", "", COUNT, CHOSEN), 3)
        assert np.array_equal(result.plan.experts[name], expected)
        note = result.report.notes["experts gone"][name]
        assert note["by"] == by and note["saliency"] == saliency.tolist()


def test_units_go_after_experts_under_one_budget(result: Any) -> None:
    model = Net().eval()
    assert 0.3 * numbers(model) < numbers(result.model) <= 0.4 * numbers(model)
    assert result.report.before.cost.parameters == numbers(model)
    alone = drop_experts(model, result.plan.experts)
    assert numbers(alone) > 0.4 * numbers(model) and result.plan.keep
    masked, small = mask(model, result.plan), shrink(model, result.plan)
    assert torch.allclose(masked(X), small(X), atol=1e-6) and torch.equal(small(X), result.model(X))
    assert not torch.allclose(alone(X), small(X), atol=1e-3)
    assert shrink(alone, result.plan)(X).equal(small(X))  # a model without the experts is one of the plan's


def test_the_report_says_what_went(result: Any) -> None:
    gone = 2 * (numbers(Net().layers[0].experts[0]) + WIDTH)
    kinds = result.report.kinds
    assert kinds["experts"] == {"groups": 2, "units": 8, "kept": 6, "parameters": gone}
    assert f"experts 2 of 8 ({gone / numbers(Net()):.1%}), " in repr(result)
    assert "| experts |" in result.report.to_markdown()
    note = result.report.notes["experts gone"]["layers.1"]
    assert sorted([*note["gone"], *result.plan.experts["layers.1"]]) == list(range(COUNT))
    assert len(note["saliency"]) == note["of"] == COUNT
    assert "experts of 2 mixtures gone" in repr(result.plan)
    assert "experts that stay in layers.1: [" in result.plan.explain()


def test_saved_loaded_and_verified(result: Any, tmp_path: Path) -> None:
    result.save(tmp_path)
    assert torch.equal(load(tmp_path, Net)(X), result.model(X))
    lines = verify_folder(tmp_path, Net().eval())
    assert any(line.startswith("shrunk") for line in lines)
    plan = load_plan(tmp_path)
    assert {name: kept.tolist() for name, kept in plan.experts.items()} == {
        name: kept.tolist() for name, kept in result.plan.experts.items()
    }
    assert plan_to_json(plan_from_json(plan_to_json(result.plan))) == plan_to_json(result.plan)
    assert load_report(tmp_path).kinds == result.report.kinds
    for other in (lambda: nn.Linear(6, 3), lambda: Net((1.0, 1.0))):
        with pytest.raises(PlanError, match=r"drops experts that .* does not have"):
            load(tmp_path, other)


def test_the_same_call_gives_the_same_result(result: Any) -> None:
    again = pruned(experts=3)
    assert plan_to_json(again.plan) == plan_to_json(result.plan)
    states = again.model.state_dict(), result.model.state_dict()
    assert all(torch.equal(x, states[1][name]) for name, x in states[0].items())


def test_experts_by_name_and_alone() -> None:
    """Numbers need no data; a mixture that is not named stays whole."""
    result = pruned(Units(1.0), None, experts={"layers.1": range(1, 4), "layers.0": [0, 1, 2, 3]})
    assert {name: kept.tolist() for name, kept in result.plan.experts.items()} == {"layers.1": [1, 2, 3]}
    assert [x.count for x in find_mixtures(result.model).values()] == [4, 3] and not result.plan.keep
    assert torch.equal(result.model(X), drop_experts(Net().eval(), result.plan.experts)(X))
    assert "saliency" not in result.plan.notes["experts gone"]["layers.1"]
    mixed = pruned(Units(1.0), experts={"layers.0": 3, "layers.1": np.array([0, 2])})
    assert [x.count for x in find_mixtures(mixed.model).values()] == [3, 2]
    assert "experts 3 of 8" in repr(mixed) and list(mixed.plan.notes["experts gone"]) == list(MIXTURES)


@pytest.mark.parametrize("blocks", [1, "auto"])
def test_blocks_go_after_experts(blocks: Any, tmp_path: Path) -> None:
    options = {"repair": "auto", "method": None} if blocks == "auto" else {}
    result = pruned(Params(0.3), experts=3, blocks=blocks, **options)
    assert set(result.plan.experts) == set(MIXTURES)
    assert numbers(result.model) <= 0.3 * numbers(Net())
    if blocks != "auto":
        assert len(result.plan.blocks) == 1 and len(result.model.layers) == 1
        assert {"experts gone", "blocks gone"} <= set(result.report.notes)
    model = Net().eval()
    assert torch.allclose(mask(model, result.plan)(X), shrink(model, result.plan)(X), atol=1e-6)
    result.save(tmp_path)
    assert torch.equal(load(tmp_path, Net)(X), result.model(X))


@pytest.mark.parametrize("schedule", [Steps(2), Tolerance(0.5, [(X, torch.arange(24) % 3)])])
def test_experts_go_before_the_first_step(schedule: Any) -> None:
    result = pruned(Params(0.4), experts=3, schedule=schedule)
    assert {x.count for x in find_mixtures(result.model).values()} == {3}
    model = Net().eval()
    assert torch.allclose(mask(model, result.plan)(X), shrink(model, result.plan)(X), atol=1e-6)
    assert torch.equal(shrink(model, result.plan)(X), result.model(X))


def test_experts_repaired_by_default() -> None:
    model = Net().eval()
    data = [torch.randn(64, 6, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    result = prune(model, X, Params(0.4), data, experts=3, progress=False)
    assert result.report.repair and result.plan.method == "matroid"
    assert {x.count for x in find_mixtures(result.model).values()} == {3}
    alone = drop_experts(model, result.plan.experts)
    assert result.plan.notes["predicted loss"] > Divergence(model, data[-1:])(alone) / 2 > 0


class Lookup(nn.Module):
    """A model that torch.export cannot export, around one that it can."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) if float(x.sum()) < 1e9 else x


def test_experts_inside_of_a_model_that_cannot_be_exported(tmp_path: Path) -> None:
    model = Lookup().eval()
    options = {"method": "magnitude", "repair": None, "progress": False}
    result = prune(model, X, Params(0.5), BATCHES, experts=3, inside="net", **options)
    assert set(result.plan.experts) == {f"net.{name}" for name in MIXTURES}
    assert torch.allclose(mask(model, result.plan)(X), result.model(X), atol=1e-6)
    result.save(tmp_path)
    assert torch.equal(load(tmp_path, Lookup)(X), result.model(X))


@pytest.mark.parametrize(
    ("experts", "error", "problem"),
    [
        (1, InputError, "chooses 2 for each token: keep at least 2"),
        (0, InputError, "keep at least 2"),
        (-3, InputError, "keep at least 2"),
        (6, InputError, "has 4 experts: 6 cannot stay"),
        (True, InputError, "experts must be how many"),
        (2.0, InputError, "experts must be how many"),
        ("3", InputError, "experts must be how many"),
        ([0, 1], InputError, "experts must be how many"),
        ({"layers.0": "01"}, InputError, "experts must be how many"),
        ({"layers.0": None}, InputError, "experts must be how many"),
        ({"layers.0": [0]}, InputError, "keep at least 2"),
        ({"layers.0": [0, 0, 1, 2]}, PlanError, "twice"),
        ({"layers.0": [0, 5]}, PlanError, "unit 5"),
        ({"layers.0": [0.0, 1.0]}, PlanError, "vector of integers"),
        ({"layers.7": 3}, InputError, "no mixture 'layers.7'"),
        ({3: [0, 1]}, InputError, "no mixture '3'"),
        (Experts({"layers.7": 3}), InputError, "no mixture 'layers.7'"),
    ],
)
def test_bad_experts_are_errors(experts: Any, error: type[SecateurError], problem: str) -> None:
    with pytest.raises(error, match=problem):
        pruned(experts=experts)


def test_an_unknown_saliency_is_an_error() -> None:
    with pytest.raises(InputError, match=r"no saliency of experts 'means'.*mean"):
        Experts(3, "means")  # type: ignore[arg-type]


def test_what_is_missing_is_said() -> None:
    with pytest.raises(InputError, match=r"experts=3 keeps .* add most .* pass data=batches"):
        pruned(data=None, experts=3)
    mlp = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(InputError, match="Sequential has no mixture"):
        prune(mlp, X, Units(0.5), BATCHES, experts=3, progress=False)
    with pytest.raises(PlanError, match=r"keep\['layers.0'\]"):
        Plan(trace(mlp, X), "by hand", experts={"layers.0": [1, 0]})  # type: ignore[dict-item]


def test_a_router_that_may_choose_what_went_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def lowest(self: Mixing, x: Tensor) -> Tensor:
        index = (-self.gate(x)).topk(self.top_k, -1).indices
        weights = torch.zeros(x.shape[0], len(self.experts), dtype=x.dtype).scatter(-1, index, 1.0)
        return x + (torch.stack([expert(x) for expert in self.experts], -1) * weights[:, None, :]).sum(-1)

    monkeypatch.setattr(Mixing, "forward", lowest)
    with pytest.raises(ExactnessError, match="-inf"):
        pruned(experts=3)


def test_groups_keep_equally_many() -> None:
    mixture = Mixture("experts", "gate", 6, 2, groups=3, open=2)
    saliency = torch.tensor([9.0, 8.0, 1.0, 2.0, 3.0, 3.0])
    assert choose_experts(saliency, mixture, 3).tolist() == [0, 3, 4]
    assert choose_experts(saliency, mixture, 6).tolist() == list(range(6))
