"""The networks and the criteria of the blog post, with the settings that reproduce its figures.

Data are not scikit-learn's moons: the lower one is (1 - cos t, -0.3 - sin t), which leaves them linearly
separable.  Accuracy is on the training set.  Networks that have no tail count as a change of 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from secateur.structures.matroid import Tail, parametrize_linear, tail_partition
from secateur.structures.matroid.parametrize import Kind

__all__ = [
    "CRITERIA",
    "DIMENSIONS",
    "EPOCHS",
    "FRACTIONS",
    "MODES",
    "SEEDS",
    "Ints",
    "Post",
    "accuracy",
    "curve",
    "moons",
    "removals",
    "train",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CRITERIA = ("matroid", "magnitude", "activation", "sensitivity", "random")
DIMENSIONS = (6, 20, 50, 100, 200)
FRACTIONS = (0.25, 0.5, 0.75, 1.0)
SEEDS = (42, 43, 44, 45, 46)
# Offset of each parametrization to the data's seed.
MODES: dict[Kind, int] = {
    "tp_exponential": 0,
    "cauchy": 1000,
    "unconstrained": 5000,
    "negated_bidiagonal": 6000,
}
RANDOM_DRAWS = 20
EPOCHS, _BATCH, _RATE = 100, 32, 0.01


@dataclass(frozen=True, eq=False)
class Post:
    """A trained network relu(x W1^T + b1) W2^T + b2, its data, and its tail.

    Attributes:
        mode: Parametrization.
        seed: Seed of the network (the data's plus the mode's offset).
        x: Training inputs [200, 2].
        y: Labels 0 and 1 [200].
        w1: [H, 2].
        b1: [H].
        w2: [H].
        b2: The output's bias.
    """

    mode: str
    seed: int
    x: Floats
    y: Floats
    w1: Floats
    b1: Floats
    w2: Floats
    b2: float

    @property
    def rows(self) -> Floats:
        """[W1 | b1]."""
        return np.column_stack([self.w1, self.b1])

    @property
    def tail(self) -> Tail:
        """The numerical partition."""
        return tail_partition(self.rows)

    def logits(self, keep: Ints | None = None, x: Floats | None = None) -> Floats:
        """Return the logits [n] with only the units `keep`."""
        k = np.arange(len(self.w2)) if keep is None else keep
        hidden = np.maximum((self.x if x is None else x) @ self.w1[k].T + self.b1[k], 0)
        return hidden @ self.w2[k] + self.b2

    def permute(self, order: Ints) -> Post:
        """Return the same function with its units in another order."""
        return replace(self, w1=self.w1[order], b1=self.b1[order], w2=self.w2[order])


def accuracy(net: Post, keep: Ints | None = None, data: tuple[Floats, Floats] | None = None) -> float:
    """Return the share of right answers, on the training data or on `data`."""
    x, y = (net.x, net.y) if data is None else data
    return float(np.mean((net.logits(keep, x) > 0) == (y > 0.5)))


def moons(generator: np.random.Generator, samples: int = 200, noise: float = 0.1) -> tuple[Floats, Floats]:
    """Draw the post's moons: noise first, then a permutation."""
    t = np.linspace(0, np.pi, samples // 2)
    upper = np.column_stack([np.cos(t), np.sin(t)])
    lower = np.column_stack([1 - np.cos(t), -0.3 - np.sin(t)])
    x = np.vstack([upper, lower])
    x = x + generator.normal(0, noise, x.shape)
    y = np.repeat([0.0, 1.0], samples // 2)
    order = generator.permutation(samples)
    return x[order], y[order]


def train(mode: Kind, units: int, seed: int, data: tuple[Floats, Floats], epochs: int = EPOCHS) -> Post:
    """Train one network; `seed` is the data's, to which the mode adds its offset."""
    seed = seed + MODES[mode]
    generator = np.random.default_rng(seed)
    first, last = nn.Linear(2, units).double(), nn.Linear(units, 1).double()
    parametrize_linear(first, mode, generator)
    with torch.no_grad():
        first.bias.zero_()
        last.weight.copy_(torch.from_numpy(generator.normal(0, np.sqrt(2.0 / units), (1, units))))
        last.bias.zero_()
    net = nn.Sequential(first, nn.ReLU(), last)
    _fit_network(net, torch.from_numpy(data[0]), torch.from_numpy(data[1]), generator, epochs)
    tensors = (first.weight, first.bias, last.weight, last.bias)
    w1, b1, w2, b2 = (t.detach().numpy().copy() for t in tensors)
    return Post(mode, seed, *data, w1, b1, w2[0], float(b2[0]))


def _fit_network(
    net: nn.Module, x: torch.Tensor, y: torch.Tensor, generator: np.random.Generator, epochs: int
) -> None:
    loss = nn.BCEWithLogitsLoss()
    adam = torch.optim.Adam(net.parameters(), lr=_RATE)
    for _ in range(epochs):
        order = torch.from_numpy(generator.permutation(len(x)))
        for batch in order.split(_BATCH):
            adam.zero_grad()
            loss(net(x[batch])[:, 0], y[batch]).backward()
            adam.step()


def removals(net: Post, criterion: str, tail: Ints, fraction: float) -> Iterator[Ints]:
    """Yield the sets of units that a criterion removes at a fraction of the tail: one, or 20 at random."""
    h, count = len(net.w2), round(fraction * len(tail))
    # Entries reach 1e160 at H = 200; a norm that overflows sorts last, as in the published experiment.
    with np.errstate(over="ignore"):
        norm = np.linalg.norm(net.w1, axis=1)
    if criterion == "matroid":
        yield tail[:count]
    elif criterion == "random":
        generator = np.random.default_rng(net.seed * 1000 + int(fraction * 1000))
        yield from (generator.choice(h, size=count, replace=False) for _ in range(RANDOM_DRAWS))
    else:
        scores = {
            "magnitude": norm,
            "activation": np.maximum(net.x @ net.w1.T + net.b1, 0).mean(0),
            "sensitivity": norm * np.abs(net.w2),
        }
        yield np.argsort(scores[criterion])[:count]


def curve(net: Post, criterion: str, tail: Ints, data: tuple[Floats, Floats] | None = None) -> list[float]:
    """Return the change of accuracy in points at each of `FRACTIONS`, on the training data or on `data`."""
    before, everything = accuracy(net, None, data), np.arange(len(net.w2))
    changes = []
    for fraction in FRACTIONS:
        sets = removals(net, criterion, tail, fraction)
        after = [accuracy(net, np.setdiff1d(everything, removed), data) for removed in sets]
        changes.append(100 * (float(np.mean(after)) - before) if len(tail) else 0.0)
    return changes
