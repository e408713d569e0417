"""Laws that every pruning method obeys, on several kinds of models of the bank."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from bank import BANK, Entry
from sampled import sampled
from torch import nn

from secateur.apply.mask import mask
from secateur.apply.shrink import shrink
from secateur.core import InputError, Plan, PruningGraph, SecateurError, Units, Weights
from secateur.methods import METHODS, MIP, ScoreMethod
from secateur.pruning import plan
from secateur.statistics.collect import collect_statistics
from secateur.tracing.trace import trace

MODELS = (
    "MLP",
    "LeNet-5, Flatten",
    "MobileNetV2 (depthwise)",
    "LSTM, bidirectional",
    "nn.TransformerEncoder, norm first",
)
RANKING = tuple(name for name, kind in METHODS.items() if issubclass(kind, ScoreMethod))
LARGE = ("LeNet-5, Flatten", "mip")
AT_ONCE = tuple(name for name in RANKING if METHODS[name].plan_units is ScoreMethod.plan_units)


@cache
def traced(name: str) -> tuple[Entry, nn.Module, PruningGraph, list[Any]]:
    """Trace a model of the bank, and make batches for it."""
    entry = BANK[name]
    model = oracles.perturb(entry.build())
    graph = trace(model, entry.example()[0])
    batches = []
    for seed in range(3):
        (x,), _ = entry.example(batch=16, seed=seed)
        with torch.no_grad():
            classes = model(x).shape[-1]
        batches.append((x, torch.arange(16) % classes))
    return entry, model, graph, batches


def cases(methods: Iterable[str], models: Iterable[str] = MODELS) -> list[Any]:
    """Pair models with methods."""
    return [(name, method) for name in models for method in methods]


@cache
def once(name: str, method: str, budget: Any) -> Plan:
    """Let a method decide, and remember."""
    return decide(name, method, budget)


def decide(name: str, method: str, budget: Any, seed: int = 0) -> Plan:
    """Let a method decide; skip the test if it says that it is not made for the model."""
    _, model, graph, batches = traced(name)
    # A program of 10 images of an untrained LeNet ends at its time limit, and then depends on the machine.
    chosen = MIP(images=2) if (name, method) == LARGE else method
    try:
        return plan(graph, chosen, budget, batches, seed, model=model)
    except InputError as error:
        if name == "MLP" and not isinstance(budget, Weights) and getattr(budget, "scope", "") == "layer":
            raise
        pytest.skip(f"not defined here: {error}")


def equal(a: Plan, b: Plan) -> bool:
    """Whether two plans keep the same units and weights."""
    pairs = [(a.keep, b.keep), (a.masks, b.masks)]
    return all(p.keys() == q.keys() and all(np.array_equal(p[k], q[k]) for k in p) for p, q in pairs)


@pytest.mark.parametrize(("name", "method"), cases(METHODS))
class TestUnits:
    """Half of the units of every group."""

    def test_counts_are_exact(self, name: str, method: str) -> None:
        graph = traced(name)[2]
        keep = once(name, method, Units(0.5)).keep
        assert set(keep) == {g.name for g in graph.groups if g.size > 1}
        for group, kept in keep.items():
            size = graph.group(group).size
            assert abs(2 * len(kept) - size) <= 1
            assert (np.diff(kept) > 0).all()
            assert 0 <= kept[0] <= kept[-1] < size

    def test_same_seed_same_plan(self, name: str, method: str) -> None:
        assert equal(once(name, method, Units(0.5)), decide(name, method, Units(0.5)))

    def test_shrunk_model_is_exact(self, name: str, method: str) -> None:
        entry, model, _, _ = traced(name)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        small = shrink(model, once(name, method, Units(0.5)))
        assert oracles.size(small) < oracles.size(model)
        assert oracles.deviation(entry, model, small) < oracles.TOLERANCE
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize(("name", "method"), cases(AT_ONCE))
def test_kept_scores_are_not_below_removed_ones(name: str, method: str) -> None:
    _, model, graph, batches = traced(name)
    decided = once(name, method, Units(0.5))
    criterion = METHODS[method]()
    statistics = collect_statistics(model, graph, batches, criterion.needs(Units(0.5)), 0)
    scores = criterion.unit_scores(graph, statistics)
    for group in decided.keep:
        kept, gone = decided.keep[group], decided.removed(group)
        assert scores[group].shape == (graph.group(group).size,)
        assert scores[group][kept].min() >= scores[group][gone].max()


@pytest.mark.parametrize(("name", "method"), cases(RANKING))
class TestRankings:
    """What holds of methods that score units one by one."""

    def test_smaller_budgets_are_nested(self, name: str, method: str) -> None:
        large, small = once(name, method, Units(0.5)), once(name, method, Units(0.25))
        for group, kept in small.keep.items():
            assert set(kept) <= set(large.keep[group])

    def test_global_scope_keeps_the_total(self, name: str, method: str) -> None:
        graph = traced(name)[2]
        keep = once(name, method, Units(0.5, scope="global")).keep
        sizes = {g.name: g.size for g in graph.groups}
        left = sum(len(keep[g]) if g in keep else size for g, size in sizes.items())
        assert abs(left - 0.5 * sum(sizes.values())) <= 1


@pytest.mark.parametrize("scope", sampled(["layer", "global", "erk"], "erk"))
@pytest.mark.parametrize(("name", "method"), cases(METHODS, MODELS[:3]))
def test_weight_masks_have_the_density(name: str, method: str, scope: Any) -> None:
    _, model, graph, _ = traced(name)
    decided = decide(name, method, Weights(0.3, scope=scope))
    total = sum(int(np.prod(graph.shapes[layer.weight])) for layer in graph.prunable_weights())
    kept = sum(
        int(decided.masks[x.weight].sum())
        if x.weight in decided.masks
        else int(np.prod(graph.shapes[x.weight]))
        for x in graph.prunable_weights()
    )
    assert abs(kept - 0.3 * total) <= len(graph.prunable_weights())
    sparse = mask(model, decided)
    for weight, stays in decided.masks.items():
        parameter, original = sparse.get_parameter(weight), model.get_parameter(weight)
        assert not parameter[~torch.from_numpy(stays)].any()
        assert torch.equal(parameter[torch.from_numpy(stays)], original[torch.from_numpy(stays)])


def test_other_seeds_give_other_random_plans() -> None:
    assert not equal(decide("MLP", "random", Units(0.5), seed=1), decide("MLP", "random", Units(0.5), seed=2))


@pytest.mark.parametrize("method", METHODS)
def test_nan_weights_are_refused(method: str) -> None:
    model = oracles.perturb(BANK["MLP"].build())
    (x,), _ = BANK["MLP"].example(batch=16)
    graph = trace(model, x)
    with torch.no_grad():
        model[2].weight[3, 4] = float("nan")
    with pytest.raises(SecateurError, match=r"2\.weight"):
        plan(graph, method, Units(0.5), [(x, torch.arange(16) % 6)], model=model)
