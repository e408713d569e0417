"""Means over seeds, paired differences with bootstrap intervals, and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["interval", "markdown", "means"]

Row = dict[str, Any]
_LAYOUT: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    # part: (what names a line, what names a column, values)
    "literal": (("data", "variant", "density", "published"), (), ("sparsity", "accuracy")),
    "rigorous": (("repair", "criterion"), ("removed",), ("accuracy",)),
    "effect": (
        ("criterion",), (),
        ("accuracy", "modularity", "exponent", "norm", "information", "unit information"),
    ),
    "g2p": (("repair", "criterion"), ("removed",), ("phoneme error",)),
}
_REFERENCE = {"rigorous": "random", "g2p": "random"}


def means(
    rows: Sequence[Row], lines: Sequence[str], columns: Sequence[str], value: str
) -> dict[Any, dict[int, float]]:
    """Return by (line, column) the mean of a value for each seed."""
    found: dict[Any, dict[int, list[float]]] = {}
    for row in rows:
        key = (tuple(row[name] for name in lines), tuple(row[name] for name in columns))
        found.setdefault(key, {}).setdefault(row["seed"], []).append(row[value])
    return {key: {s: float(np.mean(v)) for s, v in seeds.items()} for key, seeds in found.items()}


def interval(differences: Sequence[float], draws: int = 4000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean of paired differences (seeded)."""
    values = np.asarray(differences, np.float64)
    picks = np.random.default_rng(0).integers(0, len(values), (draws, len(values)))
    low, high = np.quantile(values[picks].mean(1), (0.025, 0.975))
    return float(low), float(high)


def markdown(part: str, rows: Sequence[Row]) -> str:
    """Return the table of a part; against random draws a sign tells a difference from a tie.

    ``+`` or ``-``: the 95 % interval of the paired difference with random lies above or below 0.
    """
    lines, columns, values = _LAYOUT[part]
    cells: dict[tuple[Any, ...], dict[str, str]] = {}
    for value in values:
        table = means(rows, lines, columns, value)
        for (line, column), seeds in table.items():
            title = " ".join([value, *map(str, column)])
            reference = table.get(((*line[:-1], _REFERENCE.get(part)), column))
            sign = _sign(seeds, reference) if part in _REFERENCE and reference is not seeds else ""
            cells.setdefault(line, {})[title] = f"{np.mean(list(seeds.values())):.3f}{sign}"
    first = list(dict.fromkeys(line[0] for line in cells))
    cells = dict(sorted(cells.items(), key=lambda item: first.index(item[0][0])))
    titles = list(dict.fromkeys(title for line in cells.values() for title in line))
    head = "| " + " | ".join([*lines, *titles]) + " |"
    body = ["| " + " | ".join([*map(str, line), *(found.get(t, "") for t in titles)]) + " |"
            for line, found in cells.items()]
    count = len({row["seed"] for row in rows})
    rule = "|" + "---|" * (len(lines) + len(titles))
    return "\n".join([f"Means over seeds: {count}.", "", head, rule, *body, ""])


def _sign(seeds: dict[int, float], reference: dict[int, float] | None) -> str:
    if reference is None:
        return ""
    low, high = interval([seeds[s] - reference[s] for s in seeds])
    return " +" if low > 0 else " -" if high < 0 else ""
