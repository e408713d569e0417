"""``torchrun --nproc-per-node N -m secateur prune ...``: one pruning by several processes."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import typer

from secateur.core import Budget, InputError, Latency
from secateur.processes import current_processes, split_over_processes

__all__ = ["check_divisible", "in_each_process", "in_one_process"]


def _started_by_torchrun() -> bool:
    """Return whether this is one of several processes that ``torchrun`` started."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def in_each_process(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that splits its batches over the processes of ``torchrun``.

    The first process prints and writes.  If one fails, it prints the only message, and all of them end.
    """

    @functools.wraps(command)
    def run(**options: Any) -> None:
        if not _started_by_torchrun():
            command(**options)
            return
        with split_over_processes() as processes:
            try:
                command(**options)
            except Exception:
                if processes.reports():
                    raise
                raise typer.Exit(2) from None

    return run


def in_one_process(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that refuses to run in several processes of ``torchrun``."""

    @functools.wraps(command)
    def run(**options: Any) -> None:
        if _started_by_torchrun():
            if os.environ.get("RANK") != "0":
                raise typer.Exit(2)
            raise InputError("only `secateur prune` runs under torchrun: start this command by itself")
        command(**options)

    return run


def check_divisible(budget: Budget, stream: bool) -> None:
    """Raise `InputError` if several processes cannot share such a pruning."""
    if current_processes().count == 1:
        return
    if stream:
        raise InputError("--stream is for one process: leave it out, or start it without torchrun")
    if any(isinstance(part, Latency) for part in budget.parts):
        raise InputError("a budget of latency is measured in one process: start it without torchrun")
