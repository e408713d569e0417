"""The program with log-sum-exp as a cone, for solvers behind cvxpy: MOSEK, as in the paper, or Clarabel."""

from __future__ import annotations

import importlib
import time
from typing import Literal

import numpy as np

from secateur.structures.relu_mip.program import Program
from secateur.structures.relu_mip.search import FEASIBLE, Solution, Status

__all__ = ["minimise_conic"]


def minimise_conic(
    program: Program,
    *,
    solver: Literal["mosek", "clarabel"] = "mosek",
    relax: bool = False,
    gap: float = 1e-4,
    seconds: float = np.inf,
) -> Solution:
    """Minimise a program by a conic solver through cvxpy.

    MOSEK needs its licence and solves with binaries; Clarabel is free and solves relaxations.  Ties
    are not broken: an interior-point solution lies in the middle of the optimal ones.

    Raises:
        ImportError: If cvxpy or the solver is not installed.
        ValueError: If the program has binaries and the solver cannot handle them.
        PermissionError: If MOSEK has no licence.
        ArithmeticError: If the solver fails or finds no point.
    """
    try:
        import cvxpy as cp
    except ImportError as error:
        raise ImportError(f"solver={solver!r} needs cvxpy: pip install cvxpy") from error
    if solver.upper() not in cp.installed_solvers():
        raise ImportError(f"cvxpy has no solver {solver!r} installed; it has {cp.installed_solvers()}")
    binary = not relax and len(program.integer) > 0
    if solver == "clarabel" and binary:
        raise ValueError(
            f"clarabel has no integers and {len(program.integer)} binaries are free: use relax=True"
        )
    began = time.monotonic()
    problem, v = _cvxpy_problem(program, binary)
    options = _solver_options(solver, seconds, gap)
    try:
        value = problem.solve(solver=solver.upper(), **options)
    except _solver_errors(solver) as error:
        if "license" in str(error).lower():
            reason = str(error).strip()
            raise PermissionError(f"MOSEK has no licence ({reason}); solver='highs' needs none") from error
        raise ArithmeticError(f"{solver} failed: {error}") from error
    if v.value is None:
        raise ArithmeticError(
            f"{solver} ended with {problem.status!r} and no point, but s = 1 is feasible: "
            "numerics, or too little time"
        )
    status: Status = "relaxed" if relax and len(program.integer) else "optimal"
    if problem.status not in ("optimal", "optimal_inaccurate"):
        status = "time_limit"
    point = np.asarray(v.value)
    if program.violation(point) > 100 * FEASIBLE:
        raise ArithmeticError(f"{solver}'s point misses rows by {program.violation(point):.2g}: numerics")
    tolerance = gap if binary else 1e-7
    bound = float(value) - tolerance * abs(float(value))
    return Solution(point, status, program.value(point), bound, None, {"seconds": time.monotonic() - began})


def _cvxpy_problem(program: Program, binary: bool):
    import cvxpy as cp

    v = cp.Variable(program.width)
    out = cp.reshape(
        program.logits @ v + program.constant, (len(program.x), program.chain.classes), order="C"
    )
    equal = program.row_lower == program.row_upper
    low, high = np.isfinite(program.row_lower) & ~equal, np.isfinite(program.row_upper) & ~equal
    rules = [cp.log_sum_exp(out, axis=1) <= v[program.epigraph]]
    for which, ends in ((low, -program.row_lower), (high, program.row_upper)):
        sign = -1 if which is low else 1
        if which.any():
            rules.append(sign * (program.rows[which] @ v) <= ends[which])
    if equal.any():
        rules.append(program.rows[equal] @ v == program.row_lower[equal])
    boxed = np.isfinite(program.lower)
    rules += [v[boxed] >= program.lower[boxed]]
    capped = np.isfinite(program.upper)
    rules += [v[capped] <= program.upper[capped]]
    if binary:
        z = cp.Variable(len(program.integer), boolean=True)
        rules.append(v[program.integer] == z)
    return cp.Problem(cp.Minimize(program.cost @ v + program.offset), rules), v


def _solver_errors(solver: str) -> tuple[type[Exception], ...]:
    """Return the errors of a failed solver; those of MOSEK are not cvxpy's SolverError."""
    import cvxpy as cp

    if solver != "mosek":
        return (cp.error.SolverError,)
    return (cp.error.SolverError, importlib.import_module("mosek").Error)


def _solver_options(solver: str, seconds: float, gap: float) -> dict:
    """Return the solver's own options."""
    if solver == "clarabel":
        return {} if np.isinf(seconds) else {"time_limit": seconds}
    params = {"MSK_DPAR_MIO_TOL_REL_GAP": gap}
    if np.isfinite(seconds):
        params["MSK_DPAR_OPTIMIZER_MAX_TIME"] = seconds
    return {"mosek_params": params}
