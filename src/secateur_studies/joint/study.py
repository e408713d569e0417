"""Run the joint study: a cell for each network, data set and seed; then tables, figures and a conclusion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from secateur.bench import Trial, run_trials
from secateur.bench.statistics import bootstrap
from secateur.core import InputError, unknown
from secateur.data import fashion_available
from secateur.methods import METHODS
from secateur.specs import make_method
from secateur_studies.common import Findings, Table, failures, marked, named_folders, rows_of, write_findings
from secateur_studies.joint.figures import figures
from secateur_studies.joint.standing import STRUCTURES, Block, blocks, meetings
from secateur_studies.joint.subjects import NETWORKS, SIZES
from secateur_studies.joint.tables import WORDS, Rows, tables

__all__ = ["FOLDERS", "cells", "conclusion", "findings", "run"]

JOB = "secateur_studies.joint.cells:network"
KEEPS, FULL_KEEPS = (0.8, 0.6, 0.4, 0.2, 0.1), (0.9, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05)
COMPARED = (*METHODS, "magnitude:p=2")
# The dearest first, so that workers end together.
ORDER = ("ResNet-20", "VGG", "transformer", "LeNet-5", "LSTM", "MLP")
FOLDERS = ("fashion",)


def run(
    full: bool = False,
    out: str | Path = "joint-study",
    seed: int = 0,
    *,
    jobs: int = 2,
    tell: Callable[[str], None] | None = None,
    folders: Mapping[str, str | Path] | None = None,
    datasets: Sequence[str] | None = None,
    networks: Sequence[str] = ORDER,
    methods: Sequence[str] = COMPARED,
    keeps: Sequence[float] | None = None,
    seeds: int = 5,
    limit: int | None = None,
) -> Findings:
    """Compare the four structures and all baselines on the same networks, ratios, repairs and allocation.

    Args:
        full: Networks trained on all examples and twice as long, judged on all test examples, seven
            ratios, ten seeds.
        out: Folder for the cells, the trained weights, the tables, the figures and the report.
        seed: First seed.
        jobs: Worker processes.
        tell: Called with a few words after each cell.
        folders: Folder of ``"fashion"``, where it is not installed.
        datasets: ``"fashion"``, ``"digits"``; by default both where Fashion-MNIST is there, else digits.
        networks: Names in `NETWORKS`.
        methods: Names in `METHODS`, with options; by default all of them, and the L2 norm.
        keeps: Shares of each group's units that stay.
        seeds: Number of networks of each kind.
        limit: Train on at most so many examples, in one pass, and prune on few: for a trial.

    Raises:
        InputError: An unknown network, method or data set.
    """
    named = named_folders(folders, FOLDERS)
    folder = named.get("fashion")
    there = ("fashion", "digits") if folder or fashion_available() else ("digits",)
    chosen = there if datasets is None else tuple(datasets)
    for what, given, known in (
        ("network", networks, tuple(NETWORKS)),
        ("data set", chosen, ("fashion", "digits")),
    ):
        for name in given:
            if name not in known:
                raise InputError(unknown(what, name, known))
    for name in methods:
        make_method(name)
    shares = list(keeps if keeps is not None else FULL_KEEPS if full else KEEPS)
    several = range(seed, seed + (max(10, seeds) if full and limit is None else seeds))
    common: dict[str, Any] = {
        "folder": folder,
        "methods": list(methods),
        "keeps": shares,
        "draws": 20 if full else 2,
    }
    asked = cells(full, chosen, networks, several, limit, common, cache=str(Path(out) / "weights"))
    records = run_trials(marked(asked, named), Path(out) / "cells.jsonl", jobs=jobs, log=tell)
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
    cache: str | None = None,
) -> list[Trial]:
    """Return the grid: one cell a data set, network and seed."""
    found = []
    for data in datasets:
        for network in sorted(networks, key=ORDER.index):
            size = SIZES[data, network]
            size = size.full() if full else size
            size = size if limit is None else size.tiny(limit)
            for seed in seeds:
                what = {"data": data, "model": network, "seed": seed, "size": asdict(size)}
                found.append(Trial(JOB, {**what, **common}, {"cache": cache}))
    return found


def findings(rows: Rows, failed: Table | None = None) -> Findings:
    """Turn the rows of the cells into what the study found."""
    there = blocks(rows)
    made = [table for table in tables(rows) if table.rows] + ([failed] if failed else [])
    title = "The four structures and all baselines, on the same networks"
    return Findings("joint", title, "", made, figures(there), conclusion(made, there))


def conclusion(made: Sequence[Table], there: Sequence[Block]) -> str:
    """Say who wins, from tables and blocks, whoever it is."""
    found = {table.name: table.rows for table in made}
    if not there:
        return "No network was pruned."
    said = [_scope(found), *_by_repair(found, there), *_by_block(there), *_structures(found), *_price(found)]
    return "\n\n".join([*said, *LIMITS])


LIMITS = (
    "`matroid` is the default method, a basis of activations (an interpolative decomposition), not the "
    "windows of rows that the post prunes by; it is near to what the fold solves for afterwards. "
    "`lattice` ranks by flow. Their defaults were settled with accuracies on these data sets in view; no "
    "baseline has options that were.",
    "Not compared here: small networks trained from scratch, other allocations than the same share of every "
    "group, MACs and latency, masks of single weights.",
)


def _scope(found: Mapping[str, Rows]) -> str:
    networks = found["networks"]
    kinds = len({row["network"] for row in networks})
    data = " and ".join(
        {"fashion": "Fashion-MNIST"}.get(d, d) for d in dict.fromkeys(r["data"] for r in networks)
    )
    least = min(row["seeds"] for row in networks)
    return (
        f"{len({row['method'] for row in found['standings']})} criteria on the same networks at the same "
        f"sizes: {kinds} kinds of network, {data}, {least} seeds or more each."
    )


def _by_repair(found: Mapping[str, Rows], there: Sequence[Block]) -> Iterator[str]:
    """Name the methods that lose least on average over all blocks, for each repair."""
    for repair, words in WORDS.items():
        mine = [block for block in there if block.repair == repair]
        whole = [r for r in found["standings"] if r["repair"] == repair and r["blocks"] == len(mine)]
        if len(whole) < 2:
            continue
        first, second = whole[:2]
        lead = bootstrap(meetings(mine, first["method"], second["method"]))
        over = f" (95 % interval over {lead.count} kinds of network {lead.low:.1f} to {lead.high:.1f})"
        over = over if lead.count > 1 else ""
        least = f"{first['lost']:.1f}"
        if lead.count > 1 and lead.low > 0:
            who = f"**{first['method']}** loses least, {least} points on average,"
            than = f"{lead.estimate:.1f} fewer than {second['method']}, the next{over}"
        else:
            who = f"**{first['method']}** and {second['method']} are tied, {least} and {second['lost']:.1f}"
            than = f"points lost on average, {lead.estimate:.1f} between them{over}"
        often = max(whole, key=lambda row: row["best"])
        random = next((row["lost"] for row in whole if row["method"] == "random"), None)
        most = f"least in most blocks: {often['method']}, in {often['best']} of {len(mine)}"
        chance = "" if random is None else f"; random removal loses {random:.1f}"
        yield f"{words.capitalize()}, {who} {than}; {most}{chance}."


def _by_block(there: Sequence[Block]) -> Iterator[str]:
    """Say how much single blocks tell: where the best is told from random removal."""
    told = [
        sum("random" in b.lost and "random" not in (b.best, *b.tied) for b in there if b.repair == repair)
        for repair in WORDS
    ]
    if any("random" in block.lost for block in there):
        number = len({(b.data, b.network, b.keep) for b in there})
        counts = ", ".join(f"{count} ({words})" for count, words in zip(told, WORDS.values(), strict=True))
        yield (
            f"The best of a block is told from random removal, with these numbers of seeds and methods, in "
            f"so many of {number} blocks: {counts}."
        )


def _structures(found: Mapping[str, Rows]) -> Iterator[str]:
    """Say of each structure what it beats and what beats it, with the fold."""
    rows = [row for row in found.get("structures", ()) if row["repair"] == "fold"]
    for structure in STRUCTURES:
        mine = [row for row in rows if row["structure"] == structure]
        if mine:
            by = {v: [r["baseline"] for r in mine if r["verdict"] == v] for v in ("ahead", "tie", "behind")}
            words = {"ahead": "ahead of", "tie": "tied with", "behind": "behind"}
            said = [f"{words[v]} {', '.join(names)}" for v, names in by.items() if names]
            count = max(row["networks"] for row in mine)
            yield (
                f"With the fold, over {count} kinds of network and corrected for the {len(rows)} comparisons "
                f"with this repair, {structure} is {'; '.join(said)}."
            )


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
