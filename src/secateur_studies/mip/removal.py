"""Ways to remove units from a network of the study, and the accuracy that remains."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from secateur.apply.mask import mask
from secateur.apply.shrink import shrink
from secateur.core import Plan, PruningGraph
from secateur.data import Dataset
from secateur.measure.metrics import accuracy
from secateur.methods import Activation, Magnitude
from secateur.methods.base import Choice
from secateur.methods.mip.method import group_scores
from secateur.repair.finetune import adam, finetune
from secateur.repair.fold import fold
from secateur.structures.relu_mip import Scores
from secateur_studies.mip.models import CHANNELS, HIDDEN, Case, train_network, training_batches

__all__ = [
    "DEAD_ONLY",
    "Keep",
    "choose_others",
    "choose_random",
    "choose_scored",
    "choose_share",
    "choose_top",
    "count_maps",
    "keep_above",
    "keep_live",
    "retrain",
    "share_of_weights",
    "share_removed",
    "test",
    "test_folded",
    "test_tuned",
]


Keep = dict[str, np.ndarray]
DEAD_ONLY = "dead only"


def keep_above(graph: PruningGraph, scores: Mapping[str, np.ndarray], threshold: float) -> Keep:
    """Keep the units that score at least the threshold, and in each group at least the best one."""
    groups = group_scores(graph.groups, scores)
    return {n: np.flatnonzero(s >= min(threshold, float(s.max()))) for n, s in groups.items()}


def keep_live(graph: PruningGraph, result: Scores) -> Keep:
    """Keep the units that are not 0 on all images of the program, and in each group at least one."""
    return keep_above(graph, {n: (~dead).astype(float) for n, dead in result.dead.items()}, 1.0)


def choose_top(scores: Mapping[str, np.ndarray], like: Keep) -> Keep:
    """Keep the highest-scoring units, as many in each group as `like` keeps."""
    return {n: np.sort(np.argsort(-scores[n], kind="stable")[: len(like[n])]) for n in like}


def choose_random(like: Keep, graph: PruningGraph, generator: np.random.Generator) -> Keep:
    """Keep as many units in each group as `like`, at random."""
    sizes = {g.name: g.size for g in graph.groups}
    return {n: np.sort(generator.permutation(sizes[n])[: len(kept)]) for n, kept in like.items()}


def choose_share(removed: float, graph: PruningGraph, generator: np.random.Generator) -> Keep:
    """Remove the same share of every group, at random."""
    like = {g.name: np.arange(g.size - round(removed * g.size)) for g in graph.groups}
    return choose_random(like, graph, generator)


def choose_scored(
    like: Keep, graph: PruningGraph, scores: Mapping[str, np.ndarray], generator: np.random.Generator
) -> Keep:
    """Draw as many units to remove as in `like`, as the authors' program does.

    It draws with replacement from the units that score above 0. So fewer units go, but none that is dead.
    """
    importance = group_scores(graph.groups, scores)
    chosen = {}
    for name, kept in like.items():
        units = np.arange(len(importance[name]))
        scored = units[importance[name] > 0]
        drawn = generator.choice(scored, len(units) - len(kept)) if len(scored) else scored
        chosen[name] = np.setdiff1d(units, drawn)
    return chosen


def choose_others(case: Case, result: Scores, like: Keep) -> dict[str, Keep]:
    """Return critical, L1 and mean activation at the counts of `like`, and all live units."""
    importance = group_scores(case.graph.groups, result.scores)
    counts = {n: len(kept) for n, kept in like.items()}
    statistics = case.collect({"moments"})
    others: dict[str, Keep] = {"critical": choose_top({n: -s for n, s in importance.items()}, like)}
    for name, method in (("L1", Magnitude(p=1)), ("mean activation", Activation())):
        chosen = method.choose(case.graph, statistics, counts)
        others[name] = dict(chosen.keep if isinstance(chosen, Choice) else chosen)
    others[DEAD_ONLY] = keep_live(case.graph, result)
    return others


def _make_plan(graph: PruningGraph, keep: Keep) -> Plan:
    return Plan(graph, "mip", {n: np.asarray(kept, np.int64) for n, kept in keep.items()})


def share_removed(graph: PruningGraph, keep: Keep) -> float:
    """Return the share of all units that is removed, in percent."""
    total = sum(g.size for g in graph.groups)
    return 100 * (1 - sum(len(keep.get(g.name, range(g.size))) for g in graph.groups) / total)


def share_of_weights(case: Case, keep: Keep) -> float:
    """Return the share of the weights that lead into removed units, in percent, as the authors print it.

    The first layer of a perceptron counts three times: it stands for three channels.
    """
    weights = {name: p.numel() for name, p in case.model.named_parameters() if p.ndim > 1}
    if case.net in HIDDEN:
        weights[next(iter(weights))] *= CHANNELS
    removed = sum(
        weights[slot.tensor] * (1 - len(keep.get(g.name, range(g.size))) / g.size)
        for g in case.graph.groups
        for slot in g.slots_with("out")
        if slot.tensor in weights
    )
    return 100 * removed / sum(weights.values())


def count_maps(case: Case, keep: Keep) -> tuple[int, int]:
    """Return the number of removed feature maps and of all."""
    kernels = {name for name, p in case.model.named_parameters() if p.ndim == 4}
    groups = [g for g in case.graph.groups if any(s.tensor in kernels for s in g.slots_with("out"))]
    return sum(g.size - len(keep.get(g.name, range(g.size))) for g in groups), sum(g.size for g in groups)


def _shrink_model(case: Case, keep: Keep, model: nn.Module) -> nn.Module:
    """Return the model without the units, or the model itself if none are removed."""
    return shrink(model, _make_plan(case.graph, keep)) if share_removed(case.graph, keep) else model


def test(case: Case, keep: Keep) -> float:
    """Return the masked network's test accuracy in percent."""
    masked = mask(case.model, _make_plan(case.graph, keep))
    return 100 * accuracy(masked, case.data.batches("test", 500))


def test_folded(case: Case, keep: Keep) -> float:
    """Return the test accuracy after a least-squares fold."""
    plan = _make_plan(case.graph, keep)
    folded, _ = fold(case.model, shrink(case.model, plan), plan, case.collect({"gram"}))
    return 100 * accuracy(folded, case.data.batches("test", 500))


def test_tuned(case: Case, keep: Keep) -> float:
    """Return the test accuracy after an epoch of Adam at 1e-3; first steps of RMSprop are too long."""
    small, batches = _shrink_model(case, keep, case.model), training_batches(case.data, case.seed)
    tuned, _ = finetune(small, batches, epochs=1, lr=1e-3, optimizer=adam, seed=case.seed, progress=False)
    return 100 * accuracy(tuned.eval(), case.data.batches("test", 500))


def retrain(case: Case, keep: Keep, data: Dataset) -> float:
    """Return the test accuracy of the pruned initial network, trained on other data."""
    small = _shrink_model(case, keep, case.initial)
    return 100 * accuracy(train_network(small, data, case.setting, case.seed), data.batches("test", 500))
