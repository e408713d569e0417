"""Run the study: a grid of cells, then tables, figures and a paragraph from their rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from secateur.bench import Trial, run_trials
from secateur.core import InputError, unknown
from secateur.data import fashion_available
from secateur_studies.common import Findings, Table, failures, marked, named_folders, rows_of, write_findings
from secateur_studies.matroid.figures import figures
from secateur_studies.matroid.ordinary import MODELS
from secateur_studies.matroid.post import DIMENSIONS, SEEDS
from secateur_studies.matroid.published import AT_100
from secateur_studies.matroid.tables import Rows, changes, mean_of, part, published_entries, tables

__all__ = ["FOLDERS", "cells", "findings", "run"]

PARTS = ("post", "controls", "ordinary", "planted")
HERE = "secateur_studies.matroid.cells"
SOURCE = (
    'the blog post "Matroid-Guided Pruning: Removing 70% of Neurons for Free" and its published experiment'
)
FOLDERS = ("fashion",)


def run(
    full: bool = False,
    out: str | Path = "matroid-study",
    seed: int = 0,
    *,
    jobs: int = 2,
    tell: Callable[[str], None] | None = None,
    parts: Sequence[str] = PARTS,
    folders: Mapping[str, str | Path] | None = None,
    dimensions: Sequence[int] = DIMENSIONS,
    models: Sequence[str] = tuple(MODELS),
    seeds: int | None = None,
    limit: int | None = None,
) -> Findings:
    """Reproduce the post's tables beside the published ones, audit them, and compare on ordinary networks.

    Args:
        full: Ordinary networks trained twice as long on all examples, tested on all, ten seeds or more.
        out: Folder for the cells, the tables, the figures and the report.
        seed: First seed of the ordinary networks (the post's are fixed).
        jobs: Worker processes.
        tell: Called with a few words after each cell.
        parts: Any of ``"post"``, ``"controls"``, ``"ordinary"``, ``"planted"``.
        folders: Folder of ``"fashion"``; without it, and without Debian's package, digits stand in.
        dimensions: Hidden units of the post's networks.
        models: Ordinary networks: ``"mlp"``, ``"cnn"``, ``"lstm"``.
        seeds: Number of ordinary networks of each kind; by default ten perceptrons, five of the others.
        limit: Train ordinary networks on at most so many examples.

    Raises:
        InputError: An unknown part, model or data set.
    """
    for what, given, known in (("part", parts, PARTS), ("model", models, tuple(MODELS))):
        for name in given:
            if name not in known:
                raise InputError(unknown(what, name, known))
    where = Path(out)
    several = seeds if seeds is not None else 10 if full else None
    named = named_folders(folders, FOLDERS)
    asked = cells(full, parts, named.get("fashion"), dimensions, models, seed, several, limit)
    records = run_trials(marked(asked, named), where / "cells.jsonl", jobs=jobs, log=tell)
    found = findings(rows_of(records), failures(records))
    write_findings(found, where)
    return found


def cells(
    full: bool,
    parts: Sequence[str],
    folder: str | None,
    dimensions: Sequence[int],
    models: Sequence[str],
    seed: int,
    seeds: int | None,
    limit: int | None,
) -> list[Trial]:
    """Return the grid, the dearest cells first."""
    data = "fashion" if folder or fashion_available() else "digits"
    images = {"data": data, "folder": folder}
    found: list[Trial] = []
    for model in models if "ordinary" in parts else ():
        scale = MODELS[model]
        size = {
            "epochs": scale.epochs * (2 if full else 1),
            "limit": None if full else scale.limit,
            "tests": None if full else scale.tests,
            "draws": 20 if full else 10,
        }
        size |= {} if limit is None else {"limit": limit, "draws": 2}
        several = range(seed, seed + (scale.seeds if seeds is None else seeds))
        found += [Trial(f"{HERE}:ordinary", {**images, "model": model, "seed": s, **size}) for s in several]
    found.sort(key=lambda cell: -["mlp", "cnn", "lstm"].index(cell.params["model"]))
    if "post" in parts:
        found += [
            Trial(f"{HERE}:post", {"seed": s, "mode": mode, "units": list(dimensions)})
            for mode in ("tp_exponential", "negated_bidiagonal")
            for s in SEEDS
        ]
    if "controls" in parts:
        found += [Trial(f"{HERE}:controls", {"seed": s, "units": dimensions[-1]}) for s in SEEDS]
    if "planted" in parts:
        several = range(seed, seed + (5 if seeds is None else seeds))
        found += [Trial(f"{HERE}:planted", {**images, "seed": s, "count": 40}) for s in several]
    return found


def findings(rows: Rows, failed: Table | None = None) -> Findings:
    """Turn the rows of the cells into what the study found."""
    made = [*tables(rows), *([failed] if failed else [])]
    title = "Matroid-guided pruning: the post, its limits, and ordinary networks"
    return Findings("matroid", title, SOURCE, made, figures(rows), "\n\n".join(_sentences(rows, made)))


def _sentences(rows: Rows, made: Sequence[Table]) -> Iterator[str]:
    """Say what came out; the numbers are those of the tables."""
    entries = published_entries(rows)
    if entries:
        good = sum(entry["verdict"] == "reproduced" for entry in entries)
        yield f"Of {len(entries)} published means {good} come out to the printed digit."
        yield from _omitted(rows)
        yield from _audit_sentences(rows)
    paired = {table.name: table.rows for table in made}.get("paired", ())
    if paired:
        by = {v: [r for r in paired if r["verdict"] == v] for v in ("ahead", "tie", "behind")}
        yield (
            f"On ordinary networks, beside the best baseline with the same fold, the basis of activations is "
            f"ahead in {len(by['ahead'])} of {len(paired)} comparisons{_where(by['ahead'])}, ties in "
            f"{len(by['tie'])}, and is behind in {len(by['behind'])}{_where(by['behind'])}."
        )
        kept = {r["removed"]: r for r in paired if r["network"] == "mlp"}
        if kept:
            said = ", ".join(f"{r['matroid lost']:.2f} at {share:.0%}" for share, r in kept.items())
            yield f"The MLP loses, in points with fold: {said}."
    found = part(rows, "planted")
    if found:
        apart = max(r["relative output difference"] for r in found)
        yield (
            f"Of {sum(r['planted'] for r in found)} planted multiples and duplicates, exact merging finds "
            f"{sum(r['found'] for r in found)}, and {sum(r['found besides'] for r in found)} besides; the "
            f"outputs agree to {apart:.1e}."
        )


def _omitted(rows: Rows) -> Iterator[str]:
    """Name the largest gain by pruning that the post has no number for."""
    means = {
        units: float(changes(rows, "tp_exponential", units, "matroid").mean(0)[-1])
        for units in {r["units"] for r in part(rows, "post")} - set(AT_100)
    }
    if means and max(means.values()) > 0:
        units = max(means, key=lambda n: means[n])
        yield f"The post leaves out that H = {units} gains {means[units]:.1f} points without its tail."


def _audit_sentences(rows: Rows) -> Iterator[str]:
    units = max(r["units"] for r in part(rows, "post"))
    where = {"mode": "tp_exponential", "units": units}
    stays = mean_of(part(rows, "post"), "change", criterion="matroid", fraction=0.75, **where)
    random = mean_of(part(rows, "post"), "change", criterion="random", fraction=0.75, **where)
    permuted = mean_of(part(rows, "permuted"), "change", **where)
    if permuted is None:
        return
    partition = part(rows, "partition")
    yield (
        "The published means depend on the order of the neurons: permuting these leaves the function as it "
        f"is and turns {stays:.1f} points at H = {units} into {permuted:.1f} (random removal: {random:.1f}). "
        "The tail has "
        f"{mean_of(partition, 'tail', **where):.1f} units numerically and "
        f"{mean_of(partition, 'exact tail', **where):.1f} over the rationals; "
        f"{mean_of(partition, 'zero biases', **where):.1f} biases are exactly 0."
    )
    merged = {"tolerance": 1e-12, **where}
    kept = mean_of(part(rows, "merged"), "kept", **merged)
    change = mean_of(part(rows, "merged"), "change", **merged)
    yield (
        f"Merging positive multiples needs no order, keeps {kept:.0f} of {units} units and changes accuracy "
        f"by {change:.1f} points."
    )
    bare = mean_of([r for r in partition if r["mode"] in ("cauchy", "unconstrained")], "tail")
    if bare is not None:
        untrained = mean_of(part(rows, "untrained"), "tail")
        yield (
            f"Cauchy and unconstrained networks have {bare:.1f} units in the tail on average, an untrained "
            f"network {untrained:.1f}."
        )


def _where(rows: Rows) -> str:
    named = ", ".join(f"{row['network']} at {row['removed']:.0%}" for row in rows)
    return f" ({named})" if named else ""
