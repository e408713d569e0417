"""The cells of the study: each trains what it speaks of and returns rows.

Rows say by "part" what they are: ``post`` (the published experiment), ``figure 1`` and ``figure 2`` (what
these draw), an audit's name, ``ordinary`` and ``paired``, ``planted``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from secateur.data import Dataset, load_dataset
from secateur.structures.matroid.parametrize import Kind
from secateur_studies.matroid import audits
from secateur_studies.matroid import ordinary as networks
from secateur_studies.matroid.post import (
    CRITERIA,
    FRACTIONS,
    Post,
    accuracy,
    curve,
    moons,
    train,
)

__all__ = ["controls", "ordinary", "planted", "post"]

Row = dict[str, Any]
SIDE = 50
EXTENT = ((-1.5, 2.5), (-2.0, 1.5))
FIGURE_1 = ("tp_exponential", 20, 43)
FIGURE_2 = ("tp_exponential", 50, 42)


def post(seed: int, mode: Kind, units: list[int]) -> list[Row]:
    """Train the post's networks of one seed and parametrization: curves of all criteria, and audits."""
    data = moons(np.random.default_rng(seed))
    rows: list[Row] = []
    for count in units:
        net = train(mode, count, seed, data)
        rows += _curves(net, seed)
        rows += [{**row, "data seed": seed} for row in audits.audit_network(net)]
        if (mode, count, seed) == FIGURE_1:
            rows += _lines(net)
        if (mode, count, seed) == FIGURE_2:
            rows += _boundaries(net)
    return rows


def _curves(net: Post, seed: int) -> Iterator[Row]:
    tail = net.tail.tail
    for criterion in CRITERIA:
        for fraction, change in zip(FRACTIONS, curve(net, criterion, tail), strict=True):
            yield {
                "part": "post",
                "mode": net.mode,
                "units": len(net.w2),
                "data seed": seed,
                "criterion": criterion,
                "fraction": fraction,
                "tail": len(tail),
                "change": change,
            }


def _lines(net: Post) -> Iterator[Row]:
    """Where each unit switches: w . x + b = 0, and whether it is in the tail."""
    tail = net.tail
    for unit, ((a, b), c) in enumerate(zip(net.w1, net.b1, strict=True)):
        kind = "tail" if tail.windows[unit] else "essential"
        yield {"part": "figure 1", "unit": unit, "kind": kind, "a": a, "b": b, "c": c}


def _boundaries(net: Post) -> Iterator[Row]:
    """The decisions of the original, without 33 units of the tail, and of the worst of 20 random removals."""
    tail, h = net.tail.tail, len(net.w2)
    count, everything = int(0.75 * len(tail)), np.arange(h)
    draws = [np.random.default_rng(s).choice(h, size=count, replace=False) for s in range(20)]
    worst = min(draws, key=lambda gone: accuracy(net, np.setdiff1d(everything, gone)))
    panels = {"original": np.zeros(0, dtype=int), "matroid": tail[:count], "worst of 20 random": worst}
    xs, ys = (np.linspace(low, high, SIDE) for low, high in EXTENT)
    mesh = np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2)
    for panel, gone in panels.items():
        keep = np.setdiff1d(everything, gone)
        side = "".join("1" if z > 0 else "0" for z in net.logits(keep, mesh))
        yield {
            "part": "figure 2",
            "panel": panel,
            "removed": len(gone),
            "accuracy": accuracy(net, keep),
            "side": side,
        }


def controls(seed: int, units: int) -> list[Row]:
    """Return what must have no tail, what has one untrained, and the experiment on data that interlock."""
    data = moons(np.random.default_rng(seed))
    modes: tuple[Kind, ...] = ("cauchy", "unconstrained")
    rows = [row for mode in modes for row in audits.audit_network(train(mode, units, seed, data))]
    rows.append(audits.audit_untrained("tp_exponential", units, seed))
    return [{**row, "data seed": seed} for row in [*rows, audits.audit_real_moons(units, seed)]]


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
    found = _data(data, folder)
    return list(networks.compare(model, found, seed, epochs=epochs, limit=limit, tests=tests, draws=draws))


def planted(data: str, folder: str | None, seed: int, count: int) -> list[Row]:
    """Plant multiples and duplicates into a trained network and look for them."""
    return [networks.planted(_data(data, folder), seed, count)]


def _data(name: str, folder: str | None) -> Dataset:
    return load_dataset(name, folder)
