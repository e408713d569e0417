"""Run the study: a grid of cells, then tables, figures and a paragraph from their rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from secateur.bench import Trial, run_trials
from secateur.core import InputError, unknown
from secateur_studies.common import Findings, Table, failures, marked, named_folders, rows_of, write_findings
from secateur_studies.spectral.figures import figures
from secateur_studies.spectral.paired import difference, order, part
from secateur_studies.spectral.published import TABLE_1
from secateur_studies.spectral.subjects import FULL, NETS, PLAIN, PLAIN_FULL, PLAIN_QUICK, QUICK, Scale
from secateur_studies.spectral.tables import LOW, tables
from secateur_studies.spectral.ways import CONTROLS, MAIN

__all__ = ["FOLDERS", "PARTS", "cells", "findings", "run"]

Rows = Sequence[Mapping[str, Any]]
PARTS = ("table1", "figure2", "controls", "figure3", "oneshot")
SCORES = ("magnitude", "snip", "synflow")
AFTER = ("dense", *MAIN, "greedy, global", "greedy, ERK", "coverage, sizes of sparsify")
SHARES = (0.5, 0.2, 0.1, 0.05)
UNITS = (0.7, 0.5, 0.3)
FLOOR = 0.1
HERE = "secateur_studies.spectral.cells"
FOLDERS = tuple(dict.fromkeys(NETS.values()))


def run(
    full: bool = False,
    out: str | Path = "spectral-study",
    seed: int = 0,
    *,
    jobs: int = 2,
    tell: Callable[[str], None] | None = None,
    parts: Sequence[str] = PARTS,
    nets: Sequence[str] = tuple(NETS),
    seeds: int = 3,
    folders: Mapping[str, str | Path] | None = None,
    scale: Scale | None = None,
) -> Findings:
    """Reproduce the paper's Table 1 and Figures 2 to 4, with controls, and compare without retraining.

    Args:
        full: The paper's widths, epochs, densities and augmentation (weeks on a processor: a GPU is used if
            there is one) instead of narrow networks on small images.
        out: Folder for the cells, the tables, the figures and the report.
        seed: First seed.
        jobs: Worker processes.
        tell: Called with a few words after each cell.
        parts: Any of ``"table1"`` (layer by layer against the whole network), ``"figure2"`` (at the start),
            ``"controls"`` (of Figure 2), ``"figure3"`` (after training, retrained from the initial weights;
            with the numbers of Figure 4), ``"oneshot"`` (after training, not retrained).
        nets: Any of VGG-11, ResNet-20, VGG-16, ResNet-18; controls and Figures 3 and 4 are of the first.
            Part ``"oneshot"`` has a perceptron and LeNet-5 too.
        seeds: Number of seeds; two more for the perceptron and LeNet-5.
        folders: Folders of the paper's data: ``"cifar10"``, ``"cifar100"`` (binary versions) and
            ``"tinyimagenet"``.  Where one is not named, Fashion-MNIST stands in, or digits.
        scale: Another scale.

    Raises:
        InputError: Unknown parts, networks or folders.
    """
    named = named_folders(folders, FOLDERS)
    for what, given, known in (("part", parts, PARTS), ("network", nets, tuple(NETS))):
        for name in given:
            if name not in known:
                raise InputError(unknown(what, name, known))
    if seeds < 1:
        raise InputError(f"seeds must be at least 1; got {seeds}")
    asked = cells(scale or (FULL if full else QUICK), named, parts, nets, range(seed, seed + seeds))
    if "oneshot" in parts:
        plain = scale or (PLAIN_FULL if full else PLAIN_QUICK)
        asked += [_oneshot(net, s, plain, named) for s in range(seed, seed + seeds + 2) for net in PLAIN]
    where = Path(out)
    records = run_trials(marked(asked, named), where / "cells.jsonl", jobs=jobs, log=tell)
    found = findings(rows_of(records), failures(records))
    write_findings(found, where)
    return found


def cells(
    scale: Scale, folders: Mapping[str, str], parts: Sequence[str], nets: Sequence[str], seeds: Sequence[int]
) -> list[Trial]:
    """Return the grid: one cell a network, seed, score and way; at the paper's scale, one a density too."""
    found: list[Trial] = []
    densities = [[d] for d in scale.densities] if scale.paper else [list(scale.densities)]
    base = {"scale": scale.to_json(), "folders": dict(folders)}
    for seed in seeds:
        for net in nets:
            known = {"net": net, "seed": seed, **base}
            if "table1" in parts and (net, "layer") in TABLE_1:
                timed = {"density": TABLE_1[net, "layer"][4], "repeats": 3}
                found.append(Trial(f"{HERE}:table1", {**known, **timed}))
            for job, facts in _trainings(parts, net == nets[0]):
                some = [[]] if facts["way"] == "dense" else densities
                found += [Trial(f"{HERE}:{job}", {**known, **facts, "densities": list(d)}) for d in some]
            if "oneshot" in parts and (net in ("VGG-11", "ResNet-20") or len(nets) == 1):
                found.append(_oneshot(net, seed, scale, folders))
    return found


def _oneshot(net: str, seed: int, scale: Scale, folders: Mapping[str, str]) -> Trial:
    about = {"net": net, "seed": seed, "scale": scale.to_json(), "folders": dict(folders)}
    budgets = {"densities": list(SHARES), "units": list(UNITS), "floor": FLOOR}
    return Trial(f"{HERE}:oneshot", {**about, **budgets})


def _trainings(parts: Sequence[str], first: bool) -> Iterator[tuple[str, dict[str, str]]]:
    """Jobs that train at each density, and what they are called with."""
    if "figure2" in parts:
        yield "figure2", {"part": "figure 2", "score": "none", "way": "dense"}
        for score in SCORES:
            for way in MAIN:
                yield "figure2", {"part": "figure 2", "score": score, "way": way}
    if "controls" in parts and first:
        for way in CONTROLS:
            yield "figure2", {"part": "controls", "score": "magnitude", "way": way}
    if "figure3" in parts and first:
        for way in AFTER:
            yield "figure3", {"way": way}


def findings(rows: Rows, failed: Table | None = None) -> Findings:
    """Turn the rows of the cells into what the study found."""
    made = [*tables(rows), *([failed] if failed else [])]
    title = "Pruning by spectral sparsification: the paper's experiments, with controls"
    words = "\n\n".join(_sentences(rows, made))
    return Findings("spectral", title, "arXiv:2306.08849", made, figures(rows), words)


def _sentences(rows: Rows, made: Sequence[Table]) -> Iterator[str]:
    """Say what came out; the numbers are those of the tables."""
    named = {table.name: table.rows for table in made}
    rows1 = named.get("table1", ())
    judged = [row for row in (*rows1, *named.get("statements", ())) if row.get("verdict")]
    if judged:
        count = {word: sum(row["verdict"] == word for row in judged) for word in ("reproduced", "differs")}
        yield (
            f"Of {len(judged)} published numbers and statements, {count['reproduced']} are reproduced, "
            f"{count['differs']} differ, the rest cannot be run here."
        )
    for row in rows1:
        if row["what"].endswith("time"):
            yield (
                f"On {row['network']} a mask from the whole network's graph takes {row['ours']:.2f} times as "
                f"long as one made layer by layer, both exact (published: {row['published']:.1f} times)."
            )
    yield from _gain(rows)
    yield from _after(rows)


def _gain(rows: Rows) -> Iterator[str]:
    start, controls = part(rows, "figure 2"), part(rows, "controls")
    low = {d for d in order(start, "density") if d <= LOW}
    main = difference(start, {"way": "sparsify"}, {"way": "greedy"}, score="magnitude", density=low)
    if main is not None:
        yield (
            f"At initialisation, up to {LOW:.0%} density, all networks together, `sparsify` less `greedy` by "
            f"magnitudes, in points of accuracy with a 95 % interval: {main}."
        )
    if not controls:
        return
    both = [*controls, *(row for row in start if row["net"] == controls[0]["net"])]
    for way in ("greedy, sizes of sparsify", "random, sizes of sparsify", "greedy, ERK"):
        away = difference(both, {"way": "sparsify"}, {"way": way}, score="magnitude", density=low)
        if away is not None:
            yield f"On {controls[0]['net']}, less the control `{way}`: {away}."


def _after(rows: Rows) -> Iterator[str]:
    found = part(rows, "one shot")
    for kept in (0.2, 0.1):
        away = {
            net: difference(
                found,
                {"way": "leverage of (|w| input)^2"},
                {"way": "magnitude"},
                what="weights",
                kept=kept,
                net=net,
            )
            for net in order(found, "net")
        }
        if any(away.values()):
            said = "; ".join(f"{net} {words}" for net, words in away.items() if words)
            yield (
                f"After training, without retraining, at {kept:.0%} of the weights, the leverage of "
                f"(|w| input)^2 less global magnitude: {said}."
            )
