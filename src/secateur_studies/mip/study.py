"""Run the study: a grid of cells, then tables, figures and a paragraph from their rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Any

from secateur.bench import Trial, run_trials
from secateur.core import InputError, unknown
from secateur.data import fashion_available
from secateur_studies.common import Findings, Table, failures, marked, named_folders, rows_of, write_findings
from secateur_studies.mip.figures import figures
from secateur_studies.mip.subjects import NETS, Setting
from secateur_studies.mip.tables import Rows, claims, grouped, tables, with_tuning

__all__ = ["FOLDERS", "FULL", "PARTS", "QUICK", "cells", "findings", "run"]

FIGURES = ("images", "epochs", "lambdas")
PARTS = ("pruning", "tuned", "modes", "transfer", "rescale", "snip", *FIGURES)
QUICK = Setting()
FULL = Setting(train=60_000, share=1.0, epochs=30, test=10_000, sets=25, seconds=7200, width=1.0)
HERE = "secateur_studies.mip.cells"
SOURCE = (
    'M. ElAraby, G. Wolf, M. Carvalho, "Identifying Critical Neurons in ANN Architectures using Mixed '
    'Integer Programming", arXiv:2002.07376'
)
FOLDERS = ("fashion", "mnist", "cifar10")


def run(
    full: bool = False,
    out: str | Path = "mip-study",
    seed: int = 0,
    *,
    jobs: int = 2,
    tell: Callable[[str], None] | None = None,
    parts: Sequence[str] = PARTS,
    nets: Sequence[str] = NETS,
    folders: Mapping[str, str | Path] | None = None,
    setting: Setting | None = None,
    seeds: int = 3,
) -> Findings:
    """Reproduce the paper's tables and figures beside the published numbers.

    Args:
        full: The paper's scale (30 epochs, all examples, VGG-16 at full width; hours) instead of one that
            takes minutes.
        out: Folder for the cells, the tables, the figures and the report.
        seed: First seed of the initialisations.
        jobs: Worker processes.
        tell: Called with a few words after each cell.
        parts: Which parts to run, of `PARTS`.
        nets: Networks of Table 2.
        folders: Folders of data sets by name: ``"mnist"``, ``"cifar10"``, ``"fashion"``.  Digits are always
            used, Fashion-MNIST where it is installed.
        setting: Another scale.
        seeds: Number of initialisations in the tables.

    Raises:
        InputError: Unknown parts, networks or data sets.
    """
    for what, given, known in (("part", parts, PARTS), ("network", nets, NETS)):
        for name in given:
            if name not in known:
                raise InputError(unknown(what, name, list(known)))
    where = Path(out)
    named = named_folders(folders, FOLDERS)
    scale = replace(setting or (FULL if full else QUICK), folders=named)
    grid = cells(scale, parts, nets, range(seed, seed + seeds), full, cache=str(where / "networks"))
    records = run_trials(marked(grid, named), where / "cells.jsonl", jobs=jobs, log=tell)
    found = findings({part: rows_of(records, f":{part}") for part in PARTS}, scale, failures(records))
    write_findings(found, where)
    return found


def cells(
    setting: Setting,
    parts: Sequence[str],
    nets: Sequence[str],
    seeds: Sequence[int],
    full: bool = False,
    cache: str | None = None,
) -> list[Trial]:
    """Return the grid: Table 2 first, whose networks the other cells read from the cache."""
    named = [name for name in ("fashion", "mnist", "cifar10") if name in setting.folders]
    here = ["fashion"] if "fashion" not in named and fashion_available() else []
    data = [*here, *named, "digits"]
    pairs = [(a, b) for a in data for b in data if a != b]
    alone = [(name, name) for name in data if name != "digits"]
    deep = [n for n in nets if n == "LeNet-5" or (full and n == "VGG-16")]
    drawn = [net for net in nets if net in ("FC-3", "LeNet-5")]
    one = {"seed": seeds[0]}
    work: dict[str, list[dict[str, Any]]] = {
        "pruning": [
            {"net": n, "data": d, "seed": s, "valid": n == "FC-3" or (full and n == "FC-4")}
            for n in nets
            for d in data
            for s in seeds
            if n != "VGG-16" or full
        ],
        "tuned": [
            {"net": n, "data": d, "seed": s}
            for n in nets
            for d in data
            for s in seeds
            if n != "VGG-16" or full
        ],
        "modes": [{"data": d, "seed": s} for d in data for s in seeds],
        "transfer": [
            {"net": n, "source": a, "target": b, "seed": s} for n in deep for a, b in pairs for s in seeds
        ],
        "rescale": [{"data": d, "seed": s} for d in data for s in seeds],
        "snip": [{"source": a, "target": b, "seed": s} for a, b in [*pairs, *alone] for s in seeds],
    }
    work |= {part: [{"net": n, "data": data[0], **one} for n in drawn] for part in FIGURES}
    if "VGG-16" in nets and not full:
        work["pruning"].append({"net": "VGG-16", "data": "digits", **one, "valid": False})
        work["tuned"].append({"net": "VGG-16", "data": "digits", **one})
    scale = {key: value for key, value in asdict(setting).items() if key != "cache"}
    return [
        Trial(f"{HERE}:{part}", {**what, "setting": scale}, {"cache": cache})
        for part in parts
        for what in work[part]
    ]


def findings(rows: Mapping[str, Rows], setting: Setting, failed: Table | None = None) -> Findings:
    """Turn the rows of the cells into what the study found."""
    made = [*tables(rows), *([failed] if failed else [])]
    title = "Neuron importance by mixed-integer programming"
    words = "\n\n".join([*_scale(setting), *_sentences(rows, made)])
    return Findings("mip", title, SOURCE, made, figures(rows), words)


def _scale(setting: Setting) -> Iterator[str]:
    convolutional = round(setting.share * setting.train)
    yield (
        f"At most {setting.train} training examples ({convolutional} for convolutional networks), "
        f"{setting.epochs} epochs (three times as many on digits; 30 in the paper), at most {setting.test} "
        f"test examples. VGG-16 has {setting.width:g} times the paper's width."
    )


def _sentences(rows: Mapping[str, Rows], made: Sequence[Table]) -> Iterator[str]:
    """Say what came out; the numbers are those of the tables."""
    entries = [row for table in made for row in table.rows if row.get("verdict")]
    by = {word: sum(row["verdict"] == word for row in entries) for word in ("reproduced", "differs")}
    if entries:
        yield (
            f"Of {len(entries)} printed numbers and differences {by['reproduced']} are reproduced, "
            f"{by['differs']} differ, and {len(entries) - sum(by.values())} need data that is not here."
        )
    found = [row for row in claims(with_tuning(rows)) if row["n"] > 1]
    for form, words in (("paper", "published form"), ("valid", "valid form")):
        for pair in ("ours - random", "random - critical", "ours - L1", "ours - mean activation"):
            these = [row for row in found if row["form"] == form and row["difference"] == pair]
            if these:
                yield _counted(these, words, *pair.split(" - "))
    yield from _retrained(rows)
    valid = [row for row in rows["pruning"] if row["bounds"] == "valid" and row["net"] == "FC-3"]
    for data in dict.fromkeys(row["data"] for row in valid):
        same = [row for row in valid if row["data"] == data]
        live, ours, random, plain = (mean(row[key] for row in same) for key in _SAID)
        more = mean(row["pruned"] - row["pruned dead only"] for row in same)
        lost = mean(row["ref"] - row["ours"] for row in same)
        yield (
            f"On FC-3 and {data} the valid form removes {live:.0f} units that are live on its images, and "
            f"{more:.1f} % of the units more than dead only, at {lost:.1f} points lost; with the same fold "
            f"it has {ours:.1f} %, L1 {plain:.1f} % and random removal {random:.1f} %."
        )


def _retrained(rows: Mapping[str, Rows]) -> Iterator[str]:
    """Say how masks do that are carried over, or made before training, beside random ones."""
    carried = [
        f"{net} from {source} to {target} {mean(row['ours'] - row['random'] for row in same):+.1f}"
        for (net, source, target), same in grouped(rows["transfer"], "net", "source", "target").items()
    ]
    if carried:
        yield f"Retrained on other data, the mask less a random one gives, in points: {', '.join(carried)}."
    first = []
    for (source, target), same in grouped(rows["snip"], "source", "target").items():
        by = {
            method: mean(row["masked"] for row in same if row["method"] == method)
            for method in ("ours", "snip", "random")
        }
        first.append(
            f"{source} to {target} {by['ours'] - by['snip']:+.1f} and {by['ours'] - by['random']:+.1f}"
        )
    if first:
        yield f"At initialisation, ours less SNIP, and less random: {', '.join(first)}."


_SAID = ("live units removed", "ours + fold", "random + fold", "L1 + fold")


def _counted(these: Sequence[Mapping[str, Any]], form: str, one: str, two: str) -> str:
    by = {word: sum(row["outcome"] == word for row in these) for word in ("ahead", "tie", "behind")}
    means = ", ".join(f"{row['net']} on {row['data']} {row['mean']:+.1f}" for row in these)
    return (
        f"In the {form}, at equal counts, {one} is ahead of {two} in every initialisation in {by['ahead']} "
        f"of {len(these)} cases, behind in every one in {by['behind']}, and in {by['tie']} it varies "
        f"(points: {means})."
    )
