"""The method over traced networks: threshold, budgets, modes, parts, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from secateur.apply.mask import mask
from secateur.apply.shrink import shrink
from secateur.core import InputError, Units
from secateur.methods import METHODS, MIP
from secateur.specs import make_method
from secateur.statistics.auxiliary_heads import attach_auxiliaries, parts
from secateur.statistics.collect import collect_statistics
from secateur.structures.relu_mip import importance_scores
from secateur.tracing.trace import trace


def blobs(
    classes: int = 3, each: int = 40, features: int = 6, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(classes, features, generator=generator)
    x = centres.repeat_interleave(each, 0) + 0.3 * torch.randn(classes * each, features, generator=generator)
    return x, torch.arange(classes).repeat_interleave(each)


def trained(*layers: nn.Module, x: torch.Tensor, y: torch.Tensor) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(*layers)
    for layer in model:
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer.reset_parameters()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def setting():
    x, y = blobs()
    model = trained(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3), x=x, y=y)
    graph = trace(model, x[:4])
    method = MIP(images=3)
    return model, graph, collect_statistics(model, graph, [(x, y)], method.needs(Units(0.5))), x, y


def test_it_is_registered():
    assert METHODS["mip"] is MIP


def test_threshold_removes_exactly_what_scores_below_it(setting):
    _, graph, statistics, _, _ = setting
    method = MIP(images=3, threshold=0.1)
    plan = method.plan(graph, statistics, Units(0.01))
    result = method.importance(statistics)
    for group, weight in (("0", "0.weight"), ("2", "2.weight")):
        gone = np.flatnonzero(result.scores[weight] < 0.1)
        np.testing.assert_array_equal(plan.removed(group), gone)
    assert plan.notes["mip"]["status"] == "optimal"
    assert sum(len(plan.removed(g)) for g in ("0", "2")) > 0


def test_threshold_never_removes_more_than_the_budget_allows(setting):
    _, graph, statistics, _, _ = setting
    plan = MIP(images=3, threshold=1.0).plan(graph, statistics, Units(0.75))
    assert {name: len(kept) for name, kept in plan.keep.items()} == {"0": 9, "2": 6}


def test_budget_keeps_the_best_scores(setting):
    _, graph, statistics, _, _ = setting
    method = MIP(images=3)
    plan, result = method.plan(graph, statistics, Units(0.5)), method.importance(statistics)
    for group, weight in (("0", "0.weight"), ("2", "2.weight")):
        scores = result.scores[weight]
        assert len(plan.keep[group]) == len(scores) // 2
        assert scores[plan.keep[group]].min() >= scores[plan.removed(group)].max() - 1e-6


def test_dead_units_go_without_changing_the_images_outputs(setting):
    model, graph, statistics, x, _ = setting
    method = MIP(images=3, threshold=0.05)
    plan = method.plan(graph, statistics, Units(0.01))
    small = shrink(model, plan)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(small(x), mask(model, plan)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["joint", "per_class", "imbalanced"])
def test_every_mode_is_deterministic(setting, mode):
    _, _, statistics, _, _ = setting
    method = MIP(images=6, mode=mode, draws=2)
    first, second = method.importance(statistics), method.importance(statistics)
    for name in first.scores:
        np.testing.assert_array_equal(first.scores[name], second.scores[name])
        assert ((first.scores[name] >= 0) & (first.scores[name] <= 1)).all()


def test_per_class_is_the_average_of_single_programs(setting):
    _, _, statistics, _, _ = setting
    method = MIP(images=3, mode="per_class")
    drawn = method._draw_programs(statistics)
    assert [sorted(set(part.labels)) for part in drawn] == [[0], [1], [2]]
    single = [importance_scores(part.chain, part.x, part.labels) for part in drawn]
    result = method.importance(statistics)
    for name in result.scores:
        np.testing.assert_allclose(
            result.scores[name], np.mean([s.scores[name] for s in single], axis=0), atol=1e-9
        )


def test_parallel_solves_give_the_same(setting):
    _, _, statistics, _, _ = setting
    alone, together = (MIP(images=3, mode="per_class", jobs=jobs).importance(statistics) for jobs in (1, 2))
    for name in alone.scores:
        np.testing.assert_array_equal(alone.scores[name], together.scores[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "both"}, "mode is 'joint', 'per_class' or 'imbalanced'"),
        ({"solver": "gurobi"}, "solver is 'highs'"),
        ({"threshold": 0.0}, "threshold must be"),
        ({"images": 0}, "at least 1"),
        ({"draws": 0}, "at least 1"),
        ({"time_limit": 0.0}, "time_limit must be over 0"),
        ({"time_limit": float("nan")}, "time_limit is a number"),
        ({"nodes": -1}, "nodes 0 or more"),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises(InputError, match=message):
        MIP(**options)


def test_a_limit_does_not_stop_a_run_that_has_something(setting):
    _, graph, statistics, _, _ = setting
    plan = MIP(images=9, bounds="free", lam=1.0, gap=1e-9, nodes=1).plan(graph, statistics, Units(0.5))
    note = plan.notes["mip"]
    assert note["status"] == "node_limit" and note["bound"] < note["objective"]
    assert {name: len(kept) for name, kept in plan.keep.items()} == {"0": 6, "2": 4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "per_class", "time_limit": 1e-6}, "mip, draw 0, class 0: building the program takes"),
        ({"lam": -1.0}, "lam must be"),
        ({"epsilon": -1.0}, "epsilon must be"),
    ],
)
def test_what_goes_wrong_in_a_program_names_it(setting, options, message):
    _, graph, statistics, _, _ = setting
    with pytest.raises(InputError, match=message):
        MIP(images=3, **options).plan(graph, statistics, Units(0.5))


def test_the_time_limit_is_for_all_programs_together(setting, monkeypatch):
    _, _, statistics, _, _ = setting
    given, real = [], importance_scores

    def solve(*args, **options):
        given.append(options["time_limit"])
        return real(*args, **options)

    monkeypatch.setattr("secateur.structures.relu_mip.importance_scores", solve)
    MIP(images=3, mode="per_class", time_limit=30.0, draws=2).importance(statistics)
    assert given == [5.0] * 6


def test_more_images_than_there_are(setting):
    _, graph, statistics, _, _ = setting
    with pytest.raises(InputError, match="images must be 1 to 120"):
        MIP(images=121).plan(graph, statistics, Units(0.5))


def test_labels_out_of_range(setting):
    model, graph, _, x, y = setting
    statistics = collect_statistics(model, graph, [(x, y + 1)], {"chain", "images"})
    with pytest.raises(InputError, match="label 3 is out of range"):
        MIP(images=3).plan(graph, statistics, Units(0.5))


def test_a_group_without_a_relu_is_named():
    x, _ = blobs()
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    graph = trace(model, x[:4])
    statistics = collect_statistics(
        model, graph, [(x, torch.zeros(len(x), dtype=torch.long))], {"chain", "images"}
    )
    with pytest.raises(InputError, match=r"group '0' has no score.*ignored_layers"):
        MIP(images=1, correct=False).plan(graph, statistics, Units(0.5))


@pytest.mark.parametrize(("batches", "epochs"), [([], 1), ([(torch.zeros(2, 1, 8, 8), torch.zeros(2))], 0)])
def test_auxiliary_networks_need_something_to_train_on(batches, epochs):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Flatten())
    with pytest.raises(InputError, match=f"got {len(batches)} batches and epochs={epochs}"):
        attach_auxiliaries(model, batches, epochs=epochs)


def test_decoupled_parts_score_every_layer_of_a_deep_network():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(3).repeat(20)
    pattern = torch.randn(3, 1, 8, 8, generator=generator)
    x = pattern[y] + 0.3 * torch.randn(60, 1, 8, 8, generator=generator)
    model = trained(
        nn.Conv2d(1, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
        nn.ReLU(),
        nn.Linear(10, 3),
        x=x,
        y=y,
    )
    decoupled = attach_auxiliaries(model, [(x, y)], epochs=20, width=6, seed=0)
    pieces = parts(decoupled, x[:3], y[:3])
    assert [list(part.chain.layers) for part in pieces] == [
        ["0.weight"],
        ["4.weight"],
        ["7.weight", "10.weight"],
    ]
    with torch.no_grad():  # the last piece is the network itself
        np.testing.assert_allclose(pieces[-1].chain.logits(pieces[-1].x), model(x[:3]).numpy(), atol=1e-4)
    graph = trace(model, x[:2])
    method = MIP(parts=pieces, threshold=0.1)
    plan = method.plan(graph, collect_statistics(model, graph, None, method.needs(Units(0.5))), Units(0.1))
    assert set(plan.notes["mip"]["dead units"]) == {"0.weight", "4.weight", "7.weight", "10.weight"}
    whole = make_method("mip:parts=layers,threshold=0.1,images=3")
    needs = whole.needs(Units(0.5))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    statistics = collect_statistics(model, graph, [(x, y)], needs)
    made = whole.plan(graph, statistics, Units(0.1))
    pieces = parts(attach_auxiliaries(model, [(x, y)], seed=0), *(t[[0, 20, 40]] for t in (x, y)))
    assert len(pieces) == 3 and set(made.notes["mip"]["dead units"]) == set(plan.notes["mip"]["dead units"])
    with pytest.raises(InputError, match="out of bounds"):
        collect_statistics(model, graph, [(x, y + 1)], needs)
    with pytest.raises(InputError, match="learn classes"):
        collect_statistics(model, graph, [(x, y.float())], needs)
    with pytest.raises(InputError, match="collect both"):
        whole.plan(graph, collect_statistics(model, graph, None, ()), Units(0.5))
    attach_auxiliaries(model, [(x, y)], width=6, seed=0, train_layers=True)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
