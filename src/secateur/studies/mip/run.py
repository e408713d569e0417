"""Run the study and write JSON lines and tables."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from secateur.core import InputError, unknown
from secateur.data import fashion_available
from secateur.studies.mip import tables
from secateur.studies.mip.subjects import NETS, Scale
from secateur.studies.mip.tables import Folders, Row

PARTS = ("pruning", "modes", "transfer", "rescale", "snip", "images", "epochs", "lambdas")
QUICK = Scale(train=6000, epochs=5, test=2000, seconds=300, draws=20, sets=8)
FULL = Scale(train=60000, epochs=30, test=10000, seconds=600, draws=20, sets=25)
TITLES = {
    "pruning": "Table 2: pruning by threshold, with further comparators at the same counts",
    "modes": "Tables 1 and 6: class by class, imbalanced, all at once (LeNet-5, lambda 1)",
    "transfer": "Table 3: mask from one data set, retrained on another from the same initialisation",
    "rescale": "Table 4: s - 2, s - 1, s (LeNet-5, threshold 0.05)",
    "snip": "Table 5: at initialisation, beside SNIP by neurons (lambda 1, threshold 0.2)",
    "images": "Figure 2a: random balanced sets of images",
    "epochs": "Figure 2b: scores after every epoch",
    "lambdas": "Figure 3: lambda",
}
_KEYS = (
    "net",
    "data",
    "source",
    "target",
    "bounds",
    "threshold",
    "mode",
    "objective",
    "method",
    "epoch",
    "lambda",
    "images",
)
_HIDDEN = ("seed", "set", "random draws", "status")

__all__ = ["FULL", "PARTS", "QUICK", "run"]


def run(
    full: bool = False,
    out: str | Path = "mip-study",
    seed: int = 0,
    *,
    parts: Sequence[str] = PARTS,
    nets: Sequence[str] | None = None,
    folders: Folders | None = None,
    scale: Scale | None = None,
    seeds: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, list[Row]]:
    """Reproduce the paper's tables and figures beside the published numbers.

    Writes `<part>.jsonl` for each part and `tables.md` into `out`, after every piece, so that none is lost.

    Args:
        full: The paper's scale (30 epochs, all examples, three initialisations, VGG-16 too; hours) instead of
            one that takes minutes.
        out: Folder for the results.
        seed: First seed of the initialisations.
        parts: Which parts to run, of `PARTS`.
        nets: Networks of Table 2; by default all but VGG-16, which `full` adds.
        folders: Folders of data sets by name: ``"mnist"``, ``"cifar10"``, ``"fashion"``.  Digits are always
            used, Fashion-MNIST where it is installed.
        scale: Another scale.
        seeds: Number of initialisations in Tables 1, 2, 4 and 6: 3, or 1 in the quick Tables 1, 4 and 6.
        progress: Called with a line before each piece of work.

    Raises:
        InputError: Unknown parts or networks.

    Returns:
        Rows by part.
    """
    for what, given, known in (("part", parts, PARTS), ("network", nets or NETS, NETS)):
        for name in given:
            if name not in known:
                raise InputError(unknown(what, name, list(known)))
    job = _Job(full, seed, nets, dict(folders or {}), scale or (FULL if full else QUICK), seeds)
    where, found = Path(out), {}
    where.mkdir(parents=True, exist_ok=True)
    for part in parts:
        rows: list[Row] = []
        for title, call in job.work(part):
            if progress is not None:
                progress(f"{part}: {title}")
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="the network misclassifies")
                warnings.filterwarnings("ignore", message="no image of class")
                rows += call()
            found[part] = rows
            (where / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            (where / "tables.md").write_text(markdown(found))
    return found


class _Job:
    """What each part consists of."""

    def __init__(
        self,
        full: bool,
        seed: int,
        nets: Sequence[str] | None,
        folders: Folders,
        scale: Scale,
        seeds: int | None,
    ) -> None:
        self.folders, self.scale, self.seed = folders, scale, seed
        self.nets = tuple(nets) if nets else (NETS if full else NETS[:3])
        self.many = range(seed, seed + (seeds or 3))
        self.few = range(seed, seed + (seeds or (3 if full else 1)))
        named = [name for name in ("fashion", "mnist", "cifar10") if name in folders]
        here = ["fashion"] if "fashion" not in named and fashion_available() else []
        self.data = [*here, *named, "digits"]

    def work(self, part: str) -> list[tuple[str, Callable[[], list[Row]]]]:
        """Return titles and calls of a part."""
        pairs = [(a, b) for a in self.data for b in self.data if a != b]
        if part == "pruning":
            return [self._call(tables.pruning, n, d, last=self.many) for n in self.nets for d in self.data]
        if part in ("modes", "rescale"):
            table = tables.modes if part == "modes" else tables.rescale
            return [self._call(table, d, last=self.few) for d in self.data]
        if part == "snip":
            return [self._call(tables.snip, a, b) for a, b in pairs]
        if part == "transfer":
            deep = [net for net in self.nets if not net.startswith("FC")]
            return [self._call(tables.transfer, net, a, b) for net in deep for a, b in pairs]
        figure = {"images": tables.images, "epochs": tables.epochs, "lambdas": tables.lambdas}[part]
        return [self._call(figure, n, self.data[0]) for n in self.nets if n in ("FC-3", "LeNet-5")]

    def _call(
        self, table: Callable[..., list[Row]], *names: str, last: Sequence[int] | None = None
    ) -> tuple[str, Callable[[], list[Row]]]:
        seeds = self.seed if last is None else last
        return ", ".join(names), partial(table, *names, self.folders, self.scale, seeds)


def markdown(found: Mapping[str, Sequence[Row]]) -> str:
    """Return the tables: means over seeds, with the published numbers."""
    pieces = ["# Neuron importance by mixed-integer programming (arXiv:2002.07376)\n"]
    pieces.append(
        "Percent; mean over initialisations, ± their standard deviation. `published` is as printed.\n"
    )
    for part, rows in found.items():
        if rows:
            pieces.append(f"## {TITLES[part]}\n\n{_table(_merged(rows))}\n")
    return "\n".join(pieces)


def _merged(rows: Sequence[Row]) -> list[Row]:
    """Average the rows that differ in their seed (or set of images) only."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(repr([row.get(key) for key in _KEYS]), []).append(row)
    merged = []
    for same in groups.values():
        first = same[0]
        columns = [key for key in first if key not in _HIDDEN]
        merged.append({"n": len(same), **{key: _mean(key, [row[key] for row in same]) for key in columns}})
    return merged


def _mean(key: str, values: Sequence[Any]) -> Any:
    if key in _KEYS or not isinstance(values[0], (int, float)):
        return values[0]
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.3g}" if key == "gap" else f"{mean(values):.1f}{spread}"


def _table(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(key)) for key in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {number}" for key, number in value.items())
    return ", ".join("" if v is None else str(v) for v in value) if isinstance(value, tuple) else str(value)
