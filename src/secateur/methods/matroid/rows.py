"""Removals that do not change the function: dead, unread, parallel and dependent ReLU units.

relu(c z) = c relu(z) for c > 0, so rows of [W | b] that are positive multiples merge, everywhere.  Units that
stay on one side of their kink over a whole domain are 0 or affine there; affine units whose rows of W depend
on others' follow from them and a constant, on that domain.  Behind a ReLU some units stay on one side for
every input, because what they read is never negative.  Units that nobody reads go, too.  The same holds for
leaky and parametric ReLUs, among units of one slope, but they are never dead: on the negative side they are
affine.  Nothing else is exact everywhere: linear dependence of three or more rows says nothing about ReLU
units that switch (Serra et al. 2020 for the lossless cases; Kim et al. 2020 for merging).

It does say something about units that switch together.  Units of one pattern, one vector of signs over the
data, are all 0 or all affine at each input of the data; if their rows satisfy w_r = C w_K, so do their
outputs, relu(z_r) = C relu(z_K), wherever the units of the pattern agree in sign.  One basis of rows for each
pattern is enough (`patterns=True`).

The layers are visited in order, and each is rewritten in the units that stay before it: its rows may then
depend on one another where they did not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from secateur.allocation import prunable
from secateur.core import InputError, IntArray, Merge, PruningGraph, Statistics
from secateur.methods.matroid.upper_bound import Offer
from secateur.structures.matroid import parallel_rows, row_basis
from secateur.structures.matroid.parallel import normalise_rows
from secateur.structures.relu_mip import Affine, Chain, MaxPool, ReLU
from secateur.structures.relu_mip.chain import Step
from secateur.structures.relu_mip.interval_bounds import step_bounds

__all__ = ["HINT", "PATTERNS_HINT", "Domain", "row_offers"]

Domain = Literal["everywhere", "box", "data"]
Floats = NDArray[np.float64]
# Coefficients by unit, and a constant.
Expression = tuple[dict[int, float], float]

HINT = (
    "no unit is dead, read by nobody, a positive multiple of another, or affine and dependent on others; "
    "ground='activations' removes units at a stated error"
)
PATTERNS_HINT = (
    "no unit is dead or read by nobody on the calibration data, and the rows of [W | b] of the units that "
    "switch together there are independent. That is usual where a layer reads more values than a pattern has "
    "units; fewer calibration examples give coarser patterns, which hold at fewer other inputs. "
    "ground='activations' removes units at a stated error"
)
_PATTERNS = "where the units of each pattern agree in sign, as on the calibration data"
_WHERE = {"everywhere": "for every input", "box": "for inputs in the box", "data": "on the calibration data"}


@dataclass(frozen=True, eq=False)
class _Stage:
    """A ReLU stage of the chain: its rows, and bounds of its inputs.

    Attributes:
        rows: [W | b] of each unit, for all its coordinates side by side, [units, features].
        lower: Lower bound of each unit before its ReLU, [units].
        upper: Upper bound of each unit.
        blank: Units that read nothing.
        signs: Whether each unit is on, at all its places for all examples, [units, places * examples]; None
            if only positive multiples may merge.
        slopes: Factor of negative inputs of each unit, [units]; 0 for ReLUs.
    """

    rows: Floats
    lower: Floats
    upper: Floats
    blank: NDArray[np.bool_]
    signs: NDArray[np.bool_] | None
    slopes: Floats

    @property
    def dead(self) -> NDArray[np.bool_]:
        """Units that are always 0."""
        return (self.upper <= 0) & (self.slopes == 0)

    @property
    def affine(self) -> NDArray[np.bool_]:
        """Units that stay on one side of their kink and are not 0."""
        return (self.lower >= 0) | ((self.upper <= 0) & (self.slopes != 0))


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
    patterns: bool = False,
) -> dict[str, Offer]:
    """Return the exact removals of each group.

    Args:
        graph: The traced network.
        statistics: Its chain, and images for `domain="data"`.
        domain: The inputs on which the function must not change.
        box: Smallest and largest input value, for `domain="box"`.
        tolerance: How much rows may differ, relative to their lengths; None for the rounding of the weights.
        patterns: Whether units that switch together on the data are expressed by a basis.

    Raises:
        InputError: If the statistics lack the chain, or the images for `domain="data"`.
    """
    chain = _require_chain(statistics)
    names = {layer.weight: g.name for g in prunable(graph) for layer, _ in graph.producers(g)}
    unread, used = _unread_units(chain), Counter(s.name for s in chain.steps if isinstance(s, ReLU))
    offers: dict[str, Offer] = {}
    relations: _Relations | None = None
    everywhere, known, before = True, _start(statistics, chain, domain, box), None
    steps = _multiply(chain.steps)
    for i, step in enumerate(steps):
        if isinstance(step, Affine):
            step = _rewrite(step, relations) if relations else step
            relations = None
        elif isinstance(step, MaxPool) and relations:
            relations = _Relations(relations.express, relations.units[step.windows.max(axis=1)])
        elif isinstance(step, ReLU) and isinstance(before, Affine):
            name = names.get(step.name)
            # A layer that is used twice would need relations that hold in both places.  Behind a
            # normalisation the layers read other values than those that are related here.
            fits = name is not None and used[step.name] == 1 and step.size == graph.group(name).size
            if name is not None and fits and not step.normalised:
                # A maximum of sums is not a sum of maxima.
                linear_next = isinstance(steps[i + 1], Affine)
                stage = _stage(before, step, *known, patterns and linear_next)
                rounding = 4 * torch.finfo(statistics.weights[step.name].dtype).eps
                slack = rounding if tolerance is None else tolerance
                constants_fit = linear_next and step.width == step.size and _constants_fit(graph, name)
                express, note = _express(stage, unread[step.name], constants_fit, slack)
                everywhere &= domain == "everywhere" or _holds_everywhere(stage, unread[step.name], note)
                inside = _PATTERNS if patterns else _WHERE[domain]
                note["holds"] = _WHERE["everywhere"] if everywhere else inside
                offers[name] = _offer(express, note, step.size)
                relations = _Relations(express, step.units)
        known = _bounds(step, *known)
        before = step
    return offers


def _multiply(steps: Sequence[Step]) -> list[Step]:
    """Return the steps with neighbouring affine maps as one, so that relations reach what reads them."""
    result: list[Step] = []
    for step in steps:
        before = result[-1] if result else None
        if isinstance(step, Affine) and isinstance(before, Affine):
            result[-1] = Affine(sparse.csr_array(step.W @ before.W), step.W @ before.b + step.b)
        else:
            result.append(step)
    return result


def _constants_fit(graph: PruningGraph, name: str) -> bool:
    """Return whether all consumers are linear with a bias, which can absorb a constant."""
    consumers = graph.consumers(graph.group(name))
    return all(layer.kind == "linear" and layer.bias is not None for layer, _ in consumers)


def _require_chain(statistics: Statistics) -> Chain:
    if not isinstance(statistics.chain, Chain):
        raise InputError(
            "grounds 'rows' and 'patterns' need the network as an affine-ReLU chain: collect it with "
            "needs={'chain'}. Exact merging rests on relu(c z) = c relu(z), so activations other than ReLU "
            "are refused there by name"
        )
    return statistics.chain


def _unread_units(chain: Chain) -> dict[str, NDArray[np.bool_]]:
    """Return by ReLU the units that no logit depends on: every path to a logit has a zero weight."""
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


def _stage(before: Affine, relu: ReLU, low: Floats, high: Floats, patterns: bool) -> _Stage:
    """Lay the coordinates of each unit side by side; drop unused columns."""
    order = np.argsort(relu.units, kind="stable")
    places = relu.width // relu.size
    w = before.W[order].reshape((relu.size, places * before.W.shape[1])).tocsc()
    used = np.flatnonzero(np.diff(w.indptr))
    W = w[:, used].toarray()
    rows = np.hstack([W, before.b[order].reshape(relu.size, places)])
    below = low.min(0)[order].reshape(relu.size, places).min(1)
    above = high.max(0)[order].reshape(relu.size, places).max(1)
    signs = (low.T[order] > 0).reshape(relu.size, -1) if patterns else None
    slopes = np.zeros(relu.size) if relu.slopes is None else relu.slopes[order][::places]
    return _Stage(rows, below, above, ~W.any(axis=1), signs, slopes)


def _express(
    stage: _Stage, unread: NDArray[np.bool_], constants_fit: bool, tolerance: float
) -> tuple[dict[int, Expression], dict[str, Any]]:
    """Express dead and unread units, then parallel or equally switching ones, then affine ones."""
    dead = np.flatnonzero(stage.dead)
    alone = np.setdiff1d(np.flatnonzero(unread), dead)
    express: dict[int, Expression] = {int(i): ({}, 0.0) for i in (*dead, *alone)}
    note: dict[str, Any] = {"ground": "rows", "dead": len(dead), "unread": len(alone)}
    if stage.signs is None:
        note["deviation"], note["parallel"] = _merge_multiples(stage, tolerance, express)
        affine = _always_active(stage, express, tolerance) if constants_fit else {}
        express = {i: _substitute(e, affine) for i, e in express.items()} | affine
    else:
        affine = _always_active(stage, express, tolerance) if constants_fit else {}
        apart = stage.affine if constants_fit else np.zeros(len(stage.lower), bool)
        note |= {"ground": "patterns"} | _switch_together(stage, apart, tolerance, express)
        express |= affine
    note["always active"] = len(affine)
    note["rank"] = int(np.linalg.matrix_rank(normalise_rows(stage.rows)[0]))
    return express, note


def _merge_multiples(stage: _Stage, tolerance: float, express: dict[int, Expression]) -> tuple[float, int]:
    """Express positive multiples by their leaders; return how much directions differ, and the number."""
    parallels = parallel_rows(stage.rows, tolerance=tolerance)
    before = len(express)
    for members, scales in zip(parallels.classes, parallels.scales, strict=True):
        leaders: dict[float, tuple[int, float]] = {}  # by slope
        for i, c in zip(members, scales, strict=True):
            if i not in express:
                leader, scale = leaders.setdefault(float(stage.slopes[i]), (i, c))
                if leader != i:
                    express[i] = ({leader: c / scale}, 0.0)
    return parallels.deviation, len(express) - before


def _switch_together(
    stage: _Stage, apart: NDArray[np.bool_], tolerance: float, express: dict[int, Expression]
) -> dict[str, Any]:
    """Express the units of each pattern of signs by a basis of their rows; return the note.

    Args:
        stage: The stage, with signs.
        apart: Units to leave out, besides those that are expressed already.
        tolerance: See `row_basis`.
        express: The expressions, to which those found here are added.
    """
    units = np.array([i for i in np.flatnonzero(~apart) if int(i) not in express], dtype=np.int64)
    signs = np.zeros((len(stage.lower), 1), bool) if stage.signs is None else stage.signs
    alike = np.hstack([np.packbits(signs, axis=1), stage.slopes[:, None]])  # signs and slope
    _, pattern, sizes = np.unique(alike[units], axis=0, return_inverse=True, return_counts=True)
    deviation, before = 0.0, len(express)
    for number in np.flatnonzero(sizes > 1):
        members = units[pattern.ravel() == number]
        basis = row_basis(stage.rows[members], tolerance)
        deviation = max(deviation, basis.deviation)
        kept = members[basis.kept].tolist()
        for i, row in zip(members[basis.removed].tolist(), basis.coefficients.tolist(), strict=True):
            express[i] = (dict(zip(kept, row, strict=True)), 0.0)
    return {"deviation": deviation, "patterns": len(sizes), "dependent": len(express) - before}


def _offer(express: Mapping[int, Expression], note: Mapping[str, Any], size: int) -> Offer:
    order = np.array(list(express), dtype=np.int64)
    return Offer(order, note, lambda removed: _merge(removed, express, size))


def _holds_everywhere(stage: _Stage, unread: NDArray[np.bool_], note: Mapping[str, Any]) -> bool:
    """Return whether nothing rests on the bounds, save for units that read nothing."""
    dead = stage.dead & ~unread
    rests = note["always active"] + note.get("dependent", 0)
    return rests == 0 and bool(stage.blank[dead].all())


def _substitute(expression: Expression, affine: Mapping[int, Expression]) -> Expression:
    """Express a unit by kept units, if the unit that it is a multiple of goes as well."""
    (parts, offset), (leader, scale) = expression, next(iter(expression[0].items()), (-1, 0.0))
    if leader not in affine:
        return parts, offset
    inner, constant = affine[leader]
    return {k: scale * c for k, c in inner.items()}, offset + scale * constant


def _always_active(stage: _Stage, taken: Mapping[int, object], tolerance: float) -> dict[int, Expression]:
    """Express affine units by a basis of their rows of W and a constant."""
    active = np.array([i for i in np.flatnonzero(stage.affine) if int(i) not in taken], dtype=np.int64)
    gain = np.where(stage.lower[active] >= 0, 1.0, stage.slopes[active])
    w, b = gain[:, None] * stage.rows[active, :-1], gain * stage.rows[active, -1]
    if not w.any():  # all are constant
        return {int(i): ({}, float(constant)) for i, constant in zip(active, b, strict=True)}
    basis = row_basis(w, tolerance)
    constants = b[basis.removed] - basis.coefficients @ b[basis.kept]
    kept = active[basis.kept].tolist()
    return {
        i: (dict(zip(kept, row, strict=True)), float(constant))
        for i, row, constant in zip(
            active[basis.removed].tolist(), basis.coefficients.tolist(), constants, strict=True
        )
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
