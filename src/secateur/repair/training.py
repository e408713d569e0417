"""The course of a training: a step and what it changes, when the training ends, and the learning rate."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sized
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from secateur.apply.mask import zero_weights
from secateur.core import InputError
from secateur.execution import tensors_of
from secateur.statistics.loss import check_loss

__all__ = ["Limits", "TrainingState", "learning_rate"]

WARM_UP = 0.05  # of the training
LEAST = 0.1  # of the learning rate, at the first step
LARGEST_NORM = 1.0  # of the gradient


@dataclass(eq=False)
class TrainingState:
    """What changes during a training.

    Attributes:
        model: The model in training.
        masked: Its masked weights, with True where they are gone.
        optimizer: Its optimiser.
        scheduler: What sets the learning rate, or None if it is constant.
        batches: The batches.  Those that draw from a generator of their own draw the same after a resumption.
        losses: Loss at each step so far.
        epoch: Number of the current epoch, from 1.
        batch: Batches of this epoch that are done.
        seconds: Time that earlier runs took.
    """

    model: nn.Module
    masked: list[tuple[nn.Parameter, Tensor]]
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler | None
    batches: Any
    losses: list[float] = field(default_factory=list)
    epoch: int = 1
    batch: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        """Start the clock and note the generators."""
        self._started = time.perf_counter()
        self._resumed: dict[str, Any] | None = None
        self.epoch_start = self._generators()

    def elapsed(self) -> float:
        """Return the seconds of this and earlier runs."""
        return self.seconds + time.perf_counter() - self._started

    def take_step(self, loss: Tensor) -> None:
        """Take an optimiser step on a loss; masked weights stay zero.

        Raises:
            InputError: If the loss or the gradient is not finite, or the optimiser fails.
        """
        number = len(self.losses) + 1
        _check_value(loss, number)
        self.optimizer.zero_grad()
        loss.backward()
        _zero_gradients(self.masked)
        if self.scheduler is not None:
            _clip(self.optimizer, number)
        try:
            self.optimizer.step()
        except RuntimeError as error:
            if "overflow" not in str(error):
                raise
            message = f"{type(self.optimizer).__name__} fails at step {number}: {error}"
            raise InputError(f"{message}; a smaller lr may help") from error
        zero_weights(self.masked)
        self.losses.append(float(loss.detach()))
        self.batch += 1
        if self.scheduler is not None:
            self.scheduler.step()

    def begin_epoch(self) -> None:
        """Note the generators; after a resumption set them as they were when the epoch began."""
        if self._resumed is None:
            self.epoch_start = self._generators()
        else:
            self._set_generators(self.epoch_start)

    def continue_epoch(self) -> None:
        """After a resumption, set the generators as they were; the done batches have been skipped."""
        if self._resumed is not None:
            self._set_generators(self._resumed)
            self._resumed = None

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumption needs."""
        return {
            "tensors": tensors_of(self.model),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "losses": self.losses,
            "epoch": self.epoch,
            "batch": self.batch,
            "seconds": self.elapsed(),
            "epoch start": self.epoch_start,
            "generators": self._generators(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a saved state."""
        with torch.no_grad():
            for name, tensor in tensors_of(self.model).items():
                tensor.copy_(state["tensors"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.losses = list(state["losses"])
        self.epoch, self.batch, self.seconds = state["epoch"], state["batch"], state["seconds"]
        self.epoch_start, self._resumed = state["epoch start"], state["generators"]

    def _devices(self) -> list[torch.device]:
        return sorted({p.device for p in self.model.parameters() if p.device.type == "cuda"}, key=str)

    def _own_generators(self) -> list[torch.Generator]:
        """Return the generators of the batches: those of a DataLoader and its sampler, or an attribute."""
        owners = (self.batches, getattr(self.batches, "sampler", None))
        found = {
            id(g): g
            for owner in owners
            if isinstance(g := getattr(owner, "generator", None), torch.Generator)
        }
        return list(found.values())

    def _generators(self) -> dict[str, Any]:
        return {
            "cpu": torch.get_rng_state(),
            "cuda": [torch.cuda.get_rng_state(device) for device in self._devices()],
            "batches": [generator.get_state() for generator in self._own_generators()],
        }

    def _set_generators(self, states: Mapping[str, Any]) -> None:
        torch.set_rng_state(states["cpu"])
        for device, state in zip(self._devices(), states["cuda"], strict=True):
            torch.cuda.set_rng_state(state, device)
        for generator, state in zip(self._own_generators(), states["batches"], strict=True):
            generator.set_state(state)


def _check_value(loss: Any, step: int) -> None:
    check_loss(loss)
    if not math.isfinite(float(loss.detach())):
        raise InputError(
            f"the loss is {float(loss.detach())} at step {step}; a smaller lr may help, or look for NaN in "
            "the weights"
        )


@torch.no_grad()
def _zero_gradients(masked: list[tuple[nn.Parameter, Tensor]]) -> None:
    # An optimiser's momentum must not gather for weights that a later mask lets train again.
    for weight, gone in masked:
        if weight.grad is not None and weight.grad.is_sparse:
            weight.grad = weight.grad.to_dense()
        if weight.grad is not None:
            weight.grad.masked_fill_(gone, 0)


def _clip(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Clip the gradient to norm 1."""
    used = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if any(p.grad.is_sparse for p in used):
        raise InputError(
            "AdamW takes no sparse gradients: pass optimizer=, or an Embedding without sparse=True"
        )
    norm = get_total_norm([p.grad for p in used])
    if not norm.isfinite():
        raise InputError(
            f"the gradient is {float(norm)} at step {step}, though the loss is finite: look "
            "for a square root or a division by a number near zero in the model or the loss"
        )
    clip_grads_with_norm_(used, LARGEST_NORM, norm)


@dataclass(frozen=True)
class Limits:
    """When a training ends: at the first of its limits; after one epoch if there is none.

    Attributes:
        epochs: Passes over the batches.
        steps: Optimiser steps.
        minutes: Minutes.
    """

    epochs: int | None = None
    steps: int | None = None
    minutes: float | None = None

    def last_epoch(self) -> float:
        """Return the number of the last epoch; infinite if steps or minutes are the limit."""
        unlimited = self.steps is not None or self.minutes is not None
        return self.epochs or (math.inf if unlimited else 1)

    def reached(self, state: TrainingState) -> bool:
        """Return whether the steps or the minutes are over."""
        steps = len(state.losses)
        late = self.minutes is not None and steps > 0 and state.elapsed() >= 60 * self.minutes
        return late or steps == self.steps

    def total(self, batches: Any) -> int | None:
        """Return the number of steps; None if only the clock knows, or the batches have no length."""
        if self.steps is not None:
            return self.steps
        try:
            each = len(batches) if isinstance(batches, Sized) else None
        except TypeError:  # a DataLoader over a stream
            each = None
        last = self.last_epoch()
        return None if each is None or last == math.inf else int(last) * each

    def share(self, state: TrainingState) -> float:
        """Return the share of the training that is done in the middle of the next step, at most 1."""
        total = self.total(state.batches)
        by_steps = (len(state.losses) + 0.5) / total if total else 0.0
        by_time = state.elapsed() / (60 * self.minutes) if self.minutes is not None else 0.0
        return min(1.0, max(by_steps, by_time))


def learning_rate(share: float) -> float:
    """Return the learning rate at a share of the training, as a share of the largest."""
    if share < WARM_UP:
        return LEAST + (1 - LEAST) * share / WARM_UP
    return 0.5 + 0.5 * math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP))
