"""What a grid costs beside its cells, and what a second worker gains: ``python benchmarks/grid.py``.

Cells compute for a fixed processor time, so that nothing but the grid differs.  Overhead is the time of the
workers that no cell fills: (time on the clock x workers - time in cells) / time in cells, once with the start
of the workers, and once from the first cell on.  The load of the machine is printed: one that is busy with
other work makes the start of the workers long, and the end, where one worker waits for the other.
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


def measure(jobs: int, count: int, seconds: float) -> dict[str, Any]:
    """Run cells and return times."""
    cells = [Trial("secateur.bench.checks:spin", {"seconds": seconds, "at": at}) for at in range(count)]
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        used, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        records = run_trials(
            cells, Path(folder) / "cells.jsonl", jobs=jobs, log=lambda _: ends.append(time.perf_counter())
        )
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    inside = sum(record.wall for record in records)
    own = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    work = sum(record.seconds for record in records)
    begun = min(ends[1] - start - record.wall for record in records[:jobs])
    return {
        "workers": jobs,
        "cells": count,
        "seconds on the clock": wall,
        "of them in cells": inside / jobs,
        "overhead with start": wall * jobs / inside - 1,
        "overhead once started": (wall - begun) * jobs / inside - 1,
        "processor time of the grid beside that of cells": own / work,
        "load": os.getloadavg()[0],
    }


def main() -> None:
    """Print the table, and how much faster two workers are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=5.0, help="processor time of a cell")
    given = parser.parse_args()
    rows = [measure(jobs, given.cells, given.seconds) for jobs in (1, 2)]
    print(markdown_table(rows))
    one, two = (row["seconds on the clock"] for row in rows)
    print(f"\nTwo workers are {one / two:.2f} times as fast as one, on {os.cpu_count()} processors.")


if __name__ == "__main__":
    main()
