"""Whole units of a trained LSTM removed by the order of its own weights or data, against other criteria."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur.analysis.measure import accuracy
from secateur.core import Evidence, Network, Plan, Units
from secateur.data import Dataset
from secateur.finetune import finetune
from secateur.methods import Activation, Magnitude, Method, Random
from secateur.methods.lattice import Lattice
from secateur.network.collect import collect
from secateur.network.fold import fold
from secateur.network.surgery import shrink
from secateur.network.trace import trace
from secateur.zoo.sequence import lstm
from secateur.zoo.training import Shuffled, train

__all__ = ["CRITERIA", "RATIOS", "Case", "prepare", "rows"]

CRITERIA: dict[str, Method] = {
    "paper: irreducible, then mu": Lattice(adjacency="weights", centrality="mu"),
    "irreducible, then Moebius": Lattice(adjacency="weights", centrality="moebius"),
    "irreducible, then in-strength": Lattice(adjacency="weights"),
    "reducible, then in-strength": Lattice(adjacency="weights", prefer="reducible"),
    "unrolled: irreducible, then in-strength": Lattice(adjacency="weights", reading="unrolled"),
    "context from data, then in-strength": Lattice(),
    "context from data alone": Lattice(centrality="gap"),
    "in-strength alone": Lattice(adjacency="weights", prefer="neither"),
    "unit norm": Magnitude(p=2, over="both"),
    "magnitude": Magnitude(),
    "activation": Activation(),
}
RATIOS = (0.25, 0.5, 0.75)
DRAWS = 5


@dataclass(frozen=True, eq=False)
class Case:
    """A trained network with all that a comparison needs.

    Attributes:
        data: The data set.
        model: The trained LSTM.
        network: Its trace.
        evidence: Everything on one half of the calibration part.
        guard: Gram matrices on the other half, for the fold.
        base: Test accuracy.
        seed: Seed of all of it.
    """

    data: Dataset
    model: nn.Module
    network: Network
    evidence: Evidence
    guard: Evidence
    base: float
    seed: int

    def test(self, model: nn.Module) -> float:
        """Return the accuracy on the test part."""
        return accuracy(model, self.data.batches("test", 1000))


def prepare(data: Dataset, full: bool, seed: int) -> Case:
    """Train an LSTM on the rows of images and gather evidence."""
    side = data.shape[-1]
    hidden = 128 if full else 64
    model = lstm(hidden, 1, side=side, classes=data.classes, seed=seed)
    epochs, lr = (60, 1e-2) if data.name == "digits" else (8, 3e-3)
    limit = None if full else 12000
    trained = train(model, data, epochs, lr=lr, batch_size=64, limit=limit, seed=seed)
    network = trace(trained.model, data.parts["test"][0][:2])
    batches = data.batches("calibration", 50, 1000)
    half = len(batches) // 2
    evidence = collect(trained.model, network, batches[:half], {"activations", "moments", "gram"}, seed)
    guard = collect(trained.model, network, batches[half:], {"gram"}, seed)
    return Case(data, trained.model, network, evidence, guard, trained.accuracy, seed)


def rows(dataset: Callable[[int], Dataset], full: bool, seed: int) -> list[dict[str, Any]]:
    """Compare all criteria at all ratios with all repairs; one row each."""
    found = []
    for s in range(seed, seed + (6 if full else 4)):
        case = prepare(dataset(s), full, s)
        shared = {"data": case.data.name, "seed": s}
        whole = {"criterion": "whole network", "repair": "none", "accuracy": case.base}
        found += [{**shared, **whole, "removed": ratio} for ratio in RATIOS]
        for ratio in RATIOS:
            for name, plan in plans(case, ratio):
                small = shrink(case.model, plan)
                for repair, model in repaired(case, plan, small):
                    row = {"criterion": name, "removed": ratio, "repair": repair}
                    found.append({**shared, **row, "accuracy": case.test(model)})
    return found


def plans(case: Case, ratio: float) -> Iterator[tuple[str, Plan]]:
    """Yield every criterion's plan, random ones several times."""
    budget = Units(1 - ratio)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(order says little|units are irreducible)")
        for name, method in CRITERIA.items():
            yield name, method.plan(case.network, case.evidence, budget)
    for draw in range(DRAWS):
        drawn = Evidence(case.evidence.weights, seed=1000 * case.seed + draw)
        yield "random", Random().plan(case.network, drawn, budget)


def repaired(case: Case, plan: Plan, small: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the shrunk model without repair, folded, and fine-tuned for two epochs."""
    yield "none", small
    held = [x for x, _ in case.data.batches("selection", 200)]
    yield "fold", fold(case.model, small, plan, case.evidence, case.guard, partial(_distance, case, held))[0]
    inputs, targets = case.data.parts["train"]
    batches = Shuffled(inputs[:12000], targets[:12000], 64, torch.Generator().manual_seed(case.seed))
    yield "2 epochs", finetune(small, batches, epochs=2, lr=3e-3, seed=case.seed, progress=False)[0]


@torch.no_grad()
def _distance(case: Case, held: list[Tensor], model: nn.Module) -> float:
    return sum(float((model(x) - case.model(x)).square().sum()) for x in held)
