"""Time nn.LSTM before and after whole units went, whole and pruned in turn.

Run `python benchmarks/recurrent.py` (a minute or two).  Prints one JSON line a case: median CPU seconds of
one forward pass over 32 steps in one thread, speed-up over the whole layer, and the largest difference
between the shrunk and the masked model in float64.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from secateur.apply.mask import mask
from secateur.apply.shrink import shrink
from secateur.core import Statistics, Units
from secateur.methods import Magnitude
from secateur.tracing.trace import trace


class Reader(nn.Module):
    """An LSTM and a linear layer on its outputs."""

    def __init__(self, inputs: int, hidden: int) -> None:
        """Build both."""
        super().__init__()
        self.rnn = nn.LSTM(inputs, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, time, inputs] to [batch, time, 10]."""
        return self.fc(self.rnn(x)[0])


@torch.no_grad()
def medians(models: Mapping[str, nn.Module], x: Tensor, repeats: int) -> dict[str, float]:
    """Return the median CPU seconds of a pass of each model; every round runs each once."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(repeats + 1):
        for name, model in models.items():
            start = time.process_time()
            model(x)
            times[name].append(time.process_time() - start)
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def compare(inputs: int, hidden: int, batch: int, repeats: int) -> list[dict[str, object]]:
    """Time one layer whole and with a quarter, a half and three quarters of its units removed."""
    torch.manual_seed(0)
    model = Reader(inputs, hidden).eval()
    example = torch.randn(2, 32, inputs)
    network = trace(model, example)
    evidence = Statistics({name: p.detach() for name, p in model.named_parameters()})
    models: dict[str, nn.Module] = {"whole": model}
    gaps = {"whole": 0.0}
    for removed in (0.25, 0.5, 0.75):
        plan = Magnitude().plan(network, evidence, Units(1 - removed))
        name = f"{removed:.0%} removed"
        models[name] = shrink(model, plan)
        x = example.double()
        with torch.no_grad():
            masked, small = mask(model, plan).double()(x), models[name].double()(x)
        gaps[name] = float((masked - small).abs().max())
        models[name].float()
    times = medians(models, torch.randn(batch, 32, inputs), repeats)
    shared = {"inputs": inputs, "hidden": hidden, "batch": batch}
    return [
        {
            **shared,
            "model": name,
            "seconds": round(seconds, 5),
            "speed-up": round(times["whole"] / seconds, 2),
            "difference": gaps[name],
        }
        for name, seconds in times.items()
    ]


def main() -> None:
    """Print one JSON line a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for inputs, hidden in ((64, 128), (64, 512), (512, 512)):
        for row in compare(inputs, hidden, 64, options.repeats):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
