"""Repairs as values: what `prune` does to a shrunk model, in order.

A repair is named ("fold", "refit", "finetune", "fold+finetune", "refit+finetune") or given as a value or a
tuple of values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

from torch import Tensor

from secateur.core import InputError, unknown

__all__ = [
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


def check_training(passes: Any, lr: Any) -> None:
    """Raise `InputError` if a number of epochs or steps, or a learning rate, is invalid."""
    if isinstance(passes, bool) or not isinstance(passes, Integral) or passes < 1:
        raise InputError(f"epochs or steps must be a positive integer; got {passes!r}")
    number = isinstance(lr, Real) and not isinstance(lr, bool)
    if not (number and 0 < lr < math.inf):
        raise InputError(f"lr must be a positive number; got {lr!r}")


@dataclass(frozen=True)
class Fold:
    """Add the removed units' contribution to the weights that read the kept ones; see `secateur.fold`."""


@dataclass(frozen=True)
class Refit:
    """Solve each reading layer again from what reaches it in the shrunk model; see `secateur.refit`."""


@dataclass(frozen=True)
class Finetune:
    """Train the shrunk model on the data; see `secateur.finetune`.

    Attributes:
        epochs: Passes over the data.
        lr: Learning rate.
        loss: (outputs, targets) -> scalar; by default what fits the targets (`secateur.finetune`).
        teacher: Whether to train towards the original's outputs instead of the targets; ``"auto"`` does
            so where the batches have no targets.

    Raises:
        InputError: If an argument is invalid.
    """

    epochs: int = 1
    lr: float = 1e-3
    loss: Loss | None = None
    teacher: bool | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_training(self.epochs, self.lr)
        if self.loss is not None and not callable(self.loss):
            raise InputError(f"loss must be a callable; got {type(self.loss).__name__}")
        if not (self.teacher == "auto" or isinstance(self.teacher, bool)):
            raise InputError(f"teacher must be 'auto', True or False; got {self.teacher!r}")
        if self.teacher is True and self.loss is not None:
            raise InputError("a teacher brings its own loss: give loss= or teacher=True, not both")


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
        >>> parse_repair((Fold(), Finetune(epochs=3)))
        (Fold(), Finetune(epochs=3, lr=0.001, loss=None, teacher='auto'))
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
                f"these values; got {value!r}"
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
