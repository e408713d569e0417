"""Repairs as values: what `prune` does to a shrunk model, in order.

A repair is named ("fold", "refit", "finetune", "fold+finetune", "refit+finetune") or given as a value or a
tuple of values.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

from torch import Tensor

from secateur.core import InputError, brief, unknown
from secateur.execution import check_calls
from secateur.repair.features import check_features

__all__ = [
    "LEARNING_RATE",
    "REPAIRS",
    "Finetune",
    "Fold",
    "Refit",
    "Repair",
    "check_training",
    "parse_repair",
    "repair_name",
    "repair_needs",
]

Loss = Callable[[Any, Any], Tensor]
LEARNING_RATE = 3e-4  # of a fine-tuning; at 1e-3 a pretrained EfficientNet loses more than it learns


def check_training(epochs: Any, steps: Any, minutes: Any, lr: Any) -> None:
    """Raise `InputError` if a limit of a training or a learning rate is invalid."""
    if epochs is not None and steps is not None:
        raise InputError("give epochs or steps, not both")
    for name, count in (("epochs", epochs), ("steps", steps)):
        whole = isinstance(count, Integral) and not isinstance(count, bool)
        if count is not None and not (whole and 1 <= count < 2**63):
            raise InputError(f"{name} must be a positive integer; got {brief(count)}")
    for name, number in (("minutes", minutes), ("lr", lr)):
        real = isinstance(number, Real) and not isinstance(number, bool)
        if not (real and 0 < number <= sys.float_info.max) and not (name == "minutes" and number is None):
            raise InputError(f"{name} must be a positive number; got {brief(number)}")


@dataclass(frozen=True)
class Fold:
    """Add the removed units' contribution to the weights that read the kept ones; see `secateur.fold`."""


@dataclass(frozen=True)
class Refit:
    """Solve each reading layer again from what reaches it in the shrunk model; see `secateur.refit`.

    It works best after a fold: the name "refit" stands for ``(Fold(), Refit())``.
    """


@dataclass(frozen=True)
class Finetune:
    """Train the shrunk model on the data; see `secateur.finetune`.

    Attributes:
        epochs: Passes over the data (1, if nothing else limits the training).
        steps: Optimiser steps, instead of `epochs`.
        minutes: Time limit.  The result then depends on the clock.
        lr: Largest learning rate.
        loss: (outputs, targets) -> scalar; by default what fits the targets (`secateur.finetune`).
        teacher: Whether to train towards the original's outputs instead of the targets; ``"auto"`` does
            so where the batches have no targets.
        features: Names or patterns of modules whose outputs should follow the original's, too.

    Raises:
        InputError: If an argument is invalid.
    """

    epochs: int | None = None
    steps: int | None = None
    minutes: float | None = None
    lr: float = LEARNING_RATE
    loss: Loss | None = None
    teacher: bool | Literal["auto"] = "auto"
    features: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_training(self.epochs, self.steps, self.minutes, self.lr)
        check_calls(loss=self.loss)
        if not (isinstance(self.teacher, bool) or (isinstance(self.teacher, str) and self.teacher == "auto")):
            raise InputError(f"teacher must be 'auto', True or False; got {brief(self.teacher)}")
        if self.teacher is True and self.loss is not None:
            raise InputError("a teacher brings its own loss: give loss= or teacher=True, not both")
        features = check_features(self.features, self.teacher is not False and self.loss is None)
        object.__setattr__(self, "features", features)


Repair = Fold | Refit | Finetune

REPAIRS: dict[str, tuple[Repair, ...]] = {
    "fold": (Fold(),),
    "refit": (Fold(), Refit()),
    "finetune": (Finetune(),),
    "fold+finetune": (Fold(), Finetune()),
    "refit+finetune": (Fold(), Refit(), Finetune()),
}


def parse_repair(repair: str | Repair | Sequence[Repair] | None) -> tuple[Repair, ...]:
    """Return a repair as a tuple of values, in the order in which they are applied.

    Args:
        repair: None or an empty tuple for no repair, a name in `REPAIRS`, one value, or several: at most one
            of each kind, in the order `Fold`, `Refit`, `Finetune`.

    Raises:
        InputError: If the name is unknown, or a value is not a repair, repeated or out of order.

    Example:
        >>> parse_repair("refit")
        (Fold(), Refit())
        >>> [type(value).__name__ for value in parse_repair((Fold(), Finetune(steps=300)))]
        ['Fold', 'Finetune']
    """
    if repair is None:
        return ()
    if isinstance(repair, str):
        if repair not in REPAIRS:
            raise InputError(unknown("repair", repair, list(REPAIRS)))
        return REPAIRS[repair]
    repairs: tuple[Any, ...] = tuple(repair) if isinstance(repair, Sequence) else (repair,)
    kinds = (Fold, Refit, Finetune)
    for value in repairs:
        if isinstance(value, type) and issubclass(value, kinds):
            raise InputError(f"a repair is a value: write {value.__name__}() instead of {value.__name__}")
        if not isinstance(value, kinds):
            raise InputError(
                f"a repair is a name ({', '.join(REPAIRS)}), Fold(), Refit(), Finetune(...), or a tuple of "
                f"these values; got {brief(value)}"
            )
    order = [kinds.index(type(value)) for value in repairs]
    if order != sorted(set(order)):
        names = ", ".join(type(value).__name__ for value in repairs)
        raise InputError(f"repairs are applied once each, in the order Fold, Refit, Finetune; got {names}")
    return repairs


def repair_needs(repairs: Sequence[Repair]) -> frozenset[str]:
    """Return the statistics of the original model that repairs need: Gram matrices for a fold."""
    return frozenset({"gram"} if any(isinstance(repair, Fold) for repair in repairs) else ())


def repair_name(repairs: Sequence[Repair]) -> str | None:
    """Return the name of a tuple of repairs for reports and tables, or None if it is empty.

    The fold that comes before a refit is not named, as in `REPAIRS`; a refit alone is "refit only".

    Example:
        >>> repair_name((Fold(), Refit(), Finetune(epochs=2))), repair_name(())
        ('refit+finetune', None)
    """
    kinds = [type(value) for value in repairs]
    names = []
    if Refit in kinds:
        names.append("refit" if Fold in kinds else "refit only")
    elif Fold in kinds:
        names.append("fold")
    if Finetune in kinds:
        names.append("finetune")
    return "+".join(names) or None
