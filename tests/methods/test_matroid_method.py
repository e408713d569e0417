"""The matroid method: what each ground removes, why, and what it says of it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sampled import sampled
from torch import nn

from secateur.apply.shrink import shrink
from secateur.core import InputError, Merge, NothingToPrune, Units
from secateur.methods.matroid import Matroid, partitions, permutation_audit
from secateur.methods.matroid.permuted import permuted_statistics
from secateur.pruning import prune
from secateur.repair.fold import fold, merge
from secateur.schedule import Tolerance
from secateur.statistics.collect import collect_statistics
from secateur.structures.matroid import activation_basis, express, output_error, parametrize_linear
from secateur.tracing.trace import trace


def mlp(inputs: int = 6, hidden: int = 20, *, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 12), nn.ReLU(), nn.Linear(12, 3)
    ).double()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(5, 8, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.cell(x)[0][:, -1])


def looked_at(model: nn.Module, x: torch.Tensor, method: Matroid, keep: float = 0.5):
    graph = trace(model, x[:2])
    targets = torch.zeros(len(x), dtype=torch.int64)
    return graph, collect_statistics(model, graph, [(x, targets)], method.needs(Units(keep)))


def inputs(samples: int = 200, features: int = 6) -> torch.Tensor:
    return torch.randn(samples, features, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_activations_keep_a_basis_whose_residual_is_what_the_fold_leaves():
    model, x = mlp(), inputs()
    method = Matroid(objective="output", swaps=0)
    graph, statistics = looked_at(model, x, method)
    plan = method.plan(graph, statistics, Units(0.5))
    kept = plan.keep["0"]
    with torch.no_grad():
        hidden = model[:2](x)
    cov = torch.cov(hidden.T, correction=0)
    w = model[2].weight.detach()
    left, total = output_error(cov, kept, w.T @ w), output_error(cov, [], w.T @ w)
    assert plan.notes["0"]["residual"] == pytest.approx(left / total, rel=1e-6)
    found = express(cov, kept, ridge=0.0)
    gone = (hidden - hidden.mean(0)) @ w.T - (hidden - hidden.mean(0))[:, found.kept] @ (
        w[:, found.kept] + w[:, found.removed] @ found.coefficients
    ).T
    assert float(gone.square().sum(1).mean()) / total == pytest.approx(plan.notes["0"]["residual"], rel=1e-6)


def test_units_weigh_as_much_as_the_weights_that_read_them():
    model, x = mlp(), inputs()
    with torch.no_grad():
        model[2].weight[:, :3] = 0.0
        model[2].weight[:, 3:8] *= 10
    graph, statistics = looked_at(model, x, Matroid())
    plan = Matroid(swaps=0).plan(graph, statistics, Units(0.5))
    with torch.no_grad():
        hidden = model[:2](x)
    size = model[2].weight.detach().norm(dim=0).sqrt()
    basis = activation_basis(size[:, None] * torch.cov(hidden.T, correction=0) * size, count=10)
    assert plan.keep["0"].tolist() == sorted(basis.order.tolist())
    assert plan.notes["0"]["residual"] == pytest.approx(float(basis.residuals[-1] / basis.residuals[0]))
    assert min(plan.keep["0"]) >= 3
    swapped = Matroid(swaps=30).plan(graph, statistics, Units(0.5)).notes["0"]
    assert swapped["residual"] <= swapped["residual before swaps"]


@pytest.mark.parametrize("bias", [True, False])
def test_what_is_constant_counts_where_no_bias_can_take_it(bias):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=bias)).double()
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0] = 0.0, 50.0
    graph, statistics = looked_at(model, inputs(60, 3), Matroid())
    plan = Matroid().plan(graph, statistics, Units(0.5))
    assert (0 in plan.keep["0"]) == (not bias)


def test_dependent_activations_go_and_the_fold_restores_the_function():
    model, x = mlp(), inputs()
    with torch.no_grad():
        for i in range(10):
            model[0].weight[10 + i] = (1 + i) * model[0].weight[i]
            model[0].bias[10 + i] = (1 + i) * model[0].bias[i]
    graph, statistics = looked_at(model, x, Matroid())
    plan = Matroid().plan(graph, statistics, Units(0.5))
    assert len({int(k) % 10 for k in plan.keep["0"]}) == 10
    assert plan.notes["0"]["rank"] == 10
    assert plan.notes["0"]["residual"] < 1e-10


@pytest.mark.parametrize("objective", ["units", "output", "weighted"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_every_kind_of_reader_is_understood(objective, scope):
    nets = [
        (mlp(), inputs()),
        (Recurrent().double(), inputs(60, 20).reshape(60, 4, 5)),
        (
            nn.Sequential(
                nn.Conv2d(1, 6, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(6, 8, 3, groups=2),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(8 * 36, 3),
            ).double(),
            inputs(40, 64).reshape(40, 1, 8, 8),
        ),
    ]
    for model, x in nets:
        method = Matroid(objective=objective)
        graph, statistics = looked_at(model, x, method)
        plan = method.plan(graph, statistics, Units(0.5, scope=scope))
        json.dumps(plan.notes)
        small = shrink(model, plan)
        repaired, _ = fold(model, small, plan, statistics)
        with torch.no_grad():
            before = (small(x) - model(x)).square().mean()
            after = (repaired(x) - model(x)).square().mean()
        assert after < before


def test_a_basis_does_not_depend_on_the_order_of_the_units():
    model, x = mlp(), inputs()
    graph, statistics = looked_at(model, x, Matroid())
    audit = permutation_audit(Matroid(), graph, statistics, Units(0.4), draws=5)
    assert audit.order_free
    assert "100%" in audit.summary()


def structured() -> tuple[nn.Sequential, torch.Tensor]:
    """A layer of which the bias is zero except at the start: its tail is everything behind."""
    model = nn.Sequential(nn.Linear(2, 30), nn.ReLU(), nn.Linear(30, 1)).double()
    parametrize_linear(model[0], "cauchy", np.random.default_rng(0))
    nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    with torch.no_grad():
        model[0].bias.zero_()
        model[0].bias[:6] = torch.linspace(1, 2, 6, dtype=torch.float64) ** 3
    return model, inputs(50, 2)


@pytest.mark.parametrize("exact", sampled([False, True], False))
def test_windows_remove_the_tail_and_say_how_it_was_found(exact):
    model, x = structured()
    method = Matroid(ground="windows", exact=exact, order="index")
    graph, statistics = looked_at(model, x, method)
    tail = partitions(graph, statistics, exact=exact)["0"]
    assert tail.tail.tolist() == list(range(6, 30))
    plan = method.plan(graph, statistics, Units(0.1))
    assert plan.removed("0").tolist() == list(range(6, 24))
    note = plan.notes["0"]
    assert (note["rank"], note["tail"], note["removed"], note["asked"]) == (3, 24, 18, 27)
    assert "tail 24" in plan.explain()
    some = Matroid(ground="windows", order="outermost").plan(graph, statistics, Units(0.9))
    assert some.removed("0").tolist() == [6, 7, 29]


def test_the_tail_depends_on_the_order_of_the_units_and_the_audit_says_so():
    model, x = structured()
    method = Matroid(ground="windows", order="index")
    graph, statistics = looked_at(model, x, method)
    audit = permutation_audit(
        method, graph, statistics, Units(0.4), draws=10, measure=lambda plan: float(len(plan.removed("0")))
    )
    assert not audit.order_free
    assert audit.value == 18
    again = permutation_audit(method, graph, statistics, Units(0.4), draws=10)
    assert again.overlap == audit.overlap


def test_permuted_evidence_is_that_of_the_permuted_model():
    model, x = mlp(), inputs()
    graph, statistics = looked_at(model, x, Matroid())
    orders = {g.name: np.random.default_rng(2).permutation(g.size) for g in graph.groups}
    permuted = permuted_statistics(graph, statistics, orders)
    other = mlp()
    other.load_state_dict(permuted.weights)
    with torch.no_grad():
        torch.testing.assert_close(other(x), model(x))
    fresh = collect_statistics(other, graph, [(x, None)], {"gram"})
    for name, moments in fresh.moments.items():
        torch.testing.assert_close(permuted.moments[name].gram, moments.gram)
        torch.testing.assert_close(permuted.moments[name].mean, moments.mean)


def test_permuted_chains_gradients_and_gates_are_those_of_the_permuted_model():
    model, x = convolutional(), inputs(40, 64).reshape(40, 1, 8, 8)
    graph = trace(model, x[:2])
    needs = {"chain", "gradients", "taylor", "activations"}
    batch = [(x, torch.arange(40) % 3)]
    statistics = collect_statistics(model, graph, batch, needs)
    orders = {g.name: np.random.default_rng(4).permutation(g.size) for g in graph.groups}
    assert len(orders) == 3
    permuted = permuted_statistics(graph, statistics, orders)
    other = convolutional()
    other.load_state_dict(permuted.weights)
    fresh = collect_statistics(other, graph, batch, needs)
    flat = x.flatten(1).numpy()
    np.testing.assert_allclose(permuted.chain.logits(flat), statistics.chain.logits(flat), rtol=1e-10)
    for ours, theirs in zip(permuted.chain.relus, fresh.chain.relus, strict=True):
        keep = {ours.name: np.arange(ours.size) % 2 == 0}
        theirs_out, ours_out = (c.logits(flat, keep) for c in (fresh.chain, permuted.chain))
        assert theirs.size == ours.size
        np.testing.assert_allclose(ours_out, theirs_out, rtol=1e-10)
    for name, gradient in fresh.gradients.items():
        torch.testing.assert_close(permuted.gradients[name], gradient)
    for name in orders:
        torch.testing.assert_close(permuted.taylor[name], fresh.taylor[name])
        torch.testing.assert_close(permuted.activations[name], fresh.activations[name])


def test_exact_merges_are_as_many_in_every_order():
    model, _ = planted(torch.float64)
    method = Matroid(ground="rows")
    graph, statistics = looked_at(model, inputs(), method, 0.1)

    def apart(plan) -> float:
        return float(len(plan.removed("0")))

    audit = permutation_audit(method, graph, statistics, Units(0.1), draws=6, measure=apart)
    assert audit.counts == (13,) * 7  # twelve multiples and a constant
    assert audit.values == (13.0,) * 6
    assert not audit.order_free  # of two multiples either may stay
    assert "13 go in the original order, 13 to 13 permuted" in audit.summary()
    with pytest.raises(InputError, match="flow"):
        permuted_statistics(graph, replace(statistics, flow=dict), {})


def convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20, 9),
        nn.ReLU(),
        nn.Linear(9, 3),
    ).double()


def test_no_tail_is_an_error_that_says_when_there_is_one():
    model, x = mlp(), inputs()
    method = Matroid(ground="windows")
    graph, statistics = looked_at(model, x, method)
    with pytest.raises(NothingToPrune, match=r"d \+ 1 units"):
        method.plan(graph, statistics, Units(0.5))


def planted(dtype: torch.dtype) -> tuple[nn.Sequential, dict[int, int]]:
    model = mlp(hidden=40).to(dtype)
    pairs = {int(c): int(s) for s, c in np.random.default_rng(3).permutation(40)[:24].reshape(2, 12).T}
    with torch.no_grad():
        for i, (copy, source) in enumerate(pairs.items()):
            factor = 1.0 if i % 2 else 0.3 + i
            model[0].weight[copy] = factor * model[0].weight[source]
            model[0].bias[copy] = factor * model[0].bias[source]
        model[0].weight[int(np.setdiff1d(np.arange(40), [*pairs, *pairs.values()])[0])] = 0
    return model, pairs


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rows_finds_all_that_was_planted_and_nothing_else(dtype):
    model, pairs = planted(dtype)
    x = inputs().to(dtype)
    method = Matroid(ground="rows")
    graph, statistics = looked_at(model, x, method, 0.1)
    plan = method.plan(graph, statistics, Units(0.1))
    merged: Merge = plan.merges["0"]
    found = {
        frozenset((int(r), int(merged.kept[c.argmax()])))
        for r, c in zip(merged.removed, merged.coefficients, strict=True)
        if c.any()
    }
    assert found == {frozenset(pair) for pair in pairs.items()}
    assert "2" not in plan.keep
    assert plan.notes["0"]["parallel"] == 12
    assert plan.notes["0"]["holds"] == "for every input"
    small = merge(model, shrink(model, plan), plan)
    apart = (small(x) - model(x)).abs().max() / model(x).abs().max()
    assert apart < (1e-12 if dtype == torch.float64 else 1e-5)


def test_conv_channels_merge_through_batchnorm():
    torch.manual_seed(0)
    model = (
        nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(6 * 16, 3),
        )
        .double()
        .eval()
    )
    with torch.no_grad():
        model[1].running_mean.copy_(torch.randn(6))
        model[1].weight.copy_(torch.rand(6) + 0.5)
        for tensor in (model[0].weight, model[0].bias, model[1].running_mean):
            tensor[4] = tensor[1]
        model[1].weight[4] = 2.5 * model[1].weight[1]
        model[1].bias[4] = 2.5 * model[1].bias[1]
    x = inputs(30, 64).reshape(30, 1, 8, 8)
    method = Matroid(ground="rows")
    graph, statistics = looked_at(model, x, method)
    plan = method.plan(graph, statistics, Units(0.5))
    assert plan.removed("0").tolist() == [4]
    small = merge(model, shrink(model, plan), plan)
    torch.testing.assert_close(small(x), model(x), rtol=1e-11, atol=1e-12)


def test_always_active_units_fold_exactly_on_their_box():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 2)).double()
    with torch.no_grad():
        model[0].bias[:9] = model[0].weight[:9].abs().sum(1) + 0.1
        model[0].bias[9] = -10.0
        model[0].weight[8], model[0].bias[8] = 2 * model[0].weight[0], 2 * model[0].bias[0]
    x = 2 * torch.rand(500, 3, dtype=torch.float64) - 1
    for domain in ("box", "data"):
        method = Matroid(ground="rows", domain=domain, box=(-1.0, 1.0))
        graph, statistics = looked_at(model, x, method)
        plan = method.plan(graph, statistics, Units(0.1))
        note = plan.notes["0"]
        assert (note["dead"], note["parallel"], note["always active"]) == (1, 1, 5)
        assert note["holds"].endswith("box" if domain == "box" else "data")
        small = merge(model, shrink(model, plan), plan)
        torch.testing.assert_close(small(x), model(x), rtol=1e-11, atol=1e-12)
    assert "always active 0" in Matroid(ground="rows").plan(graph, statistics, Units(0.1)).explain()


def test_bad_input_is_refused_in_words():
    for options in (
        {"ground": "columns"},
        {"share": 0.0},
        {"rtol": 2.0},
        {"rtol": 0.1, "exact": True},
        {"swaps": -1},
        {"tolerance": -1.0},
        {"box": (1.0, 0.0)},
        {"order": "random"},
    ):
        with pytest.raises(InputError, match=next(iter(options))):
            Matroid(**options)
    model, x = mlp(), inputs()
    graph, statistics = looked_at(model, x, Matroid(ground="windows"))
    with pytest.raises(InputError, match="gram"):
        Matroid().plan(graph, statistics, Units(0.5))
    with pytest.raises(InputError, match="chain"):
        Matroid(ground="rows").plan(graph, statistics, Units(0.5))
    with pytest.raises(InputError, match="permutation"):
        permutation_audit(Matroid(), graph, statistics, Units(0.5), draws=0)
    with pytest.raises(InputError, match="ranks no groups"):
        Matroid(ground="windows").plan(graph, statistics, Units(0.5, scope="global"))


def test_exact_merging_refuses_other_activations_by_name():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    with pytest.raises(InputError, match="tanh"):
        looked_at(model, inputs(), Matroid(ground="rows"))


def test_nan_weights_are_refused():
    model, x = structured()
    graph, statistics = looked_at(model, x, Matroid(ground="windows"))
    broken = {k: v.clone() for k, v in statistics.weights.items()}
    broken["0.weight"][0, 0] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        Matroid(ground="windows").plan(graph, replace(statistics, weights=broken), Units(0.5))


def test_the_four_step_pipeline_goes_on_beyond_the_share_under_a_tolerance():
    model, x = structured()
    with torch.no_grad():
        model[2].weight[0, 10:] = 1e-4
    targets = model(x).detach()

    def metric(candidate: nn.Module, batches) -> float:
        return -float((candidate(batches[0][0]) - targets).detach().abs().mean())

    method = Matroid(ground="windows", order="index", share=1.0)
    schedule = Tolerance(0.01, [(x, targets)], metric, step=0.1)
    result = prune(model, x[:2], method=method, schedule=schedule, progress=False)
    assert 0 < len(result.plan.removed("0")) <= 24
    assert result.plan.removed("0").tolist() == list(range(6, 6 + len(result.plan.removed("0"))))
    assert metric(result.model, [(x, targets)]) >= -0.01 - 1e-9


class Tied(nn.Module):
    """An autoencoder whose decoder is its encoder, transposed and shifted: no layer reads the code."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.code = nn.Parameter(torch.randn(8, 5)), nn.Parameter(torch.randn(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum(
            "bh,hi->bi", torch.einsum("bi,hi->bh", x, self.weight).relu() * self.code, self.weight
        )


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_groups_that_no_layer_reads_keep_the_largest_weights(scope: str):
    torch.manual_seed(0)
    model, x = Tied().double(), inputs(features=5)
    result = prune(model, x[:2], Units(0.5, scope=scope), data=[(x, None)])
    (name,) = result.plan.keep
    largest = model.weight.abs().sum(1).argsort(descending=True)[:4].sort().values
    assert result.plan.keep[name].tolist() == largest.tolist()
    assert "no layer reads" in result.plan.notes[name]["ground"]


@pytest.mark.parametrize("kind", ["tp_exponential", "cauchy"])
def test_structured_layers_say_how_to_make_them_ordinary(kind):
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)).double()
    parametrize_linear(model[0], kind, np.random.default_rng(0))
    x = inputs(20, 2)
    with pytest.raises(NothingToPrune) as caught:
        prune(model, x[:2], Units(0.5), method="magnitude")
    (cure,) = [line for line in str(caught.value).splitlines() if "remove_parametrizations" in line]
    eval(cure.strip(), {"torch": torch, "model": model})
    assert prune(model, x[:2], Units(0.5), method="magnitude").model[0].out_features == 4
