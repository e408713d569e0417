"""Run the study: JSON lines and Markdown from one pass."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from secateur.data import Dataset, digits, fashion, fashion_available
from secateur.structures.matroid.parametrize import Kind
from secateur.studies.matroid import audits, ordinary, tables
from secateur.studies.matroid.figures import figures
from secateur.studies.matroid.post import CRITERIA, DIMENSIONS, SEEDS, Post, curve, grid

__all__ = ["post_rows", "run"]

Row = dict[str, Any]
PARTS = ("post", "audits", "ordinary", "planted")
CONTROLS: tuple[Kind, ...] = ("cauchy", "unconstrained")


def run(
    full: bool = False,
    out: str | Path = "matroid-study",
    seed: int = 0,
    *,
    parts: Sequence[str] = PARTS,
    folder: str | Path | None = None,
    dimensions: Sequence[int] = DIMENSIONS,
    models: Sequence[str] = tuple(ordinary.MODELS),
    seeds: int = 3,
) -> dict[str, list[Row]]:
    """Reproduce the post's tables beside the published ones, audit them, and compare on ordinary networks.

    Args:
        full: Longer training on all examples, five seeds and 20 random draws, instead of minutes.
        out: Folder for `results.jsonl`, `report.md` and the figures.
        seed: First seed of the ordinary networks (the post's are fixed).
        parts: Any of ``"post"``, ``"audits"``, ``"ordinary"``, ``"planted"``.
        folder: Where Fashion-MNIST lies; without it, and without Debian's package, digits stand in.
        dimensions: Hidden units of the post's networks.
        models: Ordinary networks: ``"mlp"``, ``"cnn"``, ``"lstm"``.
        seeds: Number of ordinary networks of each kind.

    Returns:
        The rows by part, as written.

    Raises:
        ValueError: An unknown part or model.
    """
    strange = [p for p in parts if p not in PARTS] + [m for m in models if m not in ordinary.MODELS]
    if strange:
        raise ValueError(f"unknown: {strange}; parts are {PARTS}, models {tuple(ordinary.MODELS)}")
    where = Path(out)
    where.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Row]] = {}
    if {"post", "audits"} & set(parts):
        nets = list(grid(dimensions=tuple(dimensions)))
        if "post" in parts:
            found["post"] = list(post_rows(nets))
            figures(nets, found["post"], where)
        if "audits" in parts:
            found["audits"] = list(_audits(nets, tuple(dimensions)))
    if {"ordinary", "planted"} & set(parts):
        data = _data(folder, seed)
        several = range(seed, seed + (max(5, seeds) if full else seeds))
        if "planted" in parts:
            found["planted"] = [ordinary.planted(data, s) for s in several]
        for model in models if "ordinary" in parts else ():
            for name, rows in _ordinary(data, model, several, full).items():
                found.setdefault(name, []).extend(rows)
            _write(where, found)
    _write(where, found)
    return found


def _data(folder: str | Path | None, seed: int) -> Dataset:
    return fashion(folder, seed) if folder or fashion_available() else digits(seed)


def post_rows(nets: Sequence[Post]) -> Iterator[Row]:
    """Yield the curve of every criterion on every network."""
    for net in nets:
        tail = net.tail.tail
        for criterion in CRITERIA:
            yield {
                "part": "post", "mode": net.mode, "units": len(net.w2), "seed": net.seed,
                "criterion": criterion, "tail": len(tail), "changes": curve(net, criterion, tail),
            }  # fmt: skip


def _audits(nets: Sequence[Post], dimensions: tuple[int, ...]) -> Iterator[Row]:
    for net in nets:
        yield from audits.audit_network(net)
    for control in grid(CONTROLS, dimensions[-1:], SEEDS):
        yield from audits.audit_network(control)
    for seed in SEEDS:
        yield audits.audit_untrained("tp_exponential", dimensions[-1], seed)
    yield from audits.audit_real_moons(dimensions[-1], SEEDS)


def _ordinary(data: Dataset, model: str, seeds: Sequence[int], full: bool) -> dict[str, list[Row]]:
    each = (ordinary.compare(model, data, s, draws=20 if full else 3, full=full) for s in seeds)
    results = [cell for cells in each for cell in cells]
    verdicts = ordinary.intervals([cell for cell in results if cell[0]["criterion"] != "none"])
    return {"ordinary": [row for row, _ in results], "intervals": verdicts}


def _write(where: Path, found: dict[str, list[Row]]) -> None:
    every = (row for rows in found.values() for row in rows)
    lines = [json.dumps({"study": "matroid", **row}, default=_plain) for row in every]
    (where / "results.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (where / "report.md").write_text(tables.report(found), encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} does not go into JSON")
