"""Compare criteria on the grapheme-to-phoneme network, at one share of units removed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur.apply.shrink import shrink
from secateur.core import Plan, PruningGraph, SecateurError, Statistics, Units
from secateur.methods import METHODS, Method, Random
from secateur.methods.lattice.method import Lattice
from secateur.repair.finetune import finetune
from secateur.repair.fold import fold
from secateur.repair.refit import refit
from secateur.statistics.collect import collect_statistics
from secateur.tracing.trace import trace
from secateur_studies.lattice.g2p import Batch, Transcriber, Word, batches, pairs, phoneme_errors
from secateur_studies.lattice.rigorous import WHOLE, quiet
from secateur_studies.models import with_schedule

__all__ = ["RATIOS", "REACHES", "Words", "compare_methods"]

G2P = "g2p"
RATIOS = (0.1, 0.25, 0.5)
REACHES = ("all units", "hidden units")
Row = dict[str, Any]


@dataclass(frozen=True)
class Words:
    """Numbers of words of the dictionary for each purpose; the parts are disjoint.

    Attributes:
        test: For the phoneme error.
        calibration: For statistics.
        held: For judging folds.
        tuning: For the fine-tuning.
        epochs: Passes of the fine-tuning.
        batch: Words of a batch.
        lr: Learning rate, which falls to zero.
        draws: Random removals.
        repeats: Passes that are timed.
    """

    test: int
    calibration: int
    held: int
    tuning: int
    epochs: int
    draws: int
    batch: int = 32
    lr: float = 5e-4
    repeats: int = 20


def compare_methods(
    words: Words, reach: str, removed: float, seed: int, weights: str | Path | None
) -> Iterator[Row]:
    """Yield one row for each method of the library and variant of the order, the whole network first.

    Args:
        words: Numbers of words.
        reach: ``"all units"``: those of both embeddings and of the GRUs, ranked together (a global budget);
            ``"hidden units"``: the same share of the units of the GRUs alone.
        removed: Share of the units that is removed.
        seed: Seed of the drawn words.
        weights: File of weights; see `Transcriber.load`.
    """
    case = _prepare_case(words, reach, seed, weights)
    shared = {"part": G2P, "seed": seed, "units": reach, "removed": removed}
    yield {**shared, "criterion": WHOLE, "repair": "none", **case.measure(case.model)}
    budget = Units(1 - removed, scope="global" if reach == "all units" else "layer")
    for name, plan in _make_plans(case, budget, words.draws):
        if isinstance(plan, SecateurError):
            yield {**shared, "criterion": name, "why": str(plan)}
            continue
        small = shrink(case.model, plan)
        remaining = [f"{len(plan.keep.get(g.name, range(g.size)))} {g.name}" for g in case.graph.groups]
        speed = {"left": ", ".join(remaining), "speed-up": case.speed(small)}
        for repair, model in case.repair(small, plan):
            row = {"criterion": name, "repair": repair, **case.measure(model)}
            yield {**shared, **row, **(speed if repair == "none" else {})}


@dataclass(frozen=True, eq=False)
class _Case:
    """The network with its statistics and words."""

    model: Transcriber
    graph: PruningGraph
    statistics: Statistics
    guard: Statistics
    test: list[Word]
    fitting: list[Batch]
    judging: list[Batch]
    tuning: list[Batch]
    words: Words

    def measure(self, model: Any) -> Row:
        """Return the phoneme error, its standard error over words, and the share of correct words."""
        counts = phoneme_errors(model, self.test)
        picks = np.random.default_rng(0).integers(0, len(counts), (200, len(counts)))
        again = counts[picks].sum(1)
        error = counts[:, 0].sum() / counts[:, 1].sum()
        spread = float((again[:, 0] / again[:, 1]).std())
        return {"error": float(error), "standard error": spread, "right": float((counts[:, 0] == 0).mean())}

    @torch.no_grad()
    def speed(self, small: nn.Module) -> float:
        """Return the speed-up in CPU time of a pass over a batch, the median of alternating passes."""
        inputs = max((x for x, _ in self.judging), key=lambda x: len(x[0]))
        ratios = []
        for _ in range(self.words.repeats + 1):
            start = time.process_time()
            self.model(*inputs)
            middle = time.process_time()
            small(*inputs)
            ratios.append((middle - start) / (time.process_time() - middle))
        return statistics.median(ratios[1:])

    def repair(self, small: Any, plan: Plan) -> Iterator[tuple[str, Any]]:
        """Yield a model without repair, folded, refitted alone, and the fold trained at a falling rate."""
        yield "none", small
        folded, _ = fold(self.model, small, plan, self.statistics, self.guard, self._squared_distance)
        yield "fold", folded
        yield "refit alone", refit(self.model, small, plan, self.fitting, self.judging)[0]
        steps = self.words.epochs * len(self.tuning)
        falling = with_schedule(
            torch.optim.Adam,
            lambda optimizer, _: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps),
        )
        options: Any = {"epochs": self.words.epochs, "lr": self.words.lr, "optimizer": falling}
        yield "fold, finetune", finetune(folded, self.tuning, progress=False, **options)[0]

    @torch.no_grad()
    def _squared_distance(self, other: nn.Module) -> float:
        return sum(float((other(*x) - self.model(*x)).square().sum()) for x, _ in self.judging)


def _prepare_case(words: Words, reach: str, seed: int, weights: str | Path | None) -> _Case:
    model = Transcriber.load(weights)
    test, calibration, judging, tuning = pairs(
        seed, (words.test, words.calibration, words.held, words.tuning)
    )
    example = batches(calibration[:64])[0][0]
    graph = trace(model, example, ("letters", "phonemes") if reach == "hidden units" else ())
    needs = {"activations", "moments", "gram", "taylor", "gradients"}
    statistics = collect_statistics(model, graph, batches(calibration), needs)
    guard = collect_statistics(model, graph, batches(judging), {"gram"})
    parts = (test, batches(calibration), batches(judging), batches(tuning, words.batch, 0))
    return _Case(model, graph, statistics, guard, *parts, words)


def _make_plans(case: _Case, budget: Units, draws: int) -> Iterator[tuple[str, Plan | SecateurError]]:
    """Yield the plan of every criterion, or the error that it raises."""
    methods: dict[str, Method] = {name: make() for name, make in METHODS.items() if name != "random"}
    methods["lattice: in-strength"] = Lattice(centrality="in-strength")
    methods["lattice: context alone"] = Lattice(centrality="gap")
    methods["lattice: paper"] = Lattice(adjacency="weights", centrality="mu")
    with quiet():
        for name, method in methods.items():
            yield name, _make_plan(case, method, budget)
    for draw in range(draws):
        drawn = Statistics(case.statistics.weights, seed=draw)
        yield "random", Random().plan(case.graph, drawn, budget)


def _make_plan(case: _Case, method: Method, budget: Units) -> Plan | SecateurError:
    try:
        statistics = case.statistics
        if missing := method.needs(budget) & {"flow", "chain", "images"}:
            statistics = collect_statistics(case.model, case.graph, case.judging, missing)
        return method.plan(case.graph, statistics, budget)
    except SecateurError as error:
        return error
