"""Statistics of a comparison: paired over seeds and corrected for the number of comparisons.

Intervals are Hesterberg's expanded percentile intervals (T. Hesterberg, "What teachers should know about the
bootstrap", The American Statistician 69, 2015, section 4.4): with the few seeds that training allows, plain
percentiles of the bootstrap are too narrow, and these are as wide as Student's t for a normal sample.
A difference counts if its paired t-test, corrected by S. Holm's method (Scandinavian Journal of Statistics 6,
1979) for all pairs of methods in that setting, is below the level. All pairs, not only those with the leader:
the leader is chosen by looking at the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from secateur.core import InputError, brief
from secateur.html.confidence_intervals import t_quantile

__all__ = [
    "LEVEL",
    "Difference",
    "Interval",
    "Ranking",
    "area",
    "bootstrap",
    "compare",
    "holm",
    "largest_removed",
    "paired_p",
    "rank",
]

LEVEL = 0.95
DRAWS = 10_000
EXACT = 6
Scores = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Interval:
    """An estimate with a confidence interval.

    Attributes:
        estimate: The mean.
        low: Lower end; NaN for a single value.
        high: Upper end.
        count: Number of values.
    """

    estimate: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Difference:
    """One method against another on the same seeds.

    Attributes:
        first: Name of a method.
        second: Name of the other method.
        mean: First minus second, with the interval for this pair alone.
        p: p-value of the paired t-test; NaN with fewer than two seeds.
        adjusted: p-value after Holm's correction for all pairs.
        verdict: ``"better"``, ``"worse"``, ``"tie"``, or ``"too few seeds"``.
    """

    first: str
    second: str
    mean: Interval
    p: float
    adjusted: float
    verdict: str


@dataclass(frozen=True)
class Ranking:
    """Who wins in one setting.

    Attributes:
        leader: The method with the highest mean over the seeds that all methods have, if there are any.
        tied: The leader, then the methods that are not significantly worse.
        differences: All pairs.
    """

    leader: str
    tied: tuple[str, ...]
    differences: tuple[Difference, ...]

    @property
    def verdict(self) -> str:
        """``"wins"`` if the leader beats all others, else ``"tie"``, ``"too few seeds"`` or ``"alone"``."""
        if not self.differences:
            return "alone"
        if len(self.tied) == 1:
            return "wins"
        few = any(d.verdict == "too few seeds" for d in self.differences)
        return "too few seeds" if few else "tie"


def bootstrap(values: Sequence[float], level: float = LEVEL, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Return the mean of values with its bootstrap interval.

    For up to six values, every resample counts once and the interval is exact; for more, resamples are drawn.

    Args:
        values: Finite numbers, one a seed.
        level: Coverage, in (0, 1).
        draws: Number of drawn resamples.
        seed: Seed of the draws.

    Raises:
        InputError: If there are no values or infinite ones, or the level is outside (0, 1).

    Example:
        >>> interval = bootstrap([0.01, 0.02, 0.03, 0.02])
        >>> round(interval.estimate, 3), interval.low < 0.02 < interval.high, interval.count
        (0.02, True, 4)
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) == 0 or not np.isfinite(x).all():
        raise InputError(f"a bootstrap needs a list of finite numbers; got {brief(values)}")
    if not 0 < level < 1 or draws < 1:
        raise InputError(f"a level is in (0, 1) and draws are positive; got {level} and {draws}")
    n, mean = len(x), float(x.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * t_quantile(level, n - 1))
    means = _means(x, draws, seed)
    low, high = np.quantile(means, tail, method="lower"), np.quantile(means, 1 - tail, method="higher")
    return Interval(mean, float(low), float(high), n)


def _means(x: NDArray[np.float64], draws: int, seed: int) -> NDArray[np.float64]:
    n = len(x)
    if n <= EXACT:
        return x[np.indices((n,) * n).reshape(n, -1)].mean(0)
    return x[np.random.default_rng(seed).integers(0, n, (draws, n))].mean(1)


def paired_p(differences: Sequence[float], examples: float | None = None) -> float:
    """Return the p-value of the paired t-test; NaN for fewer than two differences.

    Args:
        differences: One a seed.
        examples: For differences of shares (accuracies), the number of examples behind each share; if seeds
            share their test examples, that number divided by the number of seeds. Shares move in steps, so
            a few seeds may agree by chance to the last digit. To differ by d, two methods must judge
            d x examples of them differently, which has a variance of at least d / examples (McNemar): the
            test uses no smaller one. Without `examples`, equal differences give 1 if they are zero, else 0.

    Example:
        >>> paired_p([0.0, 0.0]), paired_p([0.1, 0.1]), round(paired_p([1.0, 2.0, 3.0]), 3)
        (1.0, 0.0, 0.074)
        >>> paired_p([1 / 180] * 3, examples=180) > 0.05
        True
    """
    x = np.asarray(differences, dtype=np.float64)
    if len(x) < 2:
        return math.nan
    if np.abs(x).max() <= 1e-12:
        return 1.0
    error = _error(x, examples)
    if error <= 1e-12 * float(np.abs(x).max()):
        return 0.0
    from scipy.special import stdtr

    return float(2 * stdtr(len(x) - 1, -abs(x.mean()) / error))


def _error(x: NDArray[np.float64], examples: float | None) -> float:
    """Return the standard error of the mean, at least that of the examples."""
    over_seeds = float(x.std(ddof=1)) / math.sqrt(len(x))
    return over_seeds if examples is None else max(over_seeds, _least_error(x, examples))


def _least_error(x: NDArray[np.float64], examples: float) -> float:
    return math.sqrt(float(np.abs(x).sum()) / examples) / len(x)


def _interval(differences: Sequence[float], level: float, seed: int, examples: float | None) -> Interval:
    """Return the bootstrap interval, widened to that of the examples alone."""
    if not differences:
        return Interval(math.nan, math.nan, math.nan, 0)
    interval = bootstrap(differences, level, seed=seed)
    if examples is None or len(differences) < 2:
        return interval
    least = _least_error(np.asarray(differences, dtype=np.float64), examples)
    half = t_quantile(level, len(differences) - 1) * least
    mean = interval.estimate
    low, high = min(interval.low, mean - half), max(interval.high, mean + half)
    return Interval(mean, low, high, interval.count)


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values corrected by Holm's method; NaN stays NaN and does not count.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    valid = [at for at, value in enumerate(p) if not math.isnan(value)]
    adjusted, largest = [math.nan] * len(p), 0.0
    for rank, at in enumerate(sorted(valid, key=lambda at: p[at])):
        largest = max(largest, min(1.0, (len(valid) - rank) * p[at]))
        adjusted[at] = largest
    return adjusted


def compare(
    scores: Scores, level: float = LEVEL, seed: int = 0, examples: float | None = None
) -> tuple[Difference, ...]:
    """Compare all pairs of methods, each on the seeds that both have.

    Args:
        scores: Method -> seed -> score; more is better.
        level: One minus the chance of a false difference among all pairs.
        seed: Seed of the bootstrap.
        examples: Examples behind each score, if scores are shares; see `paired_p`.

    Example:
        >>> scores = {"a": {0: 0.9, 1: 0.8, 2: 0.91}, "b": {0: 0.5, 1: 0.41, 2: 0.5}, "c": {0: 0.5}}
        >>> [(d.first, d.second, d.verdict) for d in compare(scores)]
        [('a', 'b', 'better'), ('a', 'c', 'too few seeds'), ('b', 'c', 'too few seeds')]
    """
    pairs = list(combinations(scores, 2))
    values = [
        [scores[a][s] - scores[b][s] for s in sorted(set(scores[a]) & set(scores[b]))] for a, b in pairs
    ]
    p = [paired_p(differences, examples) for differences in values]
    compared = []
    for (a, b), differences, p_pair, adjusted in zip(pairs, values, p, holm(p), strict=True):
        mean = _interval(differences, level, seed, examples)
        compared.append(Difference(a, b, mean, p_pair, adjusted, _verdict(mean.estimate, adjusted, level)))
    return tuple(compared)


def _verdict(mean: float, adjusted: float, level: float) -> str:
    if math.isnan(adjusted):
        return "too few seeds"
    if adjusted >= 1 - level:
        return "tie"
    return "better" if mean > 0 else "worse"


def rank(scores: Scores, level: float = LEVEL, seed: int = 0, examples: float | None = None) -> Ranking:
    """Return which method wins and which tie with it; the arguments are those of `compare`.

    Raises:
        InputError: If no method has a score.

    Example:
        >>> same = {0: 0.5, 1: 0.6, 2: 0.5}
        >>> rank({"a": same, "twin": same, "b": {0: 0.1, 1: 0.21, 2: 0.1}}).tied
        ('a', 'twin')
    """
    scored = {name: by_seed for name, by_seed in scores.items() if by_seed}
    if not scored:
        raise InputError("no method has a score to compare")
    common = set.intersection(*(set(by_seed) for by_seed in scored.values()))
    means = {
        name: math.fsum(v for seed, v in by_seed.items() if seed in common or not common)
        / len(common or by_seed)
        for name, by_seed in scored.items()
    }
    leader = max(means, key=lambda name: means[name])
    differences = compare(scored, level, seed, examples)
    beaten = {
        d.second if d.verdict == "better" else d.first
        for d in differences
        if d.verdict == ("better" if d.first == leader else "worse") and leader in (d.first, d.second)
    }
    tied = sorted((name for name in scored if name != leader and name not in beaten), key=lambda n: -means[n])
    return Ranking(leader, (leader, *tied), differences)


Curve = Sequence[tuple[float, float]]


def area(curve: Curve, end: float) -> float:
    """Return the mean height of a curve of accuracy over the share removed, between 0 and `end`.

    Args:
        curve: Points (share removed, accuracy), with one at 0, joined by straight lines.
        end: Where the area ends; at most the curve's last point.

    Raises:
        InputError: If the curve does not reach from 0 to `end`.

    Example:
        >>> area([(0.0, 1.0), (0.5, 0.5), (0.9, 0.1)], 0.5)
        0.75
    """
    x, y = _sorted(curve)
    if not 0 < end <= x[-1] + 1e-12 or x[0] > 1e-12:
        raise InputError(f"the curve reaches from {x[0]:.4g} to {x[-1]:.4g}; asked for 0 to {end:.4g}")
    inside = x < end
    xs, ys = np.append(x[inside], end), np.append(y[inside], np.interp(end, x, y))
    return float(np.trapezoid(ys, xs) / end)


def largest_removed(curve: Curve, least: float) -> float | None:
    """Return the largest share removed up to which a curve is at least `least`; None if it starts below.

    Example:
        >>> largest_removed([(0.0, 1.0), (0.5, 0.9), (0.75, 0.4), (0.9, 0.95)], 0.8)
        0.55
        >>> largest_removed([(0.0, 0.7), (0.5, 0.9)], 0.8) is None
        True
    """
    x, y = _sorted(curve)
    if y[0] < least:
        return None
    for (x0, y0), (x1, y1) in pairwise(zip(x.tolist(), y.tolist(), strict=True)):
        if y1 < least:
            return x0 + (x1 - x0) * (y0 - least) / (y0 - y1)
    return float(x[-1])


def _sorted(curve: Curve) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if not curve:
        raise InputError("a curve needs a point")
    points = np.array(sorted(curve), dtype=np.float64)
    if not np.isfinite(points).all():
        raise InputError(f"the points of a curve are finite; got {list(curve)}")
    return points[:, 0], points[:, 1]
