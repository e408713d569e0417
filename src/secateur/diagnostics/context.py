"""What portraits look at: a model, the plan made for it, its method, and data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from secateur.core import Group, InputError, Plan, Statistics, Units
from secateur.execution import evaluating, split_batch, to_model
from secateur.statistics.collect import collect_statistics
from secateur.statistics.weight_inputs import InputHooks, WeightInput

INPUTS = 512
DIGITS = 5


@dataclass(frozen=True, eq=False)
class Look:
    """A model, the plan made for it, its method, and data.

    Attributes:
        model: The original model.
        plan: The plan on it.
        method: What decided, with its options.
        batches: Batches of (inputs, targets), or None.
    """

    model: nn.Module
    plan: Plan
    method: Any
    batches: Sequence[Any] | None

    def statistics(self, needs: frozenset[str]) -> Statistics:
        """Collect evidence with the plan's seed.

        Raises:
            InputError: There is no data, but the needs ask for some.
        """
        if needs - {"flow", "chain"} and self.batches is None:
            raise InputError(
                f"a portrait of {self.method.name!r} looks at data ({', '.join(sorted(needs))}): pass data="
            )
        return collect_statistics(self.model, self.plan.graph, self.batches, needs, self.plan.seed)

    def needs(self) -> frozenset[str]:
        """Say what the method asks for, as if for units: that is what its structure is made of."""
        return self.method.needs(Units(0.5))

    def stays(self, group: Group) -> list[bool]:
        """Say of each unit of a group whether it stays."""
        gone = set(self.plan.removed(group.name).tolist())
        return [unit not in gone for unit in range(group.size)]

    def inputs(self, weight: str) -> tuple[NDArray[np.float64], list[Any]] | None:
        """Return what reaches a weight for the first examples [examples, features], with their targets.

        None where there is no data, or where the weight reads more than one row an example.
        """
        if self.batches is None:
            return None
        layer = self.plan.graph.layer(weight)
        tensor = dict(self.model.named_parameters(remove_duplicate=False))[weight]
        rows: list[torch.Tensor] = []
        labels: list[Any] = []

        def record(read: WeightInput) -> None:
            rows.append(read.x.detach().movedim(read.axis, -1).double().cpu())

        with evaluating(self.model), torch.no_grad():
            for batch in self.batches:
                args, kwargs, targets = split_batch(batch)
                args, kwargs = to_model((args, kwargs), self.model)
                with InputHooks({weight: (tensor, layer.in_axis or 0)}, record):
                    self.model(*args, **kwargs)
                labels += _labels(targets, len(rows[-1]))
                if len(labels) >= INPUTS:
                    break
        if any(x.ndim != 2 for x in rows) or sum(map(len, rows)) != len(labels):
            return None
        return torch.cat(rows)[:INPUTS].numpy(), labels[:INPUTS]


def _labels(targets: Any, count: int) -> list[Any]:
    if isinstance(targets, torch.Tensor) and targets.ndim == 1 and not targets.is_floating_point():
        return targets.tolist()
    return [None] * count


def short(value: Any) -> Any:
    """Round numbers to five significant digits, in arrays and lists too.

    Example:
        >>> short([1.23456789, 2])
        [1.2346, 2]
    """
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return short(value.tolist())
    if isinstance(value, (list, tuple)):
        return [short(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


__all__ = ["Look", "short"]
