"""Budgets: how much of a network stays, and what the share counts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self

from secateur.core.errors import InputError, unknown

__all__ = ["Budget", "Counted", "Macs", "Params", "Scope", "Units", "Weights", "check_budget"]

Scope = Literal["auto", "layer", "global", "erk", "loss"]
SCOPES = ("auto", "layer", "global", "erk", "loss")
Counted = Literal["all", "body", "prunable"]
COUNTED = ("all", "body", "prunable")


def _share(what: str, value: Any) -> float:
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not (number and 0 < value <= 1):
        raise InputError(f"{what} must be a number in (0, 1]; got {value!r}")
    return float(value)


def _check_options(scope: str, floor: int, round_to: int) -> None:
    if scope not in SCOPES:
        raise InputError(unknown("scope", str(scope), list(SCOPES)))
    if not all(isinstance(x, Integral) and x >= 1 for x in (floor, round_to)):
        raise InputError(f"floor and round_to must be integers of at least 1; got {floor!r} and {round_to!r}")


@dataclass(frozen=True, repr=False)
class Budget:
    """The share that stays: base of `Units`, `Params`, `Macs` and `Weights`, which say what it counts.

    Attributes:
        keep: Share that stays, in (0, 1].
        scope: ``"layer"``: the same share in every group; ``"global"``: the best of all groups together;
            ``"erk"``: shares by the Erdos-Renyi-kernel rule; ``"loss"``: the counts of least predicted loss,
            from what removing units of each group alone costs at the output (needs data); ``"auto"``:
            "loss" where `prune` has data and the method an order of units, else "layer".
        floor: Least number that stays in every group.
        round_to: Every group keeps a multiple of this number, or stays whole.

    Raises:
        InputError: If an argument is invalid.
    """

    unit: ClassVar[str] = ""

    keep: Any
    scope: Scope = "layer"
    floor: int = 1
    round_to: int = 1

    def __post_init__(self) -> None:
        """Check the arguments."""
        kind = type(self).__name__
        if not self.unit:
            raise InputError("Budget is a base class: use Units, Params, Macs or Weights")
        if isinstance(self.keep, Mapping):
            raise InputError(f"{kind}.keep must be one number; Units takes a mapping of groups to shares")
        object.__setattr__(self, "keep", _share(f"{kind}.keep", self.keep))
        _check_options(self.scope, self.floor, self.round_to)

    def __repr__(self) -> str:
        """Return the budget as it is written, without defaults."""
        options = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)
            if f.repr and f.name != "keep" and getattr(self, f.name) != f.default
        ]
        return f"{type(self).__name__}({', '.join([repr(self.keep), *options])})"

    def after(self, progress: float) -> Self:
        """Return the budget after a part of the way: its shares to the power of `progress`, in (0, 1].

        Steps of equal progress each keep the same share of what is there.

        Example:
            >>> Units(0.25).after(0.5)
            Units(0.5)
        """
        return self if progress == 1 else replace(self, keep=self.keep**progress)


@dataclass(frozen=True, repr=False)
class Units(Budget):
    """Keep this share of the units.

    Attributes:
        keep: A share, or one for each layer: a mapping from names of groups or modules, or patterns of them
            (``"layer4.*"``), to shares.  A group's own name comes before the name of a module that makes it,
            and both come before patterns.  Groups without a share stay whole.

    Example:
        >>> Units(0.5, round_to=8)
        Units(0.5, round_to=8)
        >>> Units({"layer1.*": 0.75, "fc": 0.5}).after(0.5).keep["fc"]
        0.7071067811865476
    """

    unit: ClassVar[str] = "units"

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not isinstance(self.keep, Mapping):
            super().__post_init__()
            return
        if not self.keep or not all(isinstance(name, str) for name in self.keep):
            raise InputError(f"Units.keep must map names of groups to shares; got {self.keep!r}")
        if self.scope != "layer":
            raise InputError(f"with a share for each layer, scope must be 'layer'; got {self.scope!r}")
        shares = {name: _share(f"Units.keep[{name!r}]", share) for name, share in self.keep.items()}
        object.__setattr__(self, "keep", shares)
        _check_options(self.scope, self.floor, self.round_to)

    def after(self, progress: float) -> Self:
        """Return the budget after a part of the way; see `Budget.after`."""
        if isinstance(self.keep, Mapping):
            return replace(self, keep={name: share**progress for name, share in self.keep.items()})
        return super().after(progress)


@dataclass(frozen=True, repr=False)
class Params(Budget):
    """Remove units until this share of the parameters is left.

    Attributes:
        keep: Share that stays, in (0, 1].
        of: What the share is of: ``"all"`` parameters; ``"body"``: all but the embeddings (see
            `PruningGraph.embeddings`), as language models are counted; ``"prunable"``: those that would go if
            every group lost all its units.

    Example:
        >>> Params(0.8, of="body")
        Params(0.8, of='body')
    """

    unit: ClassVar[str] = "params"

    scope: Scope = "auto"
    of: Counted = "all"

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        if self.of not in COUNTED:
            raise InputError(unknown("what to count", str(self.of), list(COUNTED)))


@dataclass(frozen=True, repr=False)
class Macs(Budget):
    """Remove units until this share of the multiply-accumulates is left."""

    unit: ClassVar[str] = "macs"

    scope: Scope = "auto"


@dataclass(frozen=True, init=False, repr=False)
class Weights(Budget):
    """Keep this share of the single weights (a mask; nothing gets smaller).

    Example:
        >>> Weights(0.1, scope="global")
        Weights(0.1, scope='global')
    """

    unit: ClassVar[str] = "weights"

    round_to: int = field(default=1, init=False, repr=False)

    def __init__(
        self,
        keep: float | None = None,
        scope: Scope = "layer",
        floor: int = 1,
        *,
        density: float | None = None,
    ) -> None:
        """Set the share; `density` is its old name and will go with the next release."""
        if density is not None:
            if keep is not None:
                raise InputError("give keep or density, not both: density is the old name of keep")
            warnings.warn("Weights(density=...) is now Weights(keep=...)", DeprecationWarning, stacklevel=2)
            keep = density
        if scope in ("auto", "loss"):
            raise InputError(f"Weights takes no scope={scope!r}: losses are measured for units of groups")
        super().__init__(keep, scope, floor)


def check_budget(budget: Any) -> None:
    """Raise `InputError` if a value is not a budget."""
    if not isinstance(budget, Budget):
        share = budget if isinstance(budget, float) and 0 < budget <= 1 else 0.5
        raise InputError(
            f"a budget must say what it counts: Units, Params, Macs or Weights, for instance Units({share}); "
            f"got {budget!r}. A Tolerance is a schedule: prune(model, x, schedule=Tolerance(...))"
        )
