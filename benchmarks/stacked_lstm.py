"""A three-layer nn.LSTM pruned as it is, as three one-layer LSTMs, and with its layers tied.

Run `python benchmarks/stacked_lstm.py` (a CPU minute).  Trains an LSTM on the rows of the digits and
prunes the same function in three forms with the same data and the same counts:

* `stacked`: nn.LSTM with three layers, whose units are free but for their number;
* `one by one`: three modules with the same weights;
* `tied`: the first with an initial state of zeros that is a parameter, so that all layers must lose the same
  unit numbers, as they did before version 0.2.

Prints one JSON line a pruning: percent of test digits on which it agrees with the original, and accuracy.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from secateur.core import Units
from secateur.data import Dataset, digits
from secateur.measure.metrics import accuracy, evaluate
from secateur.pruning import prune
from secateur.zoo import lstm
from secateur.zoo.sequence import RowRecurrent
from secateur.zoo.training import train


class OneByOne(nn.Module):
    """The layers of a stacked LSTM as modules of their own."""

    def __init__(self, model: RowRecurrent) -> None:
        """Copy the weights."""
        super().__init__()
        self.layers = nn.ModuleList()
        for i in range(model.rnn.num_layers):
            weights = {n: p for n, p in model.rnn.state_dict().items() if n.endswith(f"_l{i}")}
            layer = nn.LSTM(weights[f"weight_ih_l{i}"].shape[1], model.rnn.hidden_size, batch_first=True)
            layer.load_state_dict({n.replace(f"_l{i}", "_l0"): p for n, p in weights.items()})
            self.layers.append(layer)
        self.fc = model.fc

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, 1, rows, side] to [batch, classes]."""
        y = x.squeeze(1)
        for layer in self.layers:
            y = layer(y)[0]
        return self.fc(y[:, -1])


class Tied(nn.Module):
    """A stacked LSTM with an initial state, here of zeros, that ties its layers."""

    def __init__(self, model: RowRecurrent) -> None:
        """Add the state."""
        super().__init__()
        self.rnn, self.fc = model.rnn, model.fc
        self.start = nn.Parameter(torch.zeros(model.rnn.num_layers, 1, model.rnn.hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, 1, rows, side] to [batch, classes]."""
        start = self.start.expand(-1, len(x), -1).contiguous()
        return self.fc(self.rnn(x.squeeze(1), (start, start))[0][:, -1])


def lines(data: Dataset, hidden: int, keep: float, seed: int) -> Iterator[dict[str, Any]]:
    """Train the LSTM; yield a line for each method, repair and form."""
    model = train(lstm(hidden, 3, side=8, seed=seed), data, epochs=60, lr=1e-2, seed=seed).model
    test = data.batches("test")
    forms = {"stacked": model, "one by one": OneByOne(model).eval(), "tied": Tied(model).eval()}
    for method in ("magnitude", "matroid"):
        for repair in (None, "fold"):
            for form, network in forms.items():
                small = prune(
                    network,
                    data.parts["calibration"][0][:2],
                    Units(keep),
                    data.batches("calibration"),
                    method=method,
                    repair=repair,
                    seed=seed,
                    progress=False,
                ).model
                yield {
                    "seed": seed,
                    "keep": keep,
                    "method": method,
                    "repair": repair or "none",
                    "form": form,
                    "agreement": round(100 * evaluate(small, test, "agreement", original=network), 2),
                    "accuracy": round(100 * accuracy(small, test), 2),
                    "accuracy before": round(100 * accuracy(network, test), 2),
                }


def main() -> None:
    """Print a line for each pruning."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="training seeds")
    parser.add_argument("--hidden", type=int, default=32, help="units of a layer")
    parser.add_argument("--keep", type=float, default=0.5, help="share of the units that stays")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in range(options.seeds):
        for line in lines(digits(seed=seed), options.hidden, options.keep, seed):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
