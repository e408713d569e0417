"""The job of the joint study: one network, trained once, pruned by every method, ratio and repair."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur.apply.shrink import shrink
from secateur.core import Plan, PruningGraph, SecateurError, Statistics, Units
from secateur.data import Batch, Dataset
from secateur.measure.metrics import accuracy, distance_from
from secateur.methods import MIP, Method
from secateur.repair.finetune import adam, finetune
from secateur.repair.fold import fold, merge
from secateur.specs import make_method
from secateur.statistics.auxiliary_heads import attach_auxiliaries, parts
from secateur.statistics.collect import collect_statistics
from secateur.structures.relu_mip import Scores, balanced_images
from secateur.tracing.trace import trace
from secateur_studies.joint.cost import measure_cost
from secateur_studies.joint.models import Size, load_data, load_trained

__all__ = ["REPAIRS", "network"]

Row = dict[str, Any]
DENSE, COST, PRUNED, REFUSED = "dense", "cost", "pruned", "refused"
REPAIRS = ("none", "fold", "finetune")
MIP_SECONDS = 300.0  # far above the time needed, so that results do not depend on the machine
MIP_GAP = 1e-3  # as in the MIP study; at 1e-4 a LeNet-5 takes 16 times as long
TUNING_BATCH = 64


def network(
    data: str,
    folder: str | None,
    model: str,
    seed: int,
    size: Row,
    methods: list[str],
    keeps: list[float],
    draws: int,
    cache: str | None = None,
) -> list[Row]:
    """Train one network, prune it in every way, and return a row for each.

    Args:
        data: Name of the data set.
        folder: Its folder.
        model: Name in `NETWORKS`.
        seed: Seed of training and pruning.
        size: Fields of a `Size`.
        methods: Names in `METHODS`, with options.
        keeps: Shares of each group's units that stay.
        draws: Draws of random removal.
        cache: Folder for trained weights.
    """
    scale = Size(**size)
    dataset = load_data(data, model, folder, scale.halved)
    case = _prepare_case(load_trained(model, dataset, seed, scale, cache), model, dataset, seed, scale)
    common = {"data": data, "network": model, "seed": seed}
    rows: list[Row] = [{**common, "part": DENSE, **case.describe()}]
    for name in methods:
        pruned = _prune_with(case, name, keeps, draws if name == "random" else 1)
        rows += [{**common, "method": name, **row} for row in pruned]
    return rows


@dataclass(frozen=True, eq=False)
class _Case:
    """A trained network, and everything that is the same for every method.

    Attributes:
        name: Name of the network.
        model: The trained network.
        graph: Its graph.
        fitting: Batches for statistics and fold.
        gram: Gram matrices of them, for the fold.
        guard: Gram matrices of the batches that judge the fold.
        distance: Distance of a model from the original on these.
        tuning: Batches for fine-tuning.
        steps: Steps of a fine-tuning.
        lr: Learning rate.
        test: Test batches.
        seed: Seed of all choices.
    """

    name: str
    model: nn.Module
    graph: PruningGraph
    fitting: list[Batch]
    gram: Statistics
    guard: Statistics
    distance: Callable[[nn.Module], float]
    tuning: list[Batch]
    steps: int
    lr: float
    test: list[Batch]
    seed: int

    def describe(self) -> Row:
        """Return accuracy and size before pruning."""
        return {
            "accuracy": accuracy(self.model, self.test),
            "examples": sum(len(targets) for _, targets in self.test),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "units": sum(group.size for group in self.graph.groups),
        }

    def plan(self, method: Method, statistics: Statistics, keep: float) -> Plan:
        """Return the plan without warnings: solver limits and mistakes of the network are in its notes."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return method.plan(self.graph, statistics, Units(keep))

    def repair(self, plan: Plan) -> dict[str, float]:
        """Return the test accuracy after each repair."""
        small = shrink(self.model, plan, check=False)
        plain = merge(self.model, small, plan) if plan.merges else small
        folded, _ = fold(self.model, small, plan, self.gram, self.guard, self.distance)
        options: Row = {"steps": self.steps, "lr": self.lr, "seed": self.seed, "progress": False}
        options["optimizer"] = adam
        tuned, _ = finetune(plain, self.tuning, **options)
        models = dict(zip(REPAIRS, (plain, folded, tuned), strict=True))
        return {repair: accuracy(model, self.test) for repair, model in models.items()}


def _prepare_case(model: nn.Module, name: str, data: Dataset, seed: int, size: Size) -> _Case:
    graph = trace(model, data.parts["train"][0][:2])
    calibration = data.batches("calibration", 50, size.calibration)
    fifth = max(1, len(calibration) // 5)
    fitting, judging = calibration[:-fifth], calibration[-fifth:]
    return _Case(
        name,
        model,
        graph,
        fitting,
        collect_statistics(model, graph, fitting, {"gram"}, seed),
        collect_statistics(model, graph, judging, {"gram"}, seed),
        distance_from(model, judging),
        data.batches("train", TUNING_BATCH, TUNING_BATCH * size.tuning),
        size.tuning,
        size.lr,
        data.batches("test", 500, size.tests),
        seed,
    )


def _prune_with(case: _Case, name: str, keeps: list[float], draws: int) -> Iterator[Row]:
    """Yield the rows of one method: the cost of deciding and the accuracies, or why it is not defined."""
    try:
        with measure_cost() as cost:
            method = _make_method(case, name)
            needs = method.needs(Units(keeps[0]))
            statistics = collect_statistics(case.model, case.graph, case.fitting, needs, case.seed)
            method = _solve_once(method, statistics)
            plan = case.plan(method, statistics, keeps[0])
    except SecateurError as error:
        yield {"part": REFUSED, "why": _one_line(error)}
        return
    solution = method.result if isinstance(method, SolvedMIP) else None
    certificate = {} if solution is None else {"status": solution.status, "gap": solution.gap}
    yield {"part": COST, "seconds": cost.seconds, "memory": cost.memory, **certificate}
    for keep in keeps:
        for draw in range(draws):
            if (keep, draw) != (keeps[0], 0):
                drawn = replace(statistics, seed=case.seed + 1000 * draw)
                try:
                    plan = case.plan(method, drawn, keep)
                except SecateurError as error:
                    yield {"part": REFUSED, "keep": keep, "why": _one_line(error)}
                    continue
            row = {"part": PRUNED, "keep": keep, "draw": draw, "parameters": plan.notes["reached"]["params"]}
            for repair, reached in case.repair(plan).items():
                yield {**row, "repair": repair, "accuracy": reached}


def _one_line(error: Exception) -> str:
    """Return the message of an error in one line, without the places of files on this machine."""
    return re.sub(r" \([^()]*\.py:\d+\)", "", " ".join(str(error).split()))[:300]


@dataclass(frozen=True, kw_only=True)
class SolvedMIP(MIP):
    """A mixed-integer program that is solved once for all budgets."""

    result: Scores | None = None

    def importance(self, evidence: Statistics) -> Scores:
        """Return the known solution, or solve."""
        return self.result if self.result is not None else super().importance(evidence)


def _make_method(case: _Case, name: str) -> Method:
    """Return a method with its defaults; the integer program with `MIP_GAP`, and for VGG layer by layer."""
    if name != "mip":
        return make_method(name)
    if case.name != "VGG":
        return SolvedMIP(time_limit=MIP_SECONDS, gap=MIP_GAP)
    decoupled = attach_auxiliaries(case.model, case.tuning, seed=case.seed)
    x, y = (torch.cat(tensors) for tensors in zip(*case.fitting, strict=True))
    images = balanced_images(y.numpy(), MIP().images, np.random.default_rng(case.seed))
    programs = parts(decoupled, x[images], y[images])
    return SolvedMIP(parts=programs, time_limit=MIP_SECONDS, gap=MIP_GAP)


def _solve_once(method: Method, statistics: Statistics) -> Method:
    if not isinstance(method, SolvedMIP):
        return method
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `_Case.plan`
        return replace(method, result=method.importance(statistics))
