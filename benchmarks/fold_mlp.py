"""What the fold gives back: an MLP 784-512-10 on Fashion-MNIST, 80 % of its hidden units removed.

Run `python benchmarks/fold_mlp.py` (two minutes on one core).  Trains one network a seed, removes the
units of least magnitude with and without folding them into the layer that read them, with no
fine-tuning, and prints one JSON line a seed: test accuracy before, after, and the points lost.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import nn

from secateur.core import Units
from secateur.data import fashion
from secateur.pruning import prune
from secateur.zoo.training import train


def points_lost(seed: int, epochs: int, keep: float, folder: Path | None) -> dict[str, float | int]:
    """Train, prune both ways, and measure on the test part."""
    data = fashion(folder, seed)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10))
    trained = train(model, data, epochs, seed=seed)
    line: dict[str, float | int] = {"seed": seed, "keep": keep, "accuracy": round(100 * trained.accuracy, 2)}
    x, _ = data.parts["calibration"]
    for name, repair in (("none", None), ("fold", "fold")):
        result = prune(
            trained.model,
            x[:2],
            Units(keep),
            data.batches("calibration"),
            method="magnitude",
            repair=repair,
            seed=seed,
            progress=False,
        ).measure(data.batches("test"))
        after = result.report.after.metric
        line[f"{name}_accuracy"] = round(100 * after, 2)
        line[f"{name}_lost"] = round(100 * (trained.accuracy - after), 2)
    return line


def main() -> None:
    """Print one line a seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="training seeds")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of training")
    parser.add_argument("--keep", type=float, default=0.2, help="share of the hidden units that stays")
    parser.add_argument("--folder", type=Path, help="where the IDX files are")
    options = parser.parse_args()
    for seed in range(options.seeds):
        print(json.dumps(points_lost(seed, options.epochs, options.keep, options.folder)), flush=True)


if __name__ == "__main__":
    main()
