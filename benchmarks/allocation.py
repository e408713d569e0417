"""How well the predicted loss of a plan orders plans, and what scopes do at equal cost.

    python benchmarks/allocation.py plans vit                   # random plans: predicted and measured loss
    python benchmarks/allocation.py scopes vit --keeps 0.7,0.5  # one criterion and one repair, every scope
    python benchmarks/allocation.py scopes vit --time 64        # the same at equal time of 64 examples
    python benchmarks/allocation.py solver --count 100          # the integer program

The networks are those of `benchmarks/real.py`; the results are lines of JSON.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from processor_time import PROCESSOR_TIME, use_processor_time
from real_networks import NETWORKS
from scipy.stats import spearmanr
from torch import nn

import secateur as sc
from secateur.allocation import CostTerms, Term
from secateur.allocation.counts import AllowedCounts
from secateur.allocation.least_loss import counts_of_least_loss, predicted_losses
from secateur.allocation.program import solve_program
from secateur.apply.mask import mask
from secateur.apply.shrink import shrink
from secateur.batches import split_off_guard
from secateur.core import Budget, NothingToPrune, Plan, PruningGraph, Statistics
from secateur.latency_budget import time_models, with_tables
from secateur.latency_correction import remove_within
from secateur.methods import find_method
from secateur.methods.contract import needs_of
from secateur.methods.decided import Decided
from secateur.repair.fold import fold_masked
from secateur.repair.loss_curves import RIDGES, Divergence, with_loss_curves
from secateur.repair.sequence import Pruned
from secateur.specs import Batches
from secateur.statistics.collect import collect_statistics

SCOPES = ("layer", "global", "erk", "loss", "program")


class Case:
    """A network, traced, with its statistics and the losses of its groups."""

    def __init__(self, name: str, folder: Path, batches: int, seed: int) -> None:
        """Collect the statistics and measure the losses on the last fifth of the batches."""
        self.entry, self.seed = NETWORKS[name], seed
        self.model: nn.Module = self.entry.model(folder)
        self.calibration = self.entry.calibration(seed)[:batches]
        self.example = Batches(self.calibration).example(self.model)
        self.method = find_method("matroid")
        self.graph: PruningGraph = sc.trace(self.model, self.example)
        self.fitting, self.guard = split_off_guard(self.calibration)
        needs = needs_of(self.method, sc.Macs(0.5)) | {"gram"}
        statistics = collect_statistics(self.model, self.graph, self.fitting, needs, seed)
        self.scores = self.method.unit_scores(self.graph, statistics)
        where = self.model, self.graph, self.fitting, self.guard
        start = time.process_time()
        self.statistics: Statistics = with_loss_curves(statistics, self.scores, *where)
        self.seconds = time.process_time() - start

    def plan(self, budget: Budget) -> Plan:
        """Return the plan for a budget; of milliseconds, the one whose measured network keeps it."""

        def remove(goal: Budget) -> tuple[Plan | NothingToPrune, Pruned]:
            step = self.method.plan(self.graph, self.statistics, goal)
            return step, Pruned(shrink(self.model, step, check=False), self.graph, step)

        whole = Pruned(self.model, self.graph, Plan(self.graph, self.method.name))
        plan = remove_within(budget, remove, whole)[0]
        if isinstance(plan, NothingToPrune):
            raise plan
        return plan


def measure_plans(case: Case, count: int) -> Iterator[dict[str, Any]]:
    """Yield the predicted and the measured loss of random plans, folded as the groups alone were."""
    rng = np.random.default_rng(case.seed)
    held_out = collect_statistics(case.model, case.graph, case.guard or [], {"gram"}, case.seed)
    divergence = Divergence(case.model, case.guard or [])
    rows = []
    for _ in range(count):
        strength = rng.uniform(0.03, 0.4)
        keep, predicted = {}, 0.0
        for groups in case.graph.counted_together():
            gone = min(0.9, strength * rng.uniform(0, 2))
            left = max(1, round((1 - gone) * groups[0].size))
            predicted += float(predicted_losses(case.statistics.losses[groups[0].name])[left])
            for group in groups:
                order = case.scores[group.name].argsort(descending=True, stable=True)
                keep[group.name] = order[:left].sort().values.cpu().numpy()
        plan = Plan(
            case.graph, "random", {n: k for n, k in keep.items() if len(k) < case.graph.group(n).size}
        )
        trial = mask(case.model, plan)
        fold_masked(case.model, trial, plan, case.statistics, held_out, RIDGES)
        rows.append({"removed": round(strength, 3), "predicted": predicted, "measured": divergence(trial)})
        yield rows[-1]
    predicted, measured = ([row[key] for row in rows] for key in ("predicted", "measured"))
    yield {
        "plans": count,
        "rank correlation": float(spearmanr(predicted, measured).statistic),
        "measured / predicted, quartiles": np.quantile(np.array(measured) / predicted, (0.25, 0.5, 0.75))
        .round(3)
        .tolist(),
    }


def measure_scopes(
    case: Case, keeps: list[float], scopes: list[str], batch: int | None
) -> Iterator[dict[str, Any]]:
    """Yield the metrics of one criterion and one repair under every scope, at equal cost.

    Args:
        case: The network.
        keeps: Shares of the cost that stay.
        scopes: The scopes.
        batch: Examples in a pass of one thread whose measured time is the cost; each plan is corrected until
            its network keeps it.  None: the cost is the multiply-accumulates.
    """
    measure = case.entry.measurer(case.model)
    budget: Budget = sc.Latency(0.5, batch=batch, threads=1) if batch else sc.Macs(0.5)
    with_table = with_tables(budget, case.model, case.graph)
    for keep in keeps:
        for scope in scopes:
            budget = replace(with_table, keep=keep, scope=scope)
            start = time.process_time()
            plan = case.plan(budget)
            seconds = time.process_time() - start
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = sc.prune(
                    case.model,
                    case.example,
                    sc.Macs(keep, "layer"),
                    case.calibration,
                    method=Decided(plan),
                )
            divergence = Divergence(case.model, case.guard or [])(result.model)
            row = {"keep": keep, "scope": scope}
            if isinstance(budget, sc.Latency):
                row["time"] = round(time_models(case.model, result.model, case.graph, budget).ratio, 4)
            yield {
                **row,
                "macs": round(result.report.after.cost.macs / result.report.before.cost.macs, 4),
                "predicted": plan.notes.get("predicted loss"),
                "divergence": divergence,
                **measure(result.model),
                "gap": plan.notes.get("program", {}).get("proven gap among them"),
                "decision seconds": round(seconds, 2),
            }


def time_solver(groups: int, seeds: int) -> Iterator[dict[str, Any]]:
    """Yield processor seconds and proven gaps of random chains and residual networks under two budgets."""
    for kind in ("chain", "residual"):
        for seed in range(seeds):
            choices, losses, budgets, start = random_network(kind, groups, seed)
            begin = time.process_time()
            found = solve_program(choices, losses, budgets, start, seconds=600.0)
            yield {
                "network": kind,
                "groups": groups,
                "seed": seed,
                "processor seconds": round(time.process_time() - begin, 2),
                "proven gap": found.gap,
                "ending": found.ending,
                "loss by prices / by the program": round(
                    loss_by_prices(choices, losses, budgets) / found.loss, 3
                ),
            }


def loss_by_prices(choices: Any, losses: Any, budgets: Any) -> float:
    """Return the loss of the counts that scope "loss" takes."""
    steps = {name: int(x[0]) for name, x in choices.items()}
    allowed = [AllowedCounts(int(x[-1]), steps[name], steps[name]) for name, x in choices.items()]
    curves = [np.interp(np.arange(x[-1] + 1), x, losses[name]) for name, x in choices.items()]

    def excess(counts: list[int]) -> float:
        named = dict(zip(choices, counts, strict=True))
        return max(cost(named) / limit for cost, limit in budgets)

    counts = counts_of_least_loss(allowed, curves, excess, 1.0)
    return float(sum(curve[n] for curve, n in zip(curves, counts, strict=True)))


def random_network(kind: str, groups: int, seed: int) -> tuple[Any, Any, Any, Any]:
    """Draw layers between groups of 16 choices, with losses, under parameters and multiply-accumulates.

    In a chain each group meets the next; in a residual network four groups are streams that the others meet.
    """
    rng = np.random.default_rng(seed)
    names = [f"{i:03}" for i in range(groups)]
    sizes = rng.choice([64, 96, 128, 192, 256, 384, 512], groups)
    choices = {n: np.linspace(s / 16, s, 16).round().astype(int) for n, s in zip(names, sizes, strict=True)}
    losses = {
        n: 0.05 * rng.lognormal() * (1 - x / x[-1]) ** rng.uniform(1.2, 3.0) for n, x in choices.items()
    }
    uses = np.sort(rng.choice([49.0, 196.0, 784.0, 3136.0], groups))[::-1]
    if kind == "chain":
        pairs = [
            (pair, rng.choice([1.0, 9.0]), use) for pair, use in zip(pairwise(names), uses, strict=False)
        ]
    else:
        streams = names[:4]
        pairs = [((streams[4 * i // groups], names[i]), 9.0, uses[i]) for i in range(4, groups)]
        pairs += [(x, 9.0, uses[0]) for x in pairwise(names[4:]) if rng.random() < 0.3]
    budgets = []
    for share, per_use in ((0.6, False), (0.5, True)):
        terms = [Term(pair, lambda a, b, c=(k * use if per_use else k): c * a * b) for pair, k, use in pairs]
        cost = CostTerms(0.0, tuple(terms))
        budgets.append((cost, share * cost({n: int(x[-1]) for n, x in choices.items()})))
    return choices, losses, budgets, {n: int(x[0]) for n, x in choices.items()}


def main() -> None:
    """Print what was asked for, a line of JSON a result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("plans", "scopes", "solver"))
    parser.add_argument("network", nargs="?", choices=tuple(NETWORKS), default="vit")
    parser.add_argument(
        "--folder", type=Path, default=Path("build/real"), help="where trained networks are kept"
    )
    parser.add_argument("--batches", type=int, default=10, help="batches of calibration")
    parser.add_argument("--count", type=int, default=20, help="random plans, or groups of the solver")
    parser.add_argument("--keeps", default="0.7,0.5", help="shares of the multiply-accumulates")
    parser.add_argument("--scopes", default=",".join(SCOPES))
    parser.add_argument("--time", type=int, help="scopes at equal time of so many examples, not MACs")
    parser.add_argument("--processor-time", action="store_true", help=PROCESSOR_TIME)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.processor_time:
        use_processor_time()
    if options.what == "solver":
        rows = time_solver(options.count, 3)
    else:
        case = Case(options.network, options.folder, options.batches, options.seed)
        print(json.dumps({"network": options.network, "curves, seconds": round(case.seconds, 2)}), flush=True)
        if options.what == "plans":
            rows = measure_plans(case, options.count)
        else:
            keeps = [float(x) for x in options.keeps.split(",")]
            rows = measure_scopes(case, keeps, options.scopes.split(","), options.time)
    for row in rows:
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
