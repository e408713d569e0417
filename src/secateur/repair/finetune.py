"""Fine-tuning: a short, seeded training that keeps masked weights at zero, with labels or with a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from secateur.apply.copying import check_plan
from secateur.apply.mask import masked_weights, zero_weights
from secateur.batches import split_batch
from secateur.core import InputError, Interface, Plan
from secateur.execution import (
    all_finite,
    call,
    check_calls,
    check_flags,
    check_module,
    check_seed,
    device_of,
    duplicate,
    evaluating,
    explain_errors,
    one_at_a_time,
    read_batches,
)
from secateur.progress import progress_bar
from secateur.repair.base import LEARNING_RATE, check_training
from secateur.repair.checkpoint import Checkpoint, check_checkpoint, training_settings
from secateur.repair.features import Features, check_features, following
from secateur.repair.training import Limits, TrainingState, learning_rate
from secateur.statistics.loss import Loss, default_loss, distillation_loss
from secateur.views import as_returned_by, view, without_view

__all__ = ["AfterEpoch", "AfterStep", "History", "adam", "finetune", "have_targets"]

MakeOptimizer = Callable[[list[nn.Parameter], float], torch.optim.Optimizer]
AfterEpoch = Callable[[int, nn.Module], Mapping[str, Any] | None]
AfterStep = Callable[[int, float, nn.Module], None]


@dataclass(frozen=True)
class History:
    """What a fine-tuning did.

    Attributes:
        losses: Training loss at each step.
        lr: Learning rate.
        seed: Seed of dropout and of loaders that draw from torch's generators.
        seconds: Time it took.
        features: Modules whose outputs were compared with the teacher's.
    """

    losses: tuple[float, ...]
    lr: float
    seed: int
    seconds: float
    features: tuple[str, ...] = ()


def adam(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Return Adam with a constant learning rate: ``finetune(..., optimizer=adam)``."""
    return torch.optim.Adam(parameters, lr)


@one_at_a_time
def finetune(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    epochs: int | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    lr: float = LEARNING_RATE,
    masks: Mapping[str, Any] | None = None,
    plan: Plan | None = None,
    loss: Loss | None = None,
    teacher: nn.Module | None = None,
    features: Sequence[str] = (),
    optimizer: MakeOptimizer | None = None,
    mixed_precision: bool = True,
    after_epoch: AfterEpoch | None = None,
    after_step: AfterStep | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_steps: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> tuple[nn.Module, History]:
    """Train a copy of a model for some epochs, steps or minutes; masked weights stay exactly zero throughout.

    With a teacher, usually the model before pruning, the copy learns to give the teacher's outputs and needs
    no labels (`secateur.statistics.loss.distillation_loss`).  It trains in evaluation mode, as the teacher
    computes: dropout is off, and BatchNorm keeps its statistics, which small batches would spoil.  If nothing
    has repaired these since the removal, call `secateur.update_bn` first, as `prune` does.

    Without a teacher, a model in evaluation mode is trained in training mode, and one in training mode keeps
    the mode of each of its modules (for instance frozen BatchNorm).  The copy ends in the modes of the model.

    By default AdamW trains.  Its learning rate rises linearly for a twentieth of the training and then falls
    along a cosine to zero; the gradient is clipped to norm 1.  An optimiser of your own is used as it is: it
    brings its own schedule and clipping, if any, by its hooks.  Weights in float16 or bfloat16 are trained in
    float32 and converted back.  On CUDA, layers compute in bfloat16 (`torch.autocast`).

    A masked weight is zero before the first step, gets no gradient, and is set to zero after each step, so
    neither momentum nor weight decay can change it.

    The same seed gives the same weights on the same machine, unless minutes are the limit: then the number of
    steps and the learning rate depend on the clock.

    Args:
        model: The model; it is not changed.
        batches: Batches as in `secateur.batches`; iterated once an epoch.
        epochs: Passes over the batches (1, if nothing else limits the training).
        steps: Optimiser steps, instead of `epochs`.
        minutes: Time limit.
        lr: Largest learning rate.
        masks: Weight name -> boolean array of its shape, True where the weight stays.
        plan: The plan that made the model, if any.  It states which outputs count, and which states in the
            batches shrink.
        loss: Callable (output, targets) -> scalar tensor; by default the cross-entropy for class numbers and
            the mean squared error for floating targets.
        teacher: Model whose outputs are the targets, in evaluation mode; it is not changed.
        features: Names of modules, or patterns such as ``"layer4.*"``, whose outputs should also follow those
            of the same modules of the teacher: the mean of their relative squared differences is added to
            the loss.  A named module must keep its width; a pattern stands for the modules that keep theirs.
        optimizer: Callable (parameters, lr) -> optimiser.
        mixed_precision: Whether to compute in bfloat16 on CUDA.
        after_epoch: Called after each epoch with its number, from 1, and the model in training, which it may
            change in place.  It may return masks, which replace the current ones.
        after_step: Called after each step with its number, from 1, its loss and the model in training.
        checkpoint: File for the state of the training.  If it exists, the training continues from it and ends
            as if it had never stopped; it must be called with the same arguments and batches.
        checkpoint_steps: Steps from one checkpoint to the next; by default it is written every minute.  It is
            always written at the end.
        seed: Seed of torch's generators during the training; they are restored afterwards.
        progress: Whether to show a progress bar on a terminal's standard error.

    Returns:
        The trained copy, and what happened.

    Raises:
        InputError: If an argument is invalid, a batch has no targets and there is no teacher, the loss or
            the weights become infinite or NaN, or the checkpoint is of another training.
        PlanError: If masks do not fit the model.
        StoreError: If the checkpoint is damaged or cannot be written.

    Example:
        >>> data = [(torch.eye(3), torch.arange(3))]
        >>> keep = torch.tensor([[True, False, True]] * 3)
        >>> model, history = finetune(nn.Linear(3, 3), data, steps=5, masks={"weight": keep}, progress=False)
        >>> model.weight[:, 1].abs().max().item(), len(history.losses)
        (0.0, 5)
        >>> small, history = finetune(nn.Linear(3, 3), [torch.eye(3)], teacher=model, progress=False)
    """
    check_module(model)
    check_flags(mixed_precision=mixed_precision, progress=progress)
    if plan is not None:
        check_plan(plan)
    limits = Limits(epochs, steps, minutes)
    features = _check_arguments(limits, lr, loss, teacher, features, seed)
    check_calls(optimizer=optimizer, loss=loss, after_epoch=after_epoch, after_step=after_step)
    check_checkpoint(checkpoint, checkpoint_steps, after_epoch)
    data = list(batches) if isinstance(batches, Iterator) else batches
    interface = Interface() if plan is None else plan.graph.interface
    tuned = duplicate(view(model, interface, plan))
    with ExitStack() as stack:
        if teacher is not None:
            teacher = stack.enter_context(evaluating(view(teacher, interface)))
        for context in (_training(tuned, teacher is not None), _in_float32(tuned), _seeded(tuned, seed)):
            stack.enter_context(context)
        followed = stack.enter_context(following(features, tuned, teacher))
        state = _begin(tuned, masks, data, limits, lr, optimizer)
        file = None
        if checkpoint is not None:
            settings = training_settings(state, limits, lr, seed, loss, teacher, features)
            file = Checkpoint(Path(checkpoint), checkpoint_steps, settings)
            file.resume(state)
        show = stack.enter_context(progress_bar("fine-tuning", 1.0, progress))
        for batch in _stream(state, limits, after_epoch):
            with _autocast(tuned, mixed_precision):
                value = _loss(tuned, batch, loss, teacher, followed)
            state.take_step(value)
            show(limits.share(state), f"loss {state.losses[-1]:.3g}")
            if after_step is not None:
                after_step(len(state.losses), state.losses[-1], tuned)
            if file is not None:
                file.save_if_due(state)
        _check_weights(state, lr)
        if file is not None:
            file.save(state)
    names = () if followed is None else followed.names
    return without_view(tuned), History(tuple(state.losses), lr, seed, state.elapsed(), names)


def have_targets(batches: Iterable[Any], model: nn.Module) -> bool:
    """Return whether the first batch has targets."""
    return split_batch(next(iter(batches), (None,)), model)[2] is not None


def _begin(
    model: nn.Module,
    masks: Mapping[str, Any] | None,
    data: Iterable[Any],
    limits: Limits,
    lr: float,
    optimizer: MakeOptimizer | None,
) -> TrainingState:
    """Zero the masked weights and return the state before the first step."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise InputError("no parameter requires a gradient: there is nothing to train")
    if not isinstance(masks, (Mapping, NoneType)):
        raise InputError(f"masks must map names of weights to masks; got {type(masks).__name__}")
    masked = masked_weights(model, masks or {})
    zero_weights(masked)
    if optimizer is not None:
        return TrainingState(model, masked, _check_optimizer(optimizer(trained, lr)), None, data)
    if limits.total(data) is None and limits.minutes is None:
        raise InputError(
            "the batches have no length, so the number of steps is unknown: give steps= or minutes="
        )
    state = TrainingState(model, masked, torch.optim.AdamW(trained, lr), None, data)
    state.scheduler = LambdaLR(state.optimizer, lambda _: learning_rate(limits.share(state)))
    return state


def _check_optimizer(rule: Any) -> torch.optim.Optimizer:
    if not isinstance(rule, torch.optim.Optimizer) or isinstance(rule, torch.optim.LBFGS):
        raise InputError(
            "optimizer= must return a torch.optim.Optimizer whose step() takes no closure, as in "
            f"lambda parameters, lr: torch.optim.SGD(parameters, lr); got {type(rule).__name__}"
        )
    return rule


def _check_arguments(
    limits: Limits, lr: float, loss: Any, teacher: Any, features: Any, seed: int
) -> tuple[str, ...]:
    """Return the features, or raise `InputError` if an argument is invalid."""
    check_training(limits.epochs, limits.steps, limits.minutes, lr)
    check_seed(seed)
    if teacher is not None:
        check_module(teacher, "teacher")
    if teacher is not None and loss is not None:
        raise InputError("a teacher brings its own loss: give loss= or teacher=, not both")
    return check_features(features, teacher is not None)


def _stream(
    state: TrainingState, limits: Limits, after_epoch: AfterEpoch | None
) -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any], Any]]:
    """Yield the batches that are left, up to the limits."""
    while state.epoch <= limits.last_epoch() and not limits.reached(state):
        state.begin_epoch()
        batches = read_batches(state.batches, state.model)
        for _ in islice(batches, state.batch):  # those before a resumption
            continue
        state.continue_epoch()
        for batch in batches:
            yield batch
            if limits.reached(state):
                return
        masks = None if after_epoch is None else after_epoch(state.epoch, state.model)
        if masks is not None:
            state.masked = masked_weights(state.model, masks)
            zero_weights(state.masked)
        state.epoch, state.batch = state.epoch + 1, 0


def _autocast(model: nn.Module, mixed: bool) -> AbstractContextManager[Any]:
    device = device_of(model).type
    return torch.autocast(device, torch.bfloat16) if mixed and device == "cuda" else nullcontext()


def _loss(
    model: nn.Module,
    batch: tuple[str, tuple[Any, ...], dict[str, Any], Any],
    loss: Loss | None,
    teacher: nn.Module | None,
    followed: Features | None,
) -> torch.Tensor:
    where, args, kwargs, targets = batch
    output = call(model, args, kwargs)
    if loss is not None:
        with explain_errors(where, args, kwargs):
            return loss(output, targets)
    if teacher is not None:
        with torch.no_grad():
            wanted = as_returned_by(model, call(teacher, args, kwargs))
        value = distillation_loss(output, wanted, targets)
        return value if followed is None else value + followed.loss()
    if targets is None:
        raise InputError(
            f"{where} has no targets: pass teacher=the original model, to learn its outputs, or loss="
        )
    return default_loss(output, targets)


def _check_weights(state: TrainingState, lr: float) -> None:
    for name, weight in state.model.named_parameters():
        if weight.requires_grad and not all_finite(weight.detach()):
            raise InputError(
                f"{name!r} has NaN or infinite values after the training; a smaller lr than {lr} may help"
            )


@contextmanager
def _training(model: nn.Module, with_teacher: bool) -> Iterator[None]:
    flags = {module: module.training for module in model.modules()}
    if with_teacher or not model.training:
        model.train(not with_teacher)
    recurrent, cudnn = any(isinstance(m, nn.RNNBase) for m in flags), torch.backends.cudnn.enabled
    try:
        # The recurrent kernels of cuDNN refuse gradients in evaluation mode.
        torch.backends.cudnn.enabled = cudnn and not (with_teacher and recurrent)
        with torch.enable_grad():
            yield
    finally:
        torch.backends.cudnn.enabled = cudnn
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
