"""Fine-tuning: a short, seeded training that keeps masked weights at zero, with labels or with a teacher."""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.apply.mask import masked_weights, zero_weights
from secateur.batches import split_batch
from secateur.core import InputError
from secateur.execution import call, check_seed, duplicate, evaluating, explain_errors, read_batches
from secateur.repair.base import check_training
from secateur.statistics.loss import Loss, check_loss, default_loss, distillation_loss

__all__ = ["AfterEpoch", "History", "adam", "finetune", "have_targets"]

MakeOptimizer = Callable[[list[nn.Parameter], float], torch.optim.Optimizer]
AfterEpoch = Callable[[int, nn.Module], Mapping[str, Any] | None]


@dataclass(frozen=True)
class History:
    """What a fine-tuning did.

    Attributes:
        losses: Training loss at each step.
        lr: Learning rate.
        seed: Seed of dropout and of loaders that draw from torch's generators.
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
    teacher: nn.Module | None = None,
    optimizer: MakeOptimizer = adam,
    after_epoch: AfterEpoch | None = None,
    seed: int = 0,
    progress: bool = True,
) -> tuple[nn.Module, History]:
    """Train a copy of a model for a few epochs or steps; masked weights stay exactly zero throughout.

    With a teacher, usually the model before pruning, the copy learns to give the teacher's outputs and needs
    no labels (`secateur.statistics.loss.distillation_loss`).  Weights in float16 or bfloat16 are trained in
    float32 and converted back.

    A masked weight is zero before the first step, gets no gradient, and is set to zero after each step, so
    neither momentum nor weight decay can change it.  A model in evaluation mode is trained in training mode;
    one in training mode keeps the mode of each of its modules (for instance frozen BatchNorm).  The
    copy ends in the modes of the model.

    Args:
        model: The model; it is not changed.
        batches: Batches as in `secateur.batches`; iterated once an epoch.
        epochs: Passes over the batches (1, if `steps` is not given either).
        steps: Optimiser steps, instead of `epochs`.
        lr: Learning rate.
        masks: Weight name -> boolean array of its shape, True where the weight stays.
        loss: Callable (output, targets) -> scalar tensor; by default the cross-entropy for class numbers and
            the mean squared error for floating targets.
        teacher: Model whose outputs are the targets, in evaluation mode; it is not changed.
        optimizer: Callable (parameters, lr) -> optimiser.
        after_epoch: Called after each epoch with its number, from 1, and the model in training, which it may
            change in place.  It may return masks, which replace the current ones.
        seed: Seed of torch's generators during the training; they are restored afterwards.
        progress: Whether to show a progress bar on a terminal's standard error.

    Returns:
        The trained copy, and what happened.

    Raises:
        InputError: If an argument is invalid, a batch has no targets and there is no teacher, or the loss is
            not finite.
        PlanError: If masks do not fit the model.

    Example:
        >>> data = [(torch.eye(3), torch.arange(3))]
        >>> keep = torch.tensor([[True, False, True]] * 3)
        >>> model, history = finetune(nn.Linear(3, 3), data, steps=5, masks={"weight": keep}, progress=False)
        >>> model.weight[:, 1].abs().max().item(), len(history.losses)
        (0.0, 5)
    """
    epochs = _check_arguments(epochs, steps, lr, loss, teacher, seed)
    tuned = duplicate(model)
    trained = [p for p in tuned.parameters() if p.requires_grad]
    if not trained:
        raise InputError("no parameter requires a gradient: there is nothing to train")
    data = list(batches) if isinstance(batches, Iterator) else batches
    start, losses = time.perf_counter(), list[float]()
    masked = masked_weights(tuned, masks or {})
    zero_weights(masked)

    def finish_epoch(epoch: int) -> None:
        nonlocal masked
        new = None if after_epoch is None else after_epoch(epoch, tuned)
        if new is not None:
            masked = masked_weights(tuned, new)
            zero_weights(masked)

    with ExitStack() as stack:
        if teacher is not None:
            stack.enter_context(evaluating(teacher))
        for context in (_training(tuned), _in_float32(tuned), _seeded(tuned, seed)):
            stack.enter_context(context)
        advance = stack.enter_context(_bar(progress, _total(data, epochs, steps)))
        rule = optimizer(trained, lr)
        for where, args, kwargs, targets in _stream(data, tuned, epochs, steps, finish_epoch):
            value = _loss(where, call(tuned, args, kwargs), targets, loss, teacher, (args, kwargs))
            _check_value(value, len(losses) + 1)
            rule.zero_grad()
            value.backward()
            _zero_gradients(masked)
            rule.step()
            zero_weights(masked)
            losses.append(float(value.detach()))
            advance(losses[-1])
    return tuned, History(tuple(losses), lr, seed, time.perf_counter() - start)


def have_targets(batches: Iterable[Any], model: nn.Module) -> bool:
    """Return whether the first batch has targets."""
    return split_batch(next(iter(batches), (None,)), model)[2] is not None


def _check_arguments(
    epochs: int | None, steps: int | None, lr: float, loss: Any, teacher: Any, seed: int
) -> int | None:
    """Return the number of epochs, or None if steps are given."""
    if epochs is not None and steps is not None:
        raise InputError("give epochs or steps, not both")
    epochs = 1 if epochs is None and steps is None else epochs
    check_training(epochs if steps is None else steps, lr)
    check_seed(seed)
    if teacher is not None and not isinstance(teacher, nn.Module):
        raise InputError(f"teacher must be a torch.nn.Module; got {type(teacher).__name__}")
    if teacher is not None and loss is not None:
        raise InputError("a teacher brings its own loss: give loss= or teacher=, not both")
    return epochs


def _stream(
    data: Iterable[Any],
    model: nn.Module,
    epochs: int | None,
    steps: int | None,
    finish_epoch: Callable[[int], None],
) -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any], Any]]:
    """Yield the batches of all epochs, or as many as there are steps."""
    step = 0
    for epoch in itertools.count(1):
        for batch in read_batches(data, model):
            yield batch
            step += 1
            if step == steps:
                return
        finish_epoch(epoch)
        if epoch == epochs:
            return


def _loss(
    where: str, output: Any, targets: Any, loss: Loss | None, teacher: nn.Module | None, inputs: Any
) -> torch.Tensor:
    if loss is not None:
        with explain_errors(where, *inputs):
            return loss(output, targets)
    if teacher is not None:
        with torch.no_grad():
            wanted = call(teacher, *inputs)
        return distillation_loss(output, wanted, targets)
    if targets is None:
        raise InputError(
            f"{where} has no targets: pass teacher=the original model, to learn its outputs, or loss="
        )
    return default_loss(output, targets)


def _check_value(value: Any, step: int) -> None:
    check_loss(value)
    if not math.isfinite(float(value.detach())):
        raise InputError(
            f"the loss is {float(value.detach())} at step {step}; a smaller lr may help, or look for NaN in "
            "the weights"
        )


@torch.no_grad()
def _zero_gradients(masked: list[tuple[nn.Parameter, torch.Tensor]]) -> None:
    # An optimiser's momentum must not gather for weights that a later mask lets train again.
    for weight, gone in masked:
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
def _in_float32(model: nn.Module) -> Iterator[None]:
    """Convert half-precision tensors to float32 and back: small steps would be rounded away."""
    tensors = [*model.parameters(), *model.buffers()]
    halves = [(x, x.dtype) for x in tensors if x.dtype in (torch.float16, torch.bfloat16)]
    for x, _ in halves:
        x.data = x.data.float()
    yield
    for x, dtype in halves:
        x.grad = None
        x.data = x.data.to(dtype)


@contextmanager
def _seeded(model: nn.Module, seed: int) -> Iterator[None]:
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices, key=str)):
        torch.manual_seed(seed)
        yield


@contextmanager
def _bar(shown: bool, total: int | None) -> Iterator[Callable[[float], None]]:
    if not (shown and sys.stderr.isatty()):
        yield lambda loss: None
        return
    from rich.console import Console  # takes a while to import
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("fine-tuning", total=total)
        yield lambda loss: bar.update(task, advance=1, description=f"fine-tuning, loss {loss:.3g}")
