"""Solve the program: outer approximation of log-sum-exp, relaxation first, binaries after.

Every round solves a linear program that lacks most rows and approximates log-sum-exp f from below by
cuts t >= f(o*) + p . (o - o*), p = softmax(o*); then it adds the rows and cuts that its point
violates.  Each round's optimum is a lower bound; incumbents come from forward passes of the chain.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy import sparse
from scipy.special import logsumexp, softmax

from secateur.structures.relu_mip.chain import Float
from secateur.structures.relu_mip.engines import Answer, Engine, Highs, Scip
from secateur.structures.relu_mip.incumbents import raise_scores, starting_scores
from secateur.structures.relu_mip.program import Program

__all__ = ["FEASIBLE", "Progress", "Solution", "Status", "minimise"]

Status = Literal["optimal", "relaxed", "stalled", "node_limit", "time_limit", "interrupted"]
FEASIBLE = 1e-6
_CUT = 5e-7  # above the solver's own feasibility tolerance, or cuts would be added without end
_ROWS_A_ROUND = 2000
_ROUNDINGS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Progress:
    """Progress of a search: seconds since the start, phase, incumbent's objective, bound, rounds."""

    seconds: float
    phase: str
    objective: float
    bound: float
    rounds: int

    @property
    def gap(self) -> float:
        """Distance of objective and bound relative to the objective."""
        return relative_gap(self.objective, self.bound)


@dataclass(frozen=True, eq=False)
class Solution:
    """A point of the program and a proven bound.

    Attributes:
        v: The columns.
        status: ``"optimal"`` within the gap, ``"relaxed"`` (optimum with z in [0, 1]), ``"node_limit"``,
            ``"time_limit"``, ``"interrupted"``; ``"stalled"``: rounding keeps incumbent and bound apart by
            more than the gap.
        objective: True objective of `v`.
        bound: Proven lower bound.
        spread: By score column, how far the score can move at this objective: the largest-sum optimal
            solution less the smallest-sum one.  None if it was not computed.
        stats: Rounds, cuts, program rows in use, non-zeros that the solver held at the end (cuts included),
            branch-and-bound nodes, whether ties were broken, seconds.
    """

    v: Float
    status: Status
    objective: float
    bound: float
    spread: Float | None = None
    stats: dict[str, float] = field(default_factory=dict)

    @property
    def gap(self) -> float:
        """Distance of objective and bound relative to the objective."""
        return relative_gap(self.objective, self.bound)


def relative_gap(objective: float, bound: float) -> float:
    """Return (objective - bound) / |objective|, at least 0; absolute where the objective is tiny."""
    return max(0.0, objective - bound) / max(abs(objective), 1e-3)


class _Search:
    """State of one solve: the engine, the rows in use, the incumbent and the bound."""

    def __init__(self, program: Program, engine: Engine, deadline: float, progress: Callable | None) -> None:
        self.program, self.engine, self.deadline, self.progress = program, engine, deadline, progress
        self.began, self.rounds, self.cuts, self.nonzeros, self.nodes = time.monotonic(), 0, 0, 0, 0
        # A first bound, without loss and with every score 0: the sparsity rows come first, one a layer.
        self.bound, self.phase = float(program.row_lower[: len(program.layers)].max()), "relaxation"
        self.used = ~program.lazy
        self._use_rows(np.flatnonzero(self.used))
        ones = program.complete({name: np.ones(len(c)) for name, c in program.layers.items()})
        if program.violation(ones) > FEASIBLE:
            raise ArithmeticError(
                f"s = 1 misses the program's own rows by {program.violation(ones):.2g}, which is impossible: "
                "weights or images of very large magnitude have exhausted float64, or the chain is not the "
                "network's; scale the inputs, or check chain.logits against the model"
            )
        self.start = self.best = ones
        self.objective = program.value(ones)
        self._add_tangents(ones, np.arange(len(program.x)))
        self._add_label_cuts()
        for scores in starting_scores(program):
            self.offer(program.complete(scores))

    def _add_rows(self, rows: sparse.csr_array, low: Float, high: Float) -> None:
        self.engine.add(rows, low, high)
        self.nonzeros += rows.nnz

    def _use_rows(self, which: np.ndarray) -> None:
        p = self.program
        self._add_rows(p.rows[which], p.row_lower[which], p.row_upper[which])

    def _add_label_cuts(self) -> None:
        """Add t >= o of the label: the loss is not negative."""
        p = self.program
        chosen = np.arange(len(p.x)) * p.chain.classes + p.labels
        T = _selection(p.epigraph, p.width)
        self._add_rows(
            sparse.csr_array(T - p.logits[chosen]), p.constant[chosen], np.full(len(chosen), np.inf)
        )

    def _add_tangents(self, v: Float, images: np.ndarray) -> None:
        """Add the tangent of log-sum-exp at v for the given images."""
        p, classes = self.program, self.program.chain.classes
        o = p.logits_of(v)[images]
        weights = softmax(o, axis=1)
        index = (images[:, None] * classes + np.arange(classes)).ravel()
        starts = np.arange(len(images) + 1) * classes
        mix = sparse.csr_array((weights.ravel(), index, starts), shape=(len(images), len(p.constant)))
        E = sparse.csr_array(_selection(p.epigraph[images], p.width) - mix @ p.logits)
        # t >= f(o*) + p . (o - o*) with o = logits v + constant.
        level = logsumexp(o, axis=1) - (weights * o).sum(1) + mix @ p.constant
        self._add_rows(E, level, np.full(len(images), np.inf))
        self.cuts += len(images)

    def tighten(self, v: Float, tolerance: float) -> bool:
        """Add the rows and tangents that v violates; return whether there were any."""
        p = self.program
        a = p.rows @ v
        miss = np.where(self.used, 0, np.maximum(p.row_lower - a, a - p.row_upper))
        bad = np.flatnonzero(miss > FEASIBLE / 2)
        if len(bad) > _ROWS_A_ROUND:
            bad = bad[np.argsort(-miss[bad], kind="stable")[:_ROWS_A_ROUND]]
        if len(bad):
            self._use_rows(bad)
            self.used[bad] = True
        short = logsumexp(p.logits_of(v), axis=1) - v[p.epigraph]
        images = np.flatnonzero(short > tolerance)
        if len(images):
            self._add_tangents(v, images)
        return len(bad) + len(images) > 0

    def offer(self, v: Float) -> bool:
        """Take v as incumbent if it is feasible and better."""
        v = v.copy()
        v[self.program.epigraph] = logsumexp(self.program.logits_of(v), axis=1)
        value = self.program.value(v)
        if value < self.objective - 1e-12 and self.program.violation(v) <= FEASIBLE:
            self.best, self.objective = v, value
            return True
        return False

    def forward(self, v: Float, halvings: int = 6) -> None:
        """Offer the forward pass with v's scores, drawn towards the incumbent until it is feasible.

        Where forward passes can be made feasible, rounded scores are offered too.
        """
        p = self.program
        if p.kind != "paper":
            scores = p.scores(v)
            self.offer(p.complete(raise_scores(p, scores)))
            for threshold in _ROUNDINGS:
                rounded = {n: (s >= threshold).astype(float) for n, s in scores.items()}
                self.offer(p.complete(raise_scores(p, rounded)))
            return
        target, known = p.scores(v), p.scores(self.best)
        for k in range(halvings):
            share = 0.5**k
            point = p.complete({name: known[name] + share * (target[name] - known[name]) for name in target})
            if p.violation(point) <= FEASIBLE:
                self.offer(point)
                return

    def solve(self, gap: float = 0.0, nodes: int = 0) -> Answer:
        """Run the engine once, record its bound, report progress."""
        self.rounds += 1
        answer = self.engine.solve(self.deadline - time.monotonic(), gap, self.best, nodes)
        self.nodes += answer.nodes
        if answer.ending in ("infeasible", "failed") and self.phase != "ties":
            raise ArithmeticError(
                f"the solver says {answer.detail!r}, but s = 1 is feasible by construction: this means "
                "numerics (large weights, bounds nearly equal; try a larger epsilon) or a bug, not an answer"
            )
        if self.phase != "ties":
            self.bound = max(self.bound, min(answer.bound + self.program.offset, self.objective))
        if self.progress is not None:
            seconds = time.monotonic() - self.began
            self.progress(Progress(seconds, self.phase, self.objective, self.bound, self.rounds))
        return answer

    def done(self, gap: float) -> bool:
        return self.objective - self.bound <= max(gap * abs(self.objective), 1e-9)


def _selection(columns: np.ndarray, width: int) -> sparse.csr_array:
    ones = np.ones(len(columns))
    return sparse.csr_array((ones, columns, np.arange(len(columns) + 1)), shape=(len(columns), width))


def minimise(
    program: Program,
    *,
    relax: bool = False,
    gap: float = 1e-4,
    seconds: float = np.inf,
    nodes: int = 1000,
    solver: Literal["highs", "scip"] = "highs",
    ties: bool = True,
    spread: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Solution:
    """Minimise a program.

    Args:
        program: From `build`.
        relax: Solve only the relaxation, with z and m in [0, 1].
        gap: Relative gap at which the incumbent counts as optimal.
        seconds: Time limit; a result that it cuts short depends on the machine.
        nodes: Limit on branch-and-bound nodes of all trees, which does not depend on the machine.
        solver: ``"highs"`` or ``"scip"``.
        ties: Among solutions of equal objective take the one of least total score (small generic
            weights decide remaining ties), so that scores do not depend on the solver's path.
        spread: Also find the solution of largest sum, which shows the scores that are not determined.
        progress: Called after every round.

    Raises:
        TimeoutError: If a limit ends the search before it finds a point better than s = 1.
        ArithmeticError: If the solver calls the program infeasible, though s = 1 is feasible.
    """
    if solver not in ("highs", "scip"):
        raise ValueError(f"solver must be 'highs' or 'scip'; got {solver!r}")
    make: type[Highs] | type[Scip] = Highs if solver == "highs" else Scip
    engine = make(program.cost, program.lower, program.upper)
    search = _Search(program, engine, time.monotonic() + seconds, progress)
    ending = _solve_relaxation(search, gap, relax)
    if ending is None and not relax and len(program.integer):
        ending = _solve_with_binaries(search, gap, nodes)
    if ending is not None and search.best is search.start:
        cures = ["more time", "fewer images"] + ["relax=True"] * (not relax)
        cures += ["bounds='valid', which starts from more points"] * (program.kind == "paper")
        raise TimeoutError(
            f"no scores better than s = 1 within {seconds:.3g} s and {nodes} nodes ({search.rounds} rounds, "
            f"bound {search.bound:.6g}, objective at s = 1 {search.objective:.6g}); "
            f"use {', '.join(cures[:-1])} or {cures[-1]}"
        )
    status: Status = ending or ("relaxed" if relax and len(program.integer) else "optimal")
    v, width = search.best, None
    if ties and ending is None:
        v, width = _break_ties(search, relax, spread)
    seconds_used = time.monotonic() - search.began
    counts = {"rounds": search.rounds, "cuts": search.cuts, "rows": int(search.used.sum())}
    counts |= {"nonzeros": search.nonzeros, "nodes": search.nodes}
    counts["ties_broken"] = int(v is not search.best)
    stats = {**counts, "seconds": seconds_used}
    return Solution(v, status, program.value(v), search.bound, width, stats)


def _solve_relaxation(search: _Search, gap: float, relax: bool) -> Status | None:
    """Solve the relaxation; return why it stopped early, or None."""
    exact = relax or not len(search.program.integer)
    lowest = np.inf
    while True:
        answer = search.solve()
        if answer.v is not None and answer.ending == "optimal":
            lowest = _relaxed_value(search, answer.v, lowest)
            grew = search.tighten(answer.v, _CUT)
            search.offer(answer.v) if exact else search.forward(answer.v)
        if answer.ending != "optimal":
            return answer.ending  # type: ignore[return-value]
        settled = np.isfinite(lowest) and lowest - search.bound <= gap * max(abs(lowest), 1e-3) / 10
        if not grew or settled or (exact and search.done(gap)):
            return None
        if time.monotonic() > search.deadline:
            return "time_limit"


def _relaxed_value(search: _Search, v: Float, lowest: float) -> float:
    """Return the least true objective of points that satisfy the relaxation."""
    p = search.program
    point = v.copy()
    point[p.epigraph] = logsumexp(p.logits_of(v), axis=1)
    return min(lowest, p.value(point)) if p.violation(point) <= FEASIBLE else lowest


def _solve_with_binaries(search: _Search, gap: float, nodes: int) -> Status | None:
    """Solve with binaries, tree after tree, until incumbent and bound meet; return why it stopped early.

    One tree is not enough: log-sum-exp is only approximated by tangents, and lazy rows wait until they are
    violated.  So each round solves the current program and adds the tangents and rows that its solution
    violates.  The bound of every round is valid, because the program is a relaxation throughout.
    """
    search.phase, idle_rounds = "binaries", 0
    while not search.done(gap):
        search.engine.integer(search.program.integer)
        grew, before = False, (search.objective, search.bound)
        answer = search.solve(gap / 2, max(nodes - search.nodes, 0))
        if answer.v is not None:
            # A forward pass with the scores of v is feasible: a new incumbent.
            search.forward(answer.v)
            grew = search.tighten(answer.v, _CUT)
            if not search.done(gap):
                grew |= _polish(search, answer.v)
        if answer.ending != "optimal":
            return None if search.done(gap) else answer.ending  # type: ignore[return-value]
        if time.monotonic() > search.deadline:
            return "time_limit"
        # Rounding may leave a gap that no round closes: stop after three rounds without progress.
        idle_rounds = idle_rounds + 1 if before == (search.objective, search.bound) else 0
        if not search.done(gap) and (idle_rounds >= 3 or not (grew or search.objective < before[0])):
            return "stalled"
    return None


def _polish(search: _Search, v: Float) -> bool:
    """Solve with v's binaries fixed and offer the optimum; return whether rows were added."""
    binaries = search.program.integer
    search.engine.fix(binaries, np.round(v[binaries]))
    added = False
    while time.monotonic() < search.deadline:
        answer = search.engine.solve(search.deadline - time.monotonic())
        if (
            answer.v is None
            or answer.ending != "optimal"
            or answer.bound + search.program.offset > search.objective
        ):
            break
        grew = search.tighten(answer.v, _CUT)
        search.offer(answer.v)
        added |= grew
        if not grew or search.done(0.0):
            break
    return added


def _break_ties(search: _Search, relax: bool, spread: bool) -> tuple[Float, Float | None]:
    """Break ties: least total score at the incumbent's objective; with `spread` the largest too."""
    p, engine = search.program, search.engine
    search.phase = "ties"
    if len(p.integer) and not relax:
        engine.fix(p.integer, np.round(search.best[p.integer]))
    slack = 1e-5 * max(1.0, abs(search.objective))
    level = search.objective - p.offset + slack
    search._add_rows(sparse.csr_array(p.cost[None]), np.array([-np.inf]), np.array([level]))
    columns = p.score_columns
    weights = np.zeros(p.width)
    # Golden-ratio multiples mod 1 are distinct, so no two units have equal weight.
    weights[columns] = 1 + 1e-3 * (np.arange(len(columns)) * 0.6180339887498949 % 1)
    least = _optimise_among_ties(search, weights, slack)
    most = _optimise_among_ties(search, -weights, slack) if spread and least is not None else None
    best = search.best if least is None else least
    return best, None if most is None else most[columns] - best[columns]


def _optimise_among_ties(search: _Search, weights: Float, slack: float) -> Float | None:
    """Minimise weights @ v at the incumbent's objective; None if time ran out."""
    p = search.program
    search.engine.cost(weights)
    while time.monotonic() < search.deadline:
        answer = search.solve()
        if answer.v is None or answer.ending != "optimal":
            return None
        v = answer.v.copy()
        grew = search.tighten(answer.v, _CUT)
        v[p.epigraph] = logsumexp(p.logits_of(v), axis=1)
        if not grew or (p.value(v) <= search.objective + 3 * slack and p.violation(v) <= FEASIBLE):
            return v
    return None
