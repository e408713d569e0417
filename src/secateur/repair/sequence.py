"""Apply repairs to a shrunk model, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from secateur.apply.compose import narrow_masks
from secateur.apply.exactness import Exactness
from secateur.apply.mask import masked_weights, zero_weights
from secateur.batches import few_tokens
from secateur.core import Plan, PruningGraph, Statistics
from secateur.execution import duplicate
from secateur.measure.metrics import distance_from
from secateur.repair.base import Finetune, Fold, Refit, Repair
from secateur.repair.batchnorm import has_statistics, update_bn
from secateur.repair.finetune import finetune, have_targets
from secateur.repair.fold import fold, merge
from secateur.repair.refit import refit
from secateur.statistics.collect import collect_statistics
from secateur.statistics.loss import Loss
from secateur.tracing.replay import as_replayed, record_batches
from secateur.views import view, without_view

__all__ = ["Pruned", "RepairSettings", "apply_repairs", "zero_masked"]


@dataclass(frozen=True, eq=False)
class Pruned:
    """A model on its way through the steps of a pruning.

    Attributes:
        model: The model now.
        graph: What can still go from it.
        plan: All that has gone, as one plan on the original model; empty at the start.
        folds: What fold and refit report, by weight.
        training: What the fine-tuning reports.
        exactness: What the check of the removal found, if it was made.
    """

    model: nn.Module
    graph: PruningGraph
    plan: Plan
    folds: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    exactness: Exactness | None = None

    def view(self, compared: Plan | None = None) -> nn.Module:
        """Return the model as it is called and compared; see `secateur.views.view`."""
        return view(self.model, self.graph.interface, self.plan, compared=compared)


@dataclass(frozen=True, eq=False)
class RepairSettings:
    """What repairs need besides the model.

    Attributes:
        original: The original model.
        fitting: Batches that the statistics were collected on.
        guard: Batches kept apart, on which fold and refit are judged; None if there are too few.
        tuning: Batches to fine-tune on.
        loss: (outputs, targets) -> scalar, or None for the default.
        seed: Seed of every random choice.
        progress: Whether to show progress.
    """

    original: nn.Module
    fitting: Sequence[Any] | None
    guard: Sequence[Any] | None
    tuning: Sequence[Any] | None
    loss: Loss | None
    seed: int
    progress: bool


def apply_repairs(
    repairs: Sequence[Repair],
    before: Pruned,
    after: Pruned,
    step: Plan,
    statistics: Statistics,
    settings: RepairSettings,
) -> Pruned:
    """Return the pruned model after the repairs.

    Args:
        repairs: What to do, in this order.
        before: The model before the step.
        after: The model that the step left, not yet repaired.
        step: What the step removed from `before`.
        statistics: Gram matrices of `before` on the fitting batches, if there is a fold.
        settings: Batches, loss, seed.
    """
    if step.merges and not any(isinstance(repair, Fold) for repair in repairs):
        # Exact merges belong to the plan.  A fold applies them itself.
        after = replace(after, model=merge(before.model, after.model, step))
    for repair in repairs:
        if isinstance(repair, Fold):
            after = _fold(before, after, step, statistics, settings)
        elif isinstance(repair, Refit):
            after = _refit(after, settings)
        else:
            after = _finetune(repair, after, settings)
    return after


def _fold(
    before: Pruned, after: Pruned, step: Plan, statistics: Statistics, settings: RepairSettings
) -> Pruned:
    held_out = judge = None
    if settings.guard:
        seen = before.view()
        held_out = collect_statistics(seen, before.graph, settings.guard, {"gram"}, settings.seed, roots=True)
        batches = record_batches(seen, before.graph, few_tokens(settings.guard))
        distance = distance_from(as_replayed(seen, batches), batches)

        def judge(model: nn.Module) -> float:
            return distance(as_replayed(replace(after, model=model).view(step), batches))

    model, notes = fold(before.model, after.model, step, statistics, held_out, judge)
    return replace(after, model=zero_masked(model, after.plan), folds=notes)


def _refit(after: Pruned, settings: RepairSettings) -> Pruned:
    model, notes = refit(
        settings.original,
        after.model,
        after.plan,
        settings.fitting or (),
        settings.guard,
        progress=settings.progress,
    )
    folds = {**after.folds, **{key: {**after.folds.get(key, {}), "refit": x} for key, x in notes.items()}}
    return replace(after, model=zero_masked(model, after.plan), folds=folds)


def _finetune(repair: Finetune, after: Pruned, settings: RepairSettings) -> Pruned:
    batches, loss = settings.tuning or (), repair.loss or settings.loss
    teacher = repair.teacher
    if teacher == "auto":
        no_labels = loss is None and not have_targets(batches, settings.original)
        teacher = bool(repair.features) or no_labels
    model = after.model
    if teacher and not after.folds and has_statistics(model):
        model = without_view(update_bn(after.view(), batches))  # those of training do not fit, and would stay
    model, history = finetune(
        model,
        batches,
        epochs=repair.epochs,
        steps=repair.steps,
        minutes=repair.minutes,
        lr=repair.lr,
        loss=None if teacher else loss,
        teacher=settings.original if teacher else None,
        features=repair.features,
        masks=narrow_masks(after.plan),
        plan=after.plan,
        seed=settings.seed,
        progress=settings.progress,
    )
    training: dict[str, Any] = {
        "teacher": teacher,
        "lr": repair.lr,
        "steps": len(history.losses),
        "first loss": history.losses[0],
        "last loss": history.losses[-1],
    }
    given = {"epochs": repair.epochs, "minutes": repair.minutes, "features": list(history.features)}
    training |= {name: value for name, value in given.items() if value}
    return replace(after, model=model, training=training)


def zero_masked(model: nn.Module, plan: Plan) -> nn.Module:
    """Return the model with the plan's masked weights zeroed; copy it only if a weight must change."""
    masks = narrow_masks(plan)
    if not any(bool(weight[gone].any()) for weight, gone in masked_weights(model, masks)):
        return model
    model = duplicate(model)
    zero_weights(masked_weights(model, masks))
    return model
