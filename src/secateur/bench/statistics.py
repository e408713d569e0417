"""Statistics of a comparison: paired over seeds, corrected for the number of comparisons, ties named.

Intervals are Hesterberg's expanded percentile intervals (T. Hesterberg, "What teachers should know about the
bootstrap", The American Statistician 69, 2015, section 4.4): with the few seeds that training allows, plain
percentiles of the bootstrap are too narrow, and these are as wide as Student's t asks for a normal sample.
A difference counts where its paired t-test, corrected by S. Holm's method (Scandinavian Journal of Statistics
6, 1979) for all pairs of methods compared at that place, is below the level.  All pairs, not only those with
the leader: the leader is chosen by looking at the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from secateur.core import InputError

LEVEL = 0.95
DRAWS = 10_000
EXACT = 6
Scores = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Interval:
    """An estimate with a confidence interval.

    Attributes:
        estimate: The mean.
        low: Lower end; NaN where a single value gives none.
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
        first: Name of the one.
        second: Name of the other.
        mean: First minus second, with its interval (for this pair alone).
        p: Of the paired t-test; NaN with fewer than two seeds.
        adjusted: The same after Holm's correction for all pairs.
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
    """Who wins at one place.

    Attributes:
        leader: The method with the highest mean, over the seeds that all have, if there are any.
        tied: Methods that are not worse than the leader as far as the seeds can tell, the leader first.
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

    Up to six values, every resample counts once, and the interval is exact; beyond that, resamples are drawn.

    Args:
        values: Finite numbers, one a seed.
        level: Coverage, in (0, 1).
        draws: Number of resamples that are drawn.
        seed: Seed of the draws.

    Raises:
        InputError: No values, infinite ones, or a level outside (0, 1).

    Example:
        >>> found = bootstrap([0.01, 0.02, 0.03, 0.02])
        >>> round(found.estimate, 3), found.low < 0.02 < found.high, found.count
        (0.02, True, 4)
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) == 0 or not np.isfinite(x).all():
        raise InputError(f"a bootstrap needs a list of finite numbers; got {values!r}")
    if not 0 < level < 1 or draws < 1:
        raise InputError(f"a level is in (0, 1) and draws are positive; got {level} and {draws}")
    n, mean = len(x), float(x.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    tail = float(stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.ppf((1 + level) / 2, n - 1)))
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
        examples: Where they are differences of shares (accuracies), the number of examples behind each; where
            seeds share their test examples, that number divided by the number of seeds.  Shares move in
            steps, so a few seeds may agree by chance to the last digit.  To differ by d, two methods must
            judge d x examples of them differently, which has a variance of d / examples at least (McNemar):
            the test uses no smaller one.

    Without `examples`, where all differences are the same, it is 1 if they are zero, and 0 if not.

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
    return float(2 * stats.t.sf(abs(x.mean()) / error, len(x) - 1))


def _error(x: NDArray[np.float64], examples: float | None) -> float:
    """Return the standard error of the mean, no smaller than that of the examples."""
    between = float(x.std(ddof=1)) / math.sqrt(len(x))
    return between if examples is None else max(between, _least(x, examples))


def _least(x: NDArray[np.float64], examples: float) -> float:
    return math.sqrt(float(np.abs(x).sum()) / examples) / len(x)


def _interval(differences: Sequence[float], level: float, seed: int, examples: float | None) -> Interval:
    """Return the bootstrap interval, or that of the examples alone where it is wider."""
    if not differences:
        return Interval(math.nan, math.nan, math.nan, 0)
    found = bootstrap(differences, level, seed=seed)
    if examples is None or len(differences) < 2:
        return found
    t = stats.t.ppf((1 + level) / 2, len(differences) - 1)
    half = float(t) * _least(np.asarray(differences, dtype=np.float64), examples)
    low, high = min(found.low, found.estimate - half), max(found.high, found.estimate + half)
    return Interval(found.estimate, low, high, found.count)


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values corrected by Holm's method; NaN stays and does not count.

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
    """Compare all pairs of methods, each pair on the seeds that both have.

    Args:
        scores: Method -> seed -> its figure, more being better.
        level: One minus the chance of one false difference or more among all pairs.
        seed: Seed of the bootstrap.
        examples: Examples behind each figure, where the figures are shares; see `paired_p`.

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
    found = []
    for (a, b), differences, one, adjusted in zip(pairs, values, p, holm(p), strict=True):
        mean = _interval(differences, level, seed, examples)
        found.append(Difference(a, b, mean, one, adjusted, _verdict(mean.estimate, adjusted, level)))
    return tuple(found)


def _verdict(mean: float, adjusted: float, level: float) -> str:
    if math.isnan(adjusted):
        return "too few seeds"
    if adjusted >= 1 - level:
        return "tie"
    return "better" if mean > 0 else "worse"


def rank(scores: Scores, level: float = LEVEL, seed: int = 0, examples: float | None = None) -> Ranking:
    """Say who wins, and who cannot be told from the winner; arguments as of `compare`.

    Raises:
        InputError: No method has a figure.

    Example:
        >>> same = {0: 0.5, 1: 0.6, 2: 0.5}
        >>> rank({"a": same, "twin": same, "b": {0: 0.1, 1: 0.21, 2: 0.1}}).tied
        ('a', 'twin')
    """
    there = {name: by_seed for name, by_seed in scores.items() if by_seed}
    if not there:
        raise InputError("no method has a figure to compare")
    common = set.intersection(*(set(by_seed) for by_seed in there.values()))
    means = {
        name: math.fsum(v for seed, v in by_seed.items() if seed in common or not common)
        / len(common or by_seed)
        for name, by_seed in there.items()
    }
    leader = max(means, key=lambda name: means[name])
    differences = compare(there, level, seed, examples)
    beaten = {
        d.second if d.verdict == "better" else d.first
        for d in differences
        if d.verdict == ("better" if d.first == leader else "worse") and leader in (d.first, d.second)
    }
    rest = sorted((name for name in there if name != leader and name not in beaten), key=lambda n: -means[n])
    return Ranking(leader, (leader, *rest), differences)


Curve = Sequence[tuple[float, float]]


def area(curve: Curve, upto: float) -> float:
    """Return the mean height of a curve of accuracy over the share removed, between 0 and `upto`.

    Args:
        curve: (share removed, accuracy), with a point at 0, joined by straight lines.
        upto: Where it ends; at most the curve's last point.

    Raises:
        InputError: A curve that does not reach from 0 to `upto`.

    Example:
        >>> area([(0.0, 1.0), (0.5, 0.5), (0.9, 0.1)], 0.5)
        0.75
    """
    x, y = _sorted(curve)
    if not 0 < upto <= x[-1] + 1e-12 or x[0] > 1e-12:
        raise InputError(f"the curve reaches from {x[0]:.4g} to {x[-1]:.4g}; asked for 0 to {upto:.4g}")
    inside = x < upto
    ends = np.append(x[inside], upto), np.append(y[inside], np.interp(upto, x, y))
    return float(np.trapezoid(ends[1], ends[0]) / upto)


def largest_removed(curve: Curve, least: float) -> float | None:
    """Return the largest share removed up to which a curve never falls below `least`; None if none.

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
