"""Importance by mixed-integer programming, after ElAraby, Wolf and Carvalho (arXiv:2002.07376, CPAIOR 2023).

The program asks how much of each neuron's or feature map's activity must stay so that a few images, one of
each class, keep their labels.  It is in `secateur.structures.relu_mip`; this module turns its scores into a
plan.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import joblib
import numpy as np
import torch

from secateur.allocation import allocate, make_equal, prunable
from secateur.core import Budget, Group, InputError, Plan, PruningGraph, SecateurError, Statistics
from secateur.methods.base import Choice, ScoreMethod, Scores, best, unit_plan
from secateur.structures import relu_mip as mip

Mode = Literal["joint", "per_class", "imbalanced"]

__all__ = ["MIP", "group_scores"]


@dataclass(frozen=True, kw_only=True)
class MIP(ScoreMethod):
    """Scores of a mixed-integer program over the network and a few images; for reproduction, see docs/mip.md.

    At a given share of units they are no better than simple criteria.  Works on sequential networks of
    Linear, Conv2d, BatchNorm, ReLU and pooling.  A group needs a score: it must be produced by a layer with a
    ReLU, or ignored in tracing.

    Args:
        lam: Weight of the softmax loss against sparsity; 5 as published, 1 at initialisation.
        epsilon: Half width of the box from which the published bounds grow.
        images: Images drawn from the calibration data, classes as balanced as possible.
        mode: ``"joint"``: all images in one program (SIM); ``"per_class"``: one program for each
            class, scores averaged (IDP); ``"imbalanced"``: the same with a random number of images of each
            class (IMIDP), about `images` in all.
        bounds: ``"paper"`` as published; ``"valid"`` or ``"free"`` let live neurons go; see
            `relu_mip.importance_scores`.
        threshold: Units that score below it go, as published, but never more than the budget allows: use
            ``Units(0.01)`` for the threshold alone.  None: the budget decides how many go.
        relax: Leave binaries in [0, 1].
        objective: ``"layer_mean"`` or ``"paper"``; see `relu_mip.build`.
        rescale: c in s - c.
        gap: Relative gap at which a solve stops.
        time_limit: Seconds for all programs together, in equal shares.  If it ends a solve, scores depend on
            the machine: a warning and ``notes["mip"]["status"]`` say so.
        nodes: Limit on branch-and-bound nodes of each program; the result is the same on every machine.
        solver: ``"highs"``, ``"scip"``, ``"mosek"`` or ``"clarabel"``; see `relu_mip.importance_scores`.
        draws: Independent draws of images whose scores are averaged.
        correct: Draw only from images that the network classifies correctly.
        jobs: Programs to solve in parallel, with joblib; None uses joblib's settings.
        parts: A program for each convolution instead of one for the whole network: ``"layers"`` trains the
            auxiliary networks that this needs on the calibration data (one pass), for the images of one draw;
            or the programs themselves (`secateur.statistics.auxiliary_heads.parts`), and then `images` has no
            effect. `mode`, `draws` and `correct` have none with either.

    Example:
        >>> from secateur.core import Units
        >>> sorted(MIP(threshold=0.1).needs(Units(0.5)))
        ['chain', 'images']
    """

    name: ClassVar[str] = "mip"
    lam: float = 5.0
    epsilon: float = 1e-5
    images: int = 10
    mode: Mode = "joint"
    bounds: Literal["paper", "valid", "free"] = "paper"
    threshold: float | None = None
    relax: bool = False
    objective: Literal["layer_mean", "paper"] = "layer_mean"
    rescale: float = 2.0
    gap: float = 1e-4
    time_limit: float = 300.0
    nodes: int = 1000
    solver: mip.Solver = "highs"
    draws: int = 1
    correct: bool = False
    jobs: int | None = None
    parts: tuple[mip.Part, ...] | Literal["layers"] | None = None

    def __post_init__(self) -> None:
        """Check the options that `relu_mip` does not check."""
        super().__post_init__()
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise InputError(f"threshold must be in (0, 1]; got {self.threshold!r}")
        for name in ("lam", "epsilon", "rescale", "gap"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"MIP.{name} must be 0 or more, and finite; got {getattr(self, name)!r}")
        if self.draws < 1 or self.images < 1:
            raise InputError(f"images and draws must be at least 1; got {self.images} and {self.draws}")
        if not self.time_limit > 0 or self.nodes < 0:
            raise InputError(
                f"time_limit must be over 0 and nodes 0 or more; got {self.time_limit!r} and {self.nodes!r}"
            )
        if self.jobs == 0:
            raise InputError("MIP.jobs must be at least 1, or -1 for all processors; got 0")
        if self.parts == ():
            raise InputError("MIP.parts has no programs; give those of attach_auxiliaries, or None")

    def needs(self, budget: Budget) -> frozenset[str]:
        """Return the images and the chain, or what makes the programs of layers, or nothing."""
        if self.parts is not None:
            return frozenset({"images", "programs"} if self.parts == "layers" else ())
        return frozenset({"chain", "images"})

    def unit_scores(self, graph: PruningGraph, statistics: Statistics) -> Scores:
        """Solve, and return the scores of each group's layers; activity breaks ties."""
        return self._scores(graph, self.importance(statistics))

    def plan_units(self, graph: PruningGraph, statistics: Statistics, budget: Budget) -> Plan:
        """Solve once; the threshold and the budget decide what goes."""
        groups = prunable(graph)
        result = self.importance(statistics)
        scores = self._scores(graph, result)
        allocation = allocate(graph, budget, self.comparable(scores, budget), statistics.losses)
        if self.threshold is not None:
            plain = group_scores(groups, result.scores)
            least = {g.name: int((plain[g.name] >= self.threshold).sum()) for g in groups}
            counts = {name: max(count, least[name]) for name, count in allocation.counts.items()}
            allocation = replace(allocation, counts=make_equal(graph, counts))
        choice = best(scores, allocation.counts)
        choice = Choice(choice.keep, notes={**choice.notes, "mip": _notes(result, self.threshold)})
        return unit_plan(self.name, graph, budget, allocation, choice, statistics.seed)

    def importance(self, statistics: Statistics) -> mip.Scores:
        """Solve the programs, in parallel if there are several, and average or join their scores."""
        parts = self._programs(statistics)
        at_once = min(joblib.effective_n_jobs(self.jobs), len(parts))
        seconds = self.time_limit * at_once / len(parts)
        solved = joblib.Parallel(n_jobs=self.jobs)(joblib.delayed(self._solve)(p, seconds) for p in parts)
        return mip.join_scores(solved) if self.parts is not None else mip.average(solved)

    def _solve(self, part: mip.Part, seconds: float) -> mip.Scores:
        try:
            with warnings.catch_warnings():
                if self.parts is not None:  # an auxiliary head's mistakes are not the network's
                    warnings.filterwarnings("ignore", message="the network misclassifies")
                return mip.importance_scores(
                    part.chain,
                    part.x,
                    part.labels,
                    lam=self.lam,
                    epsilon=self.epsilon,
                    bounds=self.bounds,
                    objective=self.objective,
                    rescale=self.rescale,
                    relax=self.relax,
                    gap=self.gap,
                    time_limit=seconds,
                    nodes=self.nodes,
                    solver=self.solver,
                )
        except (ValueError, TimeoutError, ImportError, PermissionError) as error:
            raise InputError(f"mip, {part.name}: {error}") from error
        except ArithmeticError as error:
            raise SecateurError(f"mip, {part.name}: {error}") from error

    def _programs(self, statistics: Statistics) -> Sequence[mip.Part]:
        """Return the programs to solve."""
        if self.parts is None:
            return self._draw_programs(statistics)
        if self.parts != "layers":
            return self.parts
        if statistics.programs is None or statistics.images is None:
            raise InputError("MIP.parts='layers' needs 'images' and 'programs': collect both")
        x, y = statistics.images
        chosen = self._choose(y.detach().cpu().numpy(), np.random.default_rng([statistics.seed, 0]))
        made: tuple[mip.Part, ...] = statistics.programs(x[chosen], y[chosen])
        return made

    def _draw_programs(self, statistics: Statistics) -> list[mip.Part]:
        """Draw images and return the programs over them."""
        if statistics.chain is None or statistics.images is None:
            raise InputError("'mip' needs 'chain' and 'images': collect both, on batches with targets")
        inputs, targets = statistics.images
        x = inputs.detach().reshape(len(inputs), -1).to("cpu", torch.float64).numpy()
        y = targets.detach().cpu().numpy()
        if self.correct:
            right = statistics.chain.logits(x).argmax(1) == y
            x, y = x[right], y[right]
        parts = []
        for draw in range(self.draws):
            chosen = self._choose(y, np.random.default_rng([statistics.seed, draw]))
            groups = (
                [chosen] if self.mode == "joint" else [chosen[y[chosen] == c] for c in np.unique(y[chosen])]
            )
            parts += [mip.Part(_part_name(draw, y[g]), statistics.chain, x[g], y[g]) for g in groups]
        return parts

    def _choose(self, labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        try:
            if self.mode == "imbalanced":
                most = max(1, round(2 * self.images / len(np.unique(labels))) - 1)
                return mip.imbalanced_images(labels, max(2, most), generator)
            return mip.balanced_images(labels, self.images, generator)
        except ValueError as error:
            raise InputError(f"calibration data: {error}") from error

    def _scores(self, graph: PruningGraph, result: mip.Scores) -> Scores:
        """Add a tiny share of each unit's activity to its score, which breaks ties and nothing else."""
        groups = prunable(graph)
        exact, activity = group_scores(groups, result.scores), group_scores(groups, result.activity)
        top = max((float(a.max()) for a in activity.values()), default=0.0) or 1.0
        return {
            name: torch.from_numpy(np.round(exact[name], 6) + 1e-7 * activity[name] / top) for name in exact
        }


def _part_name(draw: int, labels: np.ndarray) -> str:
    classes = np.unique(labels)
    return f"draw {draw}" + (f", class {classes[0]}" if len(classes) == 1 else "")


def group_scores(groups: Sequence[Group], layers: Any) -> dict[str, np.ndarray]:
    """Return the scores of every group's units: the largest among the layers that produce them.

    Args:
        groups: Groups to score.
        layers: Scores [units] by name of the weight that produces the units.

    Raises:
        InputError: If no scored layer produces a group.
    """
    scores = {}
    for group in groups:
        slots = [slot for slot in group.slots_with("out") if slot.tensor in layers and slot.axis == 0]
        if not slots:
            raise InputError(
                f"group {group.name!r} has no score: no layer that produces it ({_producer_names(group)}) "
                f"has a ReLU in the chain; trace with ignored_layers=[{group.name!r}]"
            )
        scores[group.name] = np.max([layers[s.tensor][s.index].max(1) for s in slots], axis=0)
    return scores


def _producer_names(group: Group) -> str:
    return ", ".join(slot.tensor for slot in group.slots_with("out")) or "none"


def _notes(result: mip.Scores, threshold: float | None) -> dict[str, Any]:
    """Return what the solver proved, as numbers for the plan's notes."""
    return {
        "status": result.status,
        "objective": round(result.objective, 6),
        "bound": round(result.bound, 6),
        "gap": round(result.gap, 6),
        "free binaries": result.free_binaries,
        "dead units": {name: int(dead.sum()) for name, dead in result.dead.items()},
        "scores": {name: np.round(values, 6).tolist() for name, values in result.scores.items()},
        "threshold": threshold,
        "seconds": round(result.stats["seconds"], 3),
    }
