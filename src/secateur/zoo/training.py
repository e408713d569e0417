"""Training from scratch: Adam with a one-cycle learning rate and seeded orders."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from secateur.core import InputError
from secateur.data import Batch, Dataset
from secateur.measure.metrics import accuracy
from secateur.repair.finetune import finetune

__all__ = ["Shuffled", "Trained", "train"]


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network.

    Attributes:
        model: A new module, in evaluation mode.
        accuracy: On the test part.
        losses: Training loss at each step.
        seconds: Time the training took.
    """

    model: nn.Module
    accuracy: float
    losses: tuple[float, ...]
    seconds: float


@dataclass(frozen=True, eq=False)
class Shuffled:
    """Batches of examples in a new random order at each pass, from one generator."""

    inputs: Tensor
    targets: Tensor
    size: int
    generator: torch.Generator

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self.targets) // self.size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of one pass."""
        order = torch.randperm(len(self.targets), generator=self.generator)
        for at in order.split(self.size):
            yield self.inputs[at], self.targets[at]


def train(
    model: nn.Module,
    data: Dataset,
    epochs: int = 5,
    *,
    lr: float = 3e-3,
    batch_size: int = 128,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Trained:
    """Train a copy of a classifier with Adam, the learning rate rising to `lr` and falling to zero.

    Args:
        model: The network; it is not changed.
        data: Data set; the `train` part is trained on, the `test` part measured once at the end.
        epochs: Passes over the training part.
        lr: Largest learning rate.
        batch_size: Examples in a batch.
        limit: Train on at most this many examples, the first ones.
        seed: Seed of the order of the examples, and of dropout.
        progress: Whether to show a progress bar on a terminal's standard error.

    Raises:
        InputError: If an argument is not positive, or the loss becomes infinite or NaN.

    Example:
        >>> from secateur.data import digits
        >>> from secateur.zoo import mlp
        >>> train(mlp((64, 32, 10)), digits(), epochs=10, lr=1e-2).accuracy > 0.9
        True
    """
    if min(epochs, batch_size, 1 if limit is None else limit) < 1:
        raise InputError(f"epochs, batch_size and limit must be positive; got {epochs, batch_size, limit}")
    start = time.perf_counter()
    inputs, targets = (part[:limit] for part in data.parts["train"])
    batches = Shuffled(inputs, targets, batch_size, torch.Generator().manual_seed(seed))
    steps = epochs * len(batches)

    def optimizer(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        adam = torch.optim.Adam(parameters, lr)
        schedule = OneCycleLR(adam, lr, total_steps=steps + 1, cycle_momentum=False)
        adam.register_step_post_hook(lambda *_: schedule.step())
        return adam

    trained, history = finetune(
        model, batches, epochs=epochs, lr=lr, optimizer=optimizer, seed=seed, progress=progress
    )
    trained.eval()
    score = accuracy(trained, data.batches("test", 1000))
    return Trained(trained, score, history.losses, time.perf_counter() - start)
