"""How good a model is, and how far its outputs are from the original's: metrics and agreement.

A metric is a name ("accuracy", "log_likelihood", "perplexity", "agreement") or any callable
(model, batches) -> float.  Everything runs on the device and in the dtype of the model; sums are taken in
float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map

from secateur.batches import IGNORED, own_tokens
from secateur.core import InputError, unknown
from secateur.execution import call, evaluating, read_batches
from secateur.outputs import floating_outputs, is_cache, logits
from secateur.statistics.loss import class_axis, class_scores
from secateur.views import as_returned_by

__all__ = [
    "METRICS",
    "Agreement",
    "Metric",
    "accuracy",
    "agreement",
    "distance_from",
    "evaluate",
    "log_likelihood",
    "metric_named",
    "more_is_better",
    "perplexity",
]

Metric = Callable[[nn.Module, Iterable[Any]], float]


def accuracy(model: nn.Module, batches: Iterable[Any]) -> float:
    """Return the share of targets whose class has the highest score; targets of -100 do not count.

    Raises:
        InputError: If the targets are not class numbers, or there are none.

    Example:
        >>> model = nn.Identity()
        >>> accuracy(model, [(torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0]))])
        0.5
    """
    right = total = 0
    for scores, targets in _scores_and_targets("accuracy", model, batches):
        counted = targets != IGNORED
        hits = scores.argmax(class_axis(scores, targets)) == targets
        right += int((hits & counted).sum())
        total += int(counted.sum())
    return right / _not_empty(total)


def log_likelihood(model: nn.Module, batches: Iterable[Any]) -> float:
    """Return the mean natural-log likelihood of the targets; targets of -100 do not count.

    For a language model, ``targets[b, t]`` is the token that ``scores[b, t]`` predicts.  Without targets,
    each token of a bare tensor [batch, time], or of the ``input_ids`` of a causal language model, predicts
    the next one.

    Raises:
        InputError: If the targets are not class numbers, or there are none.

    Example:
        >>> batch = (torch.zeros(3, 5, 7), torch.ones(3, 5, dtype=torch.long))
        >>> round(log_likelihood(nn.Identity(), [batch]) + math.log(7), 6)
        0.0
    """
    summed, total = 0.0, 0
    for scores, targets in _scores_and_targets("log_likelihood", model, batches, language=True):
        moved = scores.movedim(class_axis(scores, targets), -1)
        wide = moved.reshape(-1, moved.shape[-1]).to(torch.promote_types(moved.dtype, torch.float32))
        losses = functional.cross_entropy(wide, targets.reshape(-1), ignore_index=IGNORED, reduction="none")
        summed -= float(losses.double().sum())
        total += int((targets != IGNORED).sum())
    return summed / _not_empty(total)


def perplexity(model: nn.Module, batches: Iterable[Any]) -> float:
    """Return exp(-`log_likelihood`).  Less is better: a tolerance needs `log_likelihood` instead."""
    return math.exp(-log_likelihood(model, batches))


METRICS: dict[str, Metric] = {"accuracy": accuracy, "log_likelihood": log_likelihood}  # more is better
NAMES = (*METRICS, "perplexity", "agreement")


def metric_named(metric: str | Metric, original: nn.Module | None = None) -> tuple[str, Metric]:
    """Return the name and the function of a metric that is given by name or as a callable.

    Args:
        metric: "accuracy", "log_likelihood", "perplexity", "agreement", or a callable
            (model, batches) -> float.
        original: The model that "agreement" compares with.  The metric is then the share of positions where
            both models give the same class the highest score; if the outputs are not the scores of
            classes, it is 1 minus `distance_from`.  It needs no targets.

    Raises:
        InputError: If the name is unknown.

    Example:
        >>> model = nn.Linear(3, 4)
        >>> name, function = metric_named("agreement", original=model)
        >>> name, function(model, [torch.ones(2, 3)])
        ('agreement', 1.0)
    """
    if callable(metric):
        return getattr(metric, "__name__", type(metric).__name__), metric
    if not isinstance(metric, str) or metric not in NAMES:
        raise InputError(unknown("metric", str(metric), NAMES))
    if metric != "agreement":
        return metric, {**METRICS, "perplexity": perplexity}[metric]

    def agree(model: nn.Module, batches: Iterable[Any]) -> float:
        if original is None:
            raise InputError("the metric 'agreement' compares with the original model: pass original=")
        batches = batches if isinstance(batches, list) else list(batches)
        same = agreement(original, model, batches).top1
        return 1 - distance_from(original, batches)(model) if same is None else same

    return metric, agree


def more_is_better(metric: str | Metric) -> bool:
    """Return whether a larger value of a metric is better: true for all but the perplexity."""
    return metric not in ("perplexity", perplexity)


def evaluate(
    model: nn.Module,
    batches: Iterable[Any],
    metric: str | Metric = "accuracy",
    original: nn.Module | None = None,
) -> float:
    """Return a metric of a model.

    Args:
        model: The model.
        batches: What the metric is taken on.
        metric: As for `metric_named`.
        original: The model that "agreement" compares with.

    Raises:
        InputError: If the metric is unknown, or is not a finite number on these batches.
    """
    name, function = metric_named(metric, original)
    with torch.no_grad():
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
    """How far a model's outputs are from the original's, on the same inputs.

    Attributes:
        top1: Share of positions where both give the same class the highest score; None if the outputs are not
            the scores of two or more classes.
        largest: Largest absolute difference over all floating outputs.
        relative: Largest difference of an output over its largest absolute value in the original; of several
            outputs, the largest of these ratios.
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
    axis: int | None = None,
) -> Agreement:
    """Compare all floating outputs of two models on the inputs of batches.

    The scores of classes are the output that is named ``logits``, or the only one, or the first one if the
    targets are class numbers.  Targets are not needed.

    Args:
        original: The model to compare with.
        model: The other model.
        batches: Batches with or without targets.
        kwargs: Keyword arguments for every call.
        axis: Axis of the scores that runs over classes.  By default the one that the targets do not have;
            without targets axis 1 if there are four axes or more, else the last.

    Raises:
        InputError: If the outputs differ in shape or number, or have NaN.

    Example:
        >>> a = nn.Linear(3, 4)
        >>> agreement(a, a, [torch.ones(2, 3)])
        Agreement(top1=1.0, largest=0.0, relative=0.0, examples=2)
    """
    same = examples = 0
    classes = True
    largest: list[float] = []
    scales: list[float] = []
    with evaluating(original), evaluating(model):
        for _, args, named, targets in read_batches(batches, original):
            outputs = [call(m, args, {**named, **(kwargs or {})}) for m in (original, model)]
            outputs[0] = as_returned_by(model, outputs[0])
            wanted, given = (_comparable(output) for output in outputs)
            _check_shapes(wanted, given)
            largest = _maxima(largest, [a - b for a, b in zip(wanted, given, strict=True)])
            scales = _maxima(scales, wanted)
            tops = [_top_classes(output, targets, axis) for output in outputs]
            if tops[0] is None or tops[1] is None:
                classes = False
                examples += len(wanted[0]) if wanted[0].ndim else 1
                continue
            same += int((tops[0] == tops[1]).sum())
            examples += tops[0].numel()
    relative = max(far / scale if scale else far for far, scale in zip(largest, scales, strict=True))
    return Agreement(same / _not_empty(examples) if classes else None, max(largest), relative, examples)


def _maxima(before: list[float], tensors: list[Tensor]) -> list[float]:
    """Return the largest absolute value of each tensor or the one before, whichever is larger."""
    now = [float(x.abs().max()) if x.numel() else 0.0 for x in tensors]
    return [max(a, b) for a, b in zip(before or now, now, strict=True)]


def _top_classes(output: Any, targets: Any, axis: int | None) -> Tensor | None:
    """Return the class with the highest score at each position; None if no output has scores."""
    selected, outputs = class_scores(output, targets), floating_outputs(output)
    if selected is None and targets is None and len(outputs) == 1 and outputs[0].ndim:
        selected = outputs[0], 1 if outputs[0].ndim > 3 else -1
    if selected is None:
        return None
    scores, axis = selected[0], selected[1] if axis is None else axis
    return scores.argmax(axis).cpu() if scores.shape[axis] > 1 else None


def distance_from(original: nn.Module, batches: Iterable[Any]) -> Callable[[nn.Module], float]:
    """Return a function that measures how far a model's outputs are from the original's on these batches.

    For each floating output it is the squared difference over the squared output of the original, both summed
    over all batches; of several outputs, the mean.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> distance_from(model, [torch.ones(3, 2)])(model)
        0.0
    """
    batches = list(batches)
    wanted = [_on_cpu(output) for output in _outputs(original, batches)]

    def distance(model: nn.Module) -> float:
        far: list[list[float]] = []
        sizes: list[list[float]] = []
        for goal, output in zip(wanted, _outputs(model, batches), strict=True):
            a, b = _comparable(as_returned_by(model, goal)), _comparable(output)
            _check_shapes(a, b)
            far.append([_squares(x - y) for x, y in zip(a, b, strict=True)])
            sizes.append([_squares(x) for x in a])
        sums = zip(map(sum, zip(*far, strict=True)), map(sum, zip(*sizes, strict=True)), strict=True)
        relative = [total / (scale or 1.0) for total, scale in sums]
        return sum(relative) / len(relative)

    return distance


def _outputs(model: nn.Module, batches: Iterable[Any]) -> Iterator[Any]:
    with evaluating(model):
        for _, args, kwargs, _ in read_batches(batches, model):
            yield call(model, args, kwargs)


def _on_cpu(output: Any) -> Any:
    """Return an output on the CPU; caches, which are not compared, stay where they are."""
    _comparable(output)  # reports NaN early
    return tree_map(lambda x: x.cpu() if isinstance(x, Tensor) else x, output, is_leaf=is_cache)


def _comparable(output: Any) -> list[Tensor]:
    """Return the floating outputs on the CPU, in float32 or wider."""
    tensors = [x.cpu().to(torch.promote_types(x.dtype, torch.float32)) for x in floating_outputs(output)]
    for x in tensors:
        _check_nan(x)
    return tensors


def _check_shapes(a: list[Tensor], b: list[Tensor]) -> None:
    shapes = [[tuple(x.shape) for x in tensors] for tensors in (a, b)]
    if shapes[0] != shapes[1]:
        first = next((pair for pair in zip(*shapes, strict=False) if pair[0] != pair[1]), map(len, shapes))
        raise InputError(
            "outputs of shapes {} and {} cannot be compared; if the shapes depend on the data, pass "
            "repair=None and a metric of your own".format(*first)
        )


def _check_nan(x: Tensor) -> None:
    if x.isnan().any():
        raise InputError("the model's outputs have NaN; look for NaN in its weights or in the batches")


def _squares(values: Tensor) -> float:
    return float(values.square().sum(dtype=torch.float64))


def _scores_and_targets(
    metric: str, model: nn.Module, batches: Iterable[Any], language: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    with evaluating(model):
        for where, args, kwargs, targets in read_batches(batches, model):
            if targets is None and language:
                targets = own_tokens(model, args, kwargs)
            _check_class_numbers(metric, where, targets)
            scores = logits(call(model, args, kwargs))
            _check_nan(scores)
            yield scores, targets.long().to(scores.device)


def _check_class_numbers(metric: str, where: str, targets: Any) -> None:
    if isinstance(targets, Tensor) and not (targets.is_floating_point() or targets.is_complex()):
        return
    given = f"targets of type {targets.dtype if isinstance(targets, Tensor) else type(targets).__name__}"
    raise InputError(
        f"{metric} needs class numbers (integers), and {where} has "
        f"{'no targets' if targets is None else given}: a batch is (inputs, targets) or a mapping with "
        "'labels'. The metric 'agreement' needs no targets; a callable (model, batches) -> float may be given"
    )


def _not_empty(total: int) -> int:
    if not total:
        raise InputError("there is nothing to measure: every target is -100, or the outputs are empty")
    return total
