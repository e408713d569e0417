"""Run trials in worker processes or on a cluster, and write each result as it comes."""

from __future__ import annotations

import math
import queue
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from pathlib import Path
from statistics import fmean

from secateur.bench.results_file import ResultsFile
from secateur.bench.trial import Trial, TrialResult
from secateur.bench.worker import EngineError, Worker, run_here
from secateur.core import InputError, unknown

__all__ = ["EngineError", "check_engine", "format_duration", "run_trials"]

Log = Callable[[str], None]
Results = Generator[TrialResult, None, None]
ENGINES = ("local", "ray", "inline")


def run_trials(
    trials: Sequence[Trial],
    path: str | Path,
    *,
    engine: str = "local",
    jobs: int = 2,
    address: str | None = None,
    limit: float | None = None,
    log: Log | None = None,
) -> list[TrialResult]:
    """Run the trials that are not done yet, and return the results of all.

    Each result is written to the file at once. The same call continues from there: it runs only trials that
    are missing, failed, or took too long. Ctrl-C stops the running trials and keeps the finished ones.

    Args:
        trials: What to run; equal trials run once.
        path: The file of results.
        engine: ``"local"``: processes on this machine, with one thread each. ``"ray"``: a Ray cluster (extra
            ray). ``"inline"``: in this process, to debug a function.
        jobs: Trials at a time.
        address: Address of the Ray cluster; by default one is started on this machine.
        limit: Seconds after which a trial is stopped and recorded as ``"timeout"``.
        log: Called with a line of progress after each trial.

    Returns:
        One result for each trial, in the order of `trials`.

    Raises:
        InputError: If an argument is invalid.
        StoreError: If another run writes the file, or it cannot be read or written.
        EngineError: If no process starts, or no cluster answers.

    Example:
        >>> import tempfile
        >>> trials = [Trial("json:loads", {"s": f'[{{"seed": {seed}}}]'}) for seed in (0, 1)]
        >>> results = run_trials(trials, Path(tempfile.mkdtemp()) / "trials.jsonl", engine="inline")
        >>> [(result.status, result.rows) for result in results]
        [('ok', [{'seed': 0}]), ('ok', [{'seed': 1}])]
    """
    check_engine(engine, jobs, address, limit)
    log = log or (lambda _: None)
    with ResultsFile(path) as file:
        if file.other_versions:
            log(f"{file.other_versions} results of other versions in {path} do not count")
        distinct = list({trial.key: trial for trial in trials}.values())
        done = [trial for trial in distinct if _is_done(file, trial)]
        left = [trial for trial in distinct if not _is_done(file, trial)]
        progress = _Progress(len(distinct), len(done), min(jobs, max(1, len(left))))
        log(progress.line())
        with closing(_start(engine, left, jobs, limit, address)) as results:
            for result in results:
                file.append(result)
                progress.add(result)
                log(progress.line())
        return [file.results[trial.key] for trial in trials]


def _is_done(file: ResultsFile, trial: Trial) -> bool:
    return trial.key in file.results and file.results[trial.key].status == "ok"


def check_engine(engine: str, jobs: int, address: str | None, limit: float | None) -> None:
    """Raise `InputError` if the engine is unknown or does not go with the other arguments."""
    if engine not in ENGINES:
        raise InputError(unknown("engine", engine, list(ENGINES)))
    if jobs < 1 or (limit is not None and not 0 < limit < math.inf):
        raise InputError(f"jobs must be at least 1, and a limit positive and finite; got {jobs} and {limit}")
    if address is not None and engine != "ray":
        raise InputError(f"an address is for a Ray cluster: use engine 'ray', not {engine!r}")
    if limit is not None and engine == "inline":
        raise InputError("engine 'inline' cannot stop a trial: use 'local' with a limit")


def _start(
    engine: str, trials: Sequence[Trial], jobs: int, limit: float | None, address: str | None
) -> Results:
    if engine == "inline":
        return (run_here(trial) for trial in trials)
    if engine == "ray":
        from secateur.bench.ray_cluster import run_on_ray  # ray is an extra

        return run_on_ray(trials, jobs, limit, address)
    return _run_locally(trials, jobs, limit)


def _run_locally(trials: Sequence[Trial], jobs: int, limit: float | None) -> Results:
    """Run trials in worker processes, each led by a thread; yield results as they come."""
    workers = [Worker() for _ in range(min(jobs, len(trials)))]
    idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def run(trial: Trial) -> TrialResult:
        worker = idle.get()
        try:
            return worker.run(trial, limit)
        finally:
            idle.put(worker)

    threads = ThreadPoolExecutor(max(1, len(workers)))
    try:
        for future in as_completed([threads.submit(run, trial) for trial in trials]):
            yield future.result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.close()
        threads.shutdown()


class _Progress:
    """Counts trials, and estimates the time left from the mean of those that ran."""

    def __init__(self, total: int, earlier: int, jobs: int) -> None:
        self.total, self.earlier, self.jobs = total, earlier, jobs
        self.failed = 0
        self.wall: list[float] = []

    def add(self, result: TrialResult) -> None:
        """Count a finished trial."""
        self.failed += result.status != "ok"
        self.wall.append(result.wall)

    def line(self) -> str:
        """Return the progress as a line."""
        left = self.total - self.earlier - len(self.wall)
        parts = [f"{self.total - left} of {self.total} trials"]
        parts[0] += f" ({self.earlier} from before)" if self.earlier else ""
        parts += [f"{self.failed} failed"] if self.failed else []
        if left and self.wall:
            parts.append(f"about {format_duration(left * fmean(self.wall) / self.jobs)} left")
        return ", ".join(parts)


def format_duration(seconds: float) -> str:
    """Return a time as text.

    Example:
        >>> format_duration(42), format_duration(200), format_duration(9000)
        ('42 s', '3 min', '2 h 30 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
