"""The jobs of the matroid study. Each trains its networks and returns rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from secateur.data import load_dataset
from secateur.structures.matroid.parametrize import Kind
from secateur_studies.matroid import controls as checks
from secateur_studies.matroid import ordinary as networks
from secateur_studies.matroid.harder import harder_row
from secateur_studies.matroid.post import CRITERIA, FRACTIONS, Post, accuracy, curve, moons, train

__all__ = ["controls", "harder", "ordinary", "planted", "post"]

Row = dict[str, Any]
POST, LINES, PANELS = "post", "figure 1", "figure 2"
SIDE = 50  # points on a side of the maps of Figure 2
EXTENT = ((-1.5, 2.5), (-2.0, 1.5))
FIGURE_1 = ("tp_exponential", 20, 43)
FIGURE_2 = ("tp_exponential", 50, 42)


def post(seed: int, mode: Kind, units: list[int]) -> list[Row]:
    """Train the post's networks of one seed and parametrization: curves of all criteria, and controls."""
    data = moons(np.random.default_rng(seed))
    rows: list[Row] = []
    for count in units:
        net = train(mode, count, seed, data)
        rows += curve_rows(net, seed)
        rows += [{**row, "data seed": seed} for row in checks.check_network(net)]
        if (mode, count, seed) == FIGURE_1:
            rows += _line_rows(net)
        if (mode, count, seed) == FIGURE_2:
            rows += panel_rows(net)
    return rows


def curve_rows(net: Post, seed: int) -> Iterator[Row]:
    """Yield the change of accuracy for each criterion and fraction of the tail."""
    tail = net.tail.tail
    common = {"part": POST, "mode": net.mode, "units": len(net.w2), "data seed": seed, "tail": len(tail)}
    for criterion in CRITERIA:
        for fraction, change in zip(FRACTIONS, curve(net, criterion, tail), strict=True):
            yield {**common, "criterion": criterion, "fraction": fraction, "change": change}


def _line_rows(net: Post) -> Iterator[Row]:
    """Yield for each unit the line w . x + b = 0, and whether the unit is in the tail."""
    tail = net.tail
    for unit, ((a, b), c) in enumerate(zip(net.w1, net.b1, strict=True)):
        kind = "tail" if tail.windows[unit] else "essential"
        yield {"part": LINES, "unit": unit, "kind": kind, "a": a, "b": b, "c": c}


def panel_rows(net: Post) -> Iterator[Row]:
    """Yield the decisions of the whole network, without 75 % of the tail, and after random removal."""
    tail, h = net.tail.tail, len(net.w2)
    count, everything = int(0.75 * len(tail)), np.arange(h)
    draws = [np.random.default_rng(s).choice(h, size=count, replace=False) for s in range(20)]
    worst = min(draws, key=lambda removed: accuracy(net, np.setdiff1d(everything, removed)))
    panels = {"original": np.zeros(0, dtype=int), "matroid": tail[:count], "worst of 20 random": worst}
    xs, ys = (np.linspace(low, high, SIDE) for low, high in EXTENT)
    mesh = np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2)
    for panel, removed in panels.items():
        keep = np.setdiff1d(everything, removed)
        side = "".join("1" if z > 0 else "0" for z in net.logits(keep, mesh))
        numbers = {"removed": len(removed), "accuracy": accuracy(net, keep)}
        yield {"part": PANELS, "panel": panel, **numbers, "side": side}


def controls(seed: int, units: int) -> list[Row]:
    """Check networks that must have no tail, an untrained one, and data that interlock."""
    data = moons(np.random.default_rng(seed))
    modes: tuple[Kind, ...] = ("cauchy", "unconstrained")
    rows = [row for mode in modes for row in checks.check_network(train(mode, units, seed, data))]
    rows.append(checks.check_untrained("tp_exponential", units, seed))
    return [{**row, "data seed": seed} for row in [*rows, checks.check_real_moons(units, seed)]]


def ordinary(
    model: str,
    data: str,
    folder: str | None,
    seed: int,
    epochs: int,
    limit: int | None,
    tests: int | None,
    draws: int,
) -> list[Row]:
    """Train an ordinary network and prune it by every criterion, without and with the same fold."""
    images = load_dataset(data, folder)
    rows = networks.compare_criteria(
        model, images, seed, epochs=epochs, limit=limit, tests=tests, draws=draws
    )
    return list(rows)


def harder(task: str, mode: Kind, seed: int) -> list[Row]:
    """Train a network of a structured kernel on a harder task and remove 75 % of its tail."""
    return [harder_row(task, mode, seed)]


def planted(data: str, folder: str | None, seed: int, count: int) -> list[Row]:
    """Plant multiples and duplicates into a trained network and look for them."""
    return [networks.find_planted(load_dataset(data, folder), seed, count)]
