"""Two claims about matroids of wide layers, each against the naive way in the same run.

windows: for 4096 rows of [W | b] with 256 inputs, all window ranks exact in at most a fifth of the time of
batched SVDs; with 1024 inputs in at most a tenth, where the SVDs are extrapolated from a sample of windows.

basis: the basis of activations of 1,467 of 2,048 units, exchanges included, in at most a tenth of the time of
updating whole matrices in every step and solving again in every exchange, with the same residual.

One thread, CPU seconds.

    python benchmarks/matroid.py [windows] [basis] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from secateur.structures.matroid import (
    IntervalMatroid,
    activation_basis,
    center_gram,
    exchange_units,
    output_error,
    window_ranks,
)

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


def compare_windows(units: int, inputs: int, sample: int | None) -> dict[str, Any]:
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


def layer_moments(units: int, twins: float, dead: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return the covariance of ReLU features of correlated inputs, and which unit each one equals.

    Inputs are of rank units / 8 plus noise.  A share of the units equals others, another is always 0.
    """
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    inputs, rank, samples = units // 2, units // 8, 3 * units
    x = draw(samples, rank) @ draw(rank, inputs) / rank**0.5 + 0.1 * draw(samples, inputs)
    h = (x @ draw(inputs, units) / inputs**0.5 + draw(units)).relu()
    equals = torch.arange(units)
    first, last = int(dead * units), int(twins * units)
    h[:, :first] = 0.0
    equals[units - last :] = torch.arange(first, first + last)
    h = h[:, equals]
    return center_gram(h.T @ h / samples, h.mean(0)), equals


def naive_greedy(g: Tensor, w: Tensor) -> list[int]:
    """Order all units; S and W S are updated as wholes in every step."""
    s, b, own = g.clone(), w @ g, g.diagonal()
    open_, order = torch.ones(len(g), dtype=torch.bool), []
    for _ in range(len(g)):
        usable = open_ & (s.diagonal() > 1e-12 * own)
        if not usable.any():
            break
        gain = torch.where(usable, (b**2).sum(0) / s.diagonal(), -torch.inf)
        pivot = int(gain.argmax())
        column = s[:, pivot] / s[pivot, pivot]
        b = b - torch.outer(b[:, pivot].clone(), column)
        s = torch.addr(s, s[pivot].clone(), column, alpha=-1.0)
        open_[pivot] = False
        order.append(pivot)
    return order


def naive_exchanges(g: Tensor, w: Tensor, kept: list[int], limit: int) -> tuple[list[int], int]:
    """Add the best unit and drop the cheapest, solving again each time; return the units and the rounds."""
    q, chosen, rounds = w.T @ w, kept, 0
    error = output_error(g, chosen, q)
    while rounds < limit:
        k = torch.tensor(chosen)
        s = g - g[:, k] @ torch.linalg.solve(g[k][:, k], g[k])
        part = s.diagonal().clone()
        part[k] = 0.0
        gain = torch.where(part > 1e-12 * g.diagonal(), ((w @ s) ** 2).sum(0) / part, -torch.inf)
        grown = [*chosen, int(gain.argmax())]
        inverse = torch.linalg.inv(g[grown][:, grown])
        cost = ((w @ g[:, grown] @ inverse) ** 2).sum(0) / inverse.diagonal()
        del grown[int(cost.argmin())]
        better = output_error(g, grown, q)
        if not better < error * (1 - 1e-9):
            break
        chosen, error, rounds = grown, better, rounds + 1
    return chosen, rounds


def compare_basis(units: int, outputs: int, twins: float, dead: float, limit: int) -> list[dict[str, Any]]:
    """Time the choice of a quarter, a half and 71.6 % of the units, both ways."""
    g, equals = layer_moments(units, twins, dead)
    w = torch.randn(outputs, units, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    q = w.T @ w
    slow, order = timed(lambda: naive_greedy(g, w))
    rows = []
    for share in (0.716, 0.5, 0.25):
        count = round(share * units)
        fast, basis = timed(partial(activation_basis, g, consumer=q, count=count))
        fast_swaps, (kept, errors) = timed(partial(exchange_units, g, basis.order, q, limit=limit))
        start = order[:count]
        slow_swaps, (naive, rounds) = timed(partial(naive_exchanges, g, w, start, limit))
        chosen = {int(equals[j]) for j in basis.order}
        total = float((q * g).sum())
        rows.append(
            {
                "units": units,
                "outputs": outputs,
                "twins": twins,
                "dead": dead,
                "count": count,
                "naive_greedy_seconds": round(slow, 3),
                "greedy_seconds": round(fast, 3),
                "greedy_ratio": round(slow / fast, 1),
                "naive_exchange_seconds": round(slow_swaps, 3),
                "exchange_seconds": round(fast_swaps, 3),
                "exchange_ratio": round(slow_swaps / fast_swaps, 1),
                "share": round((fast + fast_swaps) / (slow + slow_swaps), 4),
                "same_greedy": chosen == {int(equals[j]) for j in start},
                "same_final": {int(equals[j]) for j in kept} == {int(equals[j]) for j in naive},
                "naive_residual": output_error(g, naive, q) / total,
                "residual": float(errors[-1]) / total,
                "residual_before_exchanges": float(errors[0]) / total,
                "exchanges": len(errors) - 1,
                "naive_exchanges": rounds,
            }
        )
    return rows


def main() -> None:
    """Run both parts and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="*", metavar="windows|basis", help="default: both")
    parser.add_argument("--out", type=Path, help="append JSON lines here")
    parser.add_argument("--sample", type=int, default=24, help="windows timed by SVD at 1024 inputs")
    parser.add_argument("--units", type=int, nargs="+", default=[64, 256, 1024, 2048])
    parser.add_argument("--outputs", type=int, nargs="+", default=[10, 1000])
    parser.add_argument(
        "--exchanges", type=int, default=30, help="largest number; the method's default is 30"
    )
    arguments = parser.parse_args()
    parts = arguments.part or ["windows", "basis"]
    if unknown := set(parts) - {"windows", "basis"}:
        parser.error(f"parts are windows and basis; got {', '.join(sorted(unknown))}")

    def write(row: dict[str, Any]) -> None:
        print(json.dumps(row), flush=True)
        if arguments.out:
            with arguments.out.open("a") as file:
                file.write(json.dumps(row) + "\n")

    torch.set_num_threads(1)
    with threadpool_limits(1):
        if "windows" in parts:
            IntervalMatroid(np.eye(3))
            for inputs, sample, target in ((256, None, 0.2), (1024, arguments.sample, 0.1)):
                row = compare_windows(4096, inputs, sample) | {"target_share": target}
                write(row | {"met": row["exact_share"] <= target})
        if "basis" in parts:
            for units in arguments.units:
                for outputs in arguments.outputs:
                    for twins, dead in ((0.0, 0.0), (0.1, 0.05)):
                        for row in compare_basis(
                            units, min(outputs, units), twins, dead, arguments.exchanges
                        ):
                            write(row)


if __name__ == "__main__":
    main()
