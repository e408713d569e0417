"""Solving: other solvers, limits, incumbents, interruptions, progress."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import sparse
from small_chains import active, confident, tiny

from secateur.structures.relu_mip import (
    build,
    importance_scores,
    minimise,
    minimise_conic,
)


@pytest.mark.parametrize("solver", ["scip", "clarabel"])
def test_other_solvers_agree(solver):
    pytest.importorskip("pyscipopt" if solver == "scip" else "cvxpy")
    chain, _, _, x, labels = tiny(11, (3, 5, 4, 3), 2)
    program = build(chain, x, labels, kind="paper", epsilon=0.01)
    ours = minimise(program, relax=solver == "clarabel", gap=1e-5)
    if solver == "scip":
        other = minimise(program, gap=1e-5, solver="scip")
    else:
        other = minimise_conic(program, solver="clarabel", relax=True)
    assert other.objective == pytest.approx(ours.objective, abs=2e-4)


def test_time_limit_without_an_incumbent_is_an_error_that_says_how_far_it_came():
    program = build(*active(150), kind="paper")
    with pytest.raises(TimeoutError, match=r"no scores better than s = 1 within 0 s .*bound -1\.99"):
        minimise(program, seconds=0.0)
    with pytest.raises(TimeoutError, match="use more time, fewer images or bounds='valid'"):
        minimise(program, seconds=0.0, relax=True)
    with pytest.raises(TimeoutError, match="building the program takes about"):
        importance_scores(*active(150), time_limit=1e-9)


@pytest.mark.parametrize("kind", ["valid", "free"])
@pytest.mark.parametrize("relax", [False, True])
def test_forms_with_valid_bounds_have_an_incumbent_before_any_solve(kind, relax):
    program = build(*active(150), kind=kind)
    ones = program.complete({name: np.ones(size) for name, size in program.chain.layers.items()})
    result = minimise(program, seconds=0.0, relax=relax)
    assert result.status == "time_limit" and result.bound <= result.objective < program.value(ones)
    again = program.complete(program.scores(result.v))  # a forward pass, and feasible
    assert program.violation(again) <= 1e-6
    assert program.value(again) == pytest.approx(result.objective, abs=1e-9)


def test_time_limit_with_an_incumbent_gives_it_with_bound_and_warning():
    chain, x, labels = confident(40)
    with pytest.warns(UserWarning, match="the time limit of 1 s ended the solve"):
        result = importance_scores(chain, x, labels, bounds="free", time_limit=1.0, gap=1e-9, nodes=10**6)
    assert result.status == "time_limit"
    assert result.bound < result.objective and result.gap > 0
    assert any((s < 1).any() for s in result.scores.values())
    program = build(chain, x, labels, kind="free")
    v = program.complete(result.scores)
    assert program.value(v) == pytest.approx(result.objective, abs=1e-9) and program.violation(v) <= 1e-6


def test_a_node_limit_ends_alike_every_time():
    chain, x, labels = confident(8)
    one, two = (
        importance_scores(chain, x, labels, bounds="free", gap=1e-9, nodes=2, time_limit=300) for _ in "ab"
    )
    assert one.status == two.status == "node_limit"
    assert one.stats["nodes"] == two.stats["nodes"] > 0
    np.testing.assert_array_equal(one.scores["layer1"], two.scores["layer1"])
    assert one.bound <= one.objective


def test_the_bound_before_any_solve_is_valid():
    chain, _, _, x, labels = tiny(3, (3, 4, 3), 2)
    for rescale in (2.0, 1.0, 0.0):
        program = build(chain, x, labels, rescale=rescale)
        assert minimise(program, gap=1e-6).objective >= program.row_lower[0] - 1e-9


def test_infeasibility_is_explained():
    chain, _, _, x, labels = tiny(0)
    program = build(chain, x, labels)
    row = sparse.csr_array(([1.0], ([0], [0])), shape=(1, program.width))

    def with_row(low: float):
        rows, lazy = sparse.csr_array(sparse.vstack([program.rows, row])), np.append(program.lazy, False)
        ends = np.append(program.row_lower, low), np.append(program.row_upper, np.inf)
        return replace(program, rows=rows, lazy=lazy, row_lower=ends[0], row_upper=ends[1])

    with pytest.raises(ArithmeticError, match=r"s = 1 misses the program's own rows by 0\.5"):
        minimise(with_row(1.5))
    # within our tolerance, beyond the solver's
    with pytest.raises(ArithmeticError, match=r"'Infeasible', but s = 1 is feasible .*numerics"):
        minimise(with_row(1 + 9e-7))


def test_mosek_reports_a_missing_solver_or_licence(monkeypatch):
    cp = pytest.importorskip("cvxpy")
    chain, _, _, x, labels = tiny(0)
    monkeypatch.setattr(cp, "installed_solvers", lambda: ["SCS"])
    with pytest.raises(ImportError, match="cvxpy has no solver 'mosek' installed"):
        importance_scores(chain, x, labels, solver="mosek")

    class Error(Exception):
        pass

    def solve(*_, **__):
        raise Error("err_missing_license_file(1008): License cannot be located")

    monkeypatch.setattr(cp, "installed_solvers", lambda: ["MOSEK"])
    monkeypatch.setitem(sys.modules, "mosek", SimpleNamespace(Error=Error))
    monkeypatch.setattr(cp.Problem, "solve", solve)
    with pytest.raises(PermissionError, match=r"no licence .*solver='highs' needs none"):
        importance_scores(chain, x, labels, solver="mosek")


def test_scip_gives_scores_and_reports_a_missing_package(monkeypatch):
    pytest.importorskip("pyscipopt")
    chain, _, _, x, labels = tiny(11, (3, 5, 4, 3), 2)
    ours, other = (
        importance_scores(chain, x, labels, bounds="valid", gap=1e-6, solver=solver)
        for solver in ("highs", "scip")
    )
    assert other.status == ours.status == "optimal"
    assert other.objective == pytest.approx(ours.objective, abs=1e-4)
    for name, scores in ours.scores.items():  # ties are broken, so the scores agree too
        np.testing.assert_allclose(other.scores[name], scores, atol=5e-3)
    monkeypatch.setitem(sys.modules, "pyscipopt", None)
    with pytest.raises(ImportError, match="pip install pyscipopt"):
        importance_scores(chain, x, labels, solver="scip")


def test_interruption_returns_the_incumbent():
    from secateur.structures.relu_mip import engines

    chain, x, labels = confident(30)
    program, calls, real = build(chain, x, labels, kind="free"), [], engines._run_interruptible

    def interrupted(h):
        calls.append(1)
        return real(h) or len(calls) >= 8

    engines._run_interruptible = interrupted
    try:
        result = minimise(program, gap=1e-9, seconds=60)
    finally:
        engines._run_interruptible = real
    assert result.status == "interrupted"
    assert program.violation(result.v) <= 1e-6


def test_progress_is_reported_and_bounds_never_cross():
    chain, _, _, x, labels = tiny(2, (4, 6, 5, 3), 2)
    messages = []
    minimise(build(chain, x, labels, kind="valid"), progress=messages.append)
    assert messages and all(p.bound <= p.objective + 1e-9 for p in messages)
    assert all(a.bound <= b.bound for a, b in itertools.pairwise(messages))
