"""Ways to remove units from a network of the study, and what that costs."""

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
from secateur.repair.finetune import finetune
from secateur.repair.fold import fold
from secateur.structures.relu_mip import Scores
from secateur_studies.mip.subjects import Subject, batches, fit

Keep = dict[str, np.ndarray]

__all__ = [
    "Keep",
    "at_threshold",
    "others",
    "random_keep",
    "ranked",
    "retrained",
    "share",
    "test",
    "test_folded",
    "test_tuned",
]


def at_threshold(network: PruningGraph, scores: Mapping[str, np.ndarray], threshold: float) -> Keep:
    """Keep what scores at least the threshold, and the best unit of a group where nothing does."""
    groups = group_scores(network.groups, scores)
    return {n: np.flatnonzero(s >= min(threshold, float(s.max()))) for n, s in groups.items()}


def ranked(scores: Mapping[str, np.ndarray], like: Keep) -> Keep:
    """Keep the best scored units, as many a group as `like` keeps."""
    return {n: np.sort(np.argsort(-scores[n], kind="stable")[: len(like[n])]) for n in like}


def random_keep(like: Keep, network: PruningGraph, generator: np.random.Generator) -> Keep:
    """Keep as many units a group as `like`, at random."""
    sizes = {g.name: g.size for g in network.groups}
    return {n: np.sort(generator.permutation(sizes[n])[: len(kept)]) for n, kept in like.items()}


def others(subject: Subject, result: Scores, like: Keep) -> dict[str, Keep]:
    """Return the comparators at the counts of `like`: critical, L1, mean activation; and dead units alone."""
    importance = group_scores(subject.network.groups, result.scores)
    alive = group_scores(subject.network.groups, {n: (~d).astype(float) for n, d in result.dead.items()})
    counts = {n: len(kept) for n, kept in like.items()}
    evidence = subject.evidence({"moments"})
    found: dict[str, Keep] = {"critical": ranked({n: -s for n, s in importance.items()}, like)}
    for name, method in (("L1", Magnitude(p=1)), ("mean activation", Activation())):
        chosen = method.choose(subject.network, evidence, counts)
        found[name] = dict(chosen.keep if isinstance(chosen, Choice) else chosen)
    found["dead only"] = {n: np.flatnonzero(s >= min(1.0, s.max())) for n, s in alive.items()}
    return found


def plan_of(network: PruningGraph, keep: Keep) -> Plan:
    """Return the plan that keeps these units."""
    return Plan(network, "mip", {n: np.asarray(kept, np.int64) for n, kept in keep.items()})


def share(network: PruningGraph, keep: Keep) -> float:
    """Return the share of all units that goes, in percent."""
    total = sum(g.size for g in network.groups)
    return 100 * (1 - sum(len(keep.get(g.name, range(g.size))) for g in network.groups) / total)


def _smaller(subject: Subject, keep: Keep, model: nn.Module) -> nn.Module:
    """Return the model without the units; the model itself where none go."""
    return shrink(model, plan_of(subject.network, keep)) if share(subject.network, keep) else model


def test(subject: Subject, keep: Keep) -> float:
    """Return the masked network's test accuracy in percent."""
    masked = mask(subject.model, plan_of(subject.network, keep))
    return 100 * accuracy(masked, subject.data.batches("test", 500))


def test_folded(subject: Subject, keep: Keep) -> float:
    """Return it after a least-squares fold of what was removed into what reads it."""
    plan = plan_of(subject.network, keep)
    folded, _ = fold(subject.model, shrink(subject.model, plan), plan, subject.evidence({"gram"}))
    return 100 * accuracy(folded, subject.data.batches("test", 500))


def test_tuned(subject: Subject, keep: Keep) -> float:
    """Return it after one epoch of Adam at 1e-3 (the first steps of RMSprop are ten times as long)."""
    small = _smaller(subject, keep, subject.model)
    tuned, _ = finetune(
        small, batches(subject.data, subject.seed), epochs=1, seed=subject.seed, progress=False
    )
    tuned.eval()
    return 100 * accuracy(tuned, subject.data.batches("test", 500))


def retrained(subject: Subject, keep: Keep, data: Dataset) -> float:
    """Return the test accuracy of the pruned initial network, trained on other data."""
    small = _smaller(subject, keep, subject.initial)
    fitted = fit(small, data, subject.setting, subject.seed)
    return 100 * accuracy(fitted, data.batches("test", 500))
