"""Ordinary trained networks: every criterion with and without the same fold, and planted exact merges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from secateur.analysis.measure import accuracy, logits
from secateur.core import Evidence, Network, Units
from secateur.data import Batch, Dataset
from secateur.methods import METHODS, Magnitude
from secateur.methods.base import SetMethod
from secateur.methods.matroid import Matroid
from secateur.network.collect import collect
from secateur.network.fold import fold, merge
from secateur.network.surgery import shrink
from secateur.network.trace import trace
from secateur.zoo import lstm, mlp, small_cnn, train

__all__ = ["MODELS", "REMOVED", "compare", "intervals", "planted"]

Row = dict[str, Any]
Correct = NDArray[np.bool_]
REMOVED = (0.5, 0.7, 0.8, 0.9, 0.95)
NEEDS = frozenset({"gram", "moments", "gradients", "taylor"})


def _mlp(data: Dataset, seed: int) -> nn.Module:
    return mlp((int(np.prod(data.shape)), 512, data.classes), seed=seed)


def _cnn(data: Dataset, seed: int) -> nn.Module:
    return small_cnn(16, side=data.shape[1], channels=data.shape[0], classes=data.classes, seed=seed)


def _lstm(data: Dataset, seed: int) -> nn.Module:
    return lstm(128, side=data.shape[1], classes=data.classes, seed=seed)


@dataclass(frozen=True)
class Scale:
    """How a network is trained and measured in minutes.

    Attributes:
        build: (data, seed) -> network.
        epochs: Passes over the training examples.
        train: Number of training examples, None for all.
        test: Number of test examples, None for all.
    """

    build: Callable[[Dataset, int], nn.Module]
    epochs: int
    train: int | None = None
    test: int | None = None


MODELS: dict[str, Scale] = {
    "mlp": Scale(_mlp, 5),
    "cnn": Scale(_cnn, 3, 20_000, 4_000),
    "lstm": Scale(_lstm, 3, 20_000, 4_000),
}


def _criteria(draws: int) -> Iterator[tuple[str, SetMethod, int]]:
    """Yield name, method, and the number of draws."""
    yield "matroid", Matroid(), 1
    yield "matroid, units", Matroid(objective="units"), 1
    for name in ("magnitude", "activation", "sensitivity", "taylor"):
        yield name, METHODS[name](), 1
    yield "magnitude, L2", Magnitude(p=2), 1
    yield "random", METHODS["random"](), draws


def compare(
    name: str, data: Dataset, seed: int, *, draws: int = 3, full: bool = False
) -> Iterator[tuple[Row, Correct]]:
    """Train one network and prune it by every criterion, without and with fold.

    Yields:
        A row with the accuracy lost in points, and which test examples are right (of the last draw).
    """
    scale = MODELS[name]
    scale = Scale(scale.build, 2 * scale.epochs) if full else scale
    model = train(scale.build(data, seed), data, epochs=scale.epochs, limit=scale.train, seed=seed).model
    network = trace(model, data.parts["train"][0][:2])
    evidence = collect(model, network, data.batches("calibration", 250), NEEDS, seed)
    test = data.batches("test", 1000, scale.test)
    base = correct(model, test)
    common = {"part": "ordinary", "model": name, "data": data.name, "seed": seed}
    yield common | {"criterion": "none", "removed": 0.0, "repair": "none", "accuracy": base.mean()}, base
    for label, method, times in _criteria(draws):
        for share in REMOVED:
            found = [_pruned(method, model, network, evidence, share, draw, test) for draw in range(times)]
            for repair in ("none", "fold"):
                right = [f[repair] for f in found]
                lost = 100 * float(base.mean() - np.mean([r.mean() for r in right]))
                cell = {"criterion": label, "removed": share, "repair": repair}
                yield common | cell | {"lost": lost, "draws": times}, right[-1]


def _pruned(
    method: SetMethod, model: nn.Module, network: Network, evidence: Evidence, share: float, draw: int,
    test: Sequence[Batch],
) -> dict[str, Correct]:
    plan = method.plan(network, replace(evidence, seed=evidence.seed + 1000 * draw), Units(1 - share))
    small = shrink(model, plan, check=False)
    folded, _ = fold(model, small, plan, evidence)
    return {"none": correct(small, test), "fold": correct(folded, test)}


@torch.no_grad()
def correct(model: nn.Module, batches: Sequence[Batch]) -> Correct:
    """Return which examples are answered right."""
    return torch.cat([logits(model(x)).argmax(-1) == y for x, y in batches]).numpy()


def intervals(results: Sequence[tuple[Row, Correct]], seed: int = 0, rounds: int = 2000) -> list[Row]:
    """Compare the matroid with the best baseline of each cell, paired over seeds and test examples.

    The best baseline is the one with the least mean loss over the seeds (random aside). The interval is the
    2.5 to 97.5 percentile of the mean difference over bootstrap samples of the test examples, drawn within
    each seed's network; where it contains 0 the verdict is a tie.
    """
    generator = np.random.default_rng(seed)
    cells: dict[tuple[str, float], dict[str, list[tuple[float, Correct]]]] = {}
    for row, right in results:
        if row["repair"] == "fold":
            cell = cells.setdefault((row["model"], row["removed"]), {})
            cell.setdefault(row["criterion"], []).append((row["lost"], right))
    return [_verdict(model, share, cell, generator, rounds) for (model, share), cell in cells.items()]


def _verdict(
    model: str, share: float, cell: Mapping[str, list[tuple[float, Correct]]], generator: np.random.Generator,
    rounds: int,
) -> Row:
    means = {name: float(np.mean([lost for lost, _ in runs])) for name, runs in cell.items()}
    baselines = {n: m for n, m in means.items() if not n.startswith("matroid") and n != "random"}
    best = min(baselines, key=lambda n: baselines[n])
    pairs = zip(cell["matroid"], cell[best], strict=True)
    ahead = [ours.astype(float) - theirs.astype(float) for (_, ours), (_, theirs) in pairs]
    drawn = np.array([
        np.mean([d[generator.integers(0, len(d), len(d))].mean() for d in ahead]) for _ in range(rounds)
    ])
    low, high = 100 * np.percentile(drawn, [2.5, 97.5])
    verdict = "tie" if low <= 0 <= high else "ahead" if low > 0 else "behind"
    return {
        "part": "interval", "model": model, "removed": share, "matroid": means["matroid"], "best": best,
        "best lost": means[best], "ahead by": 100 * float(np.mean([d.mean() for d in ahead])),
        "low": float(low), "high": float(high), "verdict": verdict, "seeds": len(ahead),
    }  # fmt: skip


def planted(data: Dataset, seed: int, count: int = 40) -> Row:
    """Plant positive multiples and duplicates into a trained MLP, and see whether just they are found."""
    model = train(MODELS["mlp"].build(data, seed), data, epochs=1, limit=20_000, seed=seed).model.double()
    first = next(m for m in model.modules() if isinstance(m, nn.Linear))
    generator = np.random.default_rng(seed)
    rows = generator.permutation(first.out_features)[: 2 * count]
    scale = np.where(np.arange(count) % 2, 1.0, generator.uniform(0.2, 5.0, count))
    with torch.no_grad():
        for source, copy, c in zip(rows[:count], rows[count:], scale, strict=True):
            first.weight[copy], first.bias[copy] = c * first.weight[source], c * first.bias[source]
    x = data.parts["test"][0][:1000].double()
    network = trace(model, x[:2])
    method = Matroid(ground="rows")
    plan = method.plan(network, collect(model, network, None, method.needs(Units(0.5))), Units(0.5))
    small = merge(model, shrink(model, plan), plan)
    pairs = {frozenset(p) for p in zip(rows[:count].tolist(), rows[count:].tolist(), strict=True)}
    name = next(iter(plan.merges))
    merged = plan.merges[name]
    leaders = merged.kept[merged.coefficients.argmax(1)]
    found = {frozenset(pair) for pair in zip(merged.removed.tolist(), leaders.tolist(), strict=True)}
    with torch.no_grad():
        apart = float((small(x) - model(x)).abs().max() / model(x).abs().max())
    return {
        "part": "planted", "seed": seed, "planted": count, "found": len(found & pairs),
        "found besides": len(found - pairs), "relative output difference": apart,
        "accuracy before": accuracy(model, [(x, data.parts["test"][1][:1000])]),
        "accuracy after": accuracy(small, [(x, data.parts["test"][1][:1000])]),
    }  # fmt: skip
