"""The post's open question: harder tasks, on which its exponential kernel fails, with a Gaussian kernel.

The Gaussian kernel is totally positive and trains with any number of inputs.  The post expects that "on
harder tasks, the matroid's advantage should grow".  Here its tail is removed by the post's order, by
deficient windows, at random and by sensitivity, without repair and with the same least-squares fold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits, make_moons
from torch import nn

from secateur.structures.matroid import activation_basis, parametrize_linear, tail_partition
from secateur.structures.matroid.parametrize import Kind

__all__ = [
    "CHANGES",
    "HARDER",
    "KERNELS",
    "TASKS",
    "HarderNet",
    "compare_removals",
    "harder_row",
    "load_task",
    "train_harder",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Task = tuple[Floats, Ints, Floats, Ints]  # training inputs and labels, test inputs and labels

HARDER = "harder"
KERNELS: tuple[Kind, ...] = ("gaussian", "cauchy", "tp_exponential", "unconstrained")
CHANGES = ("index", "most-windows", "random", "sensitivity", "basis of activations")
TASKS = {"moons, d = 3": 3, "moons, d = 5": 5, "moons, d = 10": 10, "digits": 64}
EPOCHS, BATCH, RATE, UNITS, DRAWS, SHARE = 100, 32, 0.01, 50, 20, 0.75
RIDGE = 1e-6


@dataclass(frozen=True, eq=False)
class HarderNet:
    """A trained network relu(x W1^T + b1) W2^T + b2 with logits of classes, in float64."""

    w1: Floats
    b1: Floats
    w2: Floats
    b2: Floats

    def hidden(self, x: Floats) -> Floats:
        """Return the activations [n, H]."""
        return np.maximum(x @ self.w1.T + self.b1, 0)


def load_task(name: str, seed: int) -> Task:
    """Return a task: scikit-learn's moons with further inputs of noise, rotated, or its digits.

    Moons have 400 training and 1,000 test examples; 1,000 digits are for training, 797 for tests.
    """
    generator = np.random.default_rng(seed)
    if name == "digits":
        x, y = load_digits(return_X_y=True)
        order = generator.permutation(len(y))
        x, y = (x / 16)[order], y[order]
        return x[:1000], y[:1000], x[1000:], y[1000:]
    d = TASKS[name]
    rotation = np.linalg.qr(generator.normal(size=(d, d)))[0]
    parts: list[Any] = []
    for count in (400, 1000):
        x, y = make_moons(count, noise=0.1, random_state=int(generator.integers(2**31)))
        wide = np.hstack([x, generator.normal(0, 0.3, (count, d - 2))])
        parts += [wide @ rotation, y]
    return tuple(parts)  # type: ignore[return-value]


def train_harder(mode: Kind, task: Task, seed: int, units: int = UNITS, epochs: int = EPOCHS) -> HarderNet:
    """Train one network with Adam on the cross-entropy, as the post trains its own.

    Raises:
        OverflowError: If the kernel's entries overflow float64.
    """
    generator = np.random.default_rng(seed)
    x, y = torch.from_numpy(task[0]), torch.from_numpy(task[1]).long()
    classes = int(y.max()) + 1
    first, last = nn.Linear(x.shape[1], units).double(), nn.Linear(units, classes).double()
    parametrize_linear(first, mode, generator)
    with torch.no_grad():
        first.bias.zero_()
        last.weight.copy_(torch.from_numpy(generator.normal(0, np.sqrt(2.0 / units), (classes, units))))
        last.bias.zero_()
    net = nn.Sequential(first, nn.ReLU(), last)
    adam, loss = torch.optim.Adam(net.parameters(), lr=RATE), nn.CrossEntropyLoss()
    for _ in range(epochs):
        for batch in torch.from_numpy(generator.permutation(len(x))).split(BATCH):
            adam.zero_grad()
            loss(net(x[batch]), y[batch]).backward()
            adam.step()
    tensors = (first.weight, first.bias, last.weight, last.bias)
    return HarderNet(*(t.detach().numpy().copy() for t in tensors))


def compare_removals(net: HarderNet, task: Task, seed: int) -> dict[str, Any]:
    """Return test accuracy, tails, and the points lost at 75 % of the tail by every criterion."""
    x, _, test, labels = task
    rows = np.column_stack([net.w1, net.b1])
    tail = tail_partition(rows)
    whole, h = np.arange(len(net.b1)), len(net.b1)
    accuracy = _accuracy(net, test, labels, net.w2, net.b2, whole)
    result: dict[str, Any] = {
        "accuracy": accuracy,
        "tail": len(tail.tail),
        "exact tail": len(tail_partition(rows, exact=True).tail),
    }
    count = round(SHARE * len(tail.tail))
    generator = np.random.default_rng(seed)
    with np.errstate(over="ignore", invalid="ignore"):  # entries of the exponential kernel reach 1e300
        sensitivity = np.linalg.norm(net.w1, axis=1) * np.linalg.norm(net.w2, axis=0)
        hidden = net.hidden(x)
        centred = hidden - hidden.mean(0)
        gram = torch.from_numpy(centred.T @ centred / len(x))
    if not count or not bool(gram.isfinite().all()):
        return result
    sets: dict[str, list[Ints]] = {
        "index": [tail.removal_order("index")[:count]],
        "most-windows": [tail.removal_order("most-windows")[:count]],
        "random": [generator.choice(h, size=count, replace=False) for _ in range(DRAWS)],
        "sensitivity": [np.argsort(sensitivity, kind="stable")[:count]],
        "basis of activations": [np.setdiff1d(whole, _basis(gram, h - count))],
    }
    for name, drawn in sets.items():
        kept = [np.setdiff1d(whole, gone) for gone in drawn]
        plain = [_accuracy(net, test, labels, net.w2[:, k], net.b2, k) for k in kept]
        folded = [_accuracy(net, test, labels, *_fold(net, hidden, k), k) for k in kept]
        result[name] = 100 * (float(np.mean(plain)) - accuracy)
        result[f"{name} + fold"] = 100 * (float(np.mean(folded)) - accuracy)
    return result


def _basis(gram: torch.Tensor, count: int) -> Ints:
    return activation_basis(gram, count=count).order.cpu().numpy()


def _fold(net: HarderNet, hidden: Floats, keep: Ints) -> tuple[Floats, Floats]:
    """Return readers of the kept units that give the whole logits best on the training data, with a ridge."""
    means = hidden.mean(0)
    z = hidden[:, keep] - means[keep]
    target = (hidden - means) @ net.w2.T
    scale = RIDGE * max(float((z**2).sum()) / max(len(keep), 1), 1e-300)
    solved = np.linalg.solve(z.T @ z + scale * np.eye(len(keep)), z.T @ target)
    return solved.T, net.b2 + means @ net.w2.T - means[keep] @ solved


def _accuracy(net: HarderNet, x: Floats, y: Ints, w2: Floats, b2: Floats, keep: Ints) -> float:
    return float(np.mean((net.hidden(x)[:, keep] @ w2.T + b2).argmax(1) == y))


def harder_row(task: str, mode: Kind, seed: int, epochs: int = EPOCHS) -> dict[str, Any]:
    """Return the row of one network; its accuracy is missing where the kernel overflows."""
    common = {"part": HARDER, "task": task, "mode": mode, "seed": seed}
    data = load_task(task, seed)
    try:
        net = train_harder(mode, data, seed, epochs=epochs)
    except OverflowError:
        return common
    return common | compare_removals(net, data, seed)
