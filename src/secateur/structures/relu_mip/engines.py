"""Linear (mixed-integer) programs that grow: the interface that the search needs.

HiGHS is always available; SCIP (through pyscipopt) is optional.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from scipy import sparse

from secateur.structures.relu_mip.chain import Float, Int

__all__ = ["Answer", "Ending", "Engine", "Highs", "Scip"]

Ending = Literal["optimal", "time_limit", "node_limit", "interrupted", "infeasible", "failed"]

_LARGE = 150_000


@dataclass(frozen=True, eq=False)
class Answer:
    """Result of one solve.

    Attributes:
        ending: Why the solver stopped.
        v: The best point, or None.
        bound: A proven lower bound on the linear objective (-inf if none is known).
        detail: The solver's own name for its status.
        nodes: Number of branch-and-bound nodes.
    """

    ending: Ending
    v: Float | None
    bound: float
    detail: str
    nodes: int = 0


class Engine(Protocol):
    """Minimise cost @ v over a box and rows that can be added to."""

    def add(self, rows: sparse.csr_array, low: Float, high: Float) -> None:
        """Add rows low <= rows @ v <= high."""

    def cost(self, cost: Float) -> None:
        """Replace the objective."""

    def fix(self, columns: Int, values: Float) -> None:
        """Make columns continuous and fix them."""

    def integer(self, columns: Int) -> None:
        """Make columns binary."""

    def solve(self, seconds: float, gap: float = 0.0, start: Float | None = None, nodes: int = 0) -> Answer:
        """Solve within `seconds` and `nodes` (with binaries) to the relative `gap`, from a feasible point."""
        ...


class Highs:
    """HiGHS, one thread, fixed seed: equal input gives equal output."""

    def __init__(self, cost: Float, lower: Float, upper: Float) -> None:
        """Take the columns; rows come by `add`."""
        import highspy  # slow to import, and not needed to describe a network

        self.h = highspy.Highs()
        for option, value in (("output_flag", False), ("threads", 1), ("random_seed", 0)):
            self.h.setOptionValue(option, value)
        self.mip, self.width, self.solves = False, len(cost), 0
        none = np.zeros(0)
        self.h.addCols(len(cost), cost, lower, upper, 0, np.zeros(0, np.int32), np.zeros(0, np.int32), none)

    def add(self, rows: sparse.csr_array, low: Float, high: Float) -> None:
        """Add rows low <= rows @ v <= high."""
        starts, indices = rows.indptr[:-1].astype(np.int32), rows.indices.astype(np.int32)
        self.h.addRows(rows.shape[0], low, high, rows.nnz, starts, indices, rows.data)

    def cost(self, cost: Float) -> None:
        """Replace the objective."""
        self.h.changeColsCost(self.width, np.arange(self.width, dtype=np.int32), cost)

    def fix(self, columns: Int, values: Float) -> None:
        """Make columns continuous and fix them."""
        where, kind = columns.astype(np.int32), np.zeros(len(columns), np.uint8)
        self.h.changeColsIntegrality(len(columns), where, kind)
        self.h.changeColsBounds(len(columns), where, values, values)
        self.mip = False

    def integer(self, columns: Int) -> None:
        """Make columns binary."""
        where, one = columns.astype(np.int32), np.ones(len(columns))
        self.h.changeColsBounds(len(columns), where, 0 * one, one)
        self.h.changeColsIntegrality(len(columns), where, one.astype(np.uint8))
        self.mip = len(columns) > 0

    def solve(self, seconds: float, gap: float = 0.0, start: Float | None = None, nodes: int = 0) -> Answer:
        """Solve within `seconds` and `nodes` (with binaries) to the relative `gap`, from a feasible point."""
        self.h.setOptionValue("time_limit", self.h.getRunTime() + max(seconds, 0.01))
        self.h.setOptionValue("mip_rel_gap", gap)
        self.h.setOptionValue("mip_max_nodes", nodes)
        # A large first relaxation goes to the interior point, rows added later to the dual simplex.
        large = self.solves == 0 and self.h.getNumNz() > _LARGE
        self.h.setOptionValue("solver", "choose" if self.mip else "ipm" if large else "simplex")
        if self.mip and start is not None:
            self.h.setSolution(self.width, np.arange(self.width, dtype=np.int32), start)
        interrupted = _run_interruptible(self.h)
        self.solves += 1
        return self._read_answer(interrupted)

    def _read_answer(self, interrupted: bool) -> Answer:
        status, info = self.h.getModelStatus(), self.h.getInfo()
        S = type(status)
        endings: dict[Any, Ending] = {
            S.kOptimal: "optimal",
            S.kTimeLimit: "time_limit",
            S.kInterrupt: "interrupted",
            S.kSolutionLimit: "node_limit",
            S.kInfeasible: "infeasible",
            S.kUnboundedOrInfeasible: "infeasible",
        }
        ending: Ending = "interrupted" if interrupted else endings.get(status, "failed")
        v = np.array(self.h.getSolution().col_value) if info.primal_solution_status == 2 else None
        if self.mip:
            bound = info.mip_dual_bound
        else:
            bound = info.objective_function_value if status == S.kOptimal else -np.inf
        nodes = int(info.mip_node_count) if self.mip else 0
        return Answer(ending, v, float(bound), self.h.modelStatusToString(status), max(nodes, 0))


def _run_interruptible(h: Any) -> bool:
    """Run HiGHS in a thread so that Ctrl-C ends it with its best point; return whether that happened."""
    h.HandleUserInterrupt = True
    h.startSolve()
    interrupted = False
    while True:
        try:
            if h.wait(0.2)[0]:
                return interrupted
        except KeyboardInterrupt:
            interrupted = True
            h.cancelSolve()


class Scip:
    """SCIP through pyscipopt (`pip install pyscipopt`), as an optional second opinion."""

    def __init__(self, cost: Float, lower: Float, upper: Float) -> None:
        """Take the columns; rows come by `add`."""
        try:
            from pyscipopt import Model
        except ImportError as error:
            raise ImportError("solver='scip' needs pyscipopt: pip install pyscipopt") from error
        self.model = Model()
        self.model.hideOutput()
        ends = [
            (None if np.isinf(a) else a, None if np.isinf(b) else b)
            for a, b in zip(lower, upper, strict=True)
        ]
        self.columns = [self.model.addVar(lb=a, ub=b, obj=c) for (a, b), c in zip(ends, cost, strict=True)]
        self.mip, self.solves = False, 0

    def add(self, rows: sparse.csr_array, low: Float, high: Float) -> None:
        """Add rows low <= rows @ v <= high."""
        from pyscipopt import quicksum

        self.model.freeTransform()
        for k in range(rows.shape[0]):
            part = slice(rows.indptr[k], rows.indptr[k + 1])
            entries = zip(rows.indices[part], rows.data[part], strict=True)
            expression = quicksum(float(value) * self.columns[column] for column, value in entries)
            if low[k] == high[k]:
                self.model.addCons(expression == float(low[k]))
                continue
            if np.isfinite(low[k]):
                self.model.addCons(expression >= float(low[k]))
            if np.isfinite(high[k]):
                self.model.addCons(expression <= float(high[k]))

    def cost(self, cost: Float) -> None:
        """Replace the objective."""
        from pyscipopt import quicksum

        self.model.freeTransform()
        self.model.setObjective(quicksum(float(c) * x for c, x in zip(cost, self.columns, strict=True) if c))

    def fix(self, columns: Int, values: Float) -> None:
        """Make columns continuous and fix them."""
        self.model.freeTransform()
        for column, value in zip(columns, values, strict=True):
            self.model.chgVarType(self.columns[column], "C")
            self.model.chgVarLb(self.columns[column], float(value))
            self.model.chgVarUb(self.columns[column], float(value))
        self.mip = False

    def integer(self, columns: Int) -> None:
        """Make columns binary."""
        self.model.freeTransform()
        for column in columns:
            self.model.chgVarType(self.columns[column], "B")
        self.mip = len(columns) > 0

    def solve(self, seconds: float, gap: float = 0.0, start: Float | None = None, nodes: int = 0) -> Answer:
        """Solve within `seconds` and `nodes` (with binaries) to the relative `gap`, from a feasible point."""
        model = self.model
        model.freeTransform()
        model.setParam("limits/time", min(max(seconds, 0.01), 1e20))
        model.setParam("limits/gap", gap)
        model.setParam("limits/nodes", nodes if self.mip else -1)
        if start is not None:
            known = model.createSol()
            for column, value in zip(self.columns, start, strict=True):
                model.setSolVal(known, column, float(value))
            model.addSol(known)
        began = time.monotonic()
        model.optimize()
        self.solves += 1
        endings: dict[str, Ending] = {
            "optimal": "optimal",
            "gaplimit": "optimal",
            "timelimit": "time_limit",
            "nodelimit": "node_limit",
            "userinterrupt": "interrupted",
            "infeasible": "infeasible",
            "inforunbd": "infeasible",
        }
        status = model.getStatus()
        has_point = model.getNSols() > 0
        v = np.array([model.getVal(column) for column in self.columns]) if has_point else None
        detail = f"{status} after {time.monotonic() - began:.1f} s"
        ending = endings.get(status, "failed")
        return Answer(ending, v, float(model.getDualbound()), detail, int(model.getNNodes()))
