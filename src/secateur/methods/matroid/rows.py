"""Removals that do not change the function: dead, unread, parallel and always active ReLU units.

relu(c z) = c relu(z) for c > 0, so rows of [W | b] that are positive multiples merge, everywhere.  Units that
stay on one side of their kink over a whole domain are 0 or affine there; affine units whose rows of W depend
on others' follow from them and a constant, on that domain.  Behind a ReLU some units stay on one side for
every input, because what they read is never negative.  Units that nobody reads go, too.  Nothing else is
exact: linear dependence of three or more rows says nothing about ReLU units that switch (Serra et al. 2020
for the lossless cases; Kim et al. 2020 for merging).

The layers are visited in order, and each is rewritten in the units that stay before it: its rows may then
depend on one another where they did not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import qr

from secateur.allocation import prunable
from secateur.core import InputError, IntArray, Merge, PruningGraph, Statistics
from secateur.methods.matroid.upper_bound import Offer
from secateur.structures.matroid import parallel_rows
from secateur.structures.relu_mip import Affine, Chain, MaxPool, ReLU
from secateur.structures.relu_mip.chain import Step
from secateur.structures.relu_mip.interval_bounds import step_bounds

__all__ = ["HINT", "Domain", "row_offers"]

Domain = Literal["everywhere", "box", "data"]
Floats = NDArray[np.float64]
# Coefficients by unit, and a constant.
Expression = tuple[dict[int, float], float]

HINT = (
    "no unit is dead, read by nobody, a positive multiple of another, or affine and dependent on others; "
    "ground='activations' removes units at a stated error"
)
_WHERE = {"everywhere": "for every input", "box": "for inputs in the box", "data": "on the calibration data"}


@dataclass(frozen=True, eq=False)
class _Stage:
    """A ReLU stage of the chain: its rows, and bounds of its inputs.

    Attributes:
        rows: [W | b] of each unit, for all its coordinates side by side, [units, features].
        lower: Lower bound of each unit before its ReLU, [units].
        upper: Upper bound of each unit.
        blank: Units that read nothing.
        affine_next: Whether an affine map of single-coordinate units follows directly.
    """

    rows: Floats
    lower: Floats
    upper: Floats
    blank: NDArray[np.bool_]
    affine_next: bool


@dataclass(frozen=True, eq=False)
class _Relations:
    """Units of the stage before, expressed by others, and the unit of each coordinate that follows them."""

    express: Mapping[int, Expression]
    units: IntArray


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
    chain = _require_chain(statistics)
    names = {layer.weight: g.name for g in prunable(graph) for layer, _ in graph.producers(g)}
    unread, used = _unread_units(chain), Counter(s.name for s in chain.steps if isinstance(s, ReLU))
    offers: dict[str, Offer] = {}
    relations: _Relations | None = None
    everywhere, known, before = True, _start(statistics, chain, domain, box), None
    for i, step in enumerate(chain.steps):
        if isinstance(step, Affine):
            step = _rewrite(step, relations) if relations else step
            relations = None
        elif isinstance(step, MaxPool) and relations:
            relations = _Relations(relations.express, relations.units[step.windows.max(axis=1)])
        elif isinstance(step, ReLU) and isinstance(before, Affine):
            name = names.get(step.name)
            # A layer that is used twice would need relations that hold in both places.
            if name is not None and used[step.name] == 1 and step.size == graph.group(name).size:
                single = step.width == step.size and isinstance(chain.steps[i + 1], Affine)
                stage = _stage(before, step, known[0].min(0), known[1].max(0), single)
                rounding = 4 * torch.finfo(statistics.weights[step.name].dtype).eps
                slack = rounding if tolerance is None else tolerance
                constants_fit = single and _constants_fit(graph, name)
                express, note = _express(stage, unread[step.name], constants_fit, slack)
                everywhere &= domain == "everywhere" or _holds_everywhere(stage, unread[step.name], note)
                note["holds"] = _WHERE["everywhere" if everywhere else domain]
                offers[name] = _offer(express, note, step.size)
                relations = _Relations(express, step.units)
        known = _bounds(step, *known)
        before = step
    return offers


def _constants_fit(graph: PruningGraph, name: str) -> bool:
    """Return whether all consumers are linear with a bias, which can absorb a constant."""
    consumers = graph.consumers(graph.group(name))
    return all(layer.kind == "linear" and layer.bias is not None for layer, _ in consumers)


def _require_chain(statistics: Statistics) -> Chain:
    if not isinstance(statistics.chain, Chain):
        raise InputError(
            "ground='rows' needs the network as an affine-ReLU chain: collect it with needs={'chain'}. Exact "
            "merging rests on relu(c z) = c relu(z), so activations other than ReLU are refused there by name"
        )
    return statistics.chain


def _unread_units(chain: Chain) -> dict[str, NDArray[np.bool_]]:
    """Return by ReLU the units that no logit depends on: some weight is zero on every way to it."""
    unread: dict[str, NDArray[np.bool_]] = {}
    read = np.ones(chain.steps[-1].width, bool)
    widths = [chain.inputs, *(step.width for step in chain.steps[:-1])]
    for step, width in zip(reversed(chain.steps), reversed(widths), strict=True):
        if isinstance(step, Affine):
            read = (step.W != 0).T @ read.astype(int) > 0
        elif isinstance(step, MaxPool):
            windows = step.windows[read]
            read = np.isin(np.arange(width), windows[windows >= 0])
        else:
            units = np.bincount(step.units, read, minlength=step.size) > 0
            unread[step.name] = ~units & unread.get(step.name, True)
    return unread


def _rewrite(step: Affine, relations: _Relations) -> Affine:
    """Return the affine map in the coordinates of the units that stay; columns of the others are zero."""
    units = relations.units
    size = int(units.max()) + 1
    at = np.argsort(units, kind="stable").reshape(size, -1)  # coordinates [units, places]
    stay = np.setdiff1d(np.arange(size), list(relations.express))
    terms = [(int(u), int(u), 1.0) for u in stay]
    terms += [(i, k, c) for i, (parts, _) in relations.express.items() for k, c in parts.items()]
    to, source, factors = (np.array(column) for column in zip(*terms, strict=True)) if terms else (stay,) * 3
    constant = np.zeros(len(units))
    for i, (_, offset) in relations.express.items():
        constant[at[i]] = offset
    entries = (np.repeat(factors, at.shape[1]), (at[to].ravel(), at[source].ravel()))
    return Affine(
        sparse.csr_array(step.W @ sparse.csr_array(entries, shape=(len(units),) * 2)),
        step.b + step.W @ constant,
    )


def _bounds(step: Step, low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """Return bounds of a step's output; those of its input may be infinite."""
    if not isinstance(step, Affine):
        return step_bounds(step, low, high)
    up, down = step.W.maximum(0), step.W.minimum(0)
    for part in (up, down):
        part.eliminate_zeros()  # 0 times infinity is not 0
    lower, upper = up @ low.T + down @ high.T, up @ high.T + down @ low.T
    return lower.T + step.b, upper.T + step.b


def _start(
    statistics: Statistics, chain: Chain, domain: Domain, box: tuple[float, float]
) -> tuple[Floats, Floats]:
    """Return lower and upper inputs: one row for all, or one for each calibration image."""
    if domain == "everywhere":
        box = (-np.inf, np.inf)
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
    W = w[:, used].toarray()
    rows = np.hstack([W, before.b[order].reshape(relu.size, places)])
    below = lower[order].reshape(relu.size, places).min(1)
    above = upper[order].reshape(relu.size, places).max(1)
    return _Stage(rows, below, above, ~W.any(axis=1), affine_next)


def _express(
    stage: _Stage, unread: NDArray[np.bool_], constants_fit: bool, tolerance: float
) -> tuple[dict[int, Expression], dict[str, Any]]:
    """Express dead and unread units, then parallel ones, then affine ones, by units that stay."""
    dead = np.flatnonzero(stage.upper <= 0)
    alone = np.setdiff1d(np.flatnonzero(unread), dead)
    express: dict[int, Expression] = {int(i): ({}, 0.0) for i in (*dead, *alone)}
    parallels = parallel_rows(stage.rows, tolerance=tolerance)
    for members, scales in zip(parallels.classes, parallels.scales, strict=True):
        left = [(i, c) for i, c in zip(members, scales, strict=True) if i not in express]
        express |= {i: ({left[0][0]: c / left[0][1]}, 0.0) for i, c in left[1:]}
    parallel = len(express) - len(dead) - len(alone)
    affine = _always_active(stage, express) if constants_fit else {}
    express = {i: _substitute(e, affine) for i, e in express.items()} | affine
    note = {
        "ground": "rows",
        "dead": len(dead),
        "unread": len(alone),
        "parallel": parallel,
        "always active": len(affine),
        "deviation": parallels.deviation,
        "rank": int(np.linalg.matrix_rank(stage.rows)),
    }
    return express, note


def _offer(express: Mapping[int, Expression], note: Mapping[str, Any], size: int) -> Offer:
    order = np.array(list(express), dtype=np.int64)
    return Offer(order, note, lambda removed: _merge(removed, express, size))


def _holds_everywhere(stage: _Stage, unread: NDArray[np.bool_], note: Mapping[str, Any]) -> bool:
    """Return whether nothing rests on the bounds, save for units that read nothing."""
    dead = (stage.upper <= 0) & ~unread
    return note["always active"] == 0 and bool(stage.blank[dead].all())


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
    if not active:
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
