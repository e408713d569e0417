"""From the rows of a comparison to its tables: means, standings, differences, curves, refusals."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from secateur.bench.statistics import Interval, Ranking, area, bootstrap, largest_removed, rank
from secateur.bench.trial import Row
from secateur.core import InputError
from secateur.html import flatten

Key = tuple[str, float]
RATIOS = {
    "parameters": "parameters left",
    "macs": "MACs left",
    "latency_1_ms": "time left, batch 1",
    "latency_64_ms": "time left, batch 64",
}
COSTS = {"seconds": "seconds", "memory": "MiB"}


@dataclass(frozen=True, eq=False)
class Place:
    """All methods at one budget with one repair.

    Attributes:
        repair: The repair, or ``"none"``.
        ratio: What stays.
        runs: Method -> seed -> flat rows (several where a method is drawn several times).
    """

    repair: str
    ratio: float
    runs: Mapping[str, Mapping[int, Sequence[Row]]]

    def mean(self, method: str, seed: int, key: str) -> float:
        """Return the mean of a column over the draws of one seed."""
        return fmean(row[key] for row in self.runs[method][seed])

    @property
    def scores(self) -> dict[str, dict[int, float]]:
        """Method -> seed -> the metric after pruning."""
        return {m: {s: self.mean(m, s, "after") for s in seeds} for m, seeds in self.runs.items()}

    @property
    def examples(self) -> float | None:
        """The held-out examples behind each accuracy that no other seed has; None for other metrics."""
        rows = [row for seeds in self.runs.values() for drawn in seeds.values() for row in drawn]
        if any(row["metric"] != "accuracy" for row in rows):
            return None
        seeds = {row["seed"] for row in rows if row.get("shared")}
        return min(row["examples"] for row in rows) / max(1, len(seeds))


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        runs: The rows.
        means: For each place and method the metric with its interval, what is left, and the cost.
        standings: For each place who wins, who ties, or that a method is alone there.
        differences: For each place all pairs of methods.
        curves: For each repair and method the area under the curve of the metric over the share removed, and
            the largest share that can go at the given loss.
        failures: Methods that refused, failed or took too long, and why.
        varies: What differs between seeds.
    """

    runs: Sequence[Row]
    means: Sequence[Row]
    standings: Sequence[Row]
    differences: Sequence[Row]
    curves: Sequence[Row]
    failures: Sequence[Row] = field(default_factory=tuple)
    varies: str = ""


def comparison(rows: Sequence[Row], varies: str = "", loss: float = 0.01) -> Comparison:
    """Make the tables of a comparison.

    Args:
        rows: What `run_bench` returned.
        varies: The same.
        loss: Loss of the metric that the largest share removed is asked for.

    Raises:
        InputError: A loss below 0, or no pruning that went well.
    """
    if not loss >= 0:
        raise InputError(f"a loss is 0 or more; got {loss}")
    found = places(rows)
    failed = failures(rows)
    if not found:
        why = "; ".join(f"{row['method']}: {row['why']}" for row in failed[:3])
        raise InputError(f"no pruning went well, so there is nothing to compare: {why}")
    ranked = [(place, rank(place.scores, examples=place.examples)) for place in found]
    repairs = dict.fromkeys(place.repair for place in found)
    return Comparison(
        runs=rows,
        means=[row for place, stands in ranked for row in _means(place, stands)],
        standings=[_standing(place, stands) for place, stands in ranked],
        differences=[row for place, stands in ranked for row in _differences(place, stands)],
        curves=[row for repair in repairs for row in _curves(found, repair, loss)],
        failures=failed,
        varies=varies,
    )


def places(rows: Sequence[Row]) -> list[Place]:
    """Gather the prunings that went well by repair and ratio, in the order of repairs, large ratios first."""
    found: dict[Key, dict[str, dict[int, list[Row]]]] = {}
    for run in rows:
        if run["status"] == "ok":
            row = {**flatten(run), "examples": run["agreement"]["examples"]}
            by_method = found.setdefault((row["repair"], row["ratio"]), {})
            by_method.setdefault(row["method"], {}).setdefault(row["seed"], []).append(row)
    repairs = list(dict.fromkeys(repair for repair, _ in found))
    order = sorted(found, key=lambda key: (repairs.index(key[0]), -key[1]))
    return [Place(*key, found[key]) for key in order]


def failures(rows: Sequence[Row]) -> list[Row]:
    """Return what did not go well: a row for each method, repair and reason, with ratios and count."""
    found: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row["status"] != "ok":
            found[row["method"], row["repair"] or "none", row["status"]].append(row)
    return [
        {
            "method": method,
            "repair": repair,
            "ratios": _listed({row["ratio"] for row in failed}),
            "runs": len(failed),
            "why": why,
        }
        for (method, repair, why), failed in found.items()
    ]


def _means(place: Place, stands: Ranking) -> list[Row]:
    rows = []
    for method, scores in sorted(place.scores.items(), key=lambda item: -fmean(item[1].values())):
        runs = [row for by_seed in place.runs[method].values() for row in by_seed]
        left = {
            words: fmean(row[key] / row[f"{key}_before"] for row in runs)
            for key, words in RATIOS.items()
            if all(row.get(f"{key}_before") for row in runs)
        }
        costs = {words: fmean(row[key] for row in runs) for key, words in COSTS.items() if key in runs[0]}
        state = "tied" if method in stands.tied else "behind"
        rows.append(
            {
                "repair": place.repair,
                "ratio": place.ratio,
                "method": method,
                "before": fmean(row["before"] for row in runs),
                **_interval(bootstrap(list(scores.values()))),
                "standing": stands.verdict if method == stands.leader else state,
                "seeds": len(scores),
                **left,
                **costs,
            }
        )
    return rows


def _standing(place: Place, stands: Ranking) -> Row:
    mean = fmean(place.scores[stands.leader].values())
    alone = stands.verdict == "alone"
    return {
        "repair": place.repair,
        "ratio": place.ratio,
        "best": None if alone else stands.leader,
        "after": mean,
        "verdict": stands.verdict,
        "cannot be told from it": _listed(stands.tied[1:]),
        "methods compared": len(place.runs),
    }


def _differences(place: Place, stands: Ranking) -> list[Row]:
    return [
        {
            "repair": place.repair,
            "ratio": place.ratio,
            "first": d.first,
            "second": d.second,
            **_interval(d.mean, "difference"),
            "p": _number(d.p),
            "p, Holm": _number(d.adjusted),
            "verdict": d.verdict,
            "seeds": d.mean.count,
        }
        for d in stands.differences
    ]


def _curves(found: Sequence[Place], repair: str, loss: float) -> list[Row]:
    """Compare curves: of one method and seed, over the ratios that went well for all methods and seeds."""
    here = [place for place in found if place.repair == repair]
    curves = {m: _by_seed(here, m) for m in dict.fromkeys(m for place in here for m in place.runs)}
    complete = {
        m: seeds
        for m, seeds in curves.items()
        if seeds and all(len(c) == len(here) + 1 for c in seeds.values())
    }
    upto = min((max(c)[0] for seeds in complete.values() for c in seeds.values()), default=0.0)
    if not upto > 0:
        return []
    areas = {m: {s: area(c, upto) for s, c in seeds.items()} for m, seeds in complete.items()}
    stands, rows = rank(areas, examples=here[0].examples), []
    for method, by_seed in sorted(areas.items(), key=lambda item: -fmean(item[1].values())):
        removed = [largest_removed(c, c[0][1] - loss) or 0.0 for c in complete[method].values()]
        most = bootstrap(removed)
        state = "tied" if method in stands.tied else "behind"
        rows.append(
            {
                "repair": repair,
                "method": method,
                **_interval(bootstrap(list(by_seed.values())), "area"),
                "standing": stands.verdict if method == stands.leader else state,
                **_interval(most, f"removed at {loss:g}"),
                "times smaller": 1 / (1 - min(most.estimate, 1 - 1e-9)),
                "area up to": upto,
            }
        )
    return rows


def _by_seed(here: Sequence[Place], method: str) -> dict[int, list[tuple[float, float]]]:
    seeds = {seed for place in here for seed in place.runs.get(method, {})}
    return {seed: _curve(here, method, seed) for seed in sorted(seeds)}


def _curve(here: Sequence[Place], method: str, seed: int) -> list[tuple[float, float]]:
    """Return (share of the parameters that are gone or zero, metric), from the model as it was."""
    there = [place for place in here if seed in place.runs.get(method, {})]
    points = [
        (
            1 - place.mean(method, seed, "nonzero") / place.mean(method, seed, "parameters_before"),
            place.mean(method, seed, "after"),
        )
        for place in there
    ]
    return [(0.0, there[0].mean(method, seed, "before")), *points]


def _interval(found: Interval, name: str = "after") -> dict[str, Any]:
    return {name: found.estimate, f"{name}, low": _number(found.low), f"{name}, high": _number(found.high)}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _listed(values: Any) -> str:
    listed = sorted(values, reverse=True) if isinstance(values, set) else values
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in listed)


__all__ = ["Comparison", "Place", "comparison", "failures", "places"]
