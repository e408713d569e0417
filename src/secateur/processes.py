"""Calibration split over processes: each sees a part of the batches, and their sums are added up.

Inside `split_over_processes`, process r of n takes the batches r, r + n, r + 2 n, ...  All processes run the
same code and get the same sums, so they make the same plan.  Outside of it there is one process, number 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from secateur.core import SecateurError

__all__ = [
    "Processes",
    "check_same",
    "current_processes",
    "gather_over_processes",
    "split_over_processes",
    "sum_over_processes",
    "undivided",
]


@dataclass(frozen=True)
class Processes:
    """The processes that share the batches.

    Attributes:
        number: Number of this one.
        count: How many there are.
        store: Where all of them write and read, if there are several.
    """

    number: int = 0
    count: int = 1
    store: Any = field(default=None, repr=False)

    def owns(self, number: int) -> bool:
        """Return whether a batch, or another piece of work, belongs to this process."""
        return number % self.count == self.number

    def reports(self) -> bool:
        """Return whether this is the first process that asks: it reports the error that ends all of them."""
        return self.store is None or self.store.add("secateur/errors", 1) == 1


ONE = Processes()
_groups = itertools.count()
_current: ContextVar[Processes] = ContextVar("processes", default=ONE)


def current_processes() -> Processes:
    """Return the processes that share the batches here; a single one outside of `split_over_processes`."""
    return _current.get()


@contextmanager
def split_over_processes() -> Iterator[Processes]:
    """Split the batches of every pruning inside over the processes of ``torch.distributed``.

    All processes must call the same functions with the same arguments: the whole model and all batches.  If
    the process group is not initialised, gloo is, with the environment that ``torchrun`` sets.

    Raises:
        SecateurError: If the processes cannot find each other.

    Example:
        >>> with split_over_processes() as processes:  # doctest: +SKIP
        ...     result = secateur.prune(model, example_inputs, budget, data=batches)
        ...     if processes.number == 0:
        ...         result.save("small")
    """
    own, store = not dist.is_initialized(), None
    if own:
        try:
            store, number, count = next(iter(dist.rendezvous("env://")))
            # The processes of a group find each other by what they write there; groups differ by a prefix.
            store = dist.PrefixStore(f"secateur/{next(_groups)}", store)
            dist.init_process_group("gloo", store=store, rank=number, world_size=count)
        except (RuntimeError, ValueError) as error:
            raise SecateurError(f"the processes cannot find each other: {error}; use torchrun") from error
    token = _current.set(Processes(dist.get_rank(), dist.get_world_size(), store))
    try:
        yield _current.get()
    finally:
        _current.reset(token)
        if own:
            dist.destroy_process_group()


@contextmanager
def undivided() -> Iterator[None]:
    """Let every process see all batches, in the same order, and add up nothing."""
    token = _current.set(ONE)
    try:
        yield
    finally:
        _current.reset(token)


def sum_over_processes(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the sums over all processes, in place; a process may lack some of the names.

    Raises:
        SecateurError: If another process has ended.

    Example:
        >>> sum_over_processes({"gram": torch.ones(1)})
        {'gram': tensor([1.])}
    """
    if current_processes().count == 1:
        return dict(sums)
    shapes: dict[str, Any] = {}
    for part in gather_over_processes({name: (x.shape, x.dtype) for name, x in sums.items()}):
        shapes |= part
    device = next((x.device for x in sums.values()), torch.device("cpu"))
    total = {}
    for name, (shape, dtype) in sorted(shapes.items()):
        x = sums[name].contiguous() if name in sums else torch.zeros(shape, dtype=dtype, device=device)
        staged = x.cpu()
        with _explained():
            dist.all_reduce(staged)
        total[name] = staged if x.device == staged.device else staged.to(x.device)
    return total


def gather_over_processes(value: Any) -> list[Any]:
    """Return the values of all processes, by their numbers.

    Example:
        >>> gather_over_processes("all")
        ['all']
    """
    count = current_processes().count
    if count == 1:
        return [value]
    values: list[Any] = [None] * count
    with _explained():
        dist.all_gather_object(values, value)
    return values


def check_same(what: str, value: Any) -> None:
    """Raise `SecateurError` if the processes have different values of something, such as counts."""
    if any(other != value for other in gather_over_processes(value)):
        raise SecateurError(
            f"{what} is not the same in all processes: give all of them the same model, batches and arguments"
            ", on machines of one kind"
        )


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SecateurError(f"another process has ended, so this one cannot go on ({first})") from error
