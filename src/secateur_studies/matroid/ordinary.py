"""Ordinary trained networks: every criterion with and without the same fold, and planted exact merges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from secateur.apply.shrink import shrink
from secateur.core import PruningGraph, Statistics, Units
from secateur.data import Batch, Dataset
from secateur.measure.metrics import accuracy
from secateur.methods import METHODS, Magnitude
from secateur.methods.base import SetMethod
from secateur.methods.matroid import Matroid
from secateur.repair.fold import fold, merge
from secateur.statistics.collect import collect_statistics
from secateur.tracing.trace import trace
from secateur.zoo import small_cnn, train
from secateur_studies.models import lstm, perceptron

__all__ = ["MODELS", "REMOVED", "Scale", "compare_criteria", "find_planted"]

Row = dict[str, Any]
Correct = NDArray[np.bool_]
ORDINARY, PAIRED, PLANTED = "ordinary", "paired", "planted"
REMOVED = (0.5, 0.7, 0.8, 0.9, 0.95)
REPAIRS = ("none", "fold")
NEEDS = frozenset({"gram", "moments", "gradients", "taylor"})


def _make_cnn(data: Dataset, seed: int) -> nn.Module:
    return small_cnn(16, side=data.shape[1], channels=data.shape[0], classes=data.classes, seed=seed)


@dataclass(frozen=True)
class Scale:
    """Settings to build, train and measure a network, in under a minute.

    Attributes:
        build: (data, seed) -> network.
        epochs: Passes over the training examples.
        limit: Number of training examples, None for all.
        tests: Number of test examples, None for all.
        seeds: Number of networks.
    """

    build: Callable[[Dataset, int], nn.Module]
    epochs: int
    limit: int | None = None
    tests: int | None = None
    seeds: int = 5


MODELS: dict[str, Scale] = {
    "mlp": Scale(lambda data, seed: perceptron(data, 512, seed=seed), 5, seeds=10),
    "cnn": Scale(_make_cnn, 3, 20_000, 4_000),
    "lstm": Scale(lambda data, seed: lstm(data, 128, seed=seed), 3, 20_000, 4_000),
}


def _list_criteria(draws: int) -> Iterator[tuple[str, SetMethod, int]]:
    """Yield name, method, and number of draws; the matroid first."""
    yield "matroid", Matroid(objective="output"), 1
    yield "matroid, units", Matroid(objective="units"), 1
    for name in ("magnitude", "activation", "sensitivity", "taylor"):
        yield name, METHODS[name](), 1
    yield "magnitude, L2", Magnitude(p=2), 1
    yield "random", METHODS["random"](), draws


def compare_criteria(
    name: str, data: Dataset, seed: int, *, epochs: int, limit: int | None, tests: int | None, draws: int
) -> Iterator[Row]:
    """Train one network and prune it by every criterion, without and with fold.

    Yields:
        `ORDINARY` rows with the lost accuracy in points. `PAIRED` rows for each baseline with the same
        repair: the numbers of test examples on which only the matroid is right, and only the baseline.
    """
    model = train(MODELS[name].build(data, seed), data, epochs=epochs, limit=limit, seed=seed).model
    graph = trace(model, data.parts["train"][0][:2])
    statistics = collect_statistics(model, graph, data.batches("calibration", 250), NEEDS, seed)
    test = data.batches("test", 1000, tests)
    base = _correct_answers(model, test)
    common = {"model": name, "data": data.name, "seed": seed, "accuracy": base.mean()}
    for removed in REMOVED:
        ours: dict[str, Correct] = {}
        for label, method, times in _list_criteria(draws):
            results = [
                _prune_and_test(method, model, graph, statistics, removed, draw, test)
                for draw in range(times)
            ]
            for repair in REPAIRS:
                row = common | {"criterion": label, "removed": removed, "repair": repair}
                right = [result[repair] for result in results]
                lost = 100 * float(base.mean() - np.mean([r.mean() for r in right]))
                yield row | {"part": ORDINARY, "lost": lost, "draws": times}
                if label == "matroid":
                    ours[repair] = right[0]
                elif times == 1:
                    yield row | {"part": PAIRED, **_count_differences(ours[repair], right[0])}


def _count_differences(ours: Correct, theirs: Correct) -> Row:
    return {
        "only matroid": int((ours & ~theirs).sum()),
        "only baseline": int((theirs & ~ours).sum()),
        "tested": len(ours),
    }


def _prune_and_test(
    method: SetMethod,
    model: nn.Module,
    graph: PruningGraph,
    statistics: Statistics,
    removed: float,
    draw: int,
    test: Sequence[Batch],
) -> dict[str, Correct]:
    """Return for each repair which test examples are answered right."""
    drawn = replace(statistics, seed=statistics.seed + 1000 * draw)
    plan = method.plan(graph, drawn, Units(1 - removed))
    small = shrink(model, plan, check=False)
    folded, _ = fold(model, small, plan, statistics)
    return {"none": _correct_answers(small, test), "fold": _correct_answers(folded, test)}


@torch.no_grad()
def _correct_answers(model: nn.Module, batches: Sequence[Batch]) -> Correct:
    """Return which examples are answered right."""
    return torch.cat([model(x).argmax(-1) == y for x, y in batches]).numpy()


def find_planted(data: Dataset, seed: int, count: int = 40) -> Row:
    """Plant positive multiples and duplicates into a trained perceptron, and count those that are merged."""
    model = train(MODELS["mlp"].build(data, seed), data, epochs=1, limit=20_000, seed=seed).model.double()
    first = next(m for m in model.modules() if isinstance(m, nn.Linear))
    generator = np.random.default_rng(seed)
    rows = generator.permutation(first.out_features)[: 2 * count]
    scale = np.where(np.arange(count) % 2, 1.0, generator.uniform(0.2, 5.0, count))
    with torch.no_grad():
        for source, copy, c in zip(rows[:count], rows[count:], scale, strict=True):
            first.weight[copy], first.bias[copy] = c * first.weight[source], c * first.bias[source]
    x, y = data.parts["test"][0][:1000].double(), data.parts["test"][1][:1000]
    graph, method = trace(model, x[:2]), Matroid(ground="rows")
    statistics = collect_statistics(model, graph, None, method.needs(Units(0.5)))
    plan = method.plan(graph, statistics, Units(0.5))
    small = merge(model, shrink(model, plan), plan)
    pairs = {frozenset(p) for p in zip(rows[:count].tolist(), rows[count:].tolist(), strict=True)}
    merged = plan.merges[next(iter(plan.merges))]
    leaders = merged.kept[merged.coefficients.argmax(1)]
    merged_pairs = {frozenset(pair) for pair in zip(merged.removed.tolist(), leaders.tolist(), strict=True)}
    with torch.no_grad():
        difference = float((small(x) - model(x)).abs().max() / model(x).abs().max())
    return {
        "part": PLANTED,
        "data": data.name,
        "seed": seed,
        "units": first.out_features,
        "planted": count,
        "found": len(merged_pairs & pairs),
        "found besides": len(merged_pairs - pairs),
        "relative output difference": difference,
        "accuracy before": accuracy(model, [(x, y)]),
        "accuracy after": accuracy(small, [(x, y)]),
    }
