"""A short, seeded fine-tuning that keeps masked weights at zero."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from secateur.core import InputError, PlanError, unknown
from secateur.execution import call, check_seed, duplicate, logits
from secateur.repair.base import check_training
from secateur.statistics.loss import Loss, check_loss, default_loss

MakeOptimizer = Callable[[list[nn.Parameter], float], torch.optim.Optimizer]
AfterEpoch = Callable[[int, nn.Module], Mapping[str, Any] | None]


@dataclass(frozen=True)
class History:
    """What a fine-tuning did.

    Attributes:
        losses: Training loss at each step.
        lr: Learning rate.
        seed: Seed of dropout and of whatever draws from torch's generators while batches are made.
        seconds: Time it took.
    """

    losses: tuple[float, ...]
    lr: float
    seed: int
    seconds: float


def adam(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Return the default optimiser."""
    return torch.optim.Adam(parameters, lr)


def finetune(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    epochs: int | None = None,
    steps: int | None = None,
    lr: float = 1e-3,
    masks: Mapping[str, Any] | None = None,
    loss: Loss | None = None,
    optimizer: MakeOptimizer = adam,
    after_epoch: AfterEpoch | None = None,
    seed: int = 0,
    progress: bool = True,
) -> tuple[nn.Module, History]:
    """Train a copy of a model for a few passes or steps; masked weights stay exactly zero throughout.

    A masked weight is zero before the first step, gets no gradient, and is set to zero again after
    each step, so neither momentum nor weight decay nor an optimiser's noise can revive it.  A model
    that comes in evaluation mode is trained in training mode; one that comes in training mode
    keeps the mode of each of its modules (batch norms held fixed, say).  Either gets its modes back.

    Args:
        model: The model; it is not changed.
        batches: Pairs (inputs, targets); iterated once an epoch.
        epochs: Passes over the batches (1, if `steps` is not given either).
        steps: Optimiser steps, instead of `epochs`.
        lr: Learning rate.
        masks: Weight name -> boolean array of its shape, True where the weight stays.
        loss: Callable (output, targets) -> scalar tensor; the cross-entropy of the logits if None.
        optimizer: Callable (parameters, lr) -> optimiser.
        after_epoch: Called after each pass with its number, from 1, and the model that is trained, which it
            may change in place.  Masks that it returns take the place of those so far; None leaves them.
        seed: Seed of torch's generators during the training; they are restored afterwards.
        progress: Whether to show a progress bar on a terminal's standard error.

    Returns:
        The trained copy, and what happened.

    Raises:
        InputError: Arguments that cannot be, or a loss that is not finite.
        PlanError: Masks that do not fit the model.

    Example:
        >>> data = [(torch.eye(3), torch.arange(3))]
        >>> keep = torch.tensor([[True, False, True]] * 3)
        >>> model, history = finetune(nn.Linear(3, 3), data, steps=5, masks={"weight": keep}, progress=False)
        >>> model.weight[:, 1].abs().max().item(), len(history.losses)
        (0.0, 5)
    """
    if epochs is not None and steps is not None:
        raise InputError("give epochs or steps, not both")
    epochs = 1 if epochs is None and steps is None else epochs
    check_training(epochs if steps is None else steps, lr)
    check_seed(seed)
    tuned = duplicate(model)
    trained = [p for p in tuned.parameters() if p.requires_grad]
    if not trained:
        raise InputError("no parameter requires a gradient: there is nothing to train")
    data = list(batches) if iter(batches) is batches else batches
    hold = _Hold(tuned, masks or {})
    rule, start = optimizer(trained, lr), time.perf_counter()
    losses: list[float] = []

    def passed(epoch: int) -> None:
        new = None if after_epoch is None else after_epoch(epoch, tuned)
        if new is not None:
            hold.take(new)

    with _training(tuned), _seeded(tuned, seed), _bar(progress, _total(data, epochs, steps)) as advance:
        for batch in _stream(data, epochs, steps, passed):
            losses.append(_step(tuned, batch, loss or default_loss, rule, hold))
            if not math.isfinite(losses[-1]):
                raise InputError(
                    f"the loss is {losses[-1]} at step {len(losses)}; a smaller lr may help, or "
                    "look for NaN in weights and batches"
                )
            advance()
    return tuned, History(tuple(losses), lr, seed, time.perf_counter() - start)


def _stream(
    data: Iterable[Any], epochs: int | None, steps: int | None, passed: Callable[[int], None]
) -> Iterator[Any]:
    taken = 0
    for epoch in itertools.count(1):
        before = taken
        for batch in data:
            yield batch
            taken += 1
            if taken == steps:
                return
        if taken == before:
            raise InputError("there are no batches to train on")
        passed(epoch)
        if epoch == epochs:
            return


def _step(model: nn.Module, batch: Any, loss: Loss, optimizer: torch.optim.Optimizer, hold: _Hold) -> float:
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        raise InputError(f"a batch must be a pair (inputs, targets); got {type(batch).__name__}")
    inputs, targets = batch
    output = call(model, inputs)
    value = loss(output, targets.to(logits(output).device) if isinstance(targets, Tensor) else targets)
    check_loss(value)
    optimizer.zero_grad()
    value.backward()
    hold.gradients()
    optimizer.step()
    hold.weights()
    return float(value.detach())


class _Hold:
    """Keeps masked weights of one model at zero."""

    def __init__(self, model: nn.Module, masks: Mapping[str, Any]) -> None:
        self.known = dict(model.named_parameters(remove_duplicate=False))
        self.take(masks)

    def take(self, masks: Mapping[str, Any]) -> None:
        """Hold these masks instead of those before."""
        self.gone: list[tuple[nn.Parameter, Tensor]] = []
        for name, mask in masks.items():
            if name not in self.known:
                raise PlanError(unknown("parameter", name, list(self.known)))
            weight = self.known[name]
            stays = torch.as_tensor(np.asarray(mask) if not isinstance(mask, Tensor) else mask)
            if stays.shape != weight.shape or stays.dtype != torch.bool:
                raise PlanError(
                    f"the mask of {name!r} must be boolean of shape {tuple(weight.shape)}; got "
                    f"{stays.dtype} of shape {tuple(stays.shape)}"
                )
            self.gone.append((weight, ~stays.to(weight.device)))
        self.weights()

    @torch.no_grad()
    def weights(self) -> None:
        for weight, gone in self.gone:
            weight.masked_fill_(gone, 0)

    @torch.no_grad()
    def gradients(self) -> None:
        for weight, gone in self.gone:
            if weight.grad is not None:
                weight.grad.masked_fill_(gone, 0)


def _total(data: Iterable[Any], epochs: int | None, steps: int | None) -> int | None:
    if steps is not None:
        return steps
    return len(data) * (epochs or 1) if isinstance(data, Sized) else None


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    flags = {module: module.training for module in model.modules()}
    if not model.training:
        model.train()
    try:
        with torch.enable_grad():
            yield
    finally:
        for module, flag in flags.items():
            module.training = flag
        model.zero_grad()


@contextmanager
def _seeded(model: nn.Module, seed: int) -> Iterator[None]:
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices, key=str)):
        torch.manual_seed(seed)
        yield


@contextmanager
def _bar(shown: bool, total: int | None) -> Iterator[Callable[[], None]]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task("fine-tuning", total=total)
        yield lambda: bar.advance(task)


__all__ = ["AfterEpoch", "History", "adam", "finetune"]
