"""Pruning in steps and by tolerance, with callbacks."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bank import BANK
from hypothesis import given
from hypothesis import strategies as st
from pruning_mlp import batches, fits, mlp, prune, same_state, trained_mlp
from torch import nn

import secateur as sc
from secateur import core
from secateur.allocation import allocate
from secateur.allocation.schedule import reached, remaining_budget
from secateur.apply.compose import restrict
from secateur.core import InputError, NothingToPrune, PruningGraph
from secateur.measure import metrics
from secateur.pruning_step import StepInfo
from secateur.result import load_report


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return trained_mlp()


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
