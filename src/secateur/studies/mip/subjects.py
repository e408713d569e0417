"""The networks and data of the study, and the ways to remove units from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from torch import Tensor, nn

from secateur.analysis.measure import accuracy
from secateur.core import Evidence, Network, Plan
from secateur.data import Dataset, load
from secateur.methods import MIP, Activation, Magnitude
from secateur.methods.mip import group_scores
from secateur.network.collect import collect
from secateur.network.fold import fold
from secateur.network.surgery import mask, shrink
from secateur.network.trace import trace
from secateur.structures.relu_mip import Scores
from secateur.zoo import lenet5, mlp, train, vgg16

Keep = dict[str, np.ndarray]

__all__ = [
    "NETS", "THRESHOLDS", "Keep", "Scale", "Subject", "as_plan", "at_threshold", "dataset", "make", "others",
    "pruned", "random_keep", "ranked", "share", "subject", "test",
]  # fmt: skip

THRESHOLDS = {"FC-3": 0.1, "FC-4": 0.1, "LeNet-5": 0.2, "VGG-16": 0.3}
NETS = tuple(THRESHOLDS)


@dataclass(frozen=True)
class Scale:
    """How much is done: training examples and epochs, test examples, seconds a program, random draws."""

    train: int
    epochs: int
    test: int
    seconds: float
    draws: int
    sets: int


@dataclass(frozen=True, eq=False)
class Subject:
    """A trained network, its trace, its data, and its initial state."""

    net: str
    data: Dataset
    seed: int
    initial: nn.Module
    model: nn.Module
    network: Network
    reference: float
    scale: Scale

    def evidence(self, needs: set[str], model: nn.Module | None = None) -> Evidence:
        """Collect from the calibration part."""
        batches = self.data.batches("calibration", 256, 3000)
        return collect(model or self.model, self.network, batches, needs, self.seed)

    def scores(self, method: MIP, seed: int | None = None, model: nn.Module | None = None) -> Scores:
        """Solve the method's programs."""
        found = self.evidence({"chain", "images"}, model)
        return method.importance(replace(found, seed=self.seed if seed is None else seed))


def make(net: str, data: Dataset, seed: int) -> nn.Module:
    """Return an untrained network of the paper that fits the data."""
    channels, side, _ = data.shape
    width = channels * side * side
    if net == "FC-3":
        return mlp((width, 300, 100, data.classes), seed=seed)
    if net == "FC-4":
        return mlp((width, 200, 100, 100, data.classes), seed=seed)
    if net == "LeNet-5":
        return lenet5("avg", channels=channels, side=side, classes=data.classes, seed=seed)
    return vgg16(channels=channels, side=side, classes=data.classes, seed=seed)


def dataset(name: str, net: str, folders: Mapping[str, str | Path], scale: Scale, seed: int) -> Dataset:
    """Return a data set as the paper uses it: 3 x 32 x 32 for convolutions, as it is for perceptrons."""
    data = load(name, folders.get(name), seed)
    limits = {"train": scale.train, "test": scale.test}
    parts = {part: (x[: limits.get(part)], y[: limits.get(part)]) for part, (x, y) in data.parts.items()}
    if not net.startswith("FC"):
        parts = {part: (_resized(x), y) for part, (x, y) in parts.items()}
    return replace(data, parts=MappingProxyType(parts))


def _resized(x: Tensor) -> Tensor:
    grown = nn.functional.interpolate(x, (32, 32), mode="bilinear", align_corners=False)
    return grown if x.shape[1] == 3 else grown.expand(-1, 3, -1, -1)


def subject(
    net: str, name: str, folders: Mapping[str, str | Path], scale: Scale, seed: int, epochs: int | None = None
) -> Subject:
    """Train a network and trace it."""
    data = dataset(name, net, folders, scale, 0)
    initial = make(net, data, seed)
    trained = train(initial, data, epochs or scale.epochs, seed=seed)
    network = trace(trained.model, data.parts["calibration"][0][:2])
    return Subject(net, data, seed, initial, trained.model, network, trained.accuracy, scale)


def at_threshold(network: Network, scores: Mapping[str, np.ndarray], threshold: float) -> Keep:
    """Keep what scores at least the threshold, and the best unit of a group where nothing does."""
    groups = group_scores(network.groups, scores)
    return {n: np.flatnonzero(s >= min(threshold, float(s.max()))) for n, s in groups.items()}


def ranked(network: Network, scores: Mapping[str, np.ndarray], like: Keep) -> Keep:
    """Keep the best scored units, as many a group as `like` keeps."""
    return {n: np.sort(np.argsort(-scores[n], kind="stable")[: len(like[n])]) for n in like}


def others(subject: Subject, result: Scores, like: Keep) -> dict[str, Keep]:
    """Return the comparators at the counts of `like`: critical, L1, mean activation; and dead units alone."""
    importance = group_scores(subject.network.groups, result.scores)
    alive = group_scores(subject.network.groups, {n: (~d).astype(float) for n, d in result.dead.items()})
    counts = {n: len(kept) for n, kept in like.items()}
    plain = {"L1": Magnitude(p=1), "mean activation": Activation()}
    found: dict[str, Keep] = {
        "critical": ranked(subject.network, {n: -s for n, s in importance.items()}, like)
    }
    for name, method in plain.items():
        evidence = subject.evidence({"moments"})
        found[name] = dict(method.choose(subject.network, evidence, counts).keep)  # type: ignore[union-attr]
    found["dead only"] = {n: np.flatnonzero(s >= min(1.0, s.max())) for n, s in alive.items()}
    return found


def random_keep(like: Keep, network: Network, generator: np.random.Generator) -> Keep:
    """Keep as many units a group as `like`, at random."""
    sizes = {g.name: g.size for g in network.groups}
    return {n: np.sort(generator.permutation(sizes[n])[: len(kept)]) for n, kept in like.items()}


def as_plan(network: Network, keep: Keep) -> Plan:
    """Return the plan that keeps these units."""
    return Plan(network, "mip", {n: np.asarray(kept, np.int64) for n, kept in keep.items()})


def pruned(subject: Subject, keep: Keep, model: nn.Module | None = None) -> nn.Module:
    """Return the masked network."""
    return mask(model or subject.model, as_plan(subject.network, keep))


def test(subject: Subject, keep: Keep, repair: bool = False) -> float:
    """Return the pruned network's test accuracy in percent; with `repair` after a least-squares fold."""
    batches = subject.data.batches("test", 500)
    if not repair:
        return 100 * accuracy(pruned(subject, keep), batches)
    plan = as_plan(subject.network, keep)
    small = shrink(subject.model, plan)
    folded, _ = fold(subject.model, small, plan, subject.evidence({"gram"}))
    return 100 * accuracy(folded, batches)


def share(network: Network, keep: Keep) -> float:
    """Return the share of all units that goes, in percent."""
    total = sum(g.size for g in network.groups)
    return 100 * (1 - sum(len(keep.get(g.name, range(g.size))) for g in network.groups) / total)
