"""What each repair gives back without training: none, fold, and refit, on the networks of the demonstration.

Run `python benchmarks/refit.py` (about ten minutes on one core).  Trains each network once a seed, keeps a
quarter of the units of every group, repairs from the calibration examples, and prints one JSON line
a pruning: test accuracy before and after, and the seconds that the repair took.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

import torch

from secateur.cli.demo import TASKS, Task
from secateur.core import Units
from secateur.data import Dataset, load_dataset
from secateur.pruning import prune

REPAIRS = (None, "fold", "refit")


def lines(task: Task, data: Dataset, methods: list[str], keep: float, seed: int) -> Iterator[dict[str, Any]]:
    """Train a network and yield a line for each method and repair."""
    model = task.train(data, seed)
    calibration, x = data.batches("calibration"), data.parts["calibration"][0]
    for method in methods:
        for repair in REPAIRS:
            report = (
                prune(
                    model,
                    x[:2],
                    Units(keep),
                    calibration,
                    method=method,
                    repair=repair,
                    seed=seed,
                    progress=False,
                )
                .measure(data.batches("test"))
                .report
            )
            yield {
                "data": data.name,
                "network": task.model,
                "seed": seed,
                "keep": keep,
                "method": method,
                "repair": repair or "none",
                "before": round(100 * report.before.metric, 2),
                "after": round(100 * report.after.metric, 2),
                "seconds": round(report.seconds.get("repair", 0), 2),
            }


def main() -> None:
    """Print a line for each pruning."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="training seeds")
    parser.add_argument("--keep", type=float, default=0.25, help="share of the units that stays")
    parser.add_argument("--methods", default="magnitude,activation,matroid", help="names, by commas")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in range(options.seeds):
        for task in TASKS:
            for line in lines(
                task, load_dataset(task.data, None, seed), options.methods.split(","), options.keep, seed
            ):
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
