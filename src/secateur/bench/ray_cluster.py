"""Run trials on a Ray cluster: each is a task of Ray, which runs it again if its machine is lost."""

from __future__ import annotations

import re
import socket
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from secateur.bench.trial import Trial, TrialResult
from secateur.bench.worker import EngineError, Worker
from secateur.core import InputError, brief

__all__ = ["run_on_ray"]

ANSWER_WITHIN = 20.0  # seconds
RETRIES = 2
ADDRESS = re.compile(r"(?:ray://)?\[?(?P<host>[^\[\]/]+?)\]?:(?P<port>\d+)")


def run_on_ray(
    trials: Sequence[Trial], jobs: int, limit: float | None, address: str | None
) -> Generator[TrialResult, None, None]:
    """Yield the results of trials in the order in which they finish.

    Args:
        trials: What to run.
        jobs: Trials at a time, each on its own processor.
        limit: Seconds after which a trial is stopped.
        address: ``HOST:PORT``, ``ray://HOST:PORT`` or ``auto``; by default a cluster is started here.

    Raises:
        InputError: If Ray is not installed, or the address is invalid.
        EngineError: If the cluster does not answer, or stops.
    """
    if not trials:
        return
    with _connected(address, jobs) as ray:
        task = ray.remote(num_cpus=1, max_retries=RETRIES, scheduling_strategy="SPREAD")(run_in_task)
        waiting = list(trials)[::-1]
        running: dict[Any, Trial] = {}
        while waiting or running:
            while waiting and len(running) < jobs:
                trial = waiting.pop()
                running[task.remote(trial, limit)] = trial
            (reference,), _ = ray.wait(list(running), num_returns=1)
            trial = running.pop(reference)
            try:
                yield ray.get(reference)
            except ray.exceptions.WorkerCrashedError as error:
                # The trial took its worker along, on every try.
                yield TrialResult(trial, "error", error=f"lost {RETRIES + 1} times: {error}")
            except ray.exceptions.RayError as error:
                raise EngineError(f"Ray failed: {type(error).__name__}: {error}") from error


def run_in_task(trial: Trial, limit: float | None) -> TrialResult:
    """Run a trial in a worker process, so that a limit or a crash stops the trial and not Ray's process."""
    return _worker().run(trial, limit)


@cache
def _worker() -> Worker:
    """Return the worker of this Ray process; it serves one task after the other, and ends with it."""
    return Worker()


@contextmanager
def _connected(address: str | None, jobs: int) -> Iterator[Any]:
    """Connect to a cluster, or start one, unless this process is connected already."""
    try:
        import ray
    except ImportError as error:
        raise InputError("the engine 'ray' needs the extra ray: pip install 'secateur[ray]'") from error
    if ray.is_initialized():
        if address is not None:
            raise InputError("this process is already connected to a Ray cluster: omit the address")
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is None:
            ray.init(num_cpus=jobs, include_dashboard=False, **quiet)
        else:
            _check_answer(address)
            try:
                ray.init(address=address, **quiet)
            except ConnectionError as error:
                raise _no_answer(address, error) from error
        yield ray
    finally:
        ray.shutdown()


def _check_answer(address: str) -> None:
    """Raise `EngineError` if nothing listens at an address; Ray itself would try for minutes."""
    match = ADDRESS.fullmatch(address)
    if match is None and address != "auto":
        raise InputError(f"a Ray address is HOST:PORT, ray://HOST:PORT or auto; got {brief(address)}")
    if match is not None:
        try:
            socket.create_connection((match["host"], int(match["port"])), ANSWER_WITHIN).close()
        except (OSError, OverflowError) as error:
            raise _no_answer(address, error) from error


def _no_answer(address: str | None, error: Exception) -> EngineError:
    return EngineError(
        f"no Ray cluster answers at {address} ({error}): start one with 'ray start --head', or omit the "
        "address to start one here"
    )
