"""Tables of the study, from its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from secateur_studies.common import Table, verdict
from secateur_studies.matroid.paired import verdicts
from secateur_studies.matroid.post import CRITERIA, FRACTIONS
from secateur_studies.matroid.published import AT_75, AT_100, CURVES_200, FACTS

__all__ = ["changes", "mean_of", "part", "published_entries", "tables"]

Row = Mapping[str, Any]
Rows = Sequence[Row]
# How far "about" reaches.
ABOUT = {"H=200: essential (about)": 0.5, "H=200: kept (about)": 5.0}


def tables(rows: Rows) -> list[Table]:
    """Return the tables of the parts that there are rows of."""
    single = [*_whole_tail(rows), *_facts(rows)]
    planted = [{k: v for k, v in row.items() if k != "part"} for row in part(rows, "planted")]
    found = [
        Table("published", "Published changes of accuracy, and ours", published_entries(rows), _PUBLISHED),
        Table("whole-tail", "The whole tail removed (Table 2), and single statements", single, _WHOLE),
        Table("post", "Change of accuracy in points, mean of the seeds", list(_everything(rows)), _POST),
        *_audits(rows),
        Table("ordinary", "Ordinary networks: test accuracy lost", list(_ordinary(rows)), _ORDINARY),
        Table("paired", "Matroid against the best baseline, both with fold", verdicts(rows), _PAIRED),
        Table("planted", "Planted positive multiples and duplicates", planted, _PLANTED),
    ]
    return [table for table in found if table.rows]


_PUBLISHED = (
    "tp_exponential, mean of five seeds, in points: the post's Table 1 with Figure 4 (75 % of the tail), "
    "Figure 3 (H = 200), and the means of its Table 2 (the whole tail). Reproduced means equal to the "
    "printed digit."
)
_WHOLE = (
    "The post's best seed is the best among networks that have a tail and do not gain. Where it says about, "
    "ours may differ by 0.5 units (essential) or 5 (kept)."
)
_POST = "Networks without a tail count as 0, as in the post. Random is the mean of 20 draws a network."
_ORDINARY = (
    "No fine-tuning; calibration, training and test images are disjoint. `matroid, units` measures the error "
    "of the units themselves instead of the output's. All groups of a network lose the same share; accuracy "
    "is the trained network's, in per cent."
)
_PAIRED = (
    "The best baseline is picked by its mean test loss, which favours it. 95 % bootstrap intervals over "
    "networks, for the one comparison; p-values of paired t-tests, Holm-corrected for all rows, by which the "
    "verdict goes."
)
_PLANTED = "40 rows of the first layer become multiples or duplicates of others, in float64."


_CELL = ("mode", "units", "criterion", "fraction")


def part(rows: Rows, *names: str) -> list[Row]:
    """Return the rows of some parts."""
    return [row for row in rows if row["part"] in names]


def changes(rows: Rows, mode: str, units: int, criterion: str) -> np.ndarray:
    """Return the changes of one cell, [seeds, fractions]."""
    kept = [
        r for r in part(rows, "post") if (r["mode"], r["units"], r["criterion"]) == (mode, units, criterion)
    ]
    seeds = dict.fromkeys(r["data seed"] for r in kept)
    found = {(r["data seed"], r["fraction"]): r["change"] for r in kept}
    return np.array([[found[s, f] for f in FRACTIONS] for s in seeds]).reshape(-1, len(FRACTIONS))


def mean_of(rows: Rows, key: str, **where: Any) -> float | None:
    """Return the mean of a column over the rows that agree with `where`; None if there are none."""
    values = [r[key] for r in rows if all(r.get(k) == v for k, v in where.items()) and r.get(key) is not None]
    return float(np.mean(values)) if values else None


def _signed(value: float) -> float:
    return round(float(value), 1) + 0.0


def _dimensions(rows: Rows) -> list[int]:
    return sorted({r["units"] for r in part(rows, "post") if r["mode"] == "tp_exponential"})


def _published(units: int, criterion: str, fraction: int) -> float | None:
    """Return the printed mean, or None where the post prints none."""
    if units == 200:
        return CURVES_200[criterion][fraction]
    if fraction == FRACTIONS.index(0.75):
        return AT_75.get(units, {}).get(criterion)
    whole = AT_100.get(units, {}) if fraction == len(FRACTIONS) - 1 else {}
    return whole.get({"matroid": "mean"}.get(criterion, criterion))


def published_entries(rows: Rows) -> list[dict[str, Any]]:
    """Return every published mean of which there are rows, ours beside it, with the verdict."""
    entries = []
    for units in _dimensions(rows):
        for criterion in CRITERIA:
            means = changes(rows, "tp_exponential", units, criterion).mean(0)
            for i, fraction in enumerate(FRACTIONS):
                printed = _published(units, criterion, i)
                if printed is not None:
                    entries.append(
                        {
                            "H": units,
                            "criterion": criterion,
                            "of the tail": f"{fraction:.0%}",
                            **_beside(_signed(means[i]), printed),
                        }
                    )
    return entries


def _beside(ours: float | None, published: float, tolerance: float = 1e-9) -> dict[str, Any]:
    return {"ours": ours, "published": published, "verdict": verdict(ours, published, tolerance)}


def _whole_tail(rows: Rows) -> Iterator[dict[str, Any]]:
    for units, published in AT_100.items():
        if units not in _dimensions(rows):
            continue
        whole = changes(rows, "tp_exponential", units, "matroid")[:, -1]
        wanted = ("tp_exponential", units, "matroid", 1.0)
        same = [r for r in part(rows, "post") if tuple(r[k] for k in _CELL) == wanted]
        worse = [r["change"] for r in same if r["tail"] and r["change"] <= 0]
        best = _signed(max(worse)) if worse else None
        yield {"statement": f"H={units}: best", **_beside(best, published["best"])}
        yield {"statement": f"H={units}: worst", **_beside(_signed(whole.min()), published["worst"])}


def _facts(rows: Rows) -> Iterator[dict[str, Any]]:
    """Figure 1, figure 2 and the text's counts at H = 200, where there are rows of them."""
    ours: dict[str, float | None] = {}
    kinds = [r["kind"] for r in part(rows, "figure 1")]
    if kinds:
        ours |= {f"figure 1: {kind}": kinds.count(kind) for kind in ("essential", "tail")}
    panels = {r["panel"]: r for r in part(rows, "figure 2")}
    if panels:
        ours["figure 2: removed"] = panels["matroid"]["removed"]
        names = {"original": "before", "matroid": "by matroid", "worst of 20 random": "by random"}
        ours |= {
            f"figure 2: accuracy {said}": _signed(100 * panels[name]["accuracy"])
            for name, said in names.items()
        }
    where = {"mode": "tp_exponential", "units": 200}
    essential = mean_of(part(rows, "partition"), "essential", **where)
    tail = mean_of(part(rows, "partition"), "tail", **where)
    if essential is not None and tail is not None:
        ours |= {"H=200: essential (about)": essential, "H=200: kept (about)": 200 - 0.75 * tail}
    for statement, value in ours.items():
        yield {"statement": statement, **_beside(value, FACTS[statement], ABOUT.get(statement, 1e-9))}


def _everything(rows: Rows) -> Iterator[dict[str, Any]]:
    cells = dict.fromkeys((r["mode"], r["units"], r["criterion"]) for r in part(rows, "post"))
    for mode, units, criterion in sorted(cells, key=lambda c: (c[0] != "tp_exponential", c[1])):
        means = changes(rows, mode, units, criterion).mean(0)
        named = {f"{f:.0%}": _signed(m) for f, m in zip(FRACTIONS, means, strict=True)}
        yield {"parametrization": mode, "H": units, "criterion": criterion, **named}


def _audits(rows: Rows) -> list[Table]:
    return [
        Table(
            "partition",
            "Exact against numerical tail, and the controls",
            _means(part(rows, "partition", "untrained")),
            _PARTITION,
        ),
        Table(
            "permuted",
            "Permuted neurons, and fresh test sets: 75 % of the tail removed",
            _means(part(rows, "permuted", "fresh test set", "real moons")),
            _PERMUTED,
        ),
        Table("merged", "Positive multiples merged, in any order", _means(part(rows, "merged")), _MERGED),
    ]


_PARTITION = (
    "Means over the seeds. The exact tail counts deficient windows over the rationals; a gap of 1 is a coin "
    "toss between two ranks. Cauchy and unconstrained networks are controls; `untrained` has all biases at 0."
)
_PERMUTED = (
    "Change of accuracy in points. Permuting the hidden units (20 times) leaves the function as it is. "
    "`fresh test set`: the post's data drawn again; `real moons`: scikit-learn's, which interlock, with a "
    "test set of 1,000."
)
_MERGED = "relu(c z) = c relu(z) for c > 0, so rows of [W1 | b1] that are positive multiples merge exactly."
_SKIP = ("part", "mode", "units", "data seed", "tolerance")


def _means(rows: Rows) -> list[dict[str, Any]]:
    """Return one row a part, parametrization, size and tolerance."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["part"], row["mode"], row["units"], row.get("tolerance")), []).append(row)
    found = []
    for (name, mode, units, tolerance), members in groups.items():
        said = {"audit": name, "parametrization": mode, "H": units, "networks": len(members)}
        said |= {"tolerance": tolerance} if tolerance is not None else {}
        keys = dict.fromkeys(k for m in members for k in m if k not in _SKIP)
        found.append(said | {key: mean_of(members, key) for key in keys})
    return sorted(found, key=lambda r: (r["audit"], r["parametrization"], r.get("tolerance") or 0, r["H"]))


def _ordinary(rows: Rows) -> Iterator[dict[str, Any]]:
    mine = part(rows, "ordinary")
    for model, data, criterion, repair in dict.fromkeys(
        (r["model"], r["data"], r["criterion"], r["repair"]) for r in mine
    ):
        cell = [r for r in mine if (r["model"], r["criterion"], r["repair"]) == (model, criterion, repair)]
        shares = dict.fromkeys(r["removed"] for r in cell)
        lost = {f"{s:.0%}": mean_of(cell, "lost", removed=s) for s in shares}
        accuracy = 100 * float(np.mean([r["accuracy"] for r in cell]))
        yield {
            "network": model,
            "data": data,
            "criterion": criterion,
            "repair": repair,
            **lost,
            "accuracy": accuracy,
            "seeds": len({r["seed"] for r in cell}),
            "draws": cell[0]["draws"],
        }
