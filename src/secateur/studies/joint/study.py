"""Run the joint study: a cell for each network, data set and seed; then tables, figures and a conclusion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from secateur.bench import Cell, run_grid
from secateur.core import InputError, unknown
from secateur.data import fashion_available
from secateur.methods import METHODS
from secateur.studies.common import Findings, Table, failures, rows_of, write_findings
from secateur.studies.joint.figures import figures
from secateur.studies.joint.standing import STRUCTURES, blocks
from secateur.studies.joint.subjects import NETWORKS, SIZES
from secateur.studies.joint.tables import WORDS, Rows, tables

__all__ = ["cells", "conclusion", "findings", "run"]

KEEPS, FULL_KEEPS = (0.7, 0.4, 0.2), (0.8, 0.6, 0.4, 0.2, 0.1, 0.05)
# The dearest first, so that workers end together.
ORDER = ("ResNet-20", "VGG", "transformer", "LeNet-5", "LSTM", "MLP")


def run(
    full: bool = False,
    out: str | Path = "joint-study",
    seed: int = 0,
    *,
    jobs: int = 2,
    tell: Callable[[str], None] | None = None,
    folder: str | Path | None = None,
    datasets: Sequence[str] | None = None,
    networks: Sequence[str] = ORDER,
    methods: Sequence[str] = tuple(METHODS),
    keeps: Sequence[float] | None = None,
    seeds: int = 5,
    limit: int | None = None,
) -> Findings:
    """Compare the four structures and all baselines on the same networks, ratios, repairs and allocation.

    Args:
        full: Networks trained on all examples and twice as long, judged on all test examples, six ratios,
            ten seeds.
        out: Folder for the cells, the trained weights, the tables, the figures and the report.
        seed: First seed.
        jobs: Worker processes.
        tell: Called with a few words after each cell.
        folder: Where Fashion-MNIST lies.
        datasets: ``"fashion"``, ``"digits"``; by default both where Fashion-MNIST is there, else digits.
        networks: Names in `NETWORKS`.
        methods: Names in `METHODS`.
        keeps: Shares of each group's units that stay.
        seeds: Number of networks of each kind.
        limit: Train on at most so many examples, in one pass, and prune on few: for a trial.

    Raises:
        InputError: An unknown network, method or data set.
    """
    there = ("fashion", "digits") if folder or fashion_available() else ("digits",)
    chosen = there if datasets is None else tuple(datasets)
    for what, given, known in (
        ("network", networks, tuple(NETWORKS)), ("method", methods, tuple(METHODS)),
        ("data set", chosen, ("fashion", "digits")),
    ):  # fmt: skip
        for name in given:
            if name not in known:
                raise InputError(unknown(what, name, known))
    shares = list(keeps if keeps is not None else FULL_KEEPS if full else KEEPS)
    several = range(seed, seed + (max(10, seeds) if full and limit is None else seeds))
    common: dict[str, Any] = {
        "folder": None if folder is None else str(folder), "methods": list(methods), "keeps": shares,
        "draws": 20 if full else 2, "cache": str(Path(out) / "weights"),
    }  # fmt: skip
    asked = cells(full, chosen, networks, several, limit, common)
    records = run_grid(asked, Path(out) / "cells.jsonl", jobs=jobs, tell=tell)
    found = findings(rows_of(records), failures(records))
    write_findings(found, out)
    return found


def cells(
    full: bool,
    datasets: Sequence[str],
    networks: Sequence[str],
    seeds: Sequence[int],
    limit: int | None,
    common: Mapping[str, Any],
) -> list[Cell]:
    """Return the grid: one cell a data set, network and seed."""
    found = []
    for data in datasets:
        for network in sorted(networks, key=ORDER.index):
            size = SIZES[data, network]
            size = size.full() if full else size
            size = size if limit is None else size.tiny(limit)
            for seed in seeds:
                what = {"data": data, "model": network, "seed": seed, "size": asdict(size)}
                found.append(Cell("secateur.studies.joint.cells:network", {**what, **common}))
    return found


def findings(rows: Rows, failed: Table | None = None) -> Findings:
    """Turn the rows of the cells into what the study found."""
    made = [table for table in tables(rows) if table.rows] + ([failed] if failed else [])
    title = "The four structures and all baselines, on the same networks"
    return Findings("joint", title, "", made, figures(blocks(rows)), conclusion(made))


def conclusion(made: Sequence[Table]) -> str:
    """Say who wins, from the tables, whoever it is."""
    found = {table.name: table.rows for table in made}
    if "standings" not in found:
        return "No network was pruned."
    return " ".join([_scope(found), *_by_repair(found), *_structures(found), *_price(found)])


def _scope(found: Mapping[str, Rows]) -> str:
    networks = found["networks"]
    kinds = len({row["network"] for row in networks})
    data = " and ".join(
        {"fashion": "Fashion-MNIST"}.get(d, d) for d in dict.fromkeys(r["data"] for r in networks)
    )
    least = min(row["seeds"] for row in networks)
    return (
        f"{len({row['method'] for row in found['standings']})} criteria at the same sizes, on {kinds} "
        f"networks, {data}, {least} seeds or more each."
    )


def _by_repair(found: Mapping[str, Rows]) -> Iterator[str]:
    """Name the method that is nearest to the best over all blocks, for each repair."""
    for repair, words in WORDS.items():
        rows = [row for row in found["standings"] if row["repair"] == repair]
        every = max((row["blocks"] for row in rows), default=0)
        whole = [row for row in rows if row["blocks"] == every]
        if not whole:
            continue
        first, *others = whole
        random = next((row for row in whole if row["method"] == "random"), None)
        text = (
            f"{words.capitalize()}, **{first['method']}** stands first: best or tied in "
            f"{first['best'] + first['tied']} of {every} blocks, {first['lost']:.1f} points lost on average"
        )
        if others:
            text += f"; {others[0]['method']} follows with {others[0]['lost']:.1f}"
        yield text + (f", random loses {random['lost']:.1f}." if random and random is not first else ".")


def _structures(found: Mapping[str, Rows]) -> Iterator[str]:
    """Say of each structure what it beats and what beats it, with the fold."""
    for structure in STRUCTURES:
        rows = [
            r for r in found.get("structures", ()) if (r["structure"], r["repair"]) == (structure, "fold")
        ]
        if rows:
            by = {v: [r["baseline"] for r in rows if r["verdict"] == v] for v in ("ahead", "tie", "behind")}
            words = {"ahead": "ahead of", "tie": "tied with", "behind": "behind"}
            said = [f"{words[v]} {', '.join(names)}" for v, names in by.items() if names]
            count = max(row["networks"] for row in rows)
            yield f"With the fold, over {count} networks, {structure} is {'; '.join(said)}."


def _price(found: Mapping[str, Rows]) -> Iterator[str]:
    """Say which methods take longest to decide."""
    costs = {
        row["method"]: max(v for k, v in row.items() if k.endswith(", s") and v is not None)
        for row in found.get("cost", ())
    }
    dearest = sorted(costs, key=lambda name: -costs[name])[:3]
    if dearest:
        said = ", ".join(f"{name} {costs[name]:.2g} s" for name in dearest)
        yield f"Deciding takes longest, on the network that takes each of them longest, with {said}."
