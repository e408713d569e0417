"""Counts of least predicted loss under several budgets: an integer program with a proven gap.

Each group takes one of a few counts.  The loss is a sum over groups, each budget a sum of terms of one to
three groups (`secateur.allocation.terms`).  Variables:

    z[g, i] in {0, 1}    group g keeps its i-th count; sum_i z[g, i] = 1
    w[t, i, j] >= 0      term t's groups keep their i-th and j-th count; sum_j w[t, i, j] = z[g, i], and so on

With z integral the sums of rows and columns leave w no choice but the product, so costs are linear and exact.
This is the formulation of Sherali and Adams (SIAM Journal on Discrete Mathematics 3, 1990); its relaxation is
the convex hull of each term, and where the groups that meet form a tree, of all terms together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from secateur.allocation.counts import AllowedCounts
from secateur.allocation.least_loss import keep_more
from secateur.allocation.terms import CostTerms
from secateur.core import IntArray
from secateur.structures.relu_mip.engines import Ending, Highs

__all__ = ["ProgramSolution", "choose_counts", "counts_of_program", "solve_program"]

Floats = NDArray[np.float64]
Tables = Mapping[tuple[str, ...], Floats]
CHOICES = 16  # of a group, at most
COMBINATIONS = 150_000  # of choices in all terms, at most
TOLERANCE = 1e-9  # of a budget, relative
NODES = 2000  # of the search; unlike seconds, they are the same at every run
GAP, SECONDS = 0.01, 120.0
ROUNDS = 5  # of programs with tighter budgets, where the true cost of the choice exceeds one


@dataclass(frozen=True)
class ProgramSolution:
    """The counts that a program chose.

    Attributes:
        counts: Group name -> count.
        loss: Their predicted loss.
        bound: No choice of counts from the lists has a smaller loss.
        ending: Why the solver stopped; "optimal" if the requested gap is proven.
    """

    counts: Mapping[str, int]
    loss: float
    bound: float
    ending: Ending

    @property
    def gap(self) -> float:
        """How far the loss may be above the best, as a share of it."""
        return max(0.0, self.loss - self.bound) / self.loss if self.loss > 0 else 0.0


def choose_counts(
    allowed: Mapping[str, AllowedCounts], start: Mapping[str, int], costs: Sequence[CostTerms]
) -> dict[str, IntArray]:
    """Return the counts that each group may choose from: all, or a grid that is fine around a start.

    Groups have at most 16 choices; fewer if the terms would have too many combinations of them.

    Example:
        >>> allowed, start = {"a": AllowedCounts(128, 1, 8), "b": AllowedCounts(512)}, {"a": 64, "b": 300}
        >>> chosen = choose_counts(allowed, start, [])
        >>> chosen["a"].tolist()
        [8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120, 128]
        >>> chosen["b"].tolist()
        [1, 65, 129, 193, 257, 296, 298, 299, 300, 301, 302, 304, 320, 384, 448, 512]
    """
    together = {tuple(sorted(term.groups)) for cost in costs for term in cost.terms if len(term.groups) > 1}
    for most in range(CHOICES, 2, -1):
        chosen = {name: _grid(a.counts(), start[name], most) for name, a in allowed.items()}
        combinations = sum(np.prod([len(chosen[name]) for name in names], dtype=float) for names in together)
        if combinations <= COMBINATIONS:
            break
    return chosen


def _grid(counts: IntArray, start: int, most: int) -> IntArray:
    """Return at most so many of the counts: some of the nearest to the start, the others evenly spread."""
    if len(counts) <= most:
        return counts
    at, steps = int(np.searchsorted(counts, start)), [0, -1, 1, -2, 2, -4, 4]
    near = {at + step for step in steps[: most // 2] if 0 <= at + step < len(counts)}
    for even in range(most, 1, -1):
        chosen = near | {round(x) for x in np.linspace(0, len(counts) - 1, even)}
        if len(chosen) <= most:
            break
    return counts[sorted(chosen)]


def counts_of_program(
    sets: Sequence[Sequence[str]],
    allowed: Sequence[AllowedCounts],
    losses: Sequence[Floats],
    budgets: Sequence[tuple[CostTerms, float]],
    amounts: Callable[[list[int]], Floats],
    start: list[int],
) -> tuple[list[int], dict[str, Any]]:
    """Return a count for each set of groups, and notes on how good they are.

    Args:
        sets: Names of groups that keep equal counts, of one or more each.
        allowed: What each set may keep, the sum over its groups.
        losses: For each set, the loss by that sum.
        budgets: Costs by the name of the first group of every set, each with its largest value.
        amounts: Counts -> the true cost of each budget; `CostTerms` may be a mean.
        start: Counts within the budgets, from which the program starts; it returns none that lose more.
    """
    limits = np.array([limit for _, limit in budgets])
    many = {names[0]: len(names) for names in sets}
    each = {n: AllowedCounts(*(x // m for x in a)) for (n, m), a in zip(many.items(), allowed, strict=True)}
    begin = {name: count // many[name] for name, count in zip(many, start, strict=True)}
    choices = choose_counts(each, begin, [cost for cost, _ in budgets])
    values = {n: loss[choices[n] * many[n]] for n, loss in zip(many, losses, strict=True)}
    tightened = limits.copy()
    for _ in range(ROUNDS):
        limited = [(cost, limit) for (cost, _), limit in zip(budgets, tightened.tolist(), strict=True)]
        solution = solve_program(choices, values, limited, begin)
        counts = [solution.counts[name] * m for name, m in many.items()]
        excess = amounts(counts) / limits
        if excess.max() <= 1 + 1e-12:
            break
        tightened /= np.maximum(1.0, excess * (1 + TOLERANCE))
    else:
        counts = start
    options = [a.counts() for a in allowed]
    counts = keep_more(counts, options, losses, lambda x: float((amounts(x) / limits).max()), 1.0)
    note = {
        "choices": sum(map(len, choices.values())),
        "proven gap among them": solution.gap,
        "ending": solution.ending,
    }
    return counts, {"program": note}


def solve_program(
    choices: Mapping[str, IntArray],
    losses: Mapping[str, Floats],
    budgets: Sequence[tuple[CostTerms, float]],
    start: Mapping[str, int],
    gap: float = GAP,
    seconds: float = SECONDS,
) -> ProgramSolution:
    """Choose one count for each group, so that all budgets hold and the sum of losses is least.

    Args:
        choices: Group name -> counts that it may keep.
        losses: Group name -> the loss of each of these counts, not negative.
        budgets: Costs, each with its largest value.
        start: A choice for each group that meets the budgets: the first incumbent.
        gap: The relative gap to stop at.
        seconds: The time to stop at, with the best choice so far.

    Returns:
        The best choice, at worst the start, with a lower bound on the loss.

    Example:
        >>> from secateur.allocation.terms import Term
        >>> product = CostTerms(0.0, (Term(("a", "b"), lambda a, b: a * b),))
        >>> choices = {name: np.array([1, 2, 4]) for name in "ab"}
        >>> losses = {"a": np.array([5.0, 1.0, 0.0]), "b": np.array([2.0, 1.5, 0.0])}
        >>> solve_program(choices, losses, [(product, 4.0)], {"a": 1, "b": 1}).counts
        {'a': 4, 'b': 1}
    """
    whole = _tables(choices, budgets)
    limits = np.array([limit - cost.constant for cost, limit in budgets])
    kept = _undominated(choices, losses, whole)
    index = {n: [int(i) for i in np.flatnonzero(kept[n] | (choices[n] == start[n]))] for n in choices}
    tables = {t: table[np.ix_(range(len(limits)), *(index[n] for n in t))] for t, table in whole.items()}
    values = {name: losses[name][index[name]] for name in choices}
    first = {name: index[name].index(int(np.searchsorted(choices[name], start[name]))) for name in choices}
    begin = float(sum(values[name][i] for name, i in first.items()))
    sizes = {name: len(i) for name, i in index.items()}
    columns = _Columns(sizes, [names for names in tables if len(names) > 1])
    answer_counts, bound = first, 0.0
    ending: Ending = "optimal"
    if begin > 0:
        cost = np.zeros(columns.width)
        cost[: columns.binaries] = np.concatenate(list(values.values())) / begin
        engine = Highs(cost, np.zeros(columns.width), np.ones(columns.width))
        for option in ("mip_feasibility_tolerance", "primal_feasibility_tolerance"):
            engine.h.setOptionValue(option, TOLERANCE)
        engine.add(*columns.rows())
        engine.add(*_budget_rows(columns, tables, limits))
        engine.integer(np.arange(columns.binaries))
        answer = engine.solve(seconds, gap, columns.point(first), NODES)
        bound, ending = max(0.0, answer.bound) * begin, answer.ending
        if answer.v is not None:
            answer_counts = {name: int(np.argmax(answer.v[columns.of(name)])) for name in choices}
    loss = float(sum(values[name][i] for name, i in answer_counts.items()))
    if loss > begin:
        answer_counts, loss = first, begin
    counts = {name: int(choices[name][index[name][i]]) for name, i in answer_counts.items()}
    return ProgramSolution(counts, loss, min(bound, loss), ending)


def _tables(
    choices: Mapping[str, IntArray], budgets: Sequence[tuple[CostTerms, float]]
) -> dict[tuple[str, ...], Floats]:
    """Return the cost of every combination of choices: names of groups that meet -> [budget, choice, ...]."""
    tables: dict[tuple[str, ...], Floats] = {}
    for row, (cost, _) in enumerate(budgets):
        for term in cost.terms:
            names = tuple(sorted(term.groups))
            values = term.table([choices[name] for name in term.groups])
            if names not in tables:
                tables[names] = np.zeros((len(budgets), *(len(choices[name]) for name in names)))
            tables[names][row] += values.transpose([term.groups.index(name) for name in names])
    return tables


def _undominated(
    choices: Mapping[str, IntArray], losses: Mapping[str, Floats], tables: Tables
) -> dict[str, NDArray[np.bool_]]:
    """Mark the choices than which no other of the group costs and loses less, whatever the others choose."""
    better = {name: x[:, None] <= x[None, :] for name, x in losses.items()}  # [i, j]: i at least as good as j
    for names, table in tables.items():
        for axis, name in enumerate(names, 1):
            rows = np.moveaxis(table, axis, 0).reshape(len(choices[name]), -1)
            better[name] &= (rows[:, None] <= rows[None, :]).all(-1)
    kept: dict[str, NDArray[np.bool_]] = {}
    for name, wins in better.items():
        # Of equals the first stays.
        equal = wins & wins.T
        kept[name] = ~np.any(wins & (~equal | np.triu(equal, 1)), axis=0)
    return kept


class _Columns:
    """The variables: choices of every group, then combinations of choices of groups that meet."""

    def __init__(self, sizes: Mapping[str, int], together: Sequence[tuple[str, ...]]) -> None:
        self.sizes, self.together = sizes, together
        shapes = [tuple(sizes[name] for name in names) for names in together]
        lengths = [*sizes.values(), *(int(np.prod(shape)) for shape in shapes)]
        starts = [0, *accumulate(lengths)]
        self.width, self.binaries = starts[-1], sum(sizes.values())
        self._first = dict(zip([*sizes, *together], starts, strict=False))
        self._shapes = dict(zip(together, shapes, strict=True))

    def of(self, key: str | tuple[str, ...]) -> NDArray[np.int64]:
        """Return the columns of a group [choices], or of groups that meet [choices, choices, ...]."""
        if isinstance(key, str):
            return self._first[key] + np.arange(self.sizes[key])
        if len(key) == 1:
            return self.of(key[0])
        shape = self._shapes[key]
        return self._first[key] + np.arange(int(np.prod(shape))).reshape(shape)

    def rows(self) -> tuple[sparse.csr_array, Floats, Floats]:
        """Return the rows that make one choice for each group, and combinations agree with the choices."""
        everything = [self.of(name)[None] for name in self.sizes]
        sums, ends = [(block, np.empty((1, 0), np.int64)) for block in everything], [1.0] * len(everything)
        for names in self.together:
            for axis, name in enumerate(names):
                combined = np.moveaxis(self.of(names), axis, 0).reshape(self.sizes[name], -1)
                sums.append((combined, self.of(name)[:, None]))
                ends += [0.0] * self.sizes[name]
        starts = [0, *accumulate(len(plus) for plus, _ in sums)]
        parts = [
            (np.repeat(start + np.arange(len(block)), block.shape[1]), block.ravel(), sign)
            for start, pair in zip(starts, sums, strict=False)
            for block, sign in zip(pair, (1.0, -1.0), strict=True)
        ]
        i, j = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
        x = np.concatenate([np.full(len(part[1]), part[2]) for part in parts])
        right = np.array(ends)
        return sparse.csr_array((x, (i, j)), shape=(len(right), self.width)), right, right

    def point(self, chosen: Mapping[str, int]) -> Floats:
        """Return the values of the variables at a choice for each group."""
        point = np.zeros(self.width)
        for name, i in chosen.items():
            point[self.of(name)[i]] = 1.0
        for names in self.together:
            point[self.of(names)[tuple(chosen[name] for name in names)]] = 1.0
        return point


def _budget_rows(
    columns: _Columns, tables: Tables, limits: Floats
) -> tuple[sparse.csr_array, Floats, Floats]:
    """Return a row for each budget, as shares of its limit."""
    rows = np.zeros((len(limits), columns.width))
    for names, table in tables.items():
        rows[:, columns.of(names).ravel()] += table.reshape(len(limits), -1)
    scale = np.maximum(np.abs(limits), np.abs(rows).max(axis=1) * TOLERANCE)
    return sparse.csr_array(rows / scale[:, None]), np.full(len(limits), -np.inf), limits / scale
