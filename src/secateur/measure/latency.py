"""Latency: how long a forward pass takes; several models are measured in alternation.

The speed of a machine drifts, so a ratio of two medians is only meaningful if both models saw the same drift.
Each round therefore times every model once, in a random order, and each for the same time: on a busy machine
the processor is taken away every few milliseconds, which short measurements escape and long ones do not.
"""

from __future__ import annotations

import platform
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from secateur.core import InputError, brief
from secateur.execution import call, device_of, evaluating, to_model

__all__ = [
    "Timing",
    "check_sizes",
    "describe_latency",
    "latency",
    "resize_batch",
    "time_in_turn",
    "timed",
    "try_sizes",
    "using_threads",
]

Run = Callable[[int], float]
Key = TypeVar("Key")
SHORTEST = 2e-3


@dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of one forward pass.

    Attributes:
        batch_size: Examples in the batch.
        median: Median over the repeats.
        lower: First quartile.
        upper: Third quartile.
        repeats: Measurements taken, alternating with the other models.
        threads: Threads that torch used within an operation.
        device: Type and name of the device.
        speedup: How many times as fast as the first model: the median of the rounds' ratios.  None in reports
            of older versions.
        spread: Distance between the quartiles of these ratios, relative to their median.
    """

    batch_size: int
    median: float
    lower: float
    upper: float
    repeats: int
    threads: int
    device: str
    speedup: float | None = None
    spread: float | None = None


def latency(
    models: Mapping[str, nn.Module],
    inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    batch_sizes: Sequence[int] = (1, 64),
    batch_axis: int = 0,
    repeats: int = 30,
    warmup: int = 3,
    threads: int | None = None,
    limit: float | None = None,
    shortest: float = SHORTEST,
    seed: int = 0,
) -> dict[str, tuple[Timing, ...]]:
    """Measure models in alternation: each round times every model once, in a random order.

    A measurement lasts two milliseconds or one pass of the slowest model, whichever is longer; faster models
    run several times in it.

    Args:
        models: Models by name, on one device.
        inputs: Example inputs, a tensor or a sequence of positional arguments, whose first tensor has
            its batch on `batch_axis`.  Every tensor of that length on that axis is repeated or cut.
        kwargs: Example keyword arguments, resized in the same way.
        batch_sizes: Batch sizes to measure.
        batch_axis: Axis of the batch.
        repeats: Measurements of each model and batch size.
        warmup: Passes before them that do not count.
        threads: Threads within an operation; by default torch's setting.
        limit: Seconds after which a batch size gets no further round, but at least five; `Timing.repeats`
            says how many there were.
        shortest: Seconds that a measurement lasts at least.
        seed: Seed of the order.

    Returns:
        By model name, one `Timing` for each batch size.

    Raises:
        InputError: If an argument is invalid, or a model cannot run on a batch size.
    """
    if not models or repeats < 1 or warmup < 0:
        raise InputError(
            f"latency needs a model and at least one repeat; got {len(models)} models, "
            f"repeats={repeats}, warmup={warmup}"
        )
    check_sizes(batch_sizes, batch_axis)
    arguments = _arguments(inputs, kwargs)
    rows: dict[str, list[Timing]] = {name: [] for name in models}
    with ExitStack() as stack:
        stack.enter_context(using_threads(threads))
        for model in models.values():
            stack.enter_context(evaluating(model))
        for size in batch_sizes:
            resized = resize_batch(arguments, batch_axis, size)
            runs = {name: _run_of(model, *to_model(resized, model)) for name, model in models.items()}
            _try(models, resized, size, batch_axis)
            order = random.Random(seed)
            times = time_in_turn(runs, repeats, warmup, limit, order, shortest=shortest)
            first = times[next(iter(models))]
            for name, model in models.items():
                rows[name].append(_timing(size, times[name], first, device_of(model)))
    return {name: tuple(entries) for name, entries in rows.items()}


def describe_latency(note: Mapping[str, Any]) -> str:
    """Describe what became of a budget of milliseconds, by the note on it in a plan.

    Example:
        >>> times = {"original": 8.0, "target": 4.0, "predicted": 3.9, "measured": 4.1}
        >>> describe_latency({"batch": 1, "holds": True, **times})
        'budget of 4 ms at batch 1: 8 ms before, 4.1 ms after, predicted 3.9 ms'
    """
    values = {key: f"{note[key]:.3g} ms" for key in ("original", "target", "predicted", "measured")}
    text = (
        f"budget of {values['target']} at batch {note['batch']}: {values['original']} before, "
        f"{values['measured']} after, predicted {values['predicted']}"
    )
    return text if note["holds"] else f"{text}; not held: {', '.join(note['in the way'][:3])}"


def try_sizes(
    model: nn.Module,
    inputs: Any,
    kwargs: Mapping[str, Any] | None,
    batch_sizes: Sequence[int],
    batch_axis: int,
) -> None:
    """Run a model once at each batch size; raise `InputError` if it fails."""
    check_sizes(batch_sizes, batch_axis)
    with evaluating(model):
        for size in batch_sizes:
            _try({"": model}, resize_batch(_arguments(inputs, kwargs), batch_axis, size), size, batch_axis)


def check_sizes(batch_sizes: Any, batch_axis: Any) -> None:
    """Raise `InputError` if the batch sizes or the batch axis are invalid."""
    listed = isinstance(batch_sizes, Sequence) and not isinstance(batch_sizes, str)
    if not listed or any(isinstance(x, bool) or not isinstance(x, Integral) or x < 1 for x in batch_sizes):
        raise InputError(
            f"batch_sizes are positive integers, () to measure nothing; got {brief(batch_sizes)}"
        )
    if isinstance(batch_axis, bool) or not isinstance(batch_axis, Integral) or batch_axis < 0:
        raise InputError(f"batch_axis is the number of an axis, from 0; got {brief(batch_axis)}")


def _try(models: Mapping[str, nn.Module], arguments: Any, size: int, axis: int) -> None:
    args, kwargs = arguments
    for model in models.values():
        try:
            call(model, args, kwargs)
        except InputError as error:
            raise InputError(
                f"the latency cannot be measured with {size} examples along axis {axis}: {error}. Choose "
                "other batch_sizes or batch_axis, or measure no latency (batch_sizes=(), --no-latency)"
            ) from error


def _arguments(inputs: Any, kwargs: Mapping[str, Any] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,), dict(kwargs or {}))


def _timing(size: int, times: Sequence[float], first: Sequence[float], device: torch.device) -> Timing:
    lower, median, upper = (float(q) for q in np.quantile(times, (0.25, 0.5, 0.75)))
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    ratios = [a / b for a, b in zip(first, times, strict=True)]
    low, middle, high = (float(q) for q in np.quantile(ratios, (0.25, 0.5, 0.75)))
    threads, where = torch.get_num_threads(), f"{device.type} ({chip})"
    return Timing(size, median, lower, upper, len(times), threads, where, middle, (high - low) / middle)


def _run_of(model: nn.Module, arguments: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Run:
    return timed(partial(model, *arguments, **kwargs), device_of(model))


def timed(function: Callable[[], Any], device: torch.device) -> Run:
    """Return a function that runs another so many times and returns the seconds of one run."""
    synchronize = torch.get_device_module(device).synchronize  # accelerators return before they are done
    wait = partial(synchronize, device) if device.type in ("cuda", "xpu") else synchronize

    def run(number: int) -> float:
        wait()
        start = time.perf_counter()
        for _ in range(number):
            function()
        wait()
        return (time.perf_counter() - start) / number

    return run


def time_in_turn(
    runs: Mapping[Key, Run],
    repeats: int,
    warmup: int,
    limit: float | None,
    order: random.Random,
    *,
    alike: bool = True,
    shortest: float = SHORTEST,
) -> dict[Key, list[float]]:
    """Measure functions in alternation: return the seconds of one run of each, round by round.

    Args:
        runs: What to measure, by any key; see `timed`.
        repeats: Rounds.
        warmup: Runs before them that do not count.
        limit: Seconds after which there is no further round, but at least five.
        order: Generator of the order within each round.
        alike: Whether all are measured for equally long: as long as the slowest run takes.
        shortest: Seconds that a measurement lasts at least.
    """
    single = {name: max(1e-9, min(run(1) for _ in range(warmup + 1))) for name, run in runs.items()}
    lasting = max(shortest, *single.values()) if alike else shortest
    number = {name: max(1, round(lasting / seconds)) for name, seconds in single.items()}
    times: dict[Key, list[float]] = {name: [] for name in runs}
    start, names = time.perf_counter(), list(runs)
    for done in range(repeats):
        if limit is not None and done >= 5 and time.perf_counter() - start > limit:
            break
        order.shuffle(names)
        for name in names:
            times[name].append(runs[name](number[name]))
    return times


def resize_batch(arguments: Any, axis: int, size: int) -> Any:
    """Return inputs with another number of examples: tensors of the batch's length are repeated or cut."""
    have = next((x.shape[axis] for x in _tensors(arguments) if x.dim() > axis), None)
    if not have:
        raise InputError(f"no example input has a batch axis {axis}; pass another batch_axis")
    rows = torch.arange(size) % have

    def resize(x: Any) -> Any:
        if isinstance(x, Tensor):
            fits = x.dim() > axis and x.shape[axis] == have
            return x.index_select(axis, rows.to(x.device)) if fits else x
        if isinstance(x, Mapping):
            return {key: resize(item) for key, item in x.items()}
        return type(x)(map(resize, x)) if isinstance(x, (tuple, list)) else x

    return resize(arguments)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, tuple, list)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)


@contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """Let torch use so many threads within an operation, by default as many as it does."""
    before = torch.get_num_threads()
    torch.set_num_threads(count if count is not None else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
