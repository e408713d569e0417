"""Units that switch together: one basis for each pattern, and where outputs stay and change."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from secateur.apply.shrink import shrink
from secateur.core import NothingToPrune, Plan, Units
from secateur.methods.matroid import Matroid
from secateur.pruning import prune
from secateur.repair.fold import merge
from secateur.statistics.collect import collect_statistics
from secateur.structures.matroid import LinearMatroid
from secateur.tracing.trace import trace


def draw(samples: int, *shape: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, *shape, generator=generator, dtype=torch.float64)


def perceptron(*widths: int, seed: int = 0, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b, bias=bias or b != widths[-1]), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double()


def pruned(model: nn.Module, x: torch.Tensor, keep: float = 0.01) -> tuple[Plan, nn.Module]:
    method = Matroid(ground="patterns")
    graph = trace(model, x[:2])
    targets = torch.zeros(len(x), dtype=torch.int64)
    statistics = collect_statistics(model, graph, [(x, targets)], method.needs(Units(keep)))
    plan = method.plan(graph, statistics, Units(keep))
    return plan, merge(model, shrink(model, plan), plan)


def error(model: nn.Module, small: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        return float((small(x) - model(x)).abs().max() / model(x).abs().max())


def count_by_definition(model: nn.Sequential, x: torch.Tensor) -> int:
    """Number of units of the first layer that must stay, by Fractions."""
    with torch.no_grad():
        on = (model[0](x) > 0).T.tolist()
    rows = np.column_stack([model[0].weight.detach().numpy(), model[0].bias.detach().numpy()])
    classes: dict[tuple[bool, ...], list[int]] = {}
    for unit, pattern in enumerate(on):
        classes.setdefault(tuple(pattern), []).append(unit)
    kept = 0
    for pattern, units in classes.items():
        if not any(pattern):
            continue  # never on
        # Always on: the readers' biases take the constant, so that a basis of W is enough.
        matrix = rows[units, :-1] if all(pattern) else rows[units]
        kept += LinearMatroid(matrix, exact=True).rank()
    return kept


@pytest.mark.parametrize("seed", range(30))
def test_as_many_units_stay_as_the_definition_says_and_outputs_on_the_data_too(seed):
    rng = np.random.default_rng(seed)
    inputs, samples = int(rng.integers(1, 5)), int(rng.integers(2, 12))
    model = perceptron(inputs, 40, 3, seed=seed)
    with torch.no_grad():
        model[0].bias *= 3
        model[0].weight *= 10.0 ** torch.from_numpy(rng.integers(-3, 4, (40, 1)))
    x = draw(samples, inputs, seed=seed)
    plan, small = pruned(model, x)
    assert len(plan.keep["0"]) == count_by_definition(model, x)
    assert error(model, small, x) < 1e-12


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("keep", [0.01, 0.5, 0.9])
def test_it_composes_over_layers_under_every_budget(seed, keep):
    model, x = perceptron(1, 40, 40, 40, 3, seed=seed), draw(2, 1, seed=seed)
    plan, small = pruned(model, x, keep)
    assert error(model, small, x) < 1e-12
    kept = [len(plan.keep[name]) for name in ("0", "2", "4")]
    if keep == 0.01:
        # Two examples make four patterns: never, always, and either.  Behind k units a basis of each has at
        # most k, k + 1 and k + 1 rows; without the first layer's relations the second keeps more.
        assert kept[0] <= 1 + 2 + 2 and kept[1] <= 3 * kept[0] + 2 and kept[2] <= 3 * kept[1] + 2
        with torch.no_grad():
            hidden = model[:2](x)
        assert kept[1] < len(pruned(nn.Sequential(*model[2:]), hidden)[0].keep["0"])
    else:
        assert min(kept) >= 40 * keep


def test_where_no_unit_leaves_its_pattern_nothing_changes_and_where_one_does_the_output_may():
    model = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    with torch.no_grad():
        model[0].weight[:, 0] = torch.tensor([1.0, 1.0, 1.0, -1.0])
        model[0].bias[:] = torch.tensor(
            [0.0, -0.25, -0.5, -9.0]
        )  # kinks at 0, 1/4, 1/2; the last is never on
        model[2].weight[:] = 1.0
    x = torch.tensor([[-1.0], [1.0]]).double()
    plan, small = pruned(model, x)
    assert plan.notes["0"]["patterns"] == 1 and plan.notes["0"]["dead"] == 1
    assert len(plan.keep["0"]) == 2 and "agree in sign" in plan.notes["0"]["holds"]
    far = torch.tensor([[-8.0], [-0.1], [0.5], [0.7], [1000.0]]).double()
    torch.testing.assert_close(small(far), model(far), rtol=1e-14, atol=1e-14)
    between = torch.tensor([[0.3]]).double()  # on the same side of two kinks only
    assert (small(between) - model(between)).abs().max() > 0.01
    assert (small(torch.tensor([[-20.0]]).double()) - model(torch.tensor([[-20.0]]).double())).abs() > 1


def test_a_reader_without_a_bias_cannot_take_the_constant_of_units_that_are_always_on():
    for bias, kept in ((True, 3), (False, 4)):
        model, x = perceptron(3, 12, 2, bias=bias), draw(50, 3).clamp(-1, 1)
        with torch.no_grad():
            model[0].bias[:] = 50.0
        plan, small = pruned(model, x)
        assert len(plan.keep["0"]) == kept
        assert error(model, small, x) < 1e-12


def test_channels_are_combined_through_averages_but_not_through_maxima():
    for pool, combined in ((nn.AvgPool2d(2), True), (nn.MaxPool2d(2), False)):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 12, 2),
            nn.ReLU(),
            pool,
            nn.Conv2d(12, 14, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(56, 3),
        ).double()
        with torch.no_grad():
            model[0].bias[:9] = 50.0  # always on: a space of five dimensions
            model[0].weight[11], model[0].bias[11] = 3 * model[0].weight[10], 3 * model[0].bias[10]
            model[3].bias[:] = 5000.0  # always on, and rows in the units that stay and a constant
        x = draw(20, 1, 5, 5)
        plan, small = pruned(model, x)
        assert len(plan.removed("0")) == (5 if combined else 1)
        assert len(plan.keep["3"]) == len(plan.keep["0"]) + 1
        assert error(model, small, x) < 1e-12


def test_units_behind_a_normalisation_stay_because_their_readers_see_other_values():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(20)
    model = nn.Sequential(nn.Linear(2, 20), nn.ReLU(), norm, nn.Linear(20, 3)).double().eval()
    with torch.no_grad():
        norm.running_mean.uniform_(0.5, 1.0)
    x = draw(5, 2)
    for ground in ("patterns", "rows"):
        with pytest.raises(NothingToPrune, match="no unit is dead"):
            prune(model, x[:2], Units(0.5), data=[(x, torch.zeros(5).long())], method=Matroid(ground=ground))


def test_nothing_is_offered_where_rows_of_each_pattern_are_independent():
    model = perceptron(30, 10, 3)
    with pytest.raises(NothingToPrune, match="switch together there are independent"):
        pruned(model, draw(200, 30))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prune_applies_the_merges_in_the_type_of_the_model(dtype):
    model, x = perceptron(1, 30, 20, 3).to(dtype), draw(2, 1).to(dtype)
    data = [(x, torch.zeros(2).long())]
    method = Matroid(ground="patterns")
    result = prune(model, x[:2], Units(0.1), data=data, method=method, repair=None, progress=False)
    assert len(result.plan.keep["0"]) <= 5
    assert error(model, result.model, x) < (1e-5 if dtype == torch.float32 else 1e-12)
