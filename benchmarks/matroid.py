"""Window ranks of a wide layer: one exact pass and the screened sliding inverse against batched SVDs.

Claim: for 4096 rows of [W | b] with 256 inputs, all window ranks exact in at most a fifth of the time of
batched SVDs; with 1024 inputs in at most a tenth, where the SVDs are extrapolated from a sample of windows.
One thread, CPU seconds, everything in one run.

    python benchmarks/matroid.py [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from secateur.structures.matroid import IntervalMatroid, window_ranks

# Weights are multiples of this, so that the planted dependence is exact.
GRID = 2.0**-24


def layer(units: int, inputs: int, seed: int = 0) -> np.ndarray:
    """Return [W | b] of a dense layer; one row near the end is the difference of the two before it."""
    generator = np.random.default_rng(seed)
    rows = np.round(generator.normal(size=(units, inputs + 1)) / GRID) * GRID
    rows[-32] = rows[-33] - rows[-34]
    return rows


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return CPU seconds and the result."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def batched_svd(rows: np.ndarray, size: int, starts: np.ndarray, chunk: int = 16) -> np.ndarray:
    """Return the ranks of the windows at `starts`, by stacks of `chunk` SVDs, with numpy's tolerance."""
    windows = np.lib.stride_tricks.sliding_window_view(rows, size, axis=0).swapaxes(1, 2)
    ranks = []
    for i in range(0, len(starts), chunk):
        values = np.linalg.svd(windows[starts[i : i + chunk]], compute_uv=False)
        tolerance = values[:, :1] * size * np.finfo(float).eps
        ranks.append((values > tolerance).sum(axis=1))
    return np.concatenate(ranks)


def compare(units: int, inputs: int, sample: int | None) -> dict[str, Any]:
    """Time the three ways on one layer; `sample` windows stand for all where it is given."""
    rows, size = layer(units, inputs), inputs + 1
    count = units - size + 1
    starts = np.arange(count) if sample is None else np.linspace(0, count - 1, sample).astype(int)
    svd, slow = timed(lambda: batched_svd(rows, size, starts))
    exact, matroid = timed(lambda: IntervalMatroid(rows))
    ranks = matroid.window_ranks(size)
    sliding, numerical = timed(lambda: window_ranks(rows, size))
    whole = svd * count / len(starts)
    return {
        "units": units,
        "inputs": inputs,
        "windows": count,
        "svd_windows_timed": len(starts),
        "svd_seconds": round(whole, 2),
        "svd_extrapolated": sample is not None,
        "exact_seconds": round(exact, 2),
        "exact_share": round(exact / whole, 4),
        "sliding_seconds": round(sliding, 2),
        "sliding_share": round(sliding / whole, 4),
        "sliding_svds": numerical.decompositions,
        "deficient_windows": int((ranks < size).sum()),
        "exact_disagrees_with_svd": int((ranks[starts] != slow).sum()),
        "sliding_disagrees_with_exact": int((ranks != numerical.ranks).sum()),
    }


def main() -> None:
    """Run both sizes and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="append JSON lines here")
    parser.add_argument("--sample", type=int, default=24, help="windows timed by SVD at 1024 inputs")
    arguments = parser.parse_args()
    IntervalMatroid(np.eye(3))
    for units, inputs, sample, target in ((4096, 256, None, 0.2), (4096, 1024, arguments.sample, 0.1)):
        with threadpool_limits(1):
            row = compare(units, inputs, sample) | {"target_share": target}
        row["met"] = row["exact_share"] <= target
        print(json.dumps(row))
        if arguments.out:
            with arguments.out.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
