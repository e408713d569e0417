"""The matroid beside the best baseline: paired tests over networks, corrected for all comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from secateur.bench.statistics import bootstrap, holm, paired_p

__all__ = ["verdicts"]

Row = Mapping[str, Any]
LEVEL = 0.05


def verdicts(rows: Sequence[Row], repair: str = "fold") -> list[dict[str, Any]]:
    """Compare the matroid with the best baseline of each network and share, both with the same repair.

    The best baseline is the one with the least mean loss on the test examples over the seeds (random aside),
    which favours it.  The interval is the bootstrap's over networks, for the one comparison; the verdict goes
    by paired t-tests, Holm-corrected for all of them.  All networks are judged on the same test examples, and
    no difference is taken to be more certain than these allow.

    Args:
        rows: Rows ``ordinary`` and ``paired``.
        repair: Which repair.
    """
    cells: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        if row["part"] in ("ordinary", "paired") and row["repair"] == repair:
            cells.setdefault((row["model"], row["removed"]), []).append(row)
    found = [_compared(model, share, cell) for (model, share), cell in cells.items()]
    for row, adjusted in zip(found, holm([row["p"] for row in found]), strict=True):
        sure = adjusted < LEVEL
        row["p"] = adjusted
        row["verdict"] = "tie" if not sure else "ahead" if row["ahead by"] > 0 else "behind"
    return found


def _compared(model: str, share: float, cell: Sequence[Row]) -> dict[str, Any]:
    lost: dict[str, list[float]] = {}
    for row in cell:
        if row["part"] == "ordinary":
            lost.setdefault(row["criterion"], []).append(row["lost"])
    means = {name: float(np.mean(values)) for name, values in lost.items()}
    baselines = {n: m for n, m in means.items() if not n.startswith("matroid") and n != "random"}
    best = min(baselines, key=lambda n: baselines[n])
    pairs = [row for row in cell if row["part"] == "paired" and row["criterion"] == best]
    ahead = [(row["only matroid"] - row["only baseline"]) / row["tested"] for row in pairs]
    found = bootstrap(ahead)
    examples = min(row["tested"] for row in pairs) / len(pairs)
    return {
        "network": model,
        "removed": share,
        "matroid lost": means["matroid"],
        "best baseline": best,
        "it lost": means[best],
        "ahead by": 100 * found.estimate,
        "low": 100 * found.low,
        "high": 100 * found.high,
        "p": paired_p(ahead, examples),
        "verdict": "",
        "seeds": len(pairs),
    }
