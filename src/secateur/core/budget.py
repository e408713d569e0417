"""How much stays, and what the share counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

from secateur.core.errors import InputError, unknown

Scope = Literal["layer", "global", "erk"]


def _fraction(what: str, value: Any) -> float:
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not (number and 0 < value <= 1):
        raise InputError(f"{what} must be a number in (0, 1]; got {value!r}")
    return float(value)


def _common(scope: str, floor: int, round_to: int) -> None:
    if scope not in ("layer", "global", "erk"):
        raise InputError(unknown("scope", str(scope), ["layer", "global", "erk"]))
    if not all(isinstance(x, Integral) and x >= 1 for x in (floor, round_to)):
        raise InputError(f"floor and round_to must be integers of at least 1; got {floor!r} and {round_to!r}")


@dataclass(frozen=True)
class Units:
    """Keep this share of the units; `scope` says whether of each group or of all together.

    Example:
        >>> Units(0.5, round_to=8)
        Units(keep=0.5, scope='layer', floor=1, round_to=8)
    """

    keep: float
    scope: Scope = "layer"
    floor: int = 1
    round_to: int = 1

    def __post_init__(self) -> None:
        """Check the share."""
        object.__setattr__(self, "keep", _fraction("Units.keep", self.keep))
        _common(self.scope, self.floor, self.round_to)


@dataclass(frozen=True)
class Weights:
    """Keep this share of the single weights (a mask; nothing gets smaller)."""

    density: float
    scope: Scope = "layer"
    floor: int = 1

    def __post_init__(self) -> None:
        """Check the share."""
        object.__setattr__(self, "density", _fraction("Weights.density", self.density))
        _common(self.scope, self.floor, 1)


@dataclass(frozen=True)
class Params:
    """Remove units until this share of the parameters is left."""

    keep: float
    scope: Scope = "layer"
    floor: int = 1
    round_to: int = 1

    def __post_init__(self) -> None:
        """Check the share."""
        object.__setattr__(self, "keep", _fraction("Params.keep", self.keep))
        _common(self.scope, self.floor, self.round_to)


@dataclass(frozen=True)
class Macs:
    """Remove units until this share of the multiply-accumulates is left."""

    keep: float
    scope: Scope = "layer"
    floor: int = 1
    round_to: int = 1

    def __post_init__(self) -> None:
        """Check the share."""
        object.__setattr__(self, "keep", _fraction("Macs.keep", self.keep))
        _common(self.scope, self.floor, self.round_to)


@dataclass(frozen=True)
class Tolerance:
    """Remove units while a held-out metric falls by no more than `drop`, then stop.

    Attributes:
        drop: Largest fall of the metric that is accepted (0.01: one point of accuracy).
        metric: ``"accuracy"``, or a callable (model, batches) -> float where more is better.
        step: Share of the units that go at each step.
    """

    drop: float
    metric: str | Callable[..., float] = "accuracy"
    step: float = 0.05
    scope: Scope = "layer"
    floor: int = 1
    round_to: int = 1

    def __post_init__(self) -> None:
        """Check drop and step."""
        if not (isinstance(self.drop, Real) and self.drop >= 0):
            raise InputError(f"Tolerance.drop must be a number, 0 or more; got {self.drop!r}")
        object.__setattr__(self, "step", _fraction("Tolerance.step", self.step))
        _common(self.scope, self.floor, self.round_to)


Budget = Units | Weights | Params | Macs | Tolerance
