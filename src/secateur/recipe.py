"""What a pruning measures and on which batches: its defaults, its statistics, what it traces."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from secateur.batches import split_off_guard
from secateur.core import Budget, InputError, LossCurve, Plan, PruningGraph, Statistics, Weights
from secateur.core.budget import BY_LOSS
from secateur.depth import trace_without_blocks
from secateur.methods import Method, find_method
from secateur.methods.base import SetMethod
from secateur.methods.contract import needs_of
from secateur.mixtures import trace_without_experts
from secateur.repair.base import Finetune, Repair, parse_repair, repair_name, repair_needs
from secateur.repair.loss_curves import with_loss_curves
from secateur.repair.principal_values import turn_values
from secateur.repair.sequence import Pruned, RepairSettings
from secateur.schedule import Schedule
from secateur.statistics.collect import collect_statistics
from secateur.statistics.loss import Loss
from secateur.statistics.token_gates import takes_token_gates
from secateur.views import view

__all__ = ["Recipe", "check_data", "choose_defaults", "make_recipe", "split_repairs"]


@dataclass(frozen=True, eq=False)
class Recipe:
    """What a pruning looks at and on which batches.

    Attributes:
        method: The method.
        repairs: The repairs, in order.
        budget: The user's budget.
        needs: What the method and the repairs look at.
        by_loss: The method again, if it orders the units and the losses of the groups decide the counts.
        settings: The model and the batches; some are kept apart to judge a fold and measure losses.
    """

    method: Method
    repairs: Sequence[Repair]
    budget: Budget
    needs: frozenset[str]
    by_loss: SetMethod | None
    settings: RepairSettings

    def collect(self, model: nn.Module, graph: PruningGraph) -> Statistics:
        """Collect what the method and the repairs look at."""
        x = self.settings
        statistics = collect_statistics(model, graph, x.fitting, self.needs, x.seed, loss=x.loss)
        if self.by_loss is None:
            return statistics
        scores = self.by_loss.unit_scores(graph, statistics)
        return with_loss_curves(statistics, scores, model, graph, x.fitting or (), x.guard, x.progress)

    def trace(
        self, model: nn.Module, experts: Any, blocks: Any, call: tuple[Any, ...], check: bool
    ) -> tuple[Budget, Pruned]:
        """Take out experts and blocks, and trace what is left.

        Before a repair, the values of attention heads whose positions may go are turned into their principal
        axes.

        Returns:
            The budget as shares of what is left; what is left, with the plan that drops experts and blocks.
        """
        x = self.settings
        left, graph, shares, kept, notes = trace_without_experts(
            model, experts, self.budget, x.tuning, call, check
        )
        left, graph, shares, gone = trace_without_blocks(
            left, graph, shares, blocks, x.tuning, call, self.group_losses, check
        )
        reasons: dict[str, Any] = {"experts gone": notes, "blocks gone": gone}
        reasons = {what: note for what, note in reasons.items() if note}
        plan = Plan(graph, self.method.name, blocks=gone, experts=kept, notes=reasons)
        left = turn_values(left, graph, x.fitting if self.repairs else None, x.seed)
        return shares, Pruned(left, graph, plan)

    def group_losses(self, model: nn.Module, graph: PruningGraph) -> Mapping[str, LossCurve]:
        """Measure what removing units of each group costs; raise `InputError` if nothing orders units."""
        if self.by_loss is None:
            raise InputError(f"blocks='auto' weighs blocks against units: {self.budget} needs scope='loss'")
        return self.collect(view(model, graph.interface), graph).losses


def make_recipe(
    model: nn.Module,
    method: Method,
    budget: Budget,
    batches: Any,
    repairs: Sequence[Repair],
    loss: Loss | None,
    seed: int,
    progress: bool = False,
) -> Recipe:
    """Return what a pruning looks at; the last fifth of the batches is kept apart if something is judged.

    Raises:
        InputError: If the budget asks for losses, and there is no data or the method orders no units.
    """
    by_loss = _by_loss(method, budget, batches)
    needs = needs_of(method, budget) | repair_needs(repairs)
    fitting, guard = batches, None
    if batches and (by_loss or repair_needs(repairs)):
        fitting, guard = split_off_guard(batches)
    settings = RepairSettings(model, fitting, guard, batches, loss, seed, progress)
    return Recipe(method, repairs, budget, frozenset(needs), by_loss, settings)


def _by_loss(method: Method, budget: Budget, batches: Any) -> SetMethod | None:
    """Return the method if the losses of the groups decide the counts: it orders the units for the trials."""
    orders = method if isinstance(method, SetMethod) and method.orders_units() else None
    if budget.scope in BY_LOSS and batches is None:
        raise InputError(f"scope={budget.scope!r} measures what groups cost at the output: pass data=batches")
    if budget.scope in BY_LOSS and orders is None:
        raise InputError(f"{method.name!r} gives no order of units to measure losses by: use scope='layer'")
    return orders if budget.scope in ("auto", *BY_LOSS) and batches is not None else None


def check_data(method: Method, needs: Iterable[str], batches: Any, repairs: Sequence[Repair] = ()) -> None:
    """Raise `InputError` if the method or a repair looks at data and there is none."""
    looks_at = sorted(set(needs) - {"flow", "chain"})
    if batches is not None or not (looks_at or repairs):
        return
    if looks_at:
        raise InputError(f"{method.name!r} looks at data ({', '.join(looks_at)}): pass data=batches")
    raise InputError(f"the repair {repair_name(repairs)!r} needs data: pass data=batches")


def choose_defaults(
    method: str | Method | type | None, repair: Any, batches: Any, budget: Budget, model: Any
) -> tuple[Method, tuple[Repair, ...]]:
    """Return the method and the repairs, checked; where the user chose none, the best for what there is."""
    plain = batches is None or isinstance(budget, Weights)
    if method is None and batches is None:
        warnings.warn(
            "without data, units are chosen by magnitude and nothing is repaired; with data=batches the "
            "default looks at activations and repairs, which loses much less",
            stacklevel=4,
        )
    best = ("taylor", "fold") if takes_token_gates(model) else ("matroid", "refit")
    default_method, default_repair = ("magnitude", None) if plain else best
    chosen = find_method(default_method if method is None else method)
    if isinstance(repair, str) and repair == "auto":
        repair = default_repair
    repairs = parse_repair(repair)
    check_data(chosen, needs_of(chosen, budget), batches, repairs)
    return chosen, repairs


def split_repairs(
    repairs: Sequence[Repair], schedule: Schedule
) -> tuple[tuple[Repair, ...], tuple[Repair, ...]]:
    """Return the repairs after each step, and those at the end.

    The trials of a tolerance are judged without training; only the accepted one is fine-tuned.  The repairs
    at the end get a plan without merges, because each step has folded its own.
    """
    late = tuple(x for x in repairs if schedule.restarts and isinstance(x, Finetune))
    return tuple(x for x in repairs if x not in late), late
