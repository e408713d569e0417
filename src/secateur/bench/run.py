"""Run a grid of cells in worker processes, and write each result down as it comes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol

from joblib import Parallel, delayed

from secateur.bench.results_file import ResultsFile
from secateur.bench.runner import execute
from secateur.bench.trial import Row, Trial, TrialResult
from secateur.bench.worker import EngineError, Worker
from secateur.core import InputError, unknown

Log = Callable[[str], None]
Outcome = tuple[Trial, Row]
Outcomes = Generator[Outcome, None, None]


class Engine(Protocol):
    """What runs cells: yields each with what became of it, in the order in which they finish."""

    def __call__(
        self, cells: Sequence[Trial], jobs: int, limit: float | None, address: str | None
    ) -> Outcomes:
        """Run the cells."""
        ...


def run_trials(
    cells: Sequence[Trial],
    path: str | Path,
    *,
    engine: str = "local",
    jobs: int = 2,
    address: str | None = None,
    limit: float | None = None,
    log: Log | None = None,
) -> list[TrialResult]:
    """Run cells that are not done yet, and return the records of all.

    Each finished cell is a line in the file at once.  The same call again goes on from there: it runs only
    cells that are missing there, failed, or took too long.  Lines of other versions and other cells stay and
    do not count.  Ctrl-C stops the cells that run and keeps those that are done.

    Args:
        cells: What to run; a cell that is named twice runs once.
        path: The file with the results.
        engine: ``"local"``: processes on this machine, one thread each.  ``"ray"``: a Ray cluster (extra
            ray).  ``"inline"``: one after the other in this process, to debug a job.
        jobs: Cells at a time.
        address: Of the Ray cluster; one is started here if None.
        limit: Seconds on the clock after which a cell is stopped and recorded as ``"timeout"``.
        log: Called with a few words after each cell: how many are done, and the time left.

    Returns:
        One record a cell, in the order of `cells`.

    Raises:
        InputError: An unknown engine, or arguments that cannot be.
        StoreError: The file is damaged, written by another run, or cannot be written (a full disk).
        EngineError: No process starts, or no cluster answers.

    Example:
        >>> import tempfile
        >>> cells = [Trial("secateur.bench.checks:draw", {"seed": seed, "count": 1}) for seed in (0, 1)]
        >>> records = run_trials(cells, Path(tempfile.mkdtemp()) / "cells.jsonl", engine="inline")
        >>> [(record.status, record.rows[0]["seed"]) for record in records]
        [('ok', 0), ('ok', 1)]
    """
    run = find_engine(engine, jobs, address, limit)
    say = log or (lambda _: None)
    with ResultsFile(path) as ledger:
        if ledger.said:
            say(ledger.said)
        if ledger.strangers:
            say(f"{ledger.strangers} results of other versions in {path} are kept apart")
        asked = list({cell.key: cell for cell in cells}.values())
        done = [ledger.records[cell.key] for cell in asked if _good(ledger, cell)]
        left = [cell for cell in asked if not _good(ledger, cell)]
        progress = _Progress(done, left, min(jobs, max(1, len(left))))
        say(progress.words())
        with closing(run(left, jobs, limit, address)) as outcomes:
            for cell, outcome in outcomes:
                record = TrialResult(cell, **outcome)
                ledger.append(record)
                progress.count(record)
                say(progress.words())
        return [ledger.records[cell.key] for cell in cells]


def _good(ledger: ResultsFile, cell: Trial) -> bool:
    return cell.key in ledger.records and ledger.records[cell.key].status == "ok"


def find_engine(name: str, jobs: int, address: str | None, limit: float | None) -> Engine:
    """Return an engine by its name.

    Raises:
        InputError: An unknown name, with the near matches, or arguments that it cannot have.
    """
    if name not in ENGINES:
        raise InputError(unknown("engine", name, list(ENGINES)))
    if jobs < 1 or (limit is not None and not 0 < limit < math.inf):
        raise InputError(f"jobs must be at least 1, and a limit positive and finite; got {jobs} and {limit}")
    if address is not None and name != "ray":
        raise InputError(f"an address is that of a Ray cluster: use engine 'ray', not {name!r}")
    if limit is not None and name == "inline":
        raise InputError("engine 'inline' cannot stop a cell that takes too long: use 'local' with a limit")
    return ENGINES[name]


def inline(cells: Sequence[Trial], jobs: int, limit: float | None, address: str | None) -> Outcomes:
    """Run cells one after the other in this process."""
    for cell in cells:
        yield cell, execute(cell.function, cell.arguments)


def local(cells: Sequence[Trial], jobs: int, limit: float | None, address: str | None) -> Outcomes:
    """Run cells in processes on this machine.

    joblib deals the cells out to threads, each of which has a process of its own: such a process can be
    stopped alone, which a pool of processes does not allow.
    """
    idle = [Worker() for _ in range(min(jobs, len(cells)))]
    crew = tuple(idle)

    def attempt(cell: Trial) -> Outcome:
        worker = idle.pop()
        try:
            return cell, worker.run(cell.function, cell.arguments, limit)
        finally:
            idle.append(worker)

    pool = Parallel(len(crew) or 1, backend="threading", return_as="generator_unordered", batch_size=1)
    try:
        yield from pool(delayed(attempt)(cell) for cell in cells)
    finally:
        for worker in crew:
            worker.close()


def ray(cells: Sequence[Trial], jobs: int, limit: float | None, address: str | None) -> Outcomes:
    """Run cells on a Ray cluster; needs the extra ray."""
    from secateur.bench.cluster import run

    return run(cells, jobs, limit, address)


class _Progress:
    """Counts cells, and guesses the time left from the finished cells of the same job."""

    def __init__(self, done: Sequence[TrialResult], left: Sequence[Trial], jobs: int) -> None:
        self.total, self.jobs, self.kept, self.bad = len(done) + len(left), jobs, len(done), 0
        self.left: dict[str, int] = defaultdict(int)
        self.took: dict[str, list[float]] = defaultdict(list)
        for cell in left:
            self.left[cell.function] += 1
        for record in done:
            self.took[record.trial.function].append(record.wall)

    def count(self, record: TrialResult) -> None:
        """Count a cell that finished."""
        self.left[record.trial.function] -= 1
        self.took[record.trial.function].append(record.wall)
        self.bad += record.status != "ok"

    def words(self) -> str:
        """Say how far it is."""
        left = sum(self.left.values())
        words = f"{self.total - left} of {self.total} cells"
        words += f" ({self.kept} from before)" if self.kept else ""
        words += f", {self.bad} failed" if self.bad else ""
        every = [wall for walls in self.took.values() for wall in walls]
        if not left or not every:
            return words
        mean = sum(every) / len(every)
        means = {job: sum(walls) / len(walls) for job, walls in self.took.items() if walls}
        seconds = sum(count * means.get(job, mean) for job, count in self.left.items()) / self.jobs
        return f"{words}, about {duration(seconds)} left"


def duration(seconds: float) -> str:
    """Word a time.

    Example:
        >>> duration(42), duration(200), duration(9000)
        ('42 s', '3 min', '2 h 30 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


ENGINES: dict[str, Engine] = {"local": local, "ray": ray, "inline": inline}

__all__ = ["ENGINES", "EngineError", "duration", "find_engine", "run_trials"]
