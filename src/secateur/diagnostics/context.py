"""The input of every diagnostic: a model, the plan made for it, its method and data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from secateur.batches import split_batch
from secateur.core import BoolArray, Group, InputError, Plan, Statistics, Units
from secateur.execution import evaluating, to_model
from secateur.statistics.collect import collect_statistics
from secateur.statistics.weight_inputs import InputHooks, WeightInput

__all__ = ["DiagnosticContext"]

EXAMPLES = 512
WITHOUT_DATA = frozenset({"flow", "chain"})


@dataclass(frozen=True, eq=False)
class DiagnosticContext:
    """A model, the plan made for it, its method and data.

    Attributes:
        model: The original model.
        plan: The plan for it.
        method: The method that made the plan, with its options.
        batches: Batches of (inputs, targets), or None.
    """

    model: nn.Module
    plan: Plan
    method: Any
    batches: Sequence[Any] | None

    def statistics(self, needs: frozenset[str] | None = None) -> Statistics:
        """Collect statistics with the plan's seed; by default those that the method needs to remove units.

        Raises:
            InputError: If the statistics need data and there is none.
        """
        needs = self.method.needs(Units(0.5)) if needs is None else needs
        if needs - WITHOUT_DATA and self.batches is None:
            raise InputError(
                f"the diagnostics of {self.method.name!r} need data ({', '.join(sorted(needs))}): pass data="
            )
        return collect_statistics(self.model, self.plan.graph, self.batches, needs, self.plan.seed)

    def kept_units(self, group: Group) -> BoolArray:
        """Return for each unit of a group whether it is kept [units]."""
        kept = np.ones(group.size, bool)
        kept[self.plan.removed(group.name)] = False
        return kept

    def inputs_of(self, weight: str) -> tuple[NDArray[np.float64], list[Any]] | None:
        """Return the inputs of a weight for the first examples [examples, features], and their classes.

        None if there is no data, or if the weight reads more than one row of each example.
        """
        if self.batches is None:
            return None
        layer = self.plan.graph.layer(weight)
        tensor = dict(self.model.named_parameters(remove_duplicate=False))[weight]
        rows: list[torch.Tensor] = []
        classes: list[Any] = []

        def record(read: WeightInput) -> None:
            rows.append(read.x.detach().movedim(read.axis, -1).double().cpu())

        with evaluating(self.model), torch.no_grad():
            for batch in self.batches:
                args, kwargs, targets = split_batch(batch)
                args, kwargs = to_model((args, kwargs), self.model)
                with InputHooks({weight: (tensor, layer.in_axis or 0)}, record):
                    self.model(*args, **kwargs)
                classes += _classes(targets, len(rows[-1]))
                if len(classes) >= EXAMPLES:
                    break
        if any(x.ndim != 2 for x in rows) or sum(map(len, rows)) != len(classes):
            return None
        return torch.cat(rows)[:EXAMPLES].numpy(), classes[:EXAMPLES]


def _classes(targets: Any, count: int) -> list[Any]:
    """Return the targets if they are classes, one an example; else None for each example."""
    if isinstance(targets, torch.Tensor) and targets.ndim == 1 and not targets.is_floating_point():
        return targets.tolist()
    return [None] * count
