"""From the rows of a comparison to its tables: means, rankings, differences, curves, failures."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from secateur.bench.statistics import Interval, Ranking, area, bootstrap, largest_removed, rank
from secateur.bench.trial import Row
from secateur.core import InputError
from secateur.html import flatten

__all__ = ["Comparison", "Setting", "compare_methods", "failures", "settings"]

RATIOS = {
    "parameters": "parameters left",
    "macs": "MACs left",
    "latency_1_ms": "time left, batch 1",
    "latency_64_ms": "time left, batch 64",
}
COSTS = {"seconds": "seconds", "memory": "MiB"}


@dataclass(frozen=True, eq=False)
class Setting:
    """All methods at one budget with one repair.

    Attributes:
        repair: The repair, or ``"none"``.
        ratio: What stays.
        runs: Method -> seed -> flat rows (several if a method is drawn several times).
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
        """The held-out examples behind each score that no other seed has; None if scores are not shares."""
        rows = [row for seeds in self.runs.values() for drawn in seeds.values() for row in drawn]
        if any(row["metric"] not in ("accuracy", "agreement") for row in rows):
            return None
        seeds = {row["seed"] for row in rows if row.get("shared")}
        return min(row["examples"] for row in rows) / max(1, len(seeds))


@dataclass(frozen=True)
class Comparison:
    """The tables of a comparison.

    Attributes:
        runs: The rows.
        means: For each setting and method the metric with its interval, what is left, and the cost.
        rankings: For each setting the method that wins, or those that tie.
        differences: For each setting all pairs of methods.
        curves: For each repair and method the area under the curve of the metric over the share removed, and
            the largest share that can go at the given loss.
        failures: Methods that refused, failed or took too long, and why.
        seed_note: What differs between seeds.
    """

    runs: Sequence[Row]
    means: Sequence[Row]
    rankings: Sequence[Row]
    differences: Sequence[Row]
    curves: Sequence[Row]
    failures: Sequence[Row] = field(default_factory=tuple)
    seed_note: str = ""


def compare_methods(rows: Sequence[Row], seed_note: str = "", loss: float = 0.01) -> Comparison:
    """Make the tables of a comparison.

    Args:
        rows: The first value of `run_bench`.
        seed_note: The second.
        loss: Loss of the metric for the largest share removed.

    Raises:
        InputError: If the loss is negative, or every pruning failed.
    """
    if not loss >= 0:
        raise InputError(f"the accepted loss must be 0 or more; got {loss}")
    groups, failed = settings(rows), failures(rows)
    if not groups:
        why = "; ".join(f"{row['method']}: {row['why']}" for row in failed[:3])
        raise InputError(f"every pruning failed, so there is nothing to compare: {why}")
    ranked = [(setting, rank(setting.scores, examples=setting.examples)) for setting in groups]
    repairs = dict.fromkeys(setting.repair for setting in groups)
    return Comparison(
        runs=rows,
        means=[row for setting, ranking in ranked for row in _means(setting, ranking)],
        rankings=[_ranking_row(setting, ranking) for setting, ranking in ranked],
        differences=[row for setting, ranking in ranked for row in _differences(setting, ranking)],
        curves=[row for repair in repairs for row in _curve_rows(groups, repair, loss)],
        failures=failed,
        seed_note=seed_note,
    )


def settings(rows: Sequence[Row]) -> list[Setting]:
    """Group the successful prunings by repair and ratio, in the order of repairs, large ratios first."""
    groups: dict[tuple[str, float], dict[str, dict[int, list[Row]]]] = {}
    for run in rows:
        if run["status"] == "ok":
            row = {**flatten(run), "examples": run["agreement"]["examples"]}
            by_method = groups.setdefault((row["repair"], row["ratio"]), {})
            by_method.setdefault(row["method"], {}).setdefault(row["seed"], []).append(row)
    repairs = list(dict.fromkeys(repair for repair, _ in groups))
    order = sorted(groups, key=lambda key: (repairs.index(key[0]), -key[1]))
    return [Setting(*key, groups[key]) for key in order]


def failures(rows: Sequence[Row]) -> list[Row]:
    """Return the failed runs: a row for each method, repair and reason, with the ratios and the count."""
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row["status"] != "ok":
            groups[row["method"], row["repair"] or "none", row["status"]].append(row)
    return [
        {
            "method": method,
            "repair": repair,
            "ratios": ", ".join(f"{ratio:g}" for ratio in sorted({row["ratio"] for row in failed})[::-1]),
            "runs": len(failed),
            "why": why,
        }
        for (method, repair, why), failed in groups.items()
    ]


def _means(setting: Setting, ranking: Ranking) -> list[Row]:
    rows = []
    for method, scores in _best_first(setting.scores):
        runs = [row for drawn in setting.runs[method].values() for row in drawn]
        left = {
            label: fmean(row[key] / row[f"{key}_before"] for row in runs)
            for key, label in RATIOS.items()
            if all(row.get(f"{key}_before") for row in runs)
        }
        rows.append(
            {
                "repair": setting.repair,
                "ratio": setting.ratio,
                "method": method,
                "before": fmean(row["before"] for row in runs),
                **_interval(bootstrap(list(scores.values())), "after"),
                "verdict": _verdict(method, ranking),
                "seeds": len(scores),
                **left,
                **{label: fmean(row[key] for row in runs) for key, label in COSTS.items() if key in runs[0]},
            }
        )
    return rows


def _ranking_row(setting: Setting, ranking: Ranking) -> Row:
    return {
        "repair": setting.repair,
        "ratio": setting.ratio,
        "best": None if ranking.verdict == "alone" else ranking.leader,
        "after": fmean(setting.scores[ranking.leader].values()),
        "verdict": ranking.verdict,
        "tied with": ", ".join(ranking.tied[1:]),
        "methods compared": len(setting.runs),
    }


def _differences(setting: Setting, ranking: Ranking) -> list[Row]:
    return [
        {
            "repair": setting.repair,
            "ratio": setting.ratio,
            "first": pair.first,
            "second": pair.second,
            **_interval(pair.mean, "difference"),
            "p": _none_if_nan(pair.p),
            "p, Holm": _none_if_nan(pair.adjusted),
            "verdict": pair.verdict,
            "seeds": pair.mean.count,
        }
        for pair in ranking.differences
    ]


def _curve_rows(groups: Sequence[Setting], repair: str, loss: float) -> list[Row]:
    """Compare the curves of methods that succeeded at all ratios with all their seeds."""
    with_repair = [setting for setting in groups if setting.repair == repair]
    curves = {
        method: {seed: _curve(with_repair, method, seed) for seed in _seeds(with_repair, method)}
        for method in dict.fromkeys(method for setting in with_repair for method in setting.runs)
    }
    complete = {
        method: by_seed
        for method, by_seed in curves.items()
        if all(len(curve) == len(with_repair) + 1 for curve in by_seed.values())
    }
    # All areas end where the shortest curve does.
    end = min((max(c)[0] for by_seed in complete.values() for c in by_seed.values()), default=0.0)
    if not end > 0:
        return []
    areas = {m: {s: area(curve, end) for s, curve in by_seed.items()} for m, by_seed in complete.items()}
    ranking, rows = rank(areas, examples=with_repair[0].examples), []
    for method, by_seed in _best_first(areas):
        removed = [largest_removed(curve, curve[0][1] - loss) or 0.0 for curve in complete[method].values()]
        most = bootstrap(removed)
        rows.append(
            {
                "repair": repair,
                "method": method,
                **_interval(bootstrap(list(by_seed.values())), "area"),
                "verdict": _verdict(method, ranking),
                **_interval(most, f"removed at {loss:g}"),
                "times smaller": 1 / (1 - min(most.estimate, 1 - 1e-9)),
                "area up to": end,
            }
        )
    return rows


def _seeds(groups: Sequence[Setting], method: str) -> list[int]:
    return sorted({seed for setting in groups for seed in setting.runs.get(method, {})})


def _curve(groups: Sequence[Setting], method: str, seed: int) -> list[tuple[float, float]]:
    """Return points (share of the parameters that is removed or zero, metric), from the original model on."""
    ran = [setting for setting in groups if seed in setting.runs.get(method, {})]
    points = []
    for setting in ran:
        left = setting.mean(method, seed, "nonzero") / setting.mean(method, seed, "parameters_before")
        points.append((1 - left, setting.mean(method, seed, "after")))
    return [(0.0, ran[0].mean(method, seed, "before")), *points]


def _best_first(scores: Mapping[str, Mapping[int, float]]) -> Iterable[tuple[str, Mapping[int, float]]]:
    return sorted(scores.items(), key=lambda item: -fmean(item[1].values()))


def _verdict(method: str, ranking: Ranking) -> str:
    """Return the verdict on one method: that of the ranking for the leader, else "tied" or "behind"."""
    if method == ranking.leader:
        return ranking.verdict
    return "tied" if method in ranking.tied else "behind"


def _interval(interval: Interval, name: str) -> dict[str, Any]:
    low, high = _none_if_nan(interval.low), _none_if_nan(interval.high)
    return {name: interval.estimate, f"{name}, low": low, f"{name}, high": high}


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
