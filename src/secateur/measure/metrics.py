"""How good a network is, and how far it went from another: metrics and agreement.

A metric is any callable (model, batches) -> float where more is better; batches are pairs
(inputs, targets), with inputs a tensor, a sequence of positional or a mapping of keyword arguments.
Everything runs on the device and in the dtype of the model; sums are kept in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.core import InputError, unknown
from secateur.execution import call, evaluating, logits
from secateur.measure.cost import Cost, cost, macs
from secateur.measure.latency import Latency, latency

Metric = Callable[[nn.Module, Iterable[Any]], float]
IGNORED = -100


def class_axis(scores: Tensor, targets: Tensor) -> int:
    """Return the axis of the scores that runs over classes, as the targets' shape tells it.

    Axis 1 (torch's convention) goes before the last axis (language models).
    """
    shape, wanted = tuple(scores.shape), tuple(targets.shape)
    for axis in (1, len(shape) - 1) if len(shape) > 1 else ():
        if shape[:axis] + shape[axis + 1 :] == wanted and shape[axis] > 1:
            return axis
    raise InputError(
        f"scores of shape {shape} and targets of shape {wanted} do not belong together: targets "
        "must be class numbers and have the scores' shape without its class axis, of 2 or more"
    )


def _classes(scores: Tensor, targets: Tensor) -> int:
    axis = class_axis(scores, targets)
    wrong = targets[((targets < 0) & (targets != IGNORED)) | (targets >= scores.shape[axis])]
    if wrong.numel():
        classes = scores.shape[axis]
        raise InputError(f"targets go from 0 to {classes - 1} for {classes} classes; got {int(wrong[0])}")
    return axis


def accuracy(model: nn.Module, batches: Iterable[Any]) -> float:
    """Return the share of targets whose class has the highest score; targets of -100 do not count.

    Example:
        >>> model = nn.Identity()
        >>> accuracy(model, [(torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0]))])
        0.5
    """
    right = total = 0
    for scores, targets in _scored(model, batches):
        counted = targets != IGNORED
        hits = scores.argmax(_classes(scores, targets)) == targets
        right += int((hits & counted).sum())
        total += int(counted.sum())
    return right / _some(total)


def log_likelihood(model: nn.Module, batches: Iterable[Any]) -> float:
    """Return the mean natural-log likelihood of the targets; targets of -100 do not count.

    For a language model, ``targets[b, t]`` is the token that ``scores[b, t]`` shall predict; a batch may
    also be a bare tensor of tokens [batch, time], each of which shall predict the next.

    Example:
        >>> batch = (torch.zeros(3, 5, 7), torch.ones(3, 5, dtype=torch.long))
        >>> round(log_likelihood(nn.Identity(), [batch]) + math.log(7), 6)
        0.0
    """
    summed, total = 0.0, 0
    for scores, targets in _scored(model, map(_shifted, batches)):
        moved = scores.movedim(_classes(scores, targets), -1)
        wide = moved.reshape(-1, moved.shape[-1]).to(torch.promote_types(moved.dtype, torch.float32))
        losses = functional.cross_entropy(wide, targets.reshape(-1), ignore_index=IGNORED, reduction="none")
        summed -= float(losses.double().sum())
        total += int((targets != IGNORED).sum())
    return summed / _some(total)


def _shifted(batch: Any) -> Any:
    tokens = isinstance(batch, Tensor) and not batch.is_floating_point() and batch.ndim == 2
    return (batch[:, :-1], batch[:, 1:]) if tokens else batch


def perplexity(model: nn.Module, batches: Iterable[Any]) -> float:
    """Return exp(-`log_likelihood`): less is better, so as a metric to hold use `log_likelihood`."""
    return math.exp(-log_likelihood(model, batches))


METRICS: dict[str, Metric] = {"accuracy": accuracy, "log_likelihood": log_likelihood}


def metric_named(metric: str | Metric) -> tuple[str, Metric]:
    """Return the name and the function of a metric that is given by name or as a callable."""
    if callable(metric):
        return getattr(metric, "__name__", type(metric).__name__), metric
    if metric not in METRICS:
        raise InputError(unknown("metric", str(metric), list(METRICS)))
    return metric, METRICS[metric]


def evaluate(model: nn.Module, batches: Iterable[Any], metric: str | Metric = "accuracy") -> float:
    """Return a metric of a model as a finite number, or raise `InputError`."""
    name, function = metric_named(metric)
    given = function(model, batches)
    try:
        value = float(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"the metric {name!r} must return one number; got {type(given).__name__}") from error
    if not math.isfinite(value):
        raise InputError(f"the metric {name!r} is {value}; it must be a finite number")
    return value


@dataclass(frozen=True)
class Agreement:
    """How far a network's outputs are from the original's, on the same inputs.

    Attributes:
        top1: Share of positions where both give the same class the highest score; None where the
            scores have fewer than two classes.
        largest: Largest absolute difference over all outputs.
        relative: `largest` over the largest absolute output of the original.
        examples: Positions compared.
    """

    top1: float | None
    largest: float
    relative: float
    examples: int


def agreement(
    original: nn.Module,
    model: nn.Module,
    batches: Iterable[Any],
    kwargs: Mapping[str, Any] | None = None,
    axis: int = -1,
) -> Agreement:
    """Compare the scores of two models on the inputs of batches; targets, where there are any, are not used.

    Args:
        original: The model to compare with.
        model: The other model.
        batches: Pairs (inputs, targets), or bare inputs where these are a tensor or a mapping.
        kwargs: Keyword arguments for every call.
        axis: Axis of the scores that runs over classes.

    Example:
        >>> a, b = nn.Linear(3, 4), nn.Linear(3, 4)
        >>> agreement(a, a, [torch.ones(2, 3)])
        Agreement(top1=1.0, largest=0.0, relative=0.0, examples=2)
    """
    same = examples = classes = 0
    largest = scale = 0.0
    with evaluating(original), evaluating(model):
        for batch in batches:
            a, b = (_scores(m, batch, kwargs) for m in (original, model))
            if a.shape != b.shape:
                raise InputError(f"outputs of shape {tuple(a.shape)} and {tuple(b.shape)} cannot be compared")
            same += int((a.argmax(axis) == b.argmax(axis)).sum())
            classes = a.shape[axis]
            examples += a.numel() // classes
            largest, scale = max(largest, float((a - b).abs().max())), max(scale, float(a.abs().max()))
    _some(examples)
    top1 = same / examples if classes > 1 else None
    return Agreement(top1, largest, largest / scale if scale else largest, examples)


def distance_from(original: nn.Module, batches: Iterable[Any]) -> Callable[[nn.Module], float]:
    """Return a function that says how far a model's scores are from the original's on these batches.

    It is the squared difference over the squared scores of the original, summed over all batches.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> distance_from(model, [torch.ones(3, 2)])(model)
        0.0
    """
    kept = list(batches)
    with evaluating(original):
        wanted = [_scores(original, batch) for batch in kept]
    scale = sum(map(_squares, wanted))

    def distance(model: nn.Module) -> float:
        with evaluating(model):
            pairs = zip(wanted, kept, strict=True)
            return sum(_squares(a - _scores(model, x)) for a, x in pairs) / (scale or 1.0)

    return distance


def _squares(values: Tensor) -> float:
    return float(values.square().sum(dtype=torch.float64))


def _scores(model: nn.Module, batch: Any, kwargs: Mapping[str, Any] | None = None) -> Tensor:
    inputs = batch if isinstance(batch, (Tensor, Mapping)) else batch[0]
    scores = logits(call(model, inputs, kwargs)).cpu()
    _no_nan(scores)
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def _scored(model: nn.Module, batches: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    with evaluating(model):
        for batch in batches:
            inputs, targets = _pair(batch)
            scores = logits(call(model, inputs))
            _no_nan(scores)
            yield scores, targets.to(scores.device)


def _no_nan(scores: Tensor) -> None:
    if scores.isnan().any():
        raise InputError("the model's outputs hold NaN; look for NaN in its weights or in the batches")


def _pair(batch: Any) -> tuple[Any, Tensor]:
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Tensor)):
        raise InputError(
            f"a batch must be a pair (inputs, targets), with a tensor of targets; got {type(batch).__name__}"
        )
    inputs, targets = batch
    if targets.is_floating_point() or targets.is_complex():
        raise InputError(
            f"this metric needs class numbers (integers) as targets; got {targets.dtype}. "
            "Pass a metric of your own, a callable (model, batches) -> float"
        )
    return inputs, targets.long()


def _some(total: int) -> int:
    if not total:
        raise InputError(
            "there is nothing to measure on: the batches are empty, or an iterator that was "
            "used up (pass a list)"
        )
    return total


__all__ = [
    "METRICS",
    "Agreement",
    "Cost",
    "Latency",
    "Metric",
    "accuracy",
    "agreement",
    "class_axis",
    "cost",
    "distance_from",
    "evaluate",
    "latency",
    "log_likelihood",
    "macs",
    "metric_named",
    "perplexity",
]
