"""Removals that do not change the function: dead, parallel and always active ReLU units.

relu(c z) = c relu(z) for c > 0, so rows of [W | b] that are positive multiples merge, everywhere.  A row of
zeros is a unit that is always 0.  Units that stay on one side of their kink over a whole domain are 0 or
affine there; affine units whose rows of W depend on others' follow from them and a constant, on that domain
only.  Nothing else is exact: linear dependence of three or more rows says nothing about ReLU units that
switch (Serra et al. 2020 for the lossless cases; Kim et al. 2020 for merging).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import qr

from secateur.allocation import prunable
from secateur.core import InputError, IntArray, Merge, PruningGraph, Statistics
from secateur.methods.matroid.upper_bound import Offer
from secateur.structures.matroid import parallel_rows
from secateur.structures.relu_mip import Affine, Chain, ReLU
from secateur.structures.relu_mip.interval_bounds import step_bounds

__all__ = ["HINT", "Domain", "row_offers"]

Domain = Literal["everywhere", "box", "data"]
Floats = NDArray[np.float64]
# Coefficients by unit, and a constant.
Expression = tuple[dict[int, float], float]

HINT = (
    "no unit is dead, a positive multiple of another, or (on a domain) affine and dependent on others; "
    "ground='activations' removes units at a stated error"
)
_WHERE = {"everywhere": "for every input", "box": "for inputs in the box", "data": "on the calibration data"}


@dataclass(frozen=True, eq=False)
class _Stage:
    """A ReLU stage of the chain: its rows, and bounds of its inputs.

    Attributes:
        rows: [W | b] of each unit, for all its coordinates side by side, [units, features].
        lower: Lower bound of each unit before its ReLU, [units]; -inf if unknown.
        upper: Upper bound of each unit; inf if unknown.
        affine_next: Whether an affine map of single-coordinate units follows directly.
    """

    rows: Floats
    lower: Floats
    upper: Floats
    affine_next: bool


def row_offers(
    graph: PruningGraph,
    statistics: Statistics,
    domain: Domain,
    box: tuple[float, float],
    tolerance: float | None,
) -> dict[str, Offer]:
    """Return the exact removals of each group.

    Raises:
        InputError: If the statistics lack the chain, or the images for `domain="data"`.
    """
    stages = _stages(statistics, domain, box)
    names = {layer.weight: g.name for g in prunable(graph) for layer, _ in graph.producers(g)}
    offers = {}
    for weight, stage in stages.items():
        if weight in names and len(stage.rows) == graph.group(names[weight]).size:
            rounding = 4 * torch.finfo(statistics.weights[weight].dtype).eps
            slack = rounding if tolerance is None else tolerance
            offers[names[weight]] = _offer(stage, _constants_fit(graph, names[weight]), domain, slack)
    return offers


def _constants_fit(graph: PruningGraph, name: str) -> bool:
    """Return whether all consumers are linear with a bias, which can absorb a constant."""
    consumers = graph.consumers(graph.group(name))
    return all(layer.kind == "linear" and layer.bias is not None for layer, _ in consumers)


def _stages(statistics: Statistics, domain: Domain, box: tuple[float, float]) -> dict[str, _Stage]:
    if not isinstance(statistics.chain, Chain):
        raise InputError(
            "ground='rows' needs the network as an affine-ReLU chain: collect it with needs={'chain'}. Exact "
            "merging rests on relu(c z) = c relu(z), so activations other than ReLU are refused there by name"
        )
    chain = statistics.chain
    known = None if domain == "everywhere" else _start(statistics, chain, domain, box)
    stages = {}
    for i, step in enumerate(chain.steps):
        before = chain.steps[i - 1]
        if isinstance(step, ReLU) and isinstance(before, Affine):
            following = chain.steps[i + 1] if i + 1 < len(chain.steps) else None
            single = step.width == step.size and isinstance(following, Affine)
            low = np.full(step.width, -np.inf) if known is None else known[0].min(0)
            high = np.full(step.width, np.inf) if known is None else known[1].max(0)
            stages[step.name] = _stage(before, step, low, high, single)
        known = None if known is None else step_bounds(step, *known)
    return stages


def _start(
    statistics: Statistics, chain: Chain, domain: Domain, box: tuple[float, float]
) -> tuple[Floats, Floats]:
    """Return lower and upper inputs: one row for all, or one for each calibration image."""
    if domain == "data":
        if statistics.images is None:
            raise InputError("domain='data' needs calibration images: collect with needs={'chain', 'images'}")
        x = statistics.images[0].detach().double().cpu().flatten(1).numpy()
        return x, x
    return np.full((1, chain.inputs), float(box[0])), np.full((1, chain.inputs), float(box[1]))


def _stage(before: Affine, relu: ReLU, lower: Floats, upper: Floats, affine_next: bool) -> _Stage:
    """Lay the coordinates of each unit side by side; drop unused columns."""
    order = np.argsort(relu.units, kind="stable")
    places = relu.width // relu.size
    w = before.W[order].reshape((relu.size, places * before.W.shape[1])).tocsc()
    used = np.flatnonzero(np.diff(w.indptr))
    rows = np.hstack([w[:, used].toarray(), before.b[order].reshape(relu.size, places)])
    below = lower[order].reshape(relu.size, places).min(1)
    above = upper[order].reshape(relu.size, places).max(1)
    return _Stage(rows, below, above, affine_next)


def _offer(stage: _Stage, constants_fit: bool, domain: Domain, tolerance: float) -> Offer:
    """Offer dead units first, then parallel ones, then affine ones that depend on others."""
    n = len(stage.rows)
    dead = np.flatnonzero((stage.upper <= 0) | ~stage.rows.any(axis=1))
    parallels = parallel_rows(stage.rows, tolerance=tolerance)
    express: dict[int, Expression] = {int(i): ({}, 0.0) for i in dead}
    for members, scales in zip(parallels.classes, parallels.scales, strict=True):
        if members[0] not in express:
            express |= {i: ({members[0]: c}, 0.0) for i, c in zip(members[1:], scales[1:], strict=True)}
    parallel = len(express) - len(dead)
    if domain != "everywhere" and stage.affine_next and constants_fit:
        affine = _always_active(stage, express)
        express = {i: _substitute(e, affine) for i, e in express.items()} | affine
    order = np.array(list(express), dtype=np.int64)
    note = {
        "ground": "rows",
        "dead": len(dead),
        "parallel": parallel,
        "always active": len(express) - parallel - len(dead),
        "deviation": parallels.deviation,
        "rank": int(np.linalg.matrix_rank(stage.rows)),
        "holds": _holds(stage, dead, len(express) - parallel - len(dead), domain),
    }
    return Offer(order, note, lambda removed: _merge(removed, express, n))


def _holds(stage: _Stage, dead: IntArray, affine: int, domain: Domain) -> str:
    everywhere = affine == 0 and not stage.rows[dead].any()
    return _WHERE["everywhere" if everywhere else domain]


def _substitute(expression: Expression, affine: Mapping[int, Expression]) -> Expression:
    """Express a unit by kept units, if the unit that it is a multiple of goes as well."""
    (parts, offset), (leader, scale) = expression, next(iter(expression[0].items()), (-1, 0.0))
    if leader not in affine:
        return parts, offset
    inner, constant = affine[leader]
    return {k: scale * c for k, c in inner.items()}, offset + scale * constant


def _always_active(stage: _Stage, taken: Mapping[int, object]) -> dict[int, Expression]:
    """Express affine units by a basis of their rows of W and a constant."""
    active = [int(i) for i in np.flatnonzero(stage.lower >= 0) if int(i) not in taken]
    w, b = stage.rows[:, :-1], stage.rows[:, -1]
    if len(active) < 2:
        return {}
    _, r, order = qr(w[active].T, mode="economic", pivoting=True)
    size = np.abs(np.diag(r)) if min(r.shape) else np.zeros(0)
    rank = int((size > size.max(initial=0) * max(w.shape) * np.finfo(float).eps).sum())
    kept, gone = [active[i] for i in order[:rank]], [active[i] for i in order[rank:]]
    if not gone:
        return {}
    c = np.linalg.lstsq(w[kept].T, w[gone].T, rcond=None)[0].T if rank else np.zeros((len(gone), 0))
    constants = b[gone] - c @ b[kept]
    return {
        i: (dict(zip(kept, row.tolist(), strict=True)), float(constant))
        for i, row, constant in zip(gone, c, constants, strict=True)
    }


def _merge(removed: IntArray, express: Mapping[int, Expression], n: int) -> Merge:
    """Return the expressions of the removed units as one matrix over the units that stay."""
    kept = np.setdiff1d(np.arange(n), removed)
    place = {int(k): j for j, k in enumerate(kept)}
    rows = np.sort(removed)
    c = np.zeros((len(rows), len(kept)))
    for i, unit in enumerate(rows):
        for k, value in express[int(unit)][0].items():
            c[i, place[k]] = value
    return Merge(rows, kept, c, np.array([express[int(u)][1] for u in rows]))
