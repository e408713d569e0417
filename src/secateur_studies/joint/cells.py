"""A cell of the joint study: one network, trained once, pruned by every method, ratio and repair.

Rows say by "part" what they are: ``dense`` (the trained network), ``cost`` (evidence and decision of a
method), ``pruned`` (an accuracy), ``refused`` (a method that is not defined for the network, and why).
"""

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
from secateur.repair.finetune import finetune
from secateur.repair.fold import fold, merge
from secateur.specs import make_method
from secateur.statistics.auxiliary_heads import attach_auxiliaries, parts
from secateur.statistics.collect import collect_statistics
from secateur.structures.relu_mip import Scores, balanced_images
from secateur.tracing.trace import trace
from secateur_studies.joint.costs import measured
from secateur_studies.joint.subjects import Size, make_data, trained

__all__ = ["REPAIRS", "network"]

Row = dict[str, Any]
REPAIRS = ("none", "fold", "finetune")
MIP_SECONDS = 300.0  # far from what it takes, so that results do not depend on the machine
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
        folder: Where it lies.
        model: Name in `NETWORKS`.
        seed: Seed of training and pruning.
        size: Fields of a `Size`.
        methods: Names in `METHODS`, with options.
        keeps: Shares of each group's units that stay.
        draws: Draws of random removal.
        cache: Folder for trained weights.
    """
    scale = Size(**size)
    dataset = make_data(data, model, folder, scale.halved)
    bench = _bench(trained(model, dataset, seed, scale, cache), model, dataset, seed, scale)
    common = {"data": data, "network": model, "seed": seed}
    rows: list[Row] = [{**common, "part": "dense", **bench.dense()}]
    for name in methods:
        found = _method(bench, name, keeps, draws if name == "random" else 1)
        rows += [{**common, "method": name, **row} for row in found]
    return rows


@dataclass(frozen=True, eq=False)
class Bench:
    """A trained network, and all that is the same for every method.

    Attributes:
        name: Name of the network.
        model: The trained network.
        network: Its trace.
        fitting: Batches for evidence and fold.
        gram: Gram matrices on them, for the fold.
        guard: The same on batches that judge the fold.
        judge: How far a model is from the original on these.
        tuning: Batches for fine-tuning.
        steps: How many of them.
        lr: Learning rate.
        test: Test batches.
        seed: Seed of all choices.
    """

    name: str
    model: nn.Module
    network: PruningGraph
    fitting: list[Batch]
    gram: Statistics
    guard: Statistics
    judge: Callable[[nn.Module], float]
    tuning: list[Batch]
    steps: int
    lr: float
    test: list[Batch]
    seed: int

    def dense(self) -> Row:
        """Return what there is before pruning."""
        parameters = sum(p.numel() for p in self.model.parameters())
        units = sum(g.size for g in self.network.groups)
        examples = sum(len(targets) for _, targets in self.test)
        whole = accuracy(self.model, self.test)
        return {"accuracy": whole, "examples": examples, "parameters": parameters, "units": units}


def _bench(model: nn.Module, name: str, data: Dataset, seed: int, size: Size) -> Bench:
    traced = trace(model, data.parts["train"][0][:2])
    calibration = data.batches("calibration", 50, size.calibration)
    apart = max(1, len(calibration) // 5)
    fitting, judging = calibration[:-apart], calibration[-apart:]
    return Bench(
        name,
        model,
        traced,
        fitting,
        collect_statistics(model, traced, fitting, {"gram"}, seed),
        collect_statistics(model, traced, judging, {"gram"}, seed),
        distance_from(model, judging),
        data.batches("train", TUNING_BATCH, TUNING_BATCH * size.tuning),
        size.tuning,
        size.lr,
        data.batches("test", 500, size.tests),
        seed,
    )


def _method(bench: Bench, name: str, keeps: list[float], draws: int) -> Iterator[Row]:
    """Yield the rows of one method: what deciding costs, and the accuracies; or why there are none."""
    try:
        with measured() as cost:
            method = _chosen(bench, name)
            evidence = collect_statistics(
                bench.model, bench.network, bench.fitting, method.needs(Units(keeps[0])), bench.seed
            )
            method = _solved(method, evidence)
            plan = _plan(bench, method, evidence, keeps[0])
    except SecateurError as error:
        yield {"part": "refused", "why": _words(error)}
        return
    solved = method.result if isinstance(method, Solved) else None
    certified = {} if solved is None else {"status": solved.status, "gap": solved.gap}
    yield {"part": "cost", "seconds": cost.seconds, "memory": cost.memory, **certified}
    for keep in keeps:
        for draw in range(draws):
            if (keep, draw) != (keeps[0], 0):
                drawn = replace(evidence, seed=bench.seed + 1000 * draw)
                try:
                    plan = _plan(bench, method, drawn, keep)
                except SecateurError as error:
                    yield {"part": "refused", "keep": keep, "why": _words(error)}
                    continue
            share = plan.notes["reached"]["params"]
            for repair, reached in _repaired(bench, plan).items():
                yield {
                    "part": "pruned",
                    "keep": keep,
                    "draw": draw,
                    "repair": repair,
                    "accuracy": reached,
                    "parameters": share,
                }


def _words(error: Exception) -> str:
    """Return what an error says in one line, without the places of files on this machine."""
    return re.sub(r" \([^()]*\.py:\d+\)", "", " ".join(str(error).split()))[:300]


def _plan(bench: Bench, method: Method, evidence: Statistics, keep: float) -> Plan:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a solver's limits and a network's mistakes are in the plan's notes
        return method.plan(bench.network, evidence, Units(keep))


def _repaired(bench: Bench, plan: Plan) -> Row:
    """Return the test accuracy after each repair."""
    small = shrink(bench.model, plan, check=False)
    plain = merge(bench.model, small, plan) if plan.merges else small
    folded, _ = fold(bench.model, small, plan, bench.gram, bench.guard, bench.judge)
    tuned, _ = finetune(plain, bench.tuning, steps=bench.steps, lr=bench.lr, seed=bench.seed, progress=False)
    models = dict(zip(REPAIRS, (plain, folded, tuned), strict=True))
    return {repair: accuracy(model, bench.test) for repair, model in models.items()}


@dataclass(frozen=True, kw_only=True)
class Solved(MIP):
    """A mixed-integer program that is solved once for all budgets."""

    result: Scores | None = None

    def importance(self, evidence: Statistics) -> Scores:
        """Return the solution that there is, or solve."""
        return self.result if self.result is not None else super().importance(evidence)


def _chosen(bench: Bench, name: str) -> Method:
    """Return a method with its defaults; the integer program layer by layer where the whole is too large."""
    if name != "mip":
        return make_method(name)
    if bench.name != "VGG":
        return Solved(time_limit=MIP_SECONDS)
    decoupled = attach_auxiliaries(bench.model, bench.tuning, seed=bench.seed)
    x, y = (torch.cat(tensors) for tensors in zip(*bench.fitting, strict=True))
    images = balanced_images(y.numpy(), MIP().images, np.random.default_rng(bench.seed))
    return Solved(parts=parts(decoupled, x[images], y[images]), time_limit=MIP_SECONDS)


def _solved(method: Method, evidence: Statistics) -> Method:
    if not isinstance(method, Solved):
        return method
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        return replace(method, result=method.importance(evidence))
