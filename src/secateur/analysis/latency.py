"""How long a forward pass takes: models measured against one another, in turn.

The machine's state drifts; a ratio of two medians means something only if both models saw the same
drift.  So each round times every model once, in an order drawn anew.
"""

from __future__ import annotations

import math
import platform
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.core import InputError
from secateur.running import evaluating, place, to_model

Run = Callable[[int], float]


@dataclass(frozen=True)
class Latency:
    """Wall-clock seconds of one forward pass.

    Attributes:
        batch_size: Examples in the batch.
        median: Median over the repeats.
        lower: First quartile.
        upper: Third quartile.
        repeats: Measurements taken, each in turn with the other models.
        threads: Threads that torch used within an operation.
        device: Where, in words.
    """

    batch_size: int
    median: float
    lower: float
    upper: float
    repeats: int
    threads: int
    device: str


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
    seed: int = 0,
) -> dict[str, tuple[Latency, ...]]:
    """Measure models against one another: each round times every model once, in an order drawn anew.

    A measurement lasts at least a millisecond: faster models run several times in it.

    Args:
        models: Models by name, on one device.
        inputs: Example inputs, a tensor or a sequence of positional arguments, whose first tensor has
            its batch on `batch_axis`.  Every tensor of that length on that axis is repeated or cut.
        kwargs: Example keyword arguments, resized likewise.
        batch_sizes: Batch sizes to measure.
        batch_axis: Axis of the batch.
        repeats: Measurements of each model and batch size.
        warmup: Passes before them that do not count.
        threads: Threads within an operation; as torch is set, if None.
        limit: Seconds after which a batch size gets no further round, though at least five; the
            result states the repeats it had.
        seed: Seed of the order.

    Returns:
        By model name, one `Latency` for each batch size.
    """
    if not models or repeats < 1 or warmup < 0 or any(size < 1 for size in batch_sizes):
        raise InputError(f"latency needs a model, at least one repeat and positive batch sizes; got "
                         f"{len(models)} models, repeats={repeats}, warmup={warmup}, {tuple(batch_sizes)}")
    arguments = (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,), dict(kwargs or {}))
    found: dict[str, list[Latency]] = {name: [] for name in models}
    with ExitStack() as stack:
        stack.enter_context(_threads(threads))
        for model in models.values():
            stack.enter_context(evaluating(model))
        for size in batch_sizes:
            resized = _resize(arguments, batch_axis, size)
            runs = {name: _runner(model, *to_model(resized, model)) for name, model in models.items()}
            times = _interleave(runs, repeats, warmup, limit, random.Random(seed))
            for name, model in models.items():
                found[name].append(_latency(size, times[name], place(model)[0]))
    return {name: tuple(rows) for name, rows in found.items()}


def _latency(size: int, times: Sequence[float], device: torch.device) -> Latency:
    lower, median, upper = (float(q) for q in np.quantile(times, (0.25, 0.5, 0.75)))
    words = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    where = f"{device.type} ({words})"
    return Latency(size, median, lower, upper, len(times), torch.get_num_threads(), where)


def _runner(model: nn.Module, arguments: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Run:
    device = place(model)[0]
    synchronize = torch.get_device_module(device).synchronize  # what runs elsewhere returns before it is done
    wait = partial(synchronize, device) if device.type in ("cuda", "xpu") else synchronize

    def run(number: int) -> float:
        wait()
        start = time.perf_counter()
        for _ in range(number):
            model(*arguments, **kwargs)
        wait()
        return (time.perf_counter() - start) / number

    return run


def _interleave(
    runs: Mapping[str, Run], repeats: int, warmup: int, limit: float | None, order: random.Random
) -> dict[str, list[float]]:
    for run in runs.values():
        for _ in range(warmup):
            run(1)
    number = {name: max(1, math.ceil(1e-3 / max(run(1), 1e-9))) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    start, names = time.perf_counter(), list(runs)
    for done in range(repeats):
        if limit is not None and done >= 5 and time.perf_counter() - start > limit:
            break
        order.shuffle(names)
        for name in names:
            times[name].append(runs[name](number[name]))
    return times


def _resize(arguments: Any, axis: int, size: int) -> Any:
    have = next((x.shape[axis] for x in _tensors(arguments) if x.dim() > axis), None)
    if not have:
        raise InputError(f"no example input has a batch axis {axis}; say which with batch_axis")
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
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count if count is not None else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


__all__ = ["Latency", "latency"]
