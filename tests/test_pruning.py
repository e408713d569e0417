"""The whole way: one call, steps, tolerances, callbacks; what is left fits, replays and is reported."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bank import BANK
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from secateur import core
from secateur.allocation import allocate
from secateur.allocation.schedule import reached, remaining_budget
from secateur.apply.compose import restrict
from secateur.core import InputError, NothingToPrune, Plan, PruningGraph
from secateur.formats.plan_json import plan_from_json, plan_to_json
from secateur.formats.store import load_plan
from secateur.measure import metrics
from secateur.pruning_step import StepInfo
from secateur.repair.sequence import zero_masked
from secateur.report import Report
from secateur.result import load_report

Batches = list[tuple[Tensor, Tensor]]


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3))


def batches(count: int = 5, rows: int = 16, seed: int = 1) -> Batches:
    generator = torch.Generator().manual_seed(seed)
    xs = torch.randn(count, rows, 6, generator=generator)
    return [(x, x[:, :3].argmax(1)) for x in xs]


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    return sc.finetune(mlp(), batches(20), epochs=15, lr=0.01, progress=False)[0]


def prune(
    model: nn.Module, method: Any, budget: Any = None, data: Any = None, repair: Any = None, **kwargs: Any
) -> sc.Result:
    kwargs = {"method": method, "repair": repair, "progress": False, **kwargs}
    return sc.prune(model, torch.zeros(2, 6), budget, data, **kwargs)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def same_state(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def fits(result: sc.Result, make: Callable[[], nn.Module] = mlp) -> bool:
    """Say whether replaying the plan on a fresh instance gives the shapes of the pruned model."""
    fresh = sc.shrink(make(), result.plan, check=False)
    return [p.shape for p in fresh.parameters()] == [p.shape for p in result.model.parameters()]


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
    import secateur.pruning as pruning
    import secateur.repair.sequence as sequence

    seen: list[tuple[int, int]] = []
    real = pruning.collect_statistics

    def watch(model: Any, graph: Any, data: Any, needs: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((len(data), sum(len(y) for _, y in data)))
        return real(model, graph, data, needs, *args, **kwargs)

    for module in (pruning, sequence):
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


# --- in steps


@given(st.integers(2, 6), st.floats(0.05, 0.9), st.lists(st.integers(2, 40), min_size=1, max_size=4))
def test_steps_of_units_come_to_the_counts_of_one(steps: int, keep: float, sizes: list[int]) -> None:
    """Up to one unit a group: where groups of unlike sizes round apart, no one share fits them all."""
    groups = tuple(
        core.Group(f"g{i}", n, (core.Slot(f"w{i}", 0, np.arange(n)[:, None], "out"),))
        for i, n in enumerate(sizes)
    )
    shapes = {f"w{i}": (n, 1) for i, n in enumerate(sizes)}
    whole = left = PruningGraph(groups, (), (), shapes, tuple(shapes))
    budget = sc.Units(keep)
    for step in range(1, steps + 1):
        counts = allocate(left, remaining_budget(whole, left, budget.after(step / steps))).counts
        left = restrict(left, {name: np.arange(n) for name, n in counts.items()})
    wanted = allocate(whole, budget).counts
    assert all(abs(group.size - wanted[group.name]) <= 1 for group in left.groups)
    if len(set(sizes)) == 1:
        assert [g.size for g in left.groups] == list(wanted.values())


@pytest.mark.parametrize("budget", [sc.Units(0.25), sc.Units(0.3, "global"), sc.Params(0.3), sc.Macs(0.3)])
@pytest.mark.parametrize("repair", [None, "fold+finetune"])
def test_steps_end_in_one_plan_on_the_original(trained: nn.Module, budget: Any, repair: Any) -> None:
    once = prune(trained, "magnitude", budget)
    result = prune(trained, "magnitude", budget, batches(), repair=repair, schedule=sc.Steps(3))
    assert fits(result)
    assert result.plan.graph is result.graph
    assert len(result.report.steps) == 3
    counts = [step["units"] for step in result.report.steps]
    assert counts == sorted(counts, reverse=True)
    total = {r: sum(map(len, r.plan.keep.values())) for r in (once, result)}
    assert abs(total[once] - total[result]) <= 2
    assert result.plan.budget == repr(budget)
    assert result.plan.notes["reached"] == reached(result.plan)
    share = result.report.after.cost.parameters / result.report.before.cost.parameters
    assert math.isclose(result.plan.notes["reached"]["params"], share)


def test_magnitude_in_steps_without_repair_is_magnitude_at_once() -> None:
    """Norms of a unit's own row do not change when the layer before is whole: one hidden layer."""
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))
    once = prune(model, "magnitude", sc.Units(0.25))
    steps = prune(model, "magnitude", sc.Units(0.25), schedule=sc.Steps(3))
    (name,) = once.plan.keep
    assert np.array_equal(once.plan.keep[name], steps.plan.keep[name])
    assert same_state(once.model.state_dict(), steps.model.state_dict())


def test_masks_in_steps_are_nested_and_exact(trained: nn.Module) -> None:
    seen: list[dict[str, np.ndarray]] = []

    def watch(step: StepInfo) -> None:
        seen.append(step.plan.masks)

    for method in ("magnitude", "random"):
        seen.clear()
        result = prune(
            trained,
            method,
            sc.Weights(0.2),
            batches(),
            repair="finetune",
            schedule=sc.Steps(3),
            callback=watch,
        )
        for before, after in itertools.pairwise(seen):
            assert all((after[name] <= before[name]).all() for name in before)
        once = prune(trained, method, sc.Weights(0.2))
        assert {k: m.sum() for k, m in result.plan.masks.items()} == {
            k: m.sum() for k, m in once.plan.masks.items()
        }


def test_the_callback_sees_each_step_and_may_change_the_model(trained: nn.Module) -> None:
    seen: list[StepInfo] = []

    def callback(step: StepInfo) -> nn.Module | None:
        seen.append(step)
        if step.number == 1:
            with torch.no_grad():
                step.model[0].bias.fill_(7)
            return None
        return sc.finetune(step.model, batches(), steps=2, progress=False)[0]

    result = prune(trained, "magnitude", sc.Units(0.25), schedule=sc.Steps(2), callback=callback)
    assert [(s.number, s.of) for s in seen] == [(1, 2), (2, 2)]
    assert (seen[1].model[0].bias == 7).all()
    assert not torch.equal(result.model[0].bias, seen[1].model[0].bias)
    assert fits(result)


def test_rewinding_to_the_initial_state(trained: nn.Module) -> None:
    initial = mlp()
    result = prune(
        trained,
        "magnitude",
        sc.Units(0.25),
        schedule=sc.Steps(3),
        callback=lambda step: sc.shrink(initial, step.plan, check=False),
    )
    rows = torch.from_numpy(result.plan.keep[result.graph.groups[0].name])
    assert torch.equal(result.model[0].weight, initial[0].weight[rows])
    masked = prune(
        trained,
        "magnitude",
        sc.Weights(0.25),
        schedule=sc.Steps(2),
        callback=lambda step: copy.deepcopy(initial),
    )
    stays = torch.from_numpy(masked.plan.masks["0.weight"])
    assert torch.equal(masked.model[0].weight, initial[0].weight * stays)


def test_steps_where_rounding_leaves_nothing_to_remove_are_noted() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    result = prune(model, "magnitude", sc.Units(0.75), schedule=sc.Steps(4))
    assert [step["units"] for step in result.report.steps] == [4, 3, 3, 3]
    assert fits(result, lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)))


@pytest.mark.parametrize(
    "name",
    [
        "ResNet-20, projection",
        "MobileNetV2 (depthwise)",
        "LSTM, 2 layers, bidirectional, time first",
        "nn.TransformerEncoder, norm last",
        "Grouped queries, expand",
    ],
)
def test_steps_on_every_kind_of_model(name: str, tmp_path: Path) -> None:
    entry = BANK[name]
    model, (args, kwargs) = entry.build(), entry.example()
    data = [(entry.example(seed=s)[0], None) for s in range(6)]
    result = sc.prune(
        model,
        args,
        sc.Units(0.4),
        data,
        method="magnitude",
        example_kwargs=kwargs,
        repair="fold",
        schedule=sc.Steps(2),
        progress=False,
    )
    assert fits(result, entry.build)
    result.save(tmp_path / "run")
    again = sc.load(tmp_path / "run", entry.make)
    assert metrics.agreement(result.model, again, [(args, None)], kwargs).largest == 0
    assert load_report(tmp_path / "run") == result.report


# --- by tolerance


def test_a_tolerance_takes_the_last_that_holds(trained: nn.Module) -> None:
    holdout = batches(20, seed=2)
    schedule = sc.Tolerance(0.05, holdout, step=0.125)
    result = prune(trained, "magnitude", None, batches(), "fold", schedule=schedule).measure(holdout)
    trials = result.report.steps
    assert all(t["before"] == metrics.accuracy(trained, holdout) for t in trials)
    accepted = [t for t in trials if t["accepted"]]
    assert all(t["before"] - t["metric"] <= 0.05 for t in accepted)
    assert accepted == list(trials[: len(accepted)])
    assert len(trials) - len(accepted) <= 1
    if len(accepted) < len(trials):
        assert trials[-1]["before"] - trials[-1]["metric"] > 0.05
    assert accepted[-1]["units"] == sum(len(k) for k in result.plan.keep.values())
    assert result.report.after.metric == accepted[-1]["metric"]
    assert result.plan.notes["steps"] == list(result.report.steps)
    assert "metric='accuracy'" in result.report.schedule
    assert fits(result)


def units_of_the_first_layer(model: nn.Module, _: Any) -> float:
    return float(model[0].out_features)


def test_a_tolerance_by_any_metric_with_a_callback() -> None:
    """The metric is the number of units left: the tolerance says exactly where to stop."""
    numbers: list[tuple[int, int | None]] = []

    def callback(step: StepInfo) -> None:
        numbers.append((step.number, step.of))

    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3))
    schedule = sc.Tolerance(7, batches(), units_of_the_first_layer, step=0.1)
    result = prune(model, "random", schedule=schedule, callback=callback)
    assert [step["metric"] for step in result.report.steps] == [18, 16, 14, 12]
    assert [step["accepted"] for step in result.report.steps] == [True, True, True, False]
    assert result.model[0].out_features == 14
    assert numbers == [(1, None), (2, None), (3, None), (4, None)]
    assert result.report.schedule == "Tolerance(drop=7, metric='units_of_the_first_layer', step=0.1)"


def test_a_tolerance_goes_to_the_budget_at_most_and_tries_nothing_twice() -> None:
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3))
    schedule = sc.Tolerance(1, batches(), step=0.05)
    floored = prune(model, "magnitude", sc.Units(0.05, floor=10), schedule=schedule)
    assert [step["units"] for step in floored.report.steps] == list(range(19, 9, -1))
    limited = prune(model, "magnitude", sc.Units(0.72), schedule=schedule)
    assert [step["units"] for step in limited.report.steps] == [19, 18, 17, 16, 15, 14]


def test_a_tolerance_fine_tunes_only_what_it_accepts(trained: nn.Module) -> None:
    schedule = sc.Tolerance(1, batches(seed=2), step=0.4)
    result = prune(trained, "magnitude", None, batches(), "fold+finetune", schedule=schedule)
    assert result.report.finetune["steps"] == len(batches())
    assert result.report.repair == "fold+finetune"


def test_a_tolerance_that_nothing_meets_says_what_was_tried() -> None:
    schedule = sc.Tolerance(0, batches(), units_of_the_first_layer, step=0.1)
    with pytest.raises(NothingToPrune, match=r"(?s)drop=0.*metric is 20; .* takes it to 18"):
        prune(nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3)), "magnitude", schedule=schedule)


# --- what cannot be


class Nameless:
    """Has a plan, but no name and no needs."""

    def plan(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"method": "magnitud"}, InputError, "did you mean 'magnitude'"),
        ({"method": Nameless}, InputError, "method must be a name in METHODS"),
        ({"method": "activation"}, InputError, r"'activation'.*\(moments\): pass data="),
        ({"repair": "fold"}, InputError, "fold.*: pass data="),
        ({"repair": "finetune"}, InputError, "pass data="),
        ({"repair": "fine-tune"}, InputError, "did you mean 'finetune'"),
        ({"schedule": 3}, InputError, "schedule"),
        ({"schedule": sc.Steps}, InputError, "schedule"),
        ({"budget": None}, InputError, "Units, Params"),
        ({"budget": 0.5}, InputError, r"Units\(0.5\); got 0.5"),
        ({"budget": sc.Tolerance(0.1, batches())}, InputError, "a schedule: prune"),
        ({"data": torch.zeros(3)}, InputError, "iterable of batches"),
        ({"ignored_layers": ["2", "9"]}, InputError, "no layer '9'"),
        ({"callback": lambda step: 3}, InputError, "callback must return a torch.nn.Module"),
        ({"callback": lambda step: mlp()}, core.PlanError, "callback's model does not fit"),
        ({"budget": sc.Units(1.0)}, NothingToPrune, "removes nothing.*"),
        ({"example_inputs": torch.zeros(2, 5)}, (core.CaptureError, InputError), r"\b5\b"),
    ],
)
def test_bad_input(change: dict[str, Any], error: Any, words: str) -> None:
    arguments = {"example_inputs": torch.zeros(2, 6), "method": "magnitude", "budget": sc.Units(0.5)}
    with pytest.raises(error, match=words):
        sc.prune(mlp(), **{**arguments, **change}, progress=False)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sc.Steps(0), "at least 1"),
        (lambda: sc.Steps(True), "at least 1"),
        (lambda: sc.Tolerance(-1, batches()), "0 or more"),
        (lambda: sc.Tolerance(0.1, batches(), step=1), r"\(0, 1\)"),
        (lambda: sc.Tolerance(0.1, None), "held-out"),
        (lambda: sc.Tolerance(0.1, batches(), "accurcy"), "did you mean 'accuracy'"),
    ],
)
def test_schedules_check_their_numbers(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()


def test_measuring_checks_its_arguments(trained: nn.Module) -> None:
    result = prune(trained, "magnitude", sc.Units(0.5))
    with pytest.raises(InputError, match="no metric 'f1'"):
        result.measure(batches(), "f1")
    with pytest.raises(InputError, match="empty"):
        result.measure(batches()[:0], "accuracy")
    with pytest.raises(InputError, match="needs batches"):
        result.measure(metric="accuracy")


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


@pytest.mark.parametrize("method", ["", [], {}])
def test_an_empty_method_is_not_the_default(method) -> None:
    with pytest.raises(InputError, match="method"):
        sc.prune(mlp(), torch.ones(2, 6), sc.Units(0.5), method=method)


def test_a_method_must_return_a_plan() -> None:
    class Nothing:
        name = "nothing"

        def needs(self, budget: Any) -> frozenset[str]:
            return frozenset()

        def plan(self, graph: Any, statistics: Any, budget: Any) -> None:
            return None

    with pytest.raises(InputError, match="'nothing' must return a Plan; got NoneType"):
        sc.prune(mlp(), torch.ones(2, 6), sc.Units(0.5), method=Nothing)


@pytest.mark.parametrize("text", [None, 3, "", "{}", "[]"])
def test_what_is_no_report_is_refused(text) -> None:
    with pytest.raises(InputError, match="not the report"):
        Report.from_json(text)


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


class Handmade:
    """A method that returns what a test wants."""

    name = "handmade"

    def __init__(self, keep=None, masks=None, needs=frozenset()) -> None:
        self.plans, self.asks = (keep or {}, masks or {}), needs

    def needs(self, budget):
        return self.asks

    def plan(self, graph, statistics, budget):
        return Plan(graph, self.name, *self.plans)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep": {"0": []}}, "keeps no unit of '0'"),
        ({"keep": {"0": [0]}, "needs": None}, "must return a set of names.*got None"),
        ({"keep": {"0": [0]}, "needs": "gram"}, "must return a set of names.*got 'gram'"),
        ({"masks": {"0.weight": np.ones((6, 4))}}, r"boolean numpy array of shape \(6, 4\).*float64"),
        ({"masks": {"0.weight": np.ones((4, 6), bool)}}, r"got bool of shape \(4, 6\)"),
        ({"masks": {"0.weight": None}}, "got NoneType"),
        ({"masks": {"0.wait": np.ones((6, 4), bool)}}, "did you mean '0.weight'"),
    ],
)
def test_what_a_method_of_ones_own_returns_is_checked(options, words: str) -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with pytest.raises((InputError, core.PlanError), match=words):
        sc.prune(net, torch.randn(2, 4), sc.Units(0.5), method=Handmade(**options), repair=None)


@pytest.mark.parametrize(
    "loader", [list, lambda batches: torch.utils.data.DataLoader(batches, batch_size=None)]
)
def test_a_bad_batch_that_is_kept_apart_has_its_own_number(loader) -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    batches = [torch.randn(5, 4) for _ in range(5)]
    batches[4][0] = float("nan")
    with pytest.raises(InputError, match="batch 4"):
        sc.prune(net, torch.randn(2, 4), sc.Units(0.5), loader(batches), method="matroid", repair="fold")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"check": torch.ones(2)}, "check must be True or False"),
        ({"progress": "no"}, "progress must be True or False"),
        ({"data": np.ones(2)}, "got one batch, a ndarray"),
        ({"blocks": np.ones(2)}, "blocks must be a number of blocks"),
        ({"check_device": 10**30}, "check_device 10+ cannot be used"),
    ],
)
def test_arguments_of_a_wrong_type(more: dict, words: str) -> None:
    given = {"data": [torch.randn(8, 4)], "method": "activation", **more}
    mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(InputError, match=words):
        sc.prune(mlp, torch.randn(2, 4), sc.Units(0.5), **given)
