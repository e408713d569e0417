"""One call: what is left fits, replays and is reported; defaults; layers that share a state."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pruning_mlp import batches, fits, mlp, prune, same_state, state_of, trained_mlp
from torch import Tensor, nn

import secateur as sc
from secateur.core import InputError, NothingToPrune, Plan
from secateur.formats.plan_json import plan_from_json, plan_to_json
from secateur.formats.store import load_plan
from secateur.measure import metrics
from secateur.repair.sequence import zero_masked
from secateur.report import Report
from secateur.result import load_report


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return trained_mlp()


# --- one step


@pytest.mark.parametrize("repair", [None, "fold", "finetune", "fold+finetune"])
def test_one_call_prunes_repairs_measures_and_changes_nothing_of_the_users(
    trained: nn.Module, repair: Any
) -> None:
    before, mode = state_of(trained), trained.training
    data, holdout = batches(), batches(seed=2)
    result = prune(trained, "magnitude", sc.Units(0.5), data, repair).measure(holdout)
    assert same_state(before, trained.state_dict())
    assert trained.training == mode
    assert [len(kept) for kept in result.plan.keep.values()] == [12, 8]
    assert fits(result)
    report = result.report
    assert report.after.cost.parameters == 6 * 12 + 12 + 12 * 8 + 8 + 8 * 3 + 3
    assert report.before.metric == metrics.accuracy(trained, holdout)
    assert report.after.metric == metrics.accuracy(result.model, holdout)
    assert report.repair == repair
    assert bool(report.folds) == (repair is not None and "fold" in repair)
    assert bool(report.finetune) == (repair is not None and "finetune" in repair)
    assert report.groups == {g.name: {"units": g.size, "kept": g.size // 2} for g in result.graph.groups}
    assert Report.from_json(report.to_json()) == report


def test_without_repair_the_result_is_shrink_and_the_masked_model_agrees(trained: nn.Module) -> None:
    result = prune(trained, "random", sc.Units(0.5), seed=3)
    again = sc.plan(sc.trace(trained, torch.zeros(2, 6)), "random", sc.Units(0.5), seed=3)
    assert all(np.array_equal(result.plan.keep[name], kept) for name, kept in again.keep.items())
    assert same_state(result.model.state_dict(), sc.shrink(trained, again).state_dict())
    gap = metrics.agreement(sc.mask(trained, result.plan), result.model, batches()).relative
    assert gap < 1e-5


def test_a_fold_repairs(trained: nn.Module) -> None:
    holdout = batches(seed=2)
    plain, folded = (
        prune(trained, "random", sc.Units(0.5), batches(20), repair).measure(holdout).report.agreement
        for repair in (None, "fold")
    )
    assert folded.largest < plain.largest


def test_a_fold_guards_itself_with_data_that_it_does_not_fit(
    trained: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 5 batches, 4 give the Gram matrices and 1 the guard; of a single batch a fifth of the rows."""
    import secateur.recipe as recipe
    import secateur.repair.sequence as sequence

    seen: list[tuple[int, int]] = []
    real = recipe.collect_statistics

    def watch(model: Any, graph: Any, data: Any, needs: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((len(data), sum(len(y) for _, y in data)))
        return real(model, graph, data, needs, *args, **kwargs)

    for module in (recipe, sequence):
        monkeypatch.setattr(module, "collect_statistics", watch)
    prune(trained, "magnitude", sc.Units(0.5), batches(5), repair="fold")
    prune(trained, "magnitude", sc.Units(0.5), batches(1, rows=20), repair="fold")
    prune(trained, "magnitude", sc.Units(0.5), batches(1, rows=3), repair="fold")
    assert seen == [(4, 64), (1, 16), (1, 16), (1, 4), (1, 3)]


def test_weights_budget_masks_and_stays_masked_through_finetuning(trained: nn.Module) -> None:
    result = prune(trained, "magnitude", sc.Weights(0.25), batches(), sc.Finetune(epochs=2))
    for name, mask in result.plan.masks.items():
        weight = result.model.get_parameter(name)
        assert torch.count_nonzero(weight[torch.from_numpy(~mask)]) == 0
        assert not torch.equal(weight, trained.get_parameter(name) * torch.from_numpy(mask))
    kept = sum(int(m.sum()) for m in result.plan.masks.values())
    assert kept == round(0.25 * 6 * 24) + round(0.25 * 24 * 16) + round(0.25 * 16 * 3)
    assert result.report.after.cost.parameters == result.report.before.cost.parameters
    assert result.report.after.cost.nonzero < result.report.before.cost.nonzero


def test_everything_is_reproducible(trained: nn.Module) -> None:
    runs = [
        prune(
            trained,
            "random",
            sc.Units(0.4),
            batches(),
            repair="fold+finetune",
            schedule=sc.Steps(2),
            seed=seed,
        )
        for seed in (1, 1, 2)
    ]
    states = [run.model.state_dict() for run in runs]
    assert same_state(states[0], states[1])
    assert not same_state(states[0], states[2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_in_the_models_dtype(dtype: torch.dtype) -> None:
    model = mlp().to(dtype)
    result = sc.prune(
        model,
        torch.zeros(2, 6, dtype=dtype),
        sc.Units(0.5),
        batches(),
        method="activation",
        repair="fold+finetune",
        progress=False,
    ).measure(batches(seed=2), latency=True, batch_sizes=(1,))
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    assert result.report.dtype == str(dtype).removeprefix("torch.")
    assert result.report.after.latency[0].median > 0


def test_latency_is_measured_for_both(trained: nn.Module) -> None:
    result = prune(trained, "magnitude", sc.Units(0.5))
    assert result.report.before.latency == ()
    report = result.measure(latency=True, batch_sizes=(1, 3)).report
    assert [x.batch_size for x in report.before.latency] == [1, 3]
    assert [x.batch_size for x in report.after.latency] == [1, 3]
    assert all(x.repeats == 30 for x in (*report.before.latency, *report.after.latency))


def test_keyword_inputs() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
            return self.body(x) * scale

    result = sc.prune(
        Scaled(),
        torch.randn(2, 6),
        sc.Units(0.5),
        method="magnitude",
        example_kwargs={"scale": torch.ones(())},
    ).measure()
    assert result.report.agreement is not None
    assert result.report.agreement.examples == 2


def test_defaults_with_and_without_data(trained: nn.Module) -> None:
    x = torch.zeros(2, 6)
    with pytest.warns(UserWarning, match="data=batches"):
        plain = sc.prune(trained, x, sc.Units(0.5))
    assert (plain.plan.method, plain.report.repair) == ("magnitude", None)
    best = sc.prune(trained, x, sc.Units(0.5), batches())
    assert (best.plan.method, best.report.repair) == ("matroid", "refit")


def test_results_print_in_a_few_lines(trained: nn.Module) -> None:
    result = prune(trained, "magnitude", sc.Units(0.5), batches(), "fold").measure(batches(), latency=True)
    for value in (result, result.report, result.plan, result.graph):
        assert 1 <= len(repr(value).splitlines()) <= 15
    assert "parameters" in repr(result)
    slow = replace(result.report, seconds={"plan": 152.3, "repair": 0.0123})
    assert "time: plan 152 s, repair 0.012 s" in repr(slow)


def test_nothing_to_prune_lists_what_is_frozen() -> None:
    with pytest.raises(NothingToPrune, match="an output of the model"):
        sc.prune(nn.Linear(4, 3), torch.zeros(2, 4), sc.Units(0.5), method="magnitude")
    with pytest.raises(NothingToPrune, match="ignored_layers"):
        prune(mlp(), "magnitude", sc.Units(0.5), ignored_layers=["0", "2"])


def test_plan_by_name_instance_and_class(trained: nn.Module) -> None:
    graph = sc.trace(trained, torch.zeros(2, 6))
    kinds = ("magnitude", sc.methods.Magnitude, sc.methods.Magnitude())
    first, *others = (sc.plan(graph, kind, sc.Units(0.5)) for kind in kinds)
    for other in others:
        assert all(np.array_equal(first.keep[name], other.keep[name]) for name in first.keep)
    with pytest.raises(InputError, match="a schedule: prune"):
        sc.plan(graph, "magnitude", sc.Tolerance(0.1, batches()))
    loaded = plan_from_json(plan_to_json(first)).graph
    with pytest.raises(InputError, match="pass model="):
        sc.plan(loaded, "magnitude", sc.Units(0.5))
    again = sc.plan(loaded, "magnitude", sc.Units(0.5), model=trained)
    assert all(np.array_equal(first.keep[name], again.keep[name]) for name in first.keep)


def test_hold_copies_only_what_it_must_change() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    graph = sc.trace(model, torch.zeros(2, 3))
    mask = np.ones((2, 6), bool)
    mask[0] = False
    plan = Plan(graph, "x", masks={"2.weight": mask})
    before = state_of(model)
    held = zero_masked(model, plan)
    assert held is not model
    assert same_state(before, model.state_dict())
    assert torch.count_nonzero(held[2].weight[0]) == 0
    assert zero_masked(held, plan) is held


def test_the_result_can_be_saved_and_replayed(trained: nn.Module, tmp_path: Path) -> None:
    result = prune(trained, "magnitude", sc.Units(0.5), batches(), "fold").measure(batches(seed=2))
    result.save(tmp_path / "run")
    again = sc.load(tmp_path / "run", mlp)
    x = torch.randn(9, 6)
    assert torch.equal(again(x), result.model(x))
    assert load_report(tmp_path / "run") == result.report
    assert load_plan(tmp_path / "run").explain() == result.plan.explain()


class Stack(nn.Module):
    """Three LSTM layers: one module, or three of the same weights."""

    def __init__(self, apart: bool) -> None:
        super().__init__()
        sizes = [(5, 12), (12, 12), (12, 12)]
        whole = [nn.LSTM(*sizes[0], 3, batch_first=True)]
        self.rnns = nn.ModuleList([nn.LSTM(*n, batch_first=True) for n in sizes] if apart else whole)
        self.last = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, 5] to [B, 4]."""
        for rnn in self.rnns:
            x = rnn(x)[0]
        return self.last(x[:, -1])


@pytest.mark.parametrize("method", ["magnitude", "matroid"])
@pytest.mark.parametrize("budget", [sc.Units(0.5), sc.Macs(0.4, scope="layer")], ids=repr)
def test_a_stacked_lstm_does_as_well_as_its_layers_apart(method: str, budget: Any) -> None:
    torch.manual_seed(0)
    apart, stacked = Stack(True).double(), Stack(False).double()
    for i, rnn in enumerate(apart.rnns):
        for name, p in rnn.named_parameters():
            stacked.rnns[0].get_parameter(name.replace("_l0", f"_l{i}")).data.copy_(p)
    stacked.last = apart.last
    data = [torch.randn(8, 7, 5).double() for _ in range(6)]
    results = [
        sc.prune(net, data[0][:2], budget, data, method=method, progress=False) for net in (stacked, apart)
    ]
    for one, other in zip(*(r.plan.keep.values() for r in results), strict=True):
        assert one.tolist() == other.tolist()
    assert len({tuple(kept) for kept in results[0].plan.keep.values()}) == 3
    with torch.no_grad():
        assert torch.allclose(results[0].model(data[0]), results[1].model(data[0]), atol=1e-8)


@pytest.mark.parametrize("scope", ["global", "loss", "erk"])
def test_the_layers_of_a_stacked_lstm_keep_equal_counts_under_every_scope(scope: Any) -> None:
    torch.manual_seed(0)
    net = Stack(False)
    data = [torch.randn(8, 7, 5) for _ in range(6)]
    budget = sc.Macs(0.5, scope)
    result = sc.prune(net, data[0][:2], budget, data, schedule=sc.Steps(2), progress=False)
    assert len(result.plan.keep) == 3
    assert {len(kept) for kept in result.plan.keep.values()} == {result.model.rnns[0].hidden_size}
