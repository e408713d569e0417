"""The overhead of running trials, and the gain of a second worker: ``python benchmarks/grid.py``.

Trials compute for a fixed processor time. Overhead is the time of the workers that no trial fills, over the
time in trials: (wall time x workers - time in trials) / time in trials, with the start of the workers and
without. The load of the machine is printed: on a busy one the workers start slowly, and one waits at the end.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from secateur.bench import Trial, run_trials
from secateur.core.markdown import markdown_table


def spin(seconds: float, at: int) -> list[dict[str, Any]]:
    """Compute for a time that the processor counts."""
    start, total = time.process_time(), 0
    while time.process_time() - start < seconds:
        total += sum(range(1000))
    return [{"at": at, "total": total}]


def measure(jobs: int, count: int, seconds: float) -> dict[str, Any]:
    """Run trials and return times."""
    trials = [Trial("grid:spin", {"seconds": seconds, "at": at}) for at in range(count)]
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        used, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        results = run_trials(
            trials, Path(folder) / "trials.jsonl", jobs=jobs, log=lambda _: ends.append(time.perf_counter())
        )
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    inside = sum(result.wall for result in results)
    runner = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    first = min(ends[1] - start - result.wall for result in results[:jobs])
    return {
        "workers": jobs,
        "trials": count,
        "wall time, s": wall,
        "of it in trials, s": inside / jobs,
        "overhead with start": wall * jobs / inside - 1,
        "overhead once started": (wall - first) * jobs / inside - 1,
        "processor time of the runner over that of trials": runner / sum(r.seconds for r in results),
        "load": os.getloadavg()[0],
    }


def main() -> None:
    """Print the table, and how much faster two workers are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=5.0, help="processor time of a trial")
    given = parser.parse_args()
    rows = [measure(jobs, given.trials, given.seconds) for jobs in (1, 2)]
    print(markdown_table(rows))
    one, two = (row["wall time, s"] for row in rows)
    print(f"\nTwo workers are {one / two:.2f} times as fast as one, on {os.cpu_count()} processors.")


if __name__ == "__main__":
    main()
