"""What half of the units is worth in time: an LSTM, and a pair of large linear layers.

Run `python benchmarks/latency.py` (a minute).  Prints one JSON line a case: median seconds of a forward
pass of the whole and of the shrunk network, measured in turn in one process, and their ratio.
"""

from __future__ import annotations

import argparse
import json

import torch
from torch import Tensor, nn

from secateur.apply.shrink import shrink
from secateur.core import Units
from secateur.measure.latency import latency
from secateur.pruning import plan
from secateur.tracing.trace import trace


class Classifier(nn.Module):
    """An LSTM with 512 units, and a linear layer on its last output."""

    def __init__(self, features: int) -> None:
        """Read `features` numbers at each step."""
        super().__init__()
        self.rnn, self.last = nn.LSTM(features, 512, batch_first=True), nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, features] to [B, 10]."""
        return self.last(self.rnn(x)[0][:, -1])


def pair() -> nn.Sequential:
    """Build two linear layers of 4096 x 4096."""
    return nn.Sequential(nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 4096))


CASES = {
    "LSTM(512, 512), 32 steps": (lambda: Classifier(512), (32, 512)),
    "LSTM(64, 512), 32 steps": (lambda: Classifier(64), (32, 64)),
    "Linear(4096, 4096), ReLU, Linear(4096, 4096)": (pair, (4096,)),
}


def main() -> None:
    """Measure every case at batch 1 and 64."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="threads within an operation")
    parser.add_argument("--repeats", type=int, default=30, help="measurements of each model")
    options = parser.parse_args()
    for name, (make, shape) in CASES.items():
        torch.manual_seed(0)
        whole, x = make().eval(), torch.randn(2, *shape)
        half = shrink(whole, plan(trace(whole, x), "magnitude", Units(0.5)))
        rows = latency({"whole": whole, "half": half}, x, repeats=options.repeats, threads=options.threads)
        for before, after in zip(rows["whole"], rows["half"], strict=True):
            line = {
                "case": name,
                "batch": before.batch_size,
                "threads": before.threads,
                "whole_ms": round(1e3 * before.median, 3),
                "half_ms": round(1e3 * after.median, 3),
                "faster": round(before.median / after.median, 2),
                "repeats": before.repeats,
                "torch": torch.__version__,
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
