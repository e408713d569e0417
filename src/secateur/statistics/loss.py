"""Losses for users who give none: from the targets, from a teacher, or from random projections of outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.batches import IGNORED
from secateur.core import InputError
from secateur.outputs import floating_outputs, logits, named_logits

__all__ = [
    "Loss",
    "check_loss",
    "class_axis",
    "class_scores",
    "default_loss",
    "distillation_loss",
    "draw_projections",
    "projection_loss",
    "relative_square",
]

Loss = Callable[[Any, Any], Tensor]
BLOCK = 1 << 23  # scores whose logarithms are taken at once


def default_loss(outputs: Any, targets: Any) -> Tensor:
    """Return the loss that the targets ask for.

    Args:
        outputs: A tensor, or an object with `.logits`.
        targets: Class numbers (the cross-entropy; -100 does not count), or floating values of the outputs'
            shape (the mean squared error).

    Raises:
        InputError: If the targets are neither, or a class number is out of range.

    Example:
        >>> default_loss(torch.zeros(2, 1), torch.full((2, 1), 3.0))
        tensor(9.)
    """
    scores = logits(outputs)
    if isinstance(targets, Tensor) and targets.is_floating_point() and targets.shape == scores.shape:
        return F.mse_loss(_widen(scores), _widen(targets))
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.is_complex():
        given = (
            f"{targets.dtype} {tuple(targets.shape)}"
            if isinstance(targets, Tensor)
            else type(targets).__name__
        )
        raise InputError(
            f"no default loss compares outputs of shape {tuple(scores.shape)} with targets ({given}): class "
            "numbers give the cross-entropy, floating values of the outputs' shape the mean squared error; "
            "pass loss=callable(outputs, targets) for others"
        )
    axis = class_axis(scores, targets)
    return F.cross_entropy(_widen(scores).movedim(axis, 1), targets.long(), ignore_index=IGNORED)


def _widen(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def class_axis(scores: Tensor, targets: Tensor) -> int:
    """Return the axis of the scores that runs over classes: the one that the targets do not have.

    It is axis 1, as in torch, or the last one, as in language models [batch, tokens, classes].  If three axes
    allow both, it is the last.

    Raises:
        InputError: If the shapes do not fit, there is one class only, or a target is out of range.
    """
    shape, wanted = tuple(scores.shape), tuple(targets.shape)
    last = len(shape) - 1
    for axis in (last, 1) if len(shape) == 3 else (1, last) if len(shape) > 1 else ():
        if shape[:axis] + shape[axis + 1 :] == wanted and shape[axis] > 1:
            _check_classes(targets, shape[axis])
            return axis
    raise InputError(
        f"scores of shape {shape} and targets of shape {wanted} do not belong together: targets must be "
        "class numbers and have the scores' shape without its class axis, of 2 or more; pass loss= or a "
        "metric of your own for others"
    )


def _check_classes(targets: Tensor, classes: int) -> None:
    # Inside a transform of torch.func no branch may depend on values.
    if torch._C._functorch.is_functorch_wrapped_tensor(targets):
        return
    wrong = targets[(targets >= classes) | ((targets < 0) & (targets != IGNORED))]
    if wrong.numel():
        raise InputError(f"targets go from 0 to {classes - 1} for {classes} classes; got {int(wrong[0])}")


def class_scores(output: Any, targets: Any) -> tuple[Tensor, int] | None:
    """Return the output that holds scores of classes, and its class axis; None if there is none.

    It is the output that is named ``logits``, or the first one if the targets are class numbers.  Without
    such targets the class axis is 1 for four axes or more (images), else the last.
    """
    scores = named_logits(output)
    numbered = isinstance(targets, Tensor) and not targets.is_floating_point()
    if scores is None and numbered:
        scores = floating_outputs(output)[0]
    if scores is None or not scores.ndim:
        return None
    axis = 1 if scores.ndim > 3 else scores.ndim - 1
    if numbered and targets.ndim == scores.ndim - 1:
        axis = class_axis(scores, targets)
    return (scores, axis) if scores.shape[axis] > 1 else None


def distillation_loss(output: Any, wanted: Any, targets: Any = None) -> Tensor:
    """Return how far outputs are from those of a teacher.

    Scores of classes (`class_scores`) give the Kullback-Leibler divergence of the softmax from the teacher's,
    averaged over positions.  Every other floating output gives the mean squared difference over the variance
    of the teacher's.  Several outputs are added up.  A single output without a name and without targets may
    be scores or not, so it gives the sum of both: both are zero where the outputs agree, and a classifier
    learns much faster with the divergence.

    Args:
        output: Output of the model in training.
        wanted: Output of the teacher for the same batch.
        targets: Targets of the batch.  They say which outputs are scores, and positions of -100 do not count.

    Raises:
        InputError: If the outputs differ in number or shape.
    """
    learners, teachers = floating_outputs(output), floating_outputs(wanted)
    shapes = [[tuple(x.shape) for x in tensors] for tensors in (learners, teachers)]
    if shapes[0] != shapes[1]:
        raise InputError(f"the model returns outputs of shapes {shapes[0]}, its teacher {shapes[1]}")
    scores = class_scores(wanted, targets)
    unknown = scores is None and targets is None and len(teachers) == 1 and teachers[0].ndim > 1
    losses = []
    for learner, teacher in zip(learners, teachers, strict=True):
        a, b = _widen(learner), _widen(teacher).to(learner.device)
        if scores is not None and teacher is scores[0]:
            losses.append(_divergence(a, b, scores[1], targets))
        else:
            losses.append(relative_square(a, b))
        if unknown:
            losses.append(_divergence(a, b, 1 if b.ndim > 3 else -1, None))
    return torch.stack(losses).sum()


def relative_square(values: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean squared difference of two tensors over the variance of the wanted one.

    A constant has no variance: there the mean square takes its place, and for zeros 1.

    Example:
        >>> relative_square(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 4.0]))
        tensor(1.)
    """
    a, b = _widen(values), _widen(wanted)
    variance, square = b.var(unbiased=False), b.square().mean()
    scale = torch.where(variance > torch.finfo(b.dtype).eps * square, variance, square)
    return (a - b).square().mean() / torch.where(scale > 0, scale, 1)


def _divergence(scores: Tensor, wanted: Tensor, axis: int, targets: Any) -> Tensor:
    rows = [x.movedim(axis, -1).reshape(-1, x.shape[axis]) for x in (scores, wanted)]
    # With a large vocabulary, the logarithms of all positions would take several times the scores' memory.
    parts = zip(*(x.split(max(1, BLOCK // x.shape[1])) for x in rows), strict=True)
    logs = ((F.log_softmax(x, 1), F.log_softmax(y, 1)) for x, y in parts)
    each = torch.cat([F.kl_div(x, y, reduction="none", log_target=True).sum(1) for x, y in logs])
    each = each.reshape(scores.movedim(axis, -1).shape[:-1])
    if isinstance(targets, Tensor) and targets.shape == each.shape:
        each = each[targets != IGNORED]
    return each.sum() / max(1, each.numel())


def draw_projections(outputs: Any, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Draw random targets for `projection_loss`, which then needs no labels.

    Let f_i be the floating outputs of a model for a batch, divided by their norms, f all of them as one
    vector, J = df/dz its derivative by a gate or a weight z, and r a vector of independent random signs.  The
    projection L = r . f has the derivative r . J, and since E[r r^T] is the identity,

        E[(dL/dz)^2] = E[(r . J)^2] = |J|^2:

    the squared derivative is an unbiased estimate of the squared change of all outputs, to first order in z,
    each output relative to its size.  The signs of different examples are independent, so the same holds
    for the sum of the squares of single examples.

    Args:
        outputs: What the model returned for a batch.
        generator: Draws the signs, on the CPU.

    Returns:
        For each floating output, a tensor of its shape.
    """
    return tuple(
        (torch.randint(2, x.shape, generator=generator) * 2 - 1).to(x)
        / _widen(x).norm().clamp_min(torch.finfo(x.dtype).tiny).to(x.dtype)
        for x in floating_outputs(outputs)
    )


def projection_loss(outputs: Any, targets: Any) -> Tensor:
    """Return the sum of the floating outputs times the targets of `draw_projections`."""
    pairs = zip(floating_outputs(outputs), targets, strict=True)
    return torch.stack([(_widen(x) * _widen(signs)).sum() for x, signs in pairs]).sum()


def check_loss(value: Any) -> None:
    """Raise `InputError` unless a loss is one number that has gradients."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"a loss must be one number for the batch; got {shape}")
    if value.is_complex():
        raise InputError(f"a loss must be a real number; got {value.dtype}: take its .real or its .abs()")
    if not value.requires_grad:
        raise InputError("the loss does not depend on the parameters: it has no gradient")
