"""Bounds by linear programs: minimise and maximise the input of a ReLU over the relaxation before it."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from secateur.structures.relu_mip.chain import Float
from secateur.structures.relu_mip.encode import Builder

__all__ = ["tighten_by_lp"]


def tighten_by_lp(
    builder: Builder, first: int, E: sparse.csr_array, d: Float, L: Float, U: Float
) -> tuple[Float, Float]:
    """Return bounds of a = E v + d over the image's relaxation so far, for the undecided coordinates.

    Two linear programs a coordinate.  Each optimum is loosened by 1e-7 relative, the solver's own
    tolerance, so that the bounds stay valid.

    Args:
        builder: Columns and rows so far; blocks from `first` on belong to the image.
        first: Number of the image's first row block.
        E: Expression [coordinates, columns].
        d: Its constant.
        L: Lower bounds so far.
        U: Upper bounds so far.
    """
    undecided = np.flatnonzero((L < 0) & (U > 0) & (np.diff(E.indptr) > 0))
    blocks = builder.blocks[first:]
    if not len(undecided) or not blocks:
        return L, U
    used = np.unique(np.concatenate([E.indices, *(block[0].indices for block in blocks)]))
    where = np.full(builder.width, -1)
    where[used] = np.arange(len(used))
    h = _highs_model(builder, blocks, used, where)
    L, U = L.copy(), U.copy()
    for i in undecided:
        part = slice(E.indptr[i], E.indptr[i + 1])
        cost = np.zeros(len(used))
        cost[where[E.indices[part]]] = E.data[part]
        low, high = _optimum(h, cost), -_optimum(h, -cost)
        margin = 1e-7 * (1 + abs(cost).sum())
        L[i], U[i] = max(L[i], d[i] + low - margin), min(U[i], d[i] + high + margin)
    return L, U


def _highs_model(builder: Builder, blocks: list, used: np.ndarray, where: np.ndarray) -> Any:
    """Return HiGHS with the image's columns and rows."""
    import highspy  # slow to import, and not needed to describe a network

    h = highspy.Highs()
    for option, value in (("output_flag", False), ("threads", 1), ("random_seed", 0)):
        h.setOptionValue(option, value)
    lower, upper = (v[used] for v in builder.box())
    none = np.zeros(0, np.int32)
    h.addCols(len(used), np.zeros(len(used)), lower, upper, 0, none, none, np.zeros(0))
    for E, low, high, _ in blocks:
        starts, indices = E.indptr[:-1].astype(np.int32), where[E.indices].astype(np.int32)
        h.addRows(E.shape[0], low, high, E.nnz, starts, indices, E.data)
    return h


def _optimum(h: Any, cost: Float) -> float:
    """Return the least of cost @ v, -inf where the solver does not prove one."""
    h.changeColsCost(len(cost), np.arange(len(cost), dtype=np.int32), cost)
    h.run()
    status = h.getModelStatus()
    optimal = status == type(status).kOptimal
    return float(h.getInfo().objective_function_value) if optimal else -np.inf
