"""The matroid beside the best baseline: paired intervals over networks and test examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["verdicts"]

Row = Mapping[str, Any]


def verdicts(
    rows: Sequence[Row], repair: str = "fold", rounds: int = 4000, seed: int = 0
) -> list[dict[str, Any]]:
    """Compare the matroid with the best baseline of each network and share, both with the same repair.

    The best baseline is the one with the least mean loss on the test examples over the seeds (random aside),
    which favours it.  The interval is the 2.5 to 97.5 percentile of the mean difference when networks are
    drawn again with replacement, and within each its test examples; where it contains 0 the verdict is a tie.

    Args:
        rows: Rows ``ordinary`` and ``paired``.
        repair: Which repair.
        rounds: Bootstrap samples.
        seed: Seed of the bootstrap.
    """
    cells: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        if row["part"] in ("ordinary", "paired") and row["repair"] == repair:
            cells.setdefault((row["model"], row["removed"]), []).append(row)
    generator = np.random.default_rng(seed)
    return [_verdict(model, share, cell, generator, rounds) for (model, share), cell in cells.items()]


def _verdict(
    model: str, share: float, cell: Sequence[Row], generator: np.random.Generator, rounds: int
) -> dict[str, Any]:
    lost: dict[str, list[float]] = {}
    for row in cell:
        if row["part"] == "ordinary":
            lost.setdefault(row["criterion"], []).append(row["lost"])
    means = {name: float(np.mean(values)) for name, values in lost.items()}
    baselines = {n: m for n, m in means.items() if not n.startswith("matroid") and n != "random"}
    best = min(baselines, key=lambda n: baselines[n])
    pairs = [row for row in cell if row["part"] == "paired" and row["criterion"] == best]
    counts = np.array([[row["only matroid"], row["only baseline"], row["tested"]] for row in pairs])
    low, high = np.percentile(_resampled(counts, generator, rounds), [2.5, 97.5])
    ahead = float(100 * ((counts[:, 0] - counts[:, 1]) / counts[:, 2]).mean())
    return {
        "network": model, "removed": share, "matroid lost": means["matroid"], "best baseline": best,
        "it lost": means[best], "ahead by": ahead, "low": float(low), "high": float(high),
        "verdict": "tie" if low <= 0 <= high else "ahead" if low > 0 else "behind", "seeds": len(pairs),
    }  # fmt: skip


def _resampled(counts: np.ndarray, generator: np.random.Generator, rounds: int) -> np.ndarray:
    """Return mean differences in points, [rounds].

    A test example counts +1, -1 or 0, so that drawing examples again is a multinomial draw of these counts.
    """
    n = len(counts)
    drawn = counts[generator.integers(0, n, (rounds, n))]
    total = drawn[..., 2]
    chances = (
        np.stack([drawn[..., 0], drawn[..., 1], total - drawn[..., 0] - drawn[..., 1]], -1) / total[..., None]
    )
    again = generator.multinomial(total, chances)
    return 100 * ((again[..., 0] - again[..., 1]) / total).mean(1)
