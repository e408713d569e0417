"""Exact removals: every kind alone, cascades over layers, and the function unchanged under every budget."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from secateur.apply.shrink import shrink
from secateur.core import InputError, NothingToPrune, Plan, Units
from secateur.methods import MIP
from secateur.methods.matroid import Matroid
from secateur.repair.fold import merge
from secateur.statistics.collect import collect_statistics
from secateur.tracing.trace import trace


def net(*widths: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double()


def plan_of(model: nn.Module, x: torch.Tensor, keep: float = 0.01, **options: object) -> Plan:
    method = Matroid(ground="rows", **options)
    graph = trace(model, x[:2])
    targets = torch.zeros(len(x), dtype=torch.int64)
    statistics = collect_statistics(model, graph, [(x, targets)], method.needs(Units(keep)))
    return method.plan(graph, statistics, Units(keep))


def check_same(model: nn.Module, plan: Plan, x: torch.Tensor) -> nn.Module:
    """The function is unchanged, far from the data too."""
    small = merge(model, shrink(model, plan), plan)
    with torch.no_grad():
        for scale in (1.0, 100.0):
            torch.testing.assert_close(small(scale * x), model(scale * x), rtol=1e-9, atol=1e-9 * scale)
    return small


def rows(seed: int = 1, samples: int = 200, features: int = 4) -> torch.Tensor:
    return torch.randn(samples, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def test_units_that_read_nothing_are_zero_or_constant():
    model = net(4, 10, 3)
    model[0].weight[[2, 5, 7]] = 0
    model[0].bias[[2, 5, 7]] = torch.tensor([-1.0, 0.0, 2.0]).double()
    plan = plan_of(model, rows())
    assert plan.removed("0").tolist() == [2, 5, 7]
    note = plan.notes["0"]
    assert (note["dead"], note["always active"], note["holds"]) == (2, 1, "for every input")
    check_same(model, plan, rows(2))


@torch.no_grad()
def test_a_constant_stays_where_no_bias_can_take_it():
    model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 3, bias=False)).double()
    model[0].weight[7] = 0
    model[0].bias[7] = 2
    with pytest.raises(NothingToPrune, match="read by nobody"):
        plan_of(model, rows())


@torch.no_grad()
def test_units_that_nobody_reads_go_and_so_do_those_that_only_they_read():
    model = net(4, 8, 8, 3)
    model[4].weight[:, 2] = 0
    model[2].weight[:, 6] = 0
    model[2].weight[2, 6] = 5  # unit 6 is read by unit 2 only, which nobody reads
    plan = plan_of(model, rows())
    assert (plan.removed("0").tolist(), plan.removed("2").tolist()) == ([6], [2])
    assert plan.notes["0"]["unread"] == plan.notes["2"]["unread"] == 1
    check_same(model, plan, rows(2))


@torch.no_grad()
def test_units_behind_a_relu_that_cannot_switch_on_or_off():
    model = net(4, 8, 12, 3)
    model[2].weight[3] = -model[2].weight[3].abs()
    model[2].bias[3] = -0.1
    for unit in range(4, 12):  # eight units that are on for every input, of which three depend on others
        model[2].weight[unit] = model[2].weight[unit].abs()
        model[2].bias[unit] = 0.5
    model[2].weight[9] = model[2].weight[4] + 2 * model[2].weight[5]
    model[2].weight[10] = 0.5 * (model[2].weight[4] + model[2].weight[6])
    model[2].weight[11] = 0
    plan = plan_of(model, rows())
    removed = plan.removed("2").tolist()
    assert 3 in removed and 11 in removed and len(removed) == 4
    assert plan.notes["2"]["always active"] == 3 and plan.notes["2"]["holds"] == "for every input"
    check_same(model, plan, rows(2))


@torch.no_grad()
def test_merges_of_one_layer_make_rows_of_the_next_parallel():
    model = net(4, 8, 8, 8, 3)
    model[0].weight[5], model[0].bias[5] = 3 * model[0].weight[1], 3 * model[0].bias[1]
    # units 2 and 6 of the second layer differ only in how they split the weight between units 1 and 5
    model[2].weight[6] = 2 * model[2].weight[2]
    model[2].weight[6, 1] += 0.3
    model[2].weight[6, 5] -= 0.1
    model[2].bias[6] = 2 * model[2].bias[2]
    # and the third layer does the same with these two
    model[4].weight[7] = model[4].weight[0]
    model[4].weight[7, 2] += 0.4
    model[4].weight[7, 6] -= 0.2
    model[4].bias[7] = model[4].bias[0]
    plan = plan_of(model, rows())
    assert [plan.removed(name).tolist() for name in ("0", "2", "4")] == [[5], [6], [7]]
    assert all(plan.notes[name]["holds"] == "for every input" for name in ("0", "2", "4"))
    check_same(model, plan, rows(2))


@torch.no_grad()
def test_channels_cascade_through_maxima():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 3),
    ).double()
    model[0].weight[4], model[0].bias[4] = 2 * model[0].weight[1], 2 * model[0].bias[1]
    model[0].weight[2], model[0].bias[2] = 0, -1
    model[3].weight[5], model[3].bias[5] = model[3].weight[0], model[3].bias[0]
    model[3].weight[5, 1] += 0.2
    model[3].weight[5, 4] -= 0.1
    model[3].weight[5, 2] += 1  # of a dead channel
    x = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plan = plan_of(model, x)
    assert (plan.removed("0").tolist(), plan.removed("3").tolist()) == ([2, 4], [5])
    check_same(model, plan, x)


@torch.no_grad()
def test_what_rests_on_a_domain_makes_all_that_follows_rest_on_it():
    model = net(4, 12, 8, 3)
    model[0].bias[:7] = 50.0  # on for all inputs in the box, and seven rows in four dimensions
    x = rows().clamp(-1, 1)
    plan = plan_of(model, x, domain="box", box=(-1.0, 1.0))
    assert plan.notes["0"]["always active"] == 3
    assert plan.notes["0"]["holds"] == plan.notes["2"]["holds"] == "for inputs in the box"
    small = merge(model, shrink(model, plan), plan)
    torch.testing.assert_close(small(x), model(x), rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("keep", [0.05, 0.6, 0.85])
def test_the_function_stays_under_every_budget(seed, keep):
    rng = np.random.default_rng(seed)
    model = net(4, 10, 10, 10, 3, seed=seed)
    for layer, following in ((model[0], model[2]), (model[2], model[4]), (model[4], model[6])):
        a, b, c, d, e, f = (int(i) for i in rng.permutation(10)[:6])
        layer.weight[b], layer.bias[b] = 2 * layer.weight[a], 2 * layer.bias[a]
        layer.weight[c], layer.bias[c] = 0, rng.normal()
        layer.weight[d], layer.bias[d] = -layer.weight[d].abs(), -0.1
        layer.weight[e], layer.bias[e] = layer.weight[e].abs(), 0.1
        following.weight[:, f] = 0
    plan = plan_of(model, rows(seed), keep)
    small = check_same(model, plan, rows(seed + 100))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def leaky(*widths: int, activation: type[nn.Module] = nn.LeakyReLU, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.PReLU(b) if activation is nn.PReLU else activation()]
    return nn.Sequential(*layers[:-1]).double()


@torch.no_grad()
@pytest.mark.parametrize("activation", [nn.LeakyReLU, nn.PReLU])
def test_leaky_units_merge_with_multiples_of_the_same_slope(activation):
    """A leaky ReLU is positively homogeneous, but no unit of it is ever dead."""
    model = leaky(4, 10, 8, 3, activation=activation)
    for layer in (model[0], model[2]):
        for i, scale in ((3, 2.5), (6, 0.4)):
            layer.weight[i], layer.bias[i] = scale * layer.weight[1], scale * layer.bias[1]
        layer.weight[5], layer.bias[5] = -2 * layer.weight[1], -2 * layer.bias[1]
    model[0].weight[7], model[0].bias[7] = 0, -3.0
    expected = {"0": [3, 6, 7], "2": [3, 6]}
    if activation is nn.PReLU:
        model[1].weight[6] = 0.7
        expected["0"] = [3, 7]
    plan = plan_of(model, rows())
    assert {name: plan.removed(name).tolist() for name in plan.keep} == expected
    assert plan.notes["0"]["dead"] == 0
    assert plan.notes["0"]["holds"] == plan.notes["2"]["holds"] == "for every input"
    check_same(model, plan, rows(2))


@torch.no_grad()
def test_leaky_units_on_one_side_of_their_kink_are_affine():
    """On a box, units that stay below 0 are as affine as units that stay above it."""
    model = leaky(3, 12, 2)
    model[0].bias[:6], model[0].bias[6:] = 20, -20
    plan = plan_of(model, rows(features=3), domain="box", box=(-1.0, 1.0))
    assert len(plan.keep["0"]) == 3
    x = 2 * torch.rand(50, 3, dtype=torch.float64) - 1
    small = merge(model, shrink(model, plan), plan)
    torch.testing.assert_close(small(x), model(x), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_leaky_units_of_one_pattern_and_slope_follow_from_a_basis():
    model, x = leaky(3, 80, 2, activation=nn.PReLU), rows(samples=2, features=3)
    model[1].weight[::2] = 0.5
    method = Matroid(ground="patterns")
    graph = trace(model, x[:2])
    statistics = collect_statistics(model, graph, [(x, torch.zeros(2).long())], method.needs(Units(0.01)))
    plan = method.plan(graph, statistics, Units(0.01))
    small = merge(model, shrink(model, plan), plan)
    torch.testing.assert_close(small(x), model(x), rtol=1e-9, atol=1e-9)


def test_the_integer_program_refuses_slopes_by_name():
    model, x = leaky(4, 6, 3), rows()
    graph = trace(model, x[:2])
    statistics = collect_statistics(model, graph, [(x, torch.arange(200) % 3)], {"chain", "images"})
    with pytest.raises(InputError, match=r"'0.weight'.*slope"):
        MIP().plan(graph, statistics, Units(0.5))
