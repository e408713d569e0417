"""The tables of the study, from the rows of its cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from secateur.bench.statistics import bootstrap
from secateur_studies.common import Table, verdict

__all__ = ["by_seed", "interval", "mean_of", "part", "tables"]

Row = dict[str, Any]
Rows = Sequence[Row]
PUBLISHED_DATA = "mnist"
# Prose of the paper: Table I has sparsities .4943 to .5038 above 98 %, Table II up to .9943 at 86 to 87 %.
PUBLISHED = (
    ("Algorithm 2, half of W_hh", "Table I", (0.4943, 0.5038), (0.98, 1.0)),
    ("Algorithm 3, 1 row of 128", "Table II", (0.9943, 0.9943), (0.86, 0.87)),
)
ACCURACY_TOLERANCE = 0.01
SIGNS = (
    "`+` or `-`: better or worse than random removal with the same seed, each time (chance alone does that "
    "in one of eight cases with four seeds)."
)
EFFECTS = ("accuracy", "modularity", "exponent", "norm", "information", "unit information")


def part(rows: Rows, name: str, **where: Any) -> list[Row]:
    """Return the rows of one part that have these values."""
    return [r for r in rows if r["part"] == name and all(r.get(k) == v for k, v in where.items())]


def by_seed(rows: Rows, value: str) -> dict[int, float]:
    """Return the mean of a value for each seed."""
    found: dict[int, list[float]] = {}
    for row in rows:
        found.setdefault(row["seed"], []).append(row[value])
    return {seed: float(np.mean(values)) for seed, values in found.items()}


def mean_of(rows: Rows, value: str) -> float | None:
    """Return the mean over seeds of the means for each seed, or None without rows."""
    seeds = by_seed(rows, value)
    return float(np.mean(list(seeds.values()))) if seeds else None


def interval(differences: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """Return the 95 % bootstrap interval of the mean of paired differences, or Nones for fewer than two."""
    if len(differences) < 2:
        return None, None
    found = bootstrap(differences)
    return found.low, found.high


def tables(rows: Rows) -> list[Table]:
    """Return the tables that there are rows for."""
    found = [
        _published(rows),
        *_of_each(rows, "literal", _literal),
        *_of_each(rows, "rigorous", _rigorous),
        *_of_each(rows, "effect", _effect),
        *_g2p(rows),
    ]
    return [table for table in found if table.rows]


def _of_each(rows: Rows, name: str, make: Callable[[str, list[Row]], Table]) -> Iterator[Table]:
    for data in dict.fromkeys(r["data"] for r in part(rows, name)):
        yield make(data, part(rows, name, data=data))


def _published(rows: Rows) -> Table:
    """Tables I and II beside ours: sparsities on any data, accuracies on MNIST alone."""
    found: list[Row] = []
    if trained := part(rows, "literal"):
        datasets = [r["data"] for r in trained]
        data = PUBLISHED_DATA if PUBLISHED_DATA in datasets else datasets[0]
        for variant, table, zeros, score in PUBLISHED:
            ours = part(rows, "literal", data=data, variant=variant)
            on_mnist = ours if data == PUBLISHED_DATA else []
            share, accuracy = mean_of(ours, "zeros"), mean_of(on_mnist, "accuracy")
            setting = _beside(f"{table}: share of zeros in W_hh", share, zeros, 0.0)
            found.append({**setting, "verdict": "", "note": "set, not found"})
            found.append(_beside(f"{table}: accuracy on MNIST", accuracy, score, ACCURACY_TOLERANCE))
    note = (
        "The bodies of the paper's tables are not published with its text; these are the ranges that its "
        "prose gives. Ours is the mean over seeds, with masks that persist. Its accuracies are of MNIST, "
        "which is not downloaded: `--folder mnist=DIR` compares them."
    )
    return Table("published", "Tables I and II of the paper", found, note)


def _beside(what: str, ours: float | None, published: tuple[float, float], tolerance: float) -> Row:
    low, high = published
    nearest = None if ours is None else min(max(ours, low), high)
    said = f"{low:g}" if low == high else f"above {low:g}" if high == 1 else f"{low:g} to {high:g}"
    return {
        "statement": what,
        "ours": None if ours is None else round(ours, 4),
        "published": said,
        "verdict": verdict(ours, low if nearest is None else nearest, tolerance),
    }


def _literal(data: str, rows: list[Row]) -> Table:
    control = by_seed([r for r in rows if r["variant"].startswith("control")], "accuracy")
    found = []
    for variant in dict.fromkeys(r["variant"] for r in rows):
        own = [r for r in rows if r["variant"] == variant]
        seeds = by_seed(own, "accuracy")
        both = [seeds[s] - control[s] for s in seeds if s in control]
        low, high = interval(both)
        above = {"above control": float(np.mean(both)) if both else None, "low": low, "high": high}
        means = {"zeros in W_hh": mean_of(own, "zeros"), "accuracy": mean_of(own, "accuracy")}
        found.append({"variant": variant, **means, "seeds": len(seeds), **above})
    note = (
        "`above control` is the paired difference with a network that never had a recurrence, `low` and "
        "`high` its 95 % bootstrap interval."
    )
    return Table(f"literal-{data}", f"Algorithms 2 and 3 as they stand, {data}", found, note)


def _rigorous(data: str, rows: list[Row]) -> Table:
    whole = mean_of([r for r in rows if r["criterion"] == "whole network"], "accuracy")
    pruned = [r for r in rows if r["criterion"] != "whole network"]
    found: list[Row] = []
    for repair, criterion in dict.fromkeys((r["repair"], r["criterion"]) for r in pruned):
        line: Row = {"repair": repair, "criterion": criterion}
        for removed in sorted({r["removed"] for r in pruned}):
            here = [r for r in pruned if (r["repair"], r["removed"]) == (repair, removed)]
            line[f"{removed:.0%}"] = _signed(here, criterion)
        found.append(line)
    found.sort(key=lambda line: ("none", "fold", "finetune").index(line["repair"]))
    seeds = len({r["seed"] for r in rows})
    note = f"Accuracy with all units {whole:.3f}; means over {seeds} seeds. {SIGNS}"
    return Table(f"rigorous-{data}", f"Whole units removed from an LSTM, {data}", found, note)


def _signed(rows: Rows, criterion: str) -> str:
    """Word a mean with the sign of its difference with random removal; none where they tie."""
    ours, random = (
        by_seed([r for r in rows if r["criterion"] == name], "accuracy") for name in (criterion, "random")
    )
    low, high = interval([ours[s] - random[s] for s in ours if s in random])
    if criterion == "random" or low is None or high is None or low <= 0 <= high:
        return f"{np.mean(list(ours.values())):.3f}"
    sign = "+" if low > 0 else "-"
    return f"{np.mean(list(ours.values())):.3f} {sign}"


def _effect(data: str, rows: list[Row]) -> Table:
    found = []
    for criterion in dict.fromkeys(r["criterion"] for r in rows):
        own = [r for r in rows if r["criterion"] == criterion]
        found.append({"criterion": criterion, **{value: mean_of(own, value) for value in EFFECTS}})
    note = (
        "Half of the units removed, no repair. Modularity is that of the recurrent strengths with "
        "communities by Louvain's method; exponent is the largest Lyapunov exponent driven by test images, "
        "norm the largest norm of the Jacobian on the way; information about the label is a lower bound "
        "(linear decoder) in nats, unit information the mean over single units."
    )
    return Table(f"effect-{data}", f"What removal does to the dynamics, {data}", found, note)


def _g2p(rows: Rows) -> Iterator[Table]:
    measured = [r for r in part(rows, "g2p") if "repair" in r]
    base = [r for r in measured if r["criterion"] == "whole network"]
    whys = {r["criterion"]: r["why"] for r in part(rows, "g2p") if "why" in r}
    undefined = " ".join(f"Not defined here: {name} ({why.rstrip('.')})." for name, why in whys.items())
    for units in dict.fromkeys(r["units"] for r in measured):
        own = [r for r in measured if r["units"] == units and r["criterion"] != "whole network"]
        note = (
            f"With all units: {mean_of(base, 'error'):.3f}, standard error over words "
            f"{mean_of(base, 'standard error'):.3f}. {undefined}"
        )
        name = units.replace(" ", "-")
        errors = _across(own, ("repair", "criterion"), "error")
        yield Table(f"g2p-{name}", f"g2p-en: phoneme error, share of {units} removed", errors, note.strip())
        speeds = _across([r for r in own if "speed-up" in r], ("criterion",), "speed-up")
        left = {r["criterion"]: r["left"] for r in own if "left" in r and r["removed"] == 0.25}
        shown = [{**line, "left at 25%": left.get(line["criterion"])} for line in speeds]
        note = "CPU time of a pass over a batch of words in one thread, whole and pruned in turn."
        yield Table(f"g2p-speed-{name}", f"g2p-en: times as fast, share of {units} removed", shown, note)


def _across(rows: Rows, names: tuple[str, ...], value: str) -> list[Row]:
    """Return a line for each combination of names, with a column for each share removed."""
    found: dict[tuple[Any, ...], Row] = {}
    for removed in sorted({r["removed"] for r in rows}):
        for key in dict.fromkeys(tuple(r[n] for n in names) for r in rows):
            own = [r for r in rows if r["removed"] == removed and tuple(r[n] for n in names) == key]
            line = found.setdefault(key, dict(zip(names, key, strict=True)))
            line[f"{removed:.0%}"] = mean_of(own, value)
    return list(found.values())
