"""The demonstration: small networks, every method, with and without fold, each checked and measured.

On scikit-learn's digits, and on Fashion-MNIST where it is installed, a perceptron, a convolutional network
and an LSTM are trained; every method in `METHODS` removes the same share of the units of each.  A method
that cannot work on a network is a row that says why.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from joblib import Parallel, delayed, parallel_config
from torch import nn

from secateur import data, zoo
from secateur.core import SecateurError, Units
from secateur.core.markdown import markdown_table
from secateur.data import Dataset
from secateur.diagnostics import DIAGNOSTICS, diagnose
from secateur.html import flatten
from secateur.html.rows import short_budget
from secateur.methods import METHODS
from secateur.pruning import prune

Tell = Callable[[str], None]
REPAIRS: tuple[Literal["fold"] | None, ...] = (None, "fold")
HELD_OUT = 2000
CALIBRATION = 1000


@dataclass(frozen=True, eq=False)
class Task:
    """A network, and how it is trained.

    Attributes:
        model: What it is called in tables.
        network: The untrained network.
        epochs: Passes over the training examples.
        limit: Train on at most this many.
        batch_size: Examples in a batch.
        lr: Largest learning rate.
    """

    model: str
    network: nn.Module
    epochs: int
    limit: int | None = None
    batch_size: int = 32
    lr: float = 1e-2

    def train(self, dataset: Dataset, seed: int) -> zoo.Trained:
        """Return the trained network."""
        return zoo.train(
            self.network,
            dataset,
            self.epochs,
            lr=self.lr,
            batch_size=self.batch_size,
            limit=self.limit,
            seed=seed,
        )


def digits_tasks() -> list[Task]:
    """Return the networks for 8 x 8 digits."""
    return [
        Task("MLP 64-128-64-10", zoo.mlp((64, 128, 64, 10)), 20),
        Task("CNN 16-32", zoo.small_cnn(), 10),
        Task("LSTM 64", zoo.lstm(64, side=8), 20),
    ]


def fashion_tasks() -> list[Task]:
    """Return the networks for Fashion-MNIST."""
    return [
        Task("MLP 784-512-10", zoo.mlp((784, 512, 10)), 4, 20_000, 128, lr=3e-3),
        Task("LeNet-5", zoo.lenet5(), 4, 20_000, 64),
        Task("LSTM 64", zoo.lstm(64, side=28), 4, 20_000, 64),
    ]


TASKS = {"digits": digits_tasks, "fashion": fashion_tasks}


def tasks(quick: bool) -> list[tuple[str, int]]:
    """Return what there is to do: name of the data set, number of the network."""
    there = ["digits"] if quick or not data.fashion_available() else list(TASKS)
    return [(name, number) for name in there for number in range(1 if quick else len(TASKS[name]()))]


def demonstrate(
    keep: float = 0.25,
    *,
    methods: Iterable[str] | None = None,
    quick: bool = False,
    seed: int = 0,
    jobs: int = 1,
    tell: Tell = lambda _: None,
) -> list[dict[str, Any]]:
    """Train, prune by every method with and without fold, verify and measure.

    Args:
        keep: Share of each group's units that stays.
        methods: Names in `METHODS`; all, if None.
        quick: Only the perceptron on digits, without latencies.
        seed: Seed of training and pruning.
        jobs: Processes, each with one thread and one network at a time.
        tell: Called with a few words after each network.

    Returns:
        Runs: dictionaries of reports with the further keys "data" and "status", or of what failed and why.

    Example:
        >>> runs = demonstrate(0.5, methods=["random"], quick=True)
        >>> [(run["data"], run["repair"], run["status"]) for run in runs]
        [('digits', None, 'ok'), ('digits', 'fold', 'ok')]
    """
    budget, names, work = Units(keep), list(METHODS) if methods is None else list(methods), tasks(quick)
    sizes = () if quick else (1, 64)
    runs: list[dict[str, Any]] = []
    with parallel_config("loky", n_jobs=min(jobs, len(work)), inner_max_num_threads=1):
        cells = (delayed(_network)(name, number, names, budget, sizes, seed) for name, number in work)
        for done, part in enumerate(Parallel(return_as="generator")(cells), 1):
            runs += part
            tell(f"{done} of {len(work)} networks trained and pruned")
    return runs


def _network(
    name: str, number: int, methods: Sequence[str], budget: Units, batch_sizes: Sequence[int], seed: int
) -> list[dict[str, Any]]:
    """Train one network and prune it in every way."""
    dataset, task = data.load_dataset(name), TASKS[name]()[number]
    model = task.train(dataset, seed).model
    return [
        _run(model, task.model, dataset, method, budget, repair, batch_sizes, seed)
        for method in methods
        for repair in REPAIRS
    ]


def _run(
    model: nn.Module,
    title: str,
    dataset: Dataset,
    method: str,
    budget: Units,
    repair: Literal["fold"] | None,
    batch_sizes: Sequence[int],
    seed: int,
) -> dict[str, Any]:
    """Prune once; a refusal is a run with its reason, and warnings are kept with the run."""
    calibration = dataset.batches("calibration", limit=CALIBRATION)
    holdout = dataset.batches("test", 500, limit=HELD_OUT)
    short = short_budget(repr(budget))
    what = {"data": dataset.name, "model": title, "method": method, "budget": short, "repair": repair}
    try:
        with warnings.catch_warnings(record=True) as said:
            result = prune(
                model,
                calibration[0][0][:2],
                budget,
                calibration,
                method=method,
                repair=repair,
                progress=False,
                seed=seed,
            ).measure(holdout, latency=bool(batch_sizes), batch_sizes=batch_sizes)
    except SecateurError as error:
        return {**what, "seed": seed, "status": " ".join(str(error).split())}
    warned = sorted({str(warning.message) for warning in said})
    if repair is None and method in DIAGNOSTICS:
        result = diagnose(result, model, calibration)
    return {**result.report.to_dict(), **what, "status": "ok", "warnings": warned}


def pivot(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row a method: what is left, and the quality without and with fold.

    Sizes are shares of the original's, in the order of the runs.
    """
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for given in runs:
        run = flatten(given)
        key = (run["data"], run["model"], run["method"])
        row = rows.setdefault(key, dict(zip(("data", "model", "method"), key, strict=True)))
        if run["status"] != "ok":
            row["status"] = run["status"]
            continue
        row |= {"before": run["before"], ("fold" if run["repair"] == "fold" else "none"): run["after"]}
        row |= {key: run[key] / run[f"{key}_before"] for key in ("parameters", "macs")}
        if "latency_64_ms" in run:
            row["speed"] = _speed(given, run)
    return list(rows.values())


def _speed(given: Mapping[str, Any], run: Mapping[str, Any]) -> float:
    """Return how many times as fast it is at batch 64: the median of the rounds; in old runs, of medians."""
    after = given["after"]
    times = after["latency"] if isinstance(after, Mapping) else ()
    paired = [x["speedup"] for x in times if x["batch_size"] == 64 and x.get("speedup")]
    return float(paired[0] if paired else run["latency_64_ms_before"] / run["latency_64_ms"])


def markdown(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of `pivot` as Markdown."""
    heads = (
        "data",
        "model",
        "method",
        "accuracy before",
        "after",
        "after, folded",
        "parameters",
        "MACs",
        "speed, batch 64",
    )
    rows = [dict(zip(heads, words(row), strict=True)) for row in pivot(runs)]
    return markdown_table(rows, heads, right=heads[3:]) + "\n"


def words(row: Mapping[str, Any]) -> list[str]:
    """Word a row of `pivot`: names, accuracies, shares, speed; or the reason why there are none.

    Example:
        >>> words({"data": "d", "model": "m", "method": "mip", "status": "no ReLU"})
        ['d', 'm', 'mip', 'no ReLU', '', '', '', '', '']
    """
    names = [row["data"], row["model"], row["method"]]
    if "before" not in row:
        return [*names, row["status"], "", "", "", "", ""]
    accuracies = [f"{row[key]:.3f}" if key in row else "failed" for key in ("before", "none", "fold")]
    shares = [f"{row[key]:.0%}" for key in ("parameters", "macs")]
    return [*names, *accuracies, *shares, f"{row['speed']:.1f}x" if "speed" in row else ""]


__all__ = ["demonstrate", "markdown", "pivot", "words"]
