"""Importance scores of neurons and feature maps: scored over a chain and a few images.

ElAraby, Wolf and Carvalho (arXiv:2002.07376): a score s in [0, 1] a unit says how much of its activity
must stay for the images' labels to stay.  Units with a score below a small threshold are removed.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from secateur.structures.relu_mip.chain import Bool, Chain, Float, Int
from secateur.structures.relu_mip.conic import minimise_conic
from secateur.structures.relu_mip.interval_bounds import BoundsKind
from secateur.structures.relu_mip.program import Objective, Program, build
from secateur.structures.relu_mip.search import FEASIBLE, Progress, Solution, minimise
from secateur.structures.relu_mip.tighten import tighten_by_lp

__all__ = [
    "Part",
    "Scores",
    "Solver",
    "average",
    "balanced_images",
    "imbalanced_images",
    "importance_scores",
    "join_scores",
]

Solver = Literal["highs", "scip", "mosek", "clarabel"]


@dataclass(frozen=True, eq=False)
class Part:
    """A program to be solved on its own: a chain (or a piece of one), its images, their labels."""

    name: str
    chain: Chain
    x: Float
    labels: Int


@dataclass(frozen=True, eq=False)
class Scores:
    """Importance scores and a proven bound on their objective.

    Attributes:
        scores: By layer, [units], in [0, 1].
        status: ``"optimal"``, ``"relaxed"``, ``"stalled"``, ``"node_limit"``, ``"time_limit"`` or
            ``"interrupted"``; see `Solution`; of an average the least.
        objective: Objective (6) of the point found; of an average the mean.
        bound: Proven lower bound on it.
        gap: (objective - bound) / |objective|; of an average the largest.
        free_binaries: Binaries that presolve could not fix.
        dead: By layer, units that are not active on any image.
        undetermined: By layer, units whose score differs by more than 0.001 between the solutions of
            least and of largest total score at the same objective; all False without `spread`.
        activity: By layer, mean output of every unit over places and images, at s = 1.
        loss: Marginal softmax loss of every image at these scores.
        stats: Rows, columns and non-zeros of the program, rounds, cuts, seconds; ``forward_error``: how far
            the solution is from a forward pass with its scores (large for relaxations only).
    """

    scores: Mapping[str, Float]
    status: str
    objective: float
    bound: float
    gap: float
    free_binaries: int
    dead: Mapping[str, Bool]
    undetermined: Mapping[str, Bool]
    activity: Mapping[str, Float]
    loss: Float
    stats: Mapping[str, float] = field(default_factory=dict)

    def keep(self, threshold: float) -> dict[str, Bool]:
        """Return by layer which units stay: all with a score of at least `threshold`."""
        return {name: s >= threshold for name, s in self.scores.items()}


def importance_scores(
    chain: Chain,
    x: Float,
    labels: Int,
    *,
    lam: float = 5.0,
    epsilon: float = 1e-5,
    bounds: BoundsKind = "paper",
    objective: Objective = "layer_mean",
    rescale: float = 2.0,
    relax: bool = False,
    tighten: bool = False,
    gap: float = 1e-4,
    time_limit: float = 300.0,
    nodes: int = 1000,
    memory: float = 4e9,
    solver: Solver = "highs",
    spread: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Scores:
    """Score every unit of a chain on the given images, in one program.

    Args:
        chain: The network.
        x: Images [images, inputs].
        labels: Their classes [images].
        lam: Weight lambda of the softmax term against sparsity.
        epsilon: Half width of the box from which the published bounds grow.
        bounds: ``"paper"``: equations (2) and (3) as published, which hold nearly every live neuron in
            place; ``"valid"``: bounds that hold for every score, so that live neurons can go, though only
            where their input does not grow; ``"free"``: without that condition: every choice of
            units is then feasible, so that there are always incumbents, but the relaxation is weaker.
        objective: ``"layer_mean"`` (the authors' programs) or ``"paper"`` (equation (4) literally).
        rescale: c in s - c.
        relax: Leave binaries in [0, 1], as most published runs do.
        tighten: Improve valid bounds by linear programs first.
        gap: Relative gap at which to stop.
        time_limit: Seconds, building the program included.  If it ends the solve, the scores depend on the
            speed of the machine, and a warning says so.
        nodes: Limit on branch-and-bound nodes (HiGHS and SCIP); the scores then do not depend on the machine.
        memory: Limit on the program's size in bytes.
        solver: ``"highs"``; ``"scip"`` (pyscipopt); ``"mosek"`` or ``"clarabel"`` (cvxpy; the latter only
            relaxed).
        spread: Also find the scores that the objective does not determine.
        progress: Called after every round of the solver.

    Raises:
        ValueError: If an argument is invalid, or if the program exceeds the memory limit.
        TimeoutError: If a limit ends the search before it finds a point better than s = 1.
        ArithmeticError: If the solver contradicts the known feasible point.
        ImportError: If the solver is not installed.
        PermissionError: If MOSEK has no licence.

    Example:
        >>> W1 = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
        >>> W2 = np.array([[4.0, 0.0, 1.0], [0.0, 4.0, 1.0]])
        >>> chain = Chain.dense([W1, W2], [np.zeros(3), np.zeros(2)])
        >>> result = importance_scores(chain, np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1]))
        >>> result.status, result.scores["layer1"].round(1), result.dead["layer1"]
        ('optimal', array([0.8, 0.8, 0. ]), array([False, False,  True]))
    """
    began, tightener = time.monotonic(), tighten_by_lp if tighten else None
    if tighten and bounds == "paper":
        raise ValueError(
            "tighten=True needs bounds='valid' or 'free': the published bounds are constraints, not bounds"
        )
    program = build(
        chain,
        x,
        labels,
        lam=lam,
        epsilon=epsilon,
        kind=bounds,
        objective=objective,
        rescale=rescale,
        memory=memory,
        tighten=tightener,
        seconds=time_limit,
    )
    _warn_of_labels(program)
    seconds_left = max(time_limit - (time.monotonic() - began), 0.0)
    if solver == "mosek" or solver == "clarabel":
        solution = minimise_conic(program, solver=solver, relax=relax, gap=gap, seconds=seconds_left)
    else:
        solution = minimise(
            program,
            relax=relax,
            gap=gap,
            seconds=seconds_left,
            nodes=nodes,
            solver=solver,
            spread=spread,
            progress=progress,
        )
    if time.monotonic() - began > time_limit:
        warnings.warn(
            f"the time limit of {time_limit:g} s ended the solve (status {solution.status!r}, gap "
            f"{solution.gap:.2g}): other machines may give other scores; a limit on nodes would not",
            stacklevel=2,
        )
    return _make_scores(program, solution)


def _warn_of_labels(program: Program) -> None:
    """Warn of classes without an image and of images that the network gets wrong."""
    missing = np.setdiff1d(np.arange(program.chain.classes), program.labels)
    if len(missing) and len(np.unique(program.labels)) > 1:
        warnings.warn(
            f"no image of class {', '.join(map(str, missing[:10]))}: units that only these need will look "
            "unimportant",
            stacklevel=3,
        )
    wrong = np.flatnonzero(program.chain.logits(program.x).argmax(1) != program.labels)
    if len(wrong):
        warnings.warn(
            f"the network misclassifies {len(wrong)} of {len(program.x)} images (numbers "
            f"{', '.join(map(str, wrong[:10]))}): scores then work towards the label, not towards what the "
            "network does",
            stacklevel=3,
        )


def _make_scores(program: Program, solution: Solution) -> Scores:
    """Build the result; a forward pass with the scores checks it."""
    scores = program.scores(solution.v)
    complete = program.complete(scores)
    error = float(abs(program.logits_of(complete) - program.logits_of(solution.v)).max())
    undetermined, at = {}, 0
    for name, columns in program.layers.items():
        moved = np.zeros(len(columns)) if solution.spread is None else solution.spread[at : at + len(columns)]
        undetermined[name], at = abs(moved) > 1e-3, at + len(columns)
    stats = {
        **solution.stats,
        "program_rows": program.rows.shape[0],
        "program_columns": program.width,
        "program_nonzeros": program.rows.nnz,
        "forward_error": error,
        "images": len(program.x),
    }
    if solution.status == "optimal" and program.violation(complete) > 100 * FEASIBLE:
        raise ArithmeticError(
            f"the solution is not what a forward pass with its scores gives (rows missed by "
            f"{program.violation(complete):.2g}): numerics; try a larger epsilon or another solver"
        )
    return Scores(
        scores,
        solution.status,
        solution.objective,
        solution.bound,
        solution.gap,
        len(program.integer),
        program.dead,
        undetermined,
        program.activity(),
        program.loss(solution.v),
        stats,
    )


def join_scores(results: Sequence[Scores]) -> Scores:
    """Join the scores of programs that score different layers each.

    Raises:
        ValueError: If there is no result or a layer is scored twice.
    """
    names = [name for r in results for name in r.scores]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"each layer must be scored by one program; got {names}")
    return _summarise(
        results,
        {n: r.scores[n] for r in results for n in r.scores},
        {n: r.dead[n] for r in results for n in r.scores},
        {n: r.undetermined[n] for r in results for n in r.scores},
        {n: r.activity[n] for r in results for n in r.scores},
    )


def average(results: Sequence[Scores]) -> Scores:
    """Average the scores of independent solves, one a class (IDP), as in appendix D.1.

    Units are dead if they are dead in every part, undetermined if they are so in any part.

    Raises:
        ValueError: If there is no result or the results are of different networks.
    """
    if not results:
        raise ValueError("there is nothing to average: no results were given")
    sizes = [{name: len(s) for name, s in r.scores.items()} for r in results]
    if any(size != sizes[0] for size in sizes):
        raise ValueError(f"only results of one network can be averaged; got {sizes}")
    names = list(sizes[0])
    return _summarise(
        results,
        {n: np.mean([r.scores[n] for r in results], axis=0) for n in names},
        {n: np.all([r.dead[n] for r in results], axis=0) for n in names},
        {n: np.any([r.undetermined[n] for r in results], axis=0) for n in names},
        {n: np.mean([r.activity[n] for r in results], axis=0) for n in names},
    )


def _summarise(
    results: Sequence[Scores],
    scores: Mapping[str, Float],
    dead: Mapping[str, Bool],
    undetermined: Mapping[str, Bool],
    activity: Mapping[str, Float],
) -> Scores:
    """Summarise independent solves: least status, mean objective and bound, largest gap, summed counts."""
    order = ["optimal", "relaxed", "stalled", "node_limit", "time_limit", "interrupted"]
    keys = set().union(*(r.stats for r in results))
    return Scores(
        scores,
        max((r.status for r in results), key=order.index),
        float(np.mean([r.objective for r in results])),
        float(np.mean([r.bound for r in results])),
        max(r.gap for r in results),
        sum(r.free_binaries for r in results),
        dead,
        undetermined,
        activity,
        np.concatenate([r.loss for r in results]),
        {key: _combine_counts(key, [r.stats.get(key, 0.0) for r in results]) for key in sorted(keys)},
    )


def _combine_counts(key: str, values: list[float]) -> float:
    return max(values) if key == "forward_error" else sum(values)


def balanced_images(labels: Int, images: int, generator: np.random.Generator) -> Int:
    """Return numbers of `images` random images, the classes as evenly as possible.

    Raises:
        ValueError: If there are fewer images than requested.

    Example:
        >>> picked = balanced_images(np.array([0, 1, 0, 1, 1]), 2, np.random.default_rng(0))
        >>> np.array([0, 1, 0, 1, 1])[picked]
        array([0, 1])
    """
    labels = np.asarray(labels)
    if not 1 <= images <= len(labels):
        raise ValueError(f"images must be 1 to {len(labels)}, the number of labels; got {images}")
    shuffled = generator.permutation(len(labels))
    turn = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        of_class = shuffled[labels[shuffled] == label]
        turn[of_class] = np.arange(len(of_class))
    first = np.lexsort((labels, turn))[:images]
    return first[np.lexsort((turn[first], labels[first]))]


def imbalanced_images(labels: Int, most: int, generator: np.random.Generator) -> Int:
    """Return numbers of images, between 1 and `most` of each class at random (IMIDP)."""
    labels = np.asarray(labels)
    if most < 1:
        raise ValueError(f"most must be at least 1 image a class; got {most}")
    picked = []
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        count = min(len(of_class), int(generator.integers(1, most + 1)))
        picked.append(generator.permutation(of_class)[:count])
    return np.concatenate(picked)
