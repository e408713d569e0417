"""Baselines against their formulas, and the laws that every criterion keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scoring import close, make, plan, scores
from torch import nn

from secateur.core import (
    Budget,
    InputError,
    Macs,
    NothingToPrune,
    Params,
    Plan,
    PlanError,
    PruningGraph,
    Statistics,
    Units,
    Weights,
)
from secateur.methods import (
    FLAP,
    METHODS,
    SNIP,
    Activation,
    Choice,
    Magnitude,
    Method,
    Random,
    RidgeLeverage,
    Sensitivity,
    SetMethod,
    SynFlow,
    Taylor,
    Wanda,
)
from secateur.methods.base import normalize_scores
from secateur.statistics.collect import collect_statistics
from secateur.tracing.trace import trace


def test_magnitude_is_the_norm_of_a_row() -> None:
    model, _, _ = make("mlp")
    W1, W2 = model[0].weight, model[2].weight
    close(scores(Magnitude())["0"], W1.abs().sum(1))
    close(scores(Magnitude(p=2))["0"], W1.norm(dim=1))
    close(scores(Magnitude(p=2, over="consumers"))["0"], W2.norm(dim=0))
    close(scores(Magnitude(over="both"))["0"], W1.abs().sum(1) + W2.abs().sum(0))
    close(scores(Magnitude(), weights=True)["0.weight"], W1.abs())


def test_magnitude_of_channels_and_hidden_units_takes_all_their_rows() -> None:
    model, _, _ = make("cnn")
    found = scores(Magnitude(p=2), "cnn")
    # The grouped convolution reads channels j and j + 3 with the same column: they go together.
    norms = model[0].weight.square().sum((1, 2, 3))
    close(found["0"], (norms[:3] + norms[3:]).sqrt())
    lstm, graph, _ = make("lstm")
    found = scores(Magnitude(), "lstm")
    for group, tail in zip(graph.groups, ("l0", "l0_reverse", "l1", "l1_reverse"), strict=True):
        both = [lstm.net.get_parameter(f"weight_{part}_{tail}") for part in ("ih", "hh")]
        close(found[group.name], sum(p.abs().sum(1).reshape(4, 10).sum(0) for p in both))


def test_sensitivity_is_that_of_a_single_output() -> None:
    model = nn.Sequential(nn.Linear(2, 20), nn.ReLU(), nn.Linear(20, 1)).double()
    graph = trace(model, torch.randn(3, 2, dtype=torch.float64))
    found = Sensitivity().unit_scores(graph, collect_statistics(model, graph, None, ()))["0"]
    close(found, model[2].weight[0].abs() * model[0].weight.norm(dim=1))
    model, _, _ = make("mlp")
    close(scores(Sensitivity())["0"], model[2].weight.norm(dim=0) * model[0].weight.norm(dim=1))


def test_activation_is_the_mean_after_the_relu() -> None:
    model, _, batches = make("mlp")
    hidden = F.relu(model[0](torch.cat([x for x, _ in batches])))
    for statistic in ("absolute", "mean"):
        close(scores(Activation(statistic=statistic))["0"], hidden.mean(0))
    close(scores(Activation(statistic="second"))["0"], hidden.square().mean(0))


def test_activation_of_channels_that_a_grouped_convolution_reads() -> None:
    model, _, batches = make("cnn")
    maps = model[:3](torch.cat([x for x, _ in batches])).mean((0, 2, 3))
    close(scores(Activation(), "cnn")["0"], (maps[:3] + maps[3:]) / 2)


def test_activation_of_hidden_units_averages_their_readers() -> None:
    model, graph, batches = make("lstm")
    statistics = collect_statistics(model, graph, batches, {"moments"})
    found = Activation().unit_scores(graph, statistics)
    # A unit of layer 0 is read by its own W_hh and by both W_ih of layer 1, a unit of layer 1 by the head.
    above = [[f"net.weight_ih_{tail}" for tail in ("l1", "l1_reverse")], ["head.weight"]]
    for i, group in enumerate(graph.groups):
        tail, half = f"l{i // 2}{'_reverse' * (i % 2)}", slice(10 * (i % 2), 10 * (i % 2) + 10)
        means = [statistics.moments[f"net.weight_hh_{tail}"].absolute]
        means += [statistics.moments[name].absolute[half] for name in above[i // 2]]
        close(found[group.name], torch.stack(means).mean(0))


def test_wanda_is_weight_times_the_norm_of_its_input() -> None:
    model, _, batches = make("mlp")
    x = torch.cat([x for x, _ in batches])
    hidden = F.relu(model[0](x))
    own, read = x.square().mean(0).sqrt(), hidden.square().mean(0).sqrt()
    W1, W2 = model[0].weight.abs(), model[2].weight.abs()
    close(scores(Wanda())["0"], (W2 * read).sum(0))
    close(scores(Wanda(over="producers"))["0"], (W1 * own).sum(1))
    close(scores(Wanda(over="both"))["0"], (W2 * read).sum(0) + (W1 * own).sum(1))
    close(scores(Wanda(), weights=True)["2.weight"], W2 * read)


def test_flap_is_the_variance_that_a_unit_gives_to_the_outputs() -> None:
    model, _, batches = make("mlp")
    hidden = F.relu(model[0](torch.cat([x for x, _ in batches])))
    close(scores(FLAP())["0"], hidden.var(0, correction=0) * model[2].weight.square().sum(0))


def test_input_weighted_scores_of_channels_behind_grouped_convolutions_and_a_flatten() -> None:
    model, _, batches = make("cnn")
    x = torch.cat([x for x, _ in batches])
    maps, flat = model[:3](x), model[:6](x)
    norms, variances = maps.square().mean((0, 2, 3)).sqrt(), maps.var((0, 2, 3), correction=0)
    # Rows 0-3 of the grouped convolution read channels 0-2, rows 4-7 read channels 3-5, with 9 taps each.
    taps = model[3].weight.abs().sum((2, 3)).reshape(2, 4, 3).sum(1)
    squares = model[3].weight.square().sum((2, 3)).reshape(2, 4, 3).sum(1)
    close(scores(Wanda(), "cnn")["0"], (taps * norms.reshape(2, 3)).sum(0))
    close(scores(FLAP(), "cnn")["0"], (squares * variances.reshape(2, 3)).sum(0))
    columns = (model[6].weight.abs() * flat.square().mean(0).sqrt()).sum(0)
    # Channels j and j + 4 go together, for both groups are one unit; the head reads each at 16 positions.
    close(scores(Wanda(), "cnn")["3"], columns.reshape(2, 4, 16).sum((0, 2)))


def test_wanda_of_hidden_units_sums_over_their_readers() -> None:
    model, graph, batches = make("lstm")
    statistics = collect_statistics(model, graph, batches, {"moments"})
    found = Wanda().unit_scores(graph, statistics)
    assert len(graph.groups) == 4
    for group in graph.groups:
        total = torch.zeros(10, dtype=torch.float64)
        for layer, slot in graph.consumers(group):
            columns = statistics.weights[layer.weight].abs() * statistics.moments[layer.weight].second.sqrt()
            total += columns.sum(0)[torch.from_numpy(slot.index)].sum(1)
        close(found[group.name], total)


@pytest.mark.parametrize("name", ["mlp", "cnn", "lstm"])
def test_wanda_prunes_every_row_of_weights_alike(name: str) -> None:
    model, graph, batches = make(name)
    statistics = collect_statistics(model, graph, batches, {"moments"})
    found = Wanda().plan(graph, statistics, Weights(0.37))
    raw = Wanda().weight_scores(graph, statistics)
    assert found.masks
    for weight, mask in found.masks.items():
        stays = torch.from_numpy(mask).flatten(1)
        kept = stays.sum(1)
        assert int(kept.max()) - int(kept.min()) <= 1
        for row, marks in zip(raw[weight].flatten(1), stays, strict=True):
            assert not marks.all() and (not marks.any() or row[marks].min() >= row[~marks].max())
        assert found.notes[weight]["threshold"] == pytest.approx(
            float(raw[weight][found.masks[weight]].min())
        )


def test_snip_is_the_derivative_by_a_mask() -> None:
    model, _, batches = make("mlp")
    found = scores(SNIP(), weights=True)
    units = scores(SNIP())
    h = 1e-6
    for name in ("0.weight", "4.weight"):
        weight = model.get_parameter(name)
        for place in ((0, 0), (2, 3), (3, 4)):
            losses = []
            for c in (1 + h, 1 - h):
                with torch.no_grad():
                    before = weight[place].clone()
                    weight[place] *= c
                    losses.append(sum(float(F.cross_entropy(model(x), y)) for x, y in batches))
                    weight[place] = before
            slope = abs(losses[0] - losses[1]) / (2 * h)
            assert float(found[name][place]) == pytest.approx(slope, rel=1e-5, abs=1e-9)
    close(units["0"], found["0.weight"].sum(1))


def test_taylor_is_a_loop_over_examples() -> None:
    model, _, batches = make("mlp")
    expected = torch.zeros(12, dtype=torch.float64)
    for x, y in batches:
        for i in range(len(x)):
            hidden = F.relu(model[0](x[i])).detach().requires_grad_()
            loss = F.cross_entropy(model[2:](hidden)[None], y[i][None])
            expected += (torch.autograd.grad(loss, hidden)[0] * hidden).square().detach()
    close(scores(Taylor())["0"], expected)
    close(scores(Taylor(), weights=True)["0.weight"], scores(SNIP(), weights=True)["0.weight"].square())


def test_random_depends_on_seed_and_name_alone() -> None:
    a, b, c = (plan(Random(), Units(0.5), seed=s) for s in (0, 0, 1))
    assert all(np.array_equal(a.keep[k], b.keep[k]) for k in a.keep)
    assert any(not np.array_equal(a.keep[k], c.keep[k]) for k in a.keep)
    draws = [plan(Random(), Units(0.5), seed=s).keep["0"] for s in range(60)]
    share = np.bincount(np.concatenate(draws), minlength=12) / 60
    assert np.abs(share - 0.5).max() < 4 * np.sqrt(0.25 / 60)


BUDGETS: list[Budget] = [
    Units(0.5),
    Units(0.5, round_to=2),
    Units(0.4, "global"),
    Units(0.7, "erk", floor=2),
    Params(0.6),
    Macs(0.6, "global"),
    Params(0.7, "erk"),
    Weights(0.3),
    Weights(0.2, "global"),
    Weights(0.25, "erk"),
]


def method_of(name: str) -> SetMethod:
    return SynFlow(rounds=6) if name == "synflow" else METHODS[name]()


SCORED = (
    *("random", "magnitude", "activation", "sensitivity", "wanda", "flap"),
    *("leverage", "taylor", "snip", "synflow"),
)
UNITS_ONLY = ("activation", "sensitivity", "flap", "leverage")


@pytest.mark.parametrize("model_name", ["mlp", "cnn", "lstm"])
@pytest.mark.parametrize("name", SCORED)
def test_laws_of_selection(name: str, model_name: str) -> None:
    method = method_of(name)
    assert isinstance(method, Method) and METHODS[name].name == name
    model, graph, batches = make(model_name)
    for budget in BUDGETS:
        statistics = collect_statistics(model, graph, batches, method.needs(budget))
        if isinstance(budget, Weights) and name in UNITS_ONLY:
            with pytest.raises(InputError, match="not defined for single weights"):
                method.plan(graph, statistics, budget)
            continue
        found = method.plan(graph, statistics, budget)
        again = method.plan(graph, statistics, budget)
        check_plan(found, budget)
        assert found.keep.keys() == again.keep.keys() and found.masks.keys() == again.masks.keys()
        assert all(np.array_equal(found.keep[k], again.keep[k]) for k in found.keep)
        assert all(np.array_equal(found.masks[k], again.masks[k]) for k in found.masks)
        assert name in found.explain()


def check_plan(found: Plan, budget: Budget) -> None:
    """Counts are exact; nothing removed is scored above anything kept."""
    graph = found.graph
    if isinstance(budget, Weights):
        sizes = {x.weight: int(np.prod(graph.shapes[x.weight])) for x in graph.prunable_weights()}
        kept = sum(int(found.masks[k].sum()) if k in found.masks else n for k, n in sizes.items())
        parts = list(sizes.values()) if budget.scope == "layer" else [sum(sizes.values())]
        assert kept == sum(max(1, int(budget.keep * n + 0.5 + 1e-9)) for n in parts)
        assert not found.keep
        return
    for group in graph.groups:
        if group.name in found.keep:
            units = found.keep[group.name]
            assert budget.floor <= len(units) < group.size and (np.diff(units) > 0).all()
            assert len(units) % budget.round_to == 0
            cut = found.notes[group.name]
            assert cut["threshold"] == cut["kept scores"][0]
            assert not cut["removed scores"] or cut["removed scores"][1] <= cut["threshold"]
        if isinstance(budget, Units) and budget.scope == "layer" and budget.round_to == 1:
            assert len(found.keep[group.name]) == int(0.5 * group.size + 0.5)
    if isinstance(budget, (Params, Macs)):
        assert found.notes["reached"][type(budget).__name__.lower()] <= budget.keep + 1e-12
    assert not found.masks


@pytest.mark.parametrize("name", [n for n in SCORED if n != "synflow"])
@pytest.mark.parametrize("scope", ["layer", "global", "erk"])
def test_plans_with_less_are_contained_in_plans_with_more(name: str, scope: str) -> None:
    model, graph, batches = make("mlp")
    method = method_of(name)
    statistics = collect_statistics(model, graph, batches, method.needs(Units(0.5)))
    previous: dict[str, set[int]] = {}
    for keep in (0.2, 0.35, 0.5, 0.75, 0.9):
        found = method.plan(graph, statistics, Units(keep, scope))  # type: ignore[arg-type]
        kept = {g.name: set(range(g.size)) - set(found.removed(g.name).tolist()) for g in graph.groups}
        assert all(previous.get(k, set()) <= kept[k] for k in kept)
        previous = kept


@pytest.mark.parametrize("name", SCORED)
def test_float32_and_float64_choose_alike(name: str) -> None:
    kept = []
    for dtype in (torch.float64, torch.float32):
        model, graph, batches = make("cnn")
        model, batches = model.to(dtype), [(x.to(dtype), y) for x, y in batches]
        method = method_of(name)
        for budget in (Units(0.5), Units(0.5, "global"), Params(0.6)):
            statistics = collect_statistics(model, graph, batches, method.needs(budget))
            kept.append({k: v.tolist() for k, v in method.plan(graph, statistics, budget).keep.items()})
    assert kept[:3] == kept[3:]


def test_equal_scores_keep_the_first() -> None:
    model, graph, _ = make("mlp")
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.5)
    statistics = collect_statistics(model, graph, None, ())
    found = Magnitude().plan(graph, statistics, Units(0.5))
    assert {k: v.tolist() for k, v in found.keep.items()} == {"0": list(range(6)), "2": list(range(5))}
    masks = Magnitude().plan(graph, statistics, Weights(0.5)).masks
    assert masks and all((np.diff(m.ravel().astype(int)) <= 0).all() for m in masks.values())


def test_normalisation_puts_groups_on_one_scale() -> None:
    given = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([100.0, 200.0, 300.0])}
    found = normalize_scores(given)
    torch.testing.assert_close(found["a"], found["b"])
    model, graph, _ = make("mlp")
    with torch.no_grad():
        model[2].weight *= 1e3
    statistics = collect_statistics(model, graph, None, ())
    raw = Magnitude(normalize=False).plan(graph, statistics, Units(0.5, "global"))
    even = Magnitude().plan(graph, statistics, Units(0.5, "global"))
    assert len(raw.removed("2")) == 0
    assert len(even.removed("2")) > 0 and len(even.removed("0")) < len(raw.removed("0"))


@dataclass(frozen=True)
class Ends(SetMethod):
    """Keeps the units at both ends: a set, with notes."""

    name: ClassVar[str] = "ends"
    wrong: bool = False

    def needs(self, budget: Budget) -> frozenset[str]:
        return frozenset()

    def choose(self, graph: PruningGraph, statistics: Statistics, counts: Any) -> Any:
        keep = {}
        for name, count in counts.items():
            units = np.arange(graph.group(name).size)
            order = np.argsort(np.minimum(units, units[::-1]), kind="stable")
            keep[name] = order[: count - self.wrong]
        return Choice(keep, notes={"0": {"rank": 3}}) if "0" in keep else keep


def test_set_methods_say_which_and_are_checked() -> None:
    found = plan(Ends(), Units(0.5))
    assert found.keep["0"].tolist() == [0, 1, 2, 9, 10, 11]
    assert found.notes["0"] == {"rank": 3} and found.notes["reached"]["units"] == pytest.approx(11 / 21)
    assert plan(Ends(), Params(0.5, "erk")).notes["reached"]["params"] <= 0.5
    with pytest.raises(PlanError, match="'ends' was to keep 6 of 12 units of '0'"):
        plan(Ends(wrong=True), Units(0.5))
    with pytest.raises(InputError, match="no scores to rank groups by"):
        plan(Ends(), Units(0.5, "global"))
    with pytest.raises(InputError, match="not defined for single weights"):
        plan(Ends(), Weights(0.5))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Activation(), "there are no moments for group '0'"),
        (Wanda(), "there are no moments for group '0'"),
        (FLAP(), "there are no moments for group '0'"),
        (RidgeLeverage(), "there is no Gram matrix of what reads '0'"),
        (Taylor(), "'taylor' needs 'taylor' for '0'"),
        (SNIP(), "'snip' needs 'gradients' for '0.weight'"),
        (SynFlow(), "'synflow' needs 'flow'"),
    ],
)
def test_missing_evidence_is_named(method: SetMethod, message: str) -> None:
    model, graph, _ = make("mlp")
    with pytest.raises(InputError, match=message):
        method.plan(graph, collect_statistics(model, graph, None, ()), Units(0.5))


def test_options_and_budgets_are_checked() -> None:
    for wrong, message in (
        (lambda: Magnitude(p=3), "1 or 2; got 3"),
        (lambda: Magnitude(over="all"), "got 'all'"),
        (lambda: Activation(statistic="median"), "got 'median'"),
        (lambda: Wanda(over="all"), "got 'all'"),
        (lambda: RidgeLeverage(ridge=0), "positive number; got 0"),
        (lambda: SynFlow(rounds=0), "at least 1; got 0"),
        (lambda: plan(Magnitude(), 0.01), "a budget must say what it counts"),
        (lambda: plan(SynFlow(), 0.01), "a budget must say what it counts"),
        (lambda: plan(SynFlow(), Params(0.01)), r"Params\(0.01.* cannot be reached"),
    ):
        with pytest.raises(InputError, match=message):
            wrong()
    with pytest.raises(NothingToPrune, match=r"Units\(0.99.* removes nothing"):
        plan(Magnitude(), Units(0.99))
    assert not plan(Magnitude(), Units(1.0)).keep
