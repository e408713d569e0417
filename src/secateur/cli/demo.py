"""``secateur demo``: small networks, every method, with and without fold, each checked and measured.

Networks are trained on scikit-learn's digits and, if it is installed, on Fashion-MNIST.  Every method in
`METHODS` removes the same share of their units.  If a method cannot run on a network, its row
has the reason.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from joblib import Parallel, delayed, parallel_config
from torch import nn

from secateur import data, zoo
from secateur.cli.options import PAGE, Jobs, Seed, check_writable
from secateur.cli.printing import print_line, print_table, progress, warn
from secateur.core import SecateurError, Units
from secateur.core.markdown import markdown_table
from secateur.data import Dataset
from secateur.diagnostics import DIAGNOSTICS, diagnose
from secateur.html import flatten, write_html, write_json, write_text
from secateur.html.rows import short_budget
from secateur.methods import METHODS
from secateur.methods.decided import Decided
from secateur.pruning import prune

__all__ = ["TASKS", "Task", "demo_command", "demonstrate", "demonstration_table", "pivot"]

HELD_OUT = 2000  # examples
CALIBRATION = 1000


@dataclass(frozen=True)
class Task:
    """A network and its training.

    Attributes:
        data: Name of the data set.
        model: Name in tables.
        network: Returns the untrained network.
        epochs: Passes over the training examples.
        limit: Largest number of training examples.
        batch_size: Examples in a batch.
        lr: Largest learning rate.
    """

    data: str
    model: str
    network: Callable[[], nn.Module]
    epochs: int
    limit: int | None = None
    batch_size: int = 32
    lr: float = 1e-2

    def train(self, dataset: Dataset, seed: int) -> nn.Module:
        """Return the trained network."""
        options: dict[str, Any] = {
            "lr": self.lr,
            "batch_size": self.batch_size,
            "limit": self.limit,
            "seed": seed,
        }
        return zoo.train(self.network(), dataset, self.epochs, **options).model


TASKS = (
    Task("digits", "MLP 64-128-64-10", partial(zoo.mlp, (64, 128, 64, 10)), 20),
    Task("digits", "CNN 16-32", zoo.small_cnn, 10),
    Task("digits", "LSTM 64", partial(zoo.lstm, 64, side=8), 20),
    Task("fashion", "MLP 784-512-10", partial(zoo.mlp, (784, 512, 10)), 4, 20_000, 128, 3e-3),
    Task("fashion", "LeNet-5", zoo.lenet5, 4, 20_000, 64),
    Task("fashion", "LSTM 64", partial(zoo.lstm, 64, side=28), 4, 20_000, 64),
)


def demo_command(
    folder: Annotated[
        Path, typer.Option("--out", help="Folder for report.html, runs.json and table.md.")
    ] = Path("runs/demo"),
    keep: Annotated[float, typer.Option(help="Share of the units that stays, in (0, 1].")] = 0.25,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only one network on digits, without latencies: seconds.")
    ] = False,
    seed: Seed = 0,
    jobs: Jobs = 2,
) -> None:
    """Train small networks, prune each by every method, with and without fold, and compare.

    It uses scikit-learn's digits, and Fashion-MNIST if Debian's package dataset-fashion-mnist is installed.
    It takes about two minutes on two cores.
    """
    check_writable(folder, replaced=["runs.json", "table.md", PAGE])
    start = time.perf_counter()
    with progress("training and pruning") as log:
        runs = demonstrate(keep, quick=quick, seed=seed, jobs=jobs, log=log)
    table, reasons = demonstration_table(runs)
    print_table(table)
    for reason in reasons:
        warn(reason)
    write_json(runs, folder / "runs.json")
    lines = [markdown_table(table, right=list(table[0])[3:] if table else ()), "", *reasons]
    write_text(folder / "table.md", "\n".join(lines).rstrip() + "\n")
    page = write_html(runs, folder / PAGE, title="Secateur demonstration")
    done = sum(run["status"] == "ok" for run in runs)
    print_line(
        f"{done} of {len(runs)} prunings; in each the smaller network computes what the masked one computes "
        f"(float64, 1e-10 relative). {time.perf_counter() - start:.0f} s. Report: {page}"
    )


def demonstrate(
    keep: float = 0.25,
    *,
    methods: Iterable[str] | None = None,
    quick: bool = False,
    seed: int = 0,
    jobs: int = 1,
    log: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Train, prune by every method with and without fold, check and measure.

    Args:
        keep: Share of each group's units that stays.
        methods: Names in `METHODS`; by default all.
        quick: Only the perceptron on digits, without latencies.
        seed: Seed of training and pruning.
        jobs: Processes, each with one thread and one network at a time.
        log: Called with a message after each network.

    Returns:
        Runs: dictionaries of reports with the further keys "data" and "status", or the reason for a failure.

    Example:
        >>> runs = demonstrate(0.5, methods=["random"], quick=True)
        >>> [(run["data"], run["repair"], run["status"]) for run in runs]
        [('digits', None, 'ok'), ('digits', 'fold', 'ok')]
    """
    options = (list(METHODS) if methods is None else list(methods), Units(keep), not quick, seed)
    tasks = TASKS[:1] if quick else [t for t in TASKS if t.data != "fashion" or data.fashion_available()]
    runs: list[dict[str, Any]] = []
    with parallel_config("loky", n_jobs=min(jobs, len(tasks)), inner_max_num_threads=1):
        parts = Parallel(return_as="generator")(delayed(_prune_network)(task, *options) for task in tasks)
        for number, part in enumerate(parts, 1):
            runs += part
            log(f"{number} of {len(tasks)} networks trained and pruned")
    return runs


def _prune_network(
    task: Task, methods: Sequence[str], budget: Units, latency: bool, seed: int
) -> list[dict[str, Any]]:
    """Train one network and prune it by every method, without and with fold."""
    dataset = data.load_dataset(task.data)
    model, calibration = task.train(dataset, seed), dataset.batches("calibration", limit=CALIBRATION)
    holdout, runs = dataset.batches("test", 500, limit=HELD_OUT), []
    for method in methods:
        chosen: Any = method
        for repair in (None, "fold"):
            names = {"data": task.data, "model": task.model, "method": method, "repair": repair}
            try:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    result = prune(
                        model,
                        calibration[0][0][:2],
                        budget,
                        calibration,
                        method=chosen,
                        repair=repair,
                        progress=False,
                        seed=seed,
                    )
                    chosen = Decided(result.plan)
                    # Folding changes no size: one latency of each method is enough.
                    result = result.measure(
                        holdout, latency=latency and repair is not None, batch_sizes=(64,)
                    )
                    if repair is None and method in DIAGNOSTICS:
                        result = diagnose(result, model, calibration)
            except SecateurError as error:
                reason = {"budget": short_budget(repr(budget)), "seed": seed}
                runs.append({**names, **reason, "status": " ".join(str(error).split())})
                continue
            messages = sorted({str(warning.message) for warning in caught})
            runs.append({**result.report.to_dict(), **names, "status": "ok", "warnings": messages})
    return runs


def pivot(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each network and method: what is left, and the metric without and with fold.

    Sizes are shares of the original's.  A row without numbers has the reason in "status".
    """
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for run in runs:
        flat = flatten(run)
        key = (flat["data"], flat["model"], flat["method"])
        row = rows.setdefault(key, dict(zip(("data", "model", "method"), key, strict=True)))
        if flat["status"] != "ok":
            row["status"] = flat["status"]
            continue
        row |= {"before": flat["before"], ("fold" if flat["repair"] == "fold" else "none"): flat["after"]}
        row |= {key: flat[key] / flat[f"{key}_before"] for key in ("parameters", "macs")}
        for latency in run["after"]["latency"]:
            if latency["batch_size"] == 64:  # old runs have no speedup
                medians = flat["latency_64_ms_before"] / flat["latency_64_ms"]
                row["speed"] = latency.get("speedup") or medians
    return list(rows.values())


def demonstration_table(runs: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, str]], list[str]]:
    """Return the rows of `pivot` as text for a table, and the reasons why methods could not run."""
    rows = pivot(runs)
    table = [
        {
            "data": row["data"],
            "model": row["model"],
            "method": row["method"],
            "accuracy before": _format(row, "before", ".3f"),
            "after": _format(row, "none", ".3f"),
            "after, folded": _format(row, "fold", ".3f"),
            "parameters": _format(row, "parameters", ".0%"),
            "MACs": _format(row, "macs", ".0%"),
            "speed, batch 64": _format(row, "speed", ".1f"),
        }
        for row in rows
        if "before" in row
    ]
    reasons = [f"{r['data']}, {r['model']}, {r['method']}: {r['status']}" for r in rows if "status" in r]
    return table, reasons


def _format(row: Mapping[str, Any], key: str, form: str) -> str:
    return format(row[key], form) if key in row else ""
