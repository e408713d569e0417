"""Cells on a Ray cluster, through joblib's Ray backend.

joblib starts one task for each job; such a task is no cell, but takes cells from a desk, one after the other,
until none is left.  So a machine that is fast takes more, results come as they finish, and a machine that
dies takes with it only the cells that it was running: they are handed out again.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from joblib import Parallel, delayed

from secateur.bench.trial import Row, Trial
from secateur.bench.worker import EngineError, Worker
from secateur.core import InputError

ANSWER_WITHIN, POLL, TRIES = 20.0, 0.1, 3
ADDRESS = re.compile(r"(?:ray://)?\[?(?P<host>[^\[\]/]+?)\]?:(?P<port>\d+)")
KNOCK = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')"
HEAD = {"node:__internal_head__": 0.001}


def run(
    cells: Sequence[Trial], jobs: int, limit: float | None, address: str | None
) -> Generator[tuple[Trial, Row], None, None]:
    """Yield each cell with what became of it, in the order in which they finish.

    Args:
        cells: What to run.
        jobs: Cells at a time, each on a processor of its own.
        limit: Seconds after which a cell is stopped.
        address: Of the cluster, ``HOST:PORT``, ``ray://HOST:PORT`` or ``auto``; one is started here if None.

    Raises:
        InputError: Ray is not installed, or the address is none.
        EngineError: The cluster does not answer or has no processors.
    """
    if not cells:
        return
    with _connected(address, jobs) as ray:
        left, lost = dict(enumerate(cells)), Counter[int]()
        while left:
            desk = (
                ray.remote(Desk)
                .options(num_cpus=0, resources=HEAD)
                .remote({at: (cell.function, cell.arguments) for at, cell in left.items()})
            )
            for at, outcome in _round(ray, desk, min(jobs, len(left)), limit):
                yield left.pop(at), outcome
            lost.update(at for at in ray.get(desk.taken.remote()) if at in left)
            if left and not any(lost[at] for at in left):
                raise EngineError(f"the cluster stopped with {len(left)} cells left; the others are written")
            for at in [at for at in left if lost[at] >= TRIES]:
                yield left.pop(at), _gone()


class Desk:
    """Hands out cells and takes back what became of them; lives on the cluster's head node."""

    def __init__(self, cells: Mapping[int, tuple[str, dict[str, Any]]]) -> None:
        """Put the cells on the desk, by number."""
        self._cells = deque(cells.items())
        self._taken: list[int] = []
        self._done: list[tuple[int, Row]] = []

    def take(self) -> tuple[int, tuple[str, dict[str, Any]]] | None:
        """Hand out a cell, or None if there is none."""
        if not self._cells:
            return None
        at, cell = self._cells.popleft()
        self._taken.append(at)
        return at, cell

    def give(self, at: int, outcome: Row) -> None:
        """Take back what became of a cell."""
        self._done.append((at, outcome))

    def collect(self) -> list[tuple[int, Row]]:
        """Return what came since the last time."""
        done, self._done = self._done, []
        return done

    def taken(self) -> list[int]:
        """Return the numbers of the cells that were handed out."""
        return self._taken


def pull(desk: Any, idle: bool, limit: float | None) -> None:
    """Take cells from the desk until none is left; runs on the cluster."""
    import ray

    if idle:
        return
    with Worker() as worker:
        while (asked := ray.get(desk.take.remote())) is not None:
            at, (job, params) = asked
            ray.get(desk.give.remote(at, worker.run(job, params, limit)))


def _round(ray: Any, desk: Any, jobs: int, limit: float | None) -> Iterator[tuple[int, Row]]:
    """Yield outcomes until every job has ended, or died with its machine."""
    tasks = max(jobs, 2)  # joblib runs a single task here, and not on the cluster
    share = 1.0 if jobs > 1 else 0.5
    processors = int(ray.cluster_resources().get("CPU", 0))
    if processors < 2:
        raise EngineError(f"a Ray cluster needs two processors or more for cells; this one has {processors}")
    tasks = min(tasks, processors)
    backend, problems = _backend(ray, share), []

    def work() -> None:
        try:
            Parallel(tasks, backend=backend, batch_size=1, pre_dispatch="all")(
                delayed(pull)(desk, at >= jobs, limit) for at in range(tasks)
            )
        except Exception as error:
            problems.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            yield from ray.get(desk.collect.remote())
            time.sleep(POLL)
        yield from ray.get(desk.collect.remote())
    finally:
        backend.terminate()
    if problems:
        raise EngineError(f"Ray failed: {type(problems[0]).__name__}: {problems[0]}") from problems[0]


def _backend(ray: Any, processors: float) -> Any:
    """Return joblib's Ray backend, for which a task whose machine died is a task that ended."""
    from ray.util.joblib.ray_backend import RayBackend

    class Enduring(RayBackend):
        def retrieve_result_callback(self, out: Any) -> Any:
            if isinstance(out, ray.exceptions.RayError):
                return [None]
            return super().retrieve_result_callback(out)

    return Enduring(ray_remote_args={"num_cpus": processors, "scheduling_strategy": "SPREAD"})


@contextmanager
def _connected(address: str | None, jobs: int) -> Iterator[Any]:
    try:
        import ray
    except ImportError as error:
        raise InputError("the engine 'ray' needs the extra ray: pip install 'secateur[ray]'") from error
    if ray.is_initialized():
        if address is not None:
            raise InputError("this process is connected to a Ray cluster already: leave the address away")
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is None:
            ray.init(num_cpus=max(jobs, 2), include_dashboard=False, **quiet)
        else:
            _answers(address)
            ray.init(address=address, **quiet)
        yield ray
    finally:
        ray.shutdown()


def _answers(address: str) -> None:
    """Raise an error within seconds if no cluster answers; Ray itself may try for minutes.

    Another process knocks first, because it can be stopped.
    """
    where = ADDRESS.fullmatch(address)
    if where is None and address != "auto":
        raise InputError(f"a Ray address is HOST:PORT, ray://HOST:PORT or auto; got {address!r}")
    try:
        if where is not None:
            socket.create_connection((where["host"], int(where["port"])), ANSWER_WITHIN).close()
        command = [sys.executable, "-c", KNOCK, address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_WITHIN)
        words = done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
        said = words if done.returncode else ""
    except subprocess.TimeoutExpired:
        said = f"what listens there does not speak Ray within {ANSWER_WITHIN:g} s"
    except (OSError, OverflowError) as error:
        said = str(error)
    if said:
        raise EngineError(
            f"no Ray cluster answers at {address} ({said}): start one with 'ray start --head', or leave the "
            "address away to start one here"
        )


def _gone() -> Row:
    error = f"its worker was lost {TRIES} times (out of memory, perhaps)"
    return {"status": "error", "rows": [], "error": error}


__all__ = ["Desk", "pull", "run"]
