"""Remove whole units of a trained LSTM by the order of its own weights or data, and by other criteria."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from secateur.apply.shrink import shrink
from secateur.core import Plan, PruningGraph, Statistics, Units
from secateur.data import Dataset
from secateur.measure.metrics import accuracy
from secateur.methods import Activation, Magnitude, Method, Random, Taylor
from secateur.methods.lattice.method import Lattice
from secateur.repair.finetune import adam, finetune
from secateur.repair.fold import fold
from secateur.statistics.collect import collect_statistics
from secateur.tracing.trace import trace
from secateur.zoo.training import Shuffled, train
from secateur_studies.models import lstm

__all__ = ["CRITERIA", "RATIOS", "SIZES", "Case", "Size", "compare_criteria", "prepare_case", "quiet"]

IntArray = NDArray[np.int64]
RIGOROUS, WHOLE = "rigorous", "whole network"
PAPER, IN_STRENGTH = "paper: irreducible, then mu", "in-strength alone"
DEFAULT = "context from data, then flow (default)"
REPAIRS = ("none", "fold", "finetune")

CRITERIA: dict[str, Method] = {
    PAPER: Lattice(adjacency="weights", centrality="mu"),
    "irreducible, then Moebius": Lattice(adjacency="weights", centrality="moebius"),
    "irreducible, then in-strength": Lattice(adjacency="weights"),
    "reducible, then in-strength": Lattice(adjacency="weights", prefer="reducible"),
    "unrolled: irreducible, then in-strength": Lattice(adjacency="weights", reading="unrolled"),
    DEFAULT: Lattice(),
    "context from data, then in-strength": Lattice(centrality="in-strength"),
    "context from data alone": Lattice(centrality="gap"),
    "flow alone": Lattice(prefer="neither"),
    IN_STRENGTH: Lattice(adjacency="weights", prefer="neither"),
    "unit norm": Magnitude(p=2, over="both"),
    "magnitude": Magnitude(),
    "activation": Activation(),
    "taylor": Taylor(),
}
RATIOS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Size:
    """Size of the comparison.

    Attributes:
        hidden: Units of the LSTM.
        epochs: Passes of its training.
        lr: Largest learning rate of its training.
        limit: Most training examples.
        tests: Most test examples.
        tuning: Most examples of the fine-tuning.
        tuning_epochs: Passes of the fine-tuning.
        draws: Random removals.
        ratios: Shares of the units that are removed.
        steps: Length of the trajectory for the Lyapunov exponent.
    """

    hidden: int
    epochs: int
    lr: float
    limit: int | None = None
    tests: int | None = None
    tuning: int | None = None
    tuning_epochs: int = 2
    draws: int = 5
    ratios: Sequence[float] = RATIOS
    steps: int = 400


SIZES = {
    "digits": Size(64, 60, 1e-2),
    "images": Size(64, 8, 3e-3, limit=12000, tests=2000, tuning=4000, tuning_epochs=1, draws=3),
    "full digits": Size(128, 60, 1e-2, draws=20),
    "full": Size(128, 8, 3e-3, draws=20),
    "tiny": Size(12, 3, 1e-2, 200, 200, 100, 1, 2, (0.5,), 60),
}


@dataclass(frozen=True, eq=False)
class Case:
    """A trained network with its statistics.

    Attributes:
        data: The data set.
        size: Size of the comparison.
        model: The trained LSTM.
        graph: Its graph.
        statistics: Statistics of one half of the calibration part.
        guard: Gram matrices of the other half, for the fold.
        seed: Seed of weights and draws.
    """

    data: Dataset
    size: Size
    model: nn.Module
    graph: PruningGraph
    statistics: Statistics
    guard: Statistics
    seed: int

    def test(self, model: nn.Module) -> float:
        """Return the accuracy on the test part."""
        inputs, targets = (part[: self.size.tests] for part in self.data.parts["test"])
        return accuracy(model, list(zip(inputs.split(1000), targets.split(1000), strict=True)))

    @torch.no_grad()
    def decide(self, model: nn.Module) -> IntArray:
        """Return the classes that a model gives to the test part."""
        inputs = self.data.parts["test"][0][: self.size.tests]
        return torch.cat([model(x).argmax(1) for x in inputs.split(1000)]).numpy()


def prepare_case(data: Dataset, size: Size, seed: int) -> Case:
    """Train an LSTM on the rows of images and collect statistics."""
    model = lstm(data, size.hidden, seed=seed)
    trained = train(model, data, size.epochs, lr=size.lr, batch_size=64, limit=size.limit, seed=seed).model
    graph = trace(trained, data.parts["test"][0][:2])
    batches = data.batches("calibration", 50, 1000)
    half = len(batches) // 2
    needs = {"activations", "moments", "gram", "taylor"}
    statistics = collect_statistics(trained, graph, batches[:half], needs, seed)
    guard = collect_statistics(trained, graph, batches[half:], {"gram"}, seed)
    return Case(data, size, trained, graph, statistics, guard, seed)


def compare_criteria(case: Case) -> Iterator[dict[str, Any]]:
    """Yield one row for each criterion, ratio and repair."""
    shared = {"part": RIGOROUS, "data": case.data.name, "seed": case.seed}
    base = case.test(case.model)
    for ratio in case.size.ratios:
        whole = {"criterion": WHOLE, "repair": "none", "removed": ratio, "accuracy": base}
        yield {**shared, **whole}
        for name, plan in _make_plans(case, ratio):
            small = shrink(case.model, plan)
            for repair, model in _repair_variants(case, plan, small):
                row = {"criterion": name, "repair": repair, "removed": ratio}
                yield {**shared, **row, "accuracy": case.test(model)}


def _make_plans(case: Case, ratio: float) -> Iterator[tuple[str, Plan]]:
    """Yield the plan of every criterion, and several random plans."""
    budget = Units(1 - ratio)
    with quiet():
        for name, method in CRITERIA.items():
            yield name, method.plan(case.graph, case.statistics, budget)
    for draw in range(case.size.draws):
        drawn = Statistics(case.statistics.weights, seed=1000 * case.seed + draw)
        yield "random", Random().plan(case.graph, drawn, budget)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings of the order; the tables show the results."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(the order is uninformative|units are irreducible)")
        yield


def _repair_variants(case: Case, plan: Plan, small: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the shrunk model without repair, folded, and fine-tuned."""
    none, folded, tuned = REPAIRS
    yield none, small
    judged = [x for x, _ in case.data.batches("selection", 200)]
    distance = partial(_squared_distance, case, judged)
    yield folded, fold(case.model, small, plan, case.statistics, case.guard, distance)[0]
    inputs, targets = (part[: case.size.tuning] for part in case.data.parts["train"])
    batches = Shuffled(inputs, targets, 64, torch.Generator().manual_seed(case.seed))
    options: dict[str, Any] = {"epochs": case.size.tuning_epochs, "lr": 3e-3, "optimizer": adam}
    yield tuned, finetune(small, batches, seed=case.seed, progress=False, **options)[0]


@torch.no_grad()
def _squared_distance(case: Case, inputs: list[Tensor], model: nn.Module) -> float:
    return sum(float((model(x) - case.model(x)).square().sum()) for x in inputs)
