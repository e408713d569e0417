"""Budgets: how much of a network stays, counted in units, parameters, operations, bytes or time."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import lcm
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self

import torch

from secateur.core.errors import InputError, brief, unknown
from secateur.core.latency_table import LatencyTable

__all__ = [
    "Budget",
    "Budgets",
    "Bytes",
    "Counted",
    "Latency",
    "Macs",
    "Params",
    "Scope",
    "Units",
    "Weights",
    "as_budget",
]

Scope = Literal["auto", "layer", "global", "erk", "loss", "program"]
SCOPES = ("auto", "layer", "global", "erk", "loss", "program")
BY_LOSS = ("loss", "program")
Counted = Literal["all", "body", "prunable"]
COUNTED = ("all", "body", "prunable")


def _share(what: str, value: Any) -> float:
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not (number and 0 < value <= 1):
        raise InputError(f"{what} must be a number in (0, 1]; got {brief(value)}")
    return float(value)


def _check_options(budget: Budget) -> None:
    """Check everything but the share of a budget."""
    scope, floor, round_to = budget.scope, budget.floor, budget.round_to
    if not isinstance(scope, str) or scope not in SCOPES:
        raise InputError(unknown("scope", str(scope), list(SCOPES)))
    least = budget.least_round_to
    if not all(isinstance(x, Integral) and x >= low for x, low in ((floor, 1), (round_to, least))):
        raise InputError(
            f"floor and round_to must be integers of at least 1; got {brief(floor)} and {brief(round_to)}"
        )
    if not isinstance(budget.even, bool):
        raise InputError(f"even must be True or False; got {brief(budget.even)}")


@dataclass(frozen=True, repr=False)
class Budget:
    """How much of a network stays: base of `Units`, `Params`, `Macs`, `Bytes`, `Latency` and `Weights`.

    Each of these counts something else.

    Attributes:
        keep: Share that stays, in (0, 1].
        scope: How the groups share the budget.  ``"layer"``: each keeps the same share; ``"global"``: the
            best units of all groups stay; ``"erk"``: shares by the Erdos-Renyi-kernel rule; ``"loss"``: the
            counts with the least predicted loss, from measuring what each group alone costs at the output
            (needs data); ``"program"``: the same by an integer program, which also proves how far the result
            can be from the best; ``"auto"``: "loss" if `prune` has data and the method orders units, else
            "layer".
        floor: Smallest number of units that every group keeps.
        round_to: Every group keeps a multiple of this number, or stays whole.
        even: Whether layers of the same kind keep the same count, as a transformers config and most file
            formats want it; see `PruningGraph.with_even_layers`.

    Raises:
        InputError: If an argument is invalid.
    """

    unit: ClassVar[str] = ""
    least_round_to: ClassVar[int] = 1

    keep: Any
    scope: Scope = "layer"
    floor: int = 1
    round_to: int = 1
    even: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        """Check the arguments."""
        kind = type(self).__name__
        if not self.unit:
            raise InputError("Budget is a base class: use Units, Params, Macs, Bytes or Weights")
        if isinstance(self.keep, Mapping):
            raise InputError(f"{kind}.keep must be one number; Units takes a mapping of groups to shares")
        object.__setattr__(self, "keep", _share(f"{kind}.keep", self.keep))
        _check_options(self)

    def __repr__(self) -> str:
        """Return the budget as it is written, without defaults."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.repr and f.name != "keep"}
        defaults = {f.name: f.default for f in fields(self)}
        options = [f"{name}={value!r}" for name, value in given.items() if value != defaults[name]]
        share = [] if self.keep is None else [repr(self.keep)]
        return f"{type(self).__name__}({', '.join([*share, *options])})"

    @property
    def parts(self) -> tuple[Budget, ...]:
        """The budgets that must hold: this one, or those of `Budgets`."""
        return (self,)

    @property
    def limit(self) -> float | None:
        """The amount that may stay, if it is given instead of a share."""
        return None

    def as_share(self, total: float) -> Self:
        """Return the budget as a share of what the original has, if it limits the amount.

        Example:
            >>> Bytes(megabytes=1).as_share(4e6)
            Bytes(0.25)
        """
        return self if self.limit is None else self._with_share(min(1.0, self.limit / total))

    def _with_share(self, share: float) -> Self:
        return replace(self, keep=share)

    def with_scope(self, scope: Scope) -> Self:
        """Return the budget with another scope."""
        return replace(self, scope=scope)

    def after(self, progress: float) -> Self:
        """Return the budget on the way there: its shares to the power of `progress`, in (0, 1].

        Steps of equal progress each keep the same share of what is left.

        Example:
            >>> Units(0.25).after(0.5)
            Units(0.5)
        """
        return self if progress == 1 else self._with_share(self.keep**progress)

    def at_least(self, share: float) -> Self:
        """Return the budget in which at least this share stays.

        Example:
            >>> Params(0.5).at_least(0.7), Params(0.5).at_least(0.4)
            (Params(0.7), Params(0.5))
        """
        return self if share <= self.keep else self._with_share(share)


@dataclass(frozen=True, repr=False)
class Units(Budget):
    """Keep this share of the units.

    Attributes:
        keep: A share, or one for each layer: a mapping from names of groups or modules, or patterns of them
            (``"layer4.*"``), to shares.  A group's own name takes precedence over the name of a module that
            makes it, and both over patterns.  Groups without a share stay whole.

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
            raise InputError(f"Units.keep must map names of groups to shares; got {brief(self.keep)}")
        if self.scope != "layer":
            raise InputError(f"with a share for each layer, scope must be 'layer'; got {brief(self.scope)}")
        shares = {name: _share(f"Units.keep[{name!r}]", share) for name, share in self.keep.items()}
        object.__setattr__(self, "keep", shares)
        _check_options(self)

    def after(self, progress: float) -> Self:
        """Return the budget on the way there; see `Budget.after`."""
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
        if not isinstance(self.of, str) or self.of not in COUNTED:
            raise InputError(unknown("choice of parameters", str(self.of), list(COUNTED)))


@dataclass(frozen=True, repr=False)
class Macs(Budget):
    """Remove units until this share of the multiply-accumulates is left."""

    unit: ClassVar[str] = "macs"

    scope: Scope = "auto"


@dataclass(frozen=True, repr=False)
class Bytes(Budget):
    """Remove units until this share, or this many megabytes, of parameters and buffers is left.

    Each element counts the bytes of its stored type.

    Attributes:
        keep: Share that stays.  Give it or `megabytes`.
        megabytes: Megabytes (10^6 bytes) that may stay.

    Example:
        >>> Bytes(0.5), Bytes(megabytes=20)
        (Bytes(0.5), Bytes(megabytes=20))
    """

    unit: ClassVar[str] = "bytes"

    keep: Any = None
    scope: Scope = "auto"
    megabytes: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check the arguments."""
        _check_share_or_limit(self, "megabytes", self.megabytes)

    @property
    def limit(self) -> float | None:
        """The bytes that may stay, if given."""
        return None if self.megabytes is None else 1e6 * self.megabytes

    def _with_share(self, share: float) -> Self:
        return replace(self, keep=share, megabytes=None)


@dataclass(frozen=True, repr=False)
class Latency(Budget):
    """Remove units until a forward pass takes this share of the time, or this many milliseconds.

    `prune` measures the layers at several widths on the device and plans by these times.  Then it measures
    the pruned network and the original in alternation, and corrects the plan.  See docs/budgets.md.

    Attributes:
        keep: Share of the original's time that stays.  Give it or `milliseconds`.
        round_to: As in every budget; 0: widths are multiples of 8, 16, 32 or 64, whichever suits the device.
        milliseconds: Milliseconds that one forward pass may take.
        batch: Examples in a pass; the example inputs are repeated or cut to this number.
        batch_axis: Axis of the batch in the example inputs.
        device: Where to measure; by default where the model is.
        threads: Threads within an operation; by default torch's setting.
        table: The measured times, filled in by `prune` and `plan`.

    Example:
        >>> Latency(0.5), Latency(milliseconds=20, batch=32, threads=4)
        (Latency(0.5), Latency(milliseconds=20, batch=32, threads=4))
    """

    unit: ClassVar[str] = "milliseconds"
    least_round_to: ClassVar[int] = 0

    keep: Any = None
    scope: Scope = "auto"
    round_to: int = 0
    milliseconds: float | None = field(default=None, kw_only=True)
    batch: int = field(default=1, kw_only=True)
    batch_axis: int = field(default=0, kw_only=True)
    device: str | None = field(default=None, kw_only=True)
    threads: int | None = field(default=None, kw_only=True)
    table: LatencyTable | None = field(default=None, kw_only=True, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the arguments."""
        _check_share_or_limit(self, "milliseconds", self.milliseconds)
        for name, least in (("batch", 1), ("batch_axis", 0), ("threads", 1)):
            value = getattr(self, name)
            whole = isinstance(value, Integral) and not isinstance(value, bool)
            if not (whole and value >= least) and not (name == "threads" and value is None):
                raise InputError(f"Latency.{name} must be an integer of at least {least}; got {brief(value)}")
        if not (self.device is None or isinstance(self.device, (str, torch.device))):
            raise InputError(f"Latency.device must be a name such as 'cuda'; got {brief(self.device)}")

    @property
    def limit(self) -> float | None:
        """The milliseconds that may stay, if given."""
        return self.milliseconds

    def _with_share(self, share: float) -> Self:
        return replace(self, keep=share, milliseconds=None)


def _check_share_or_limit(budget: Budget, name: str, limit: Any) -> None:
    """Check the options of a budget that has either a share or a limit, and its share."""
    kind = type(budget).__name__
    if (budget.keep is None) == (limit is None):
        raise InputError(f"give {kind} either a share or {name}: {kind}(0.5) or {kind}({name}=10)")
    if limit is None:
        Budget.__post_init__(budget)
        return
    if isinstance(limit, bool) or not (isinstance(limit, Real) and 0 < float(limit) < float("inf")):
        raise InputError(f"{kind}.{name} must be a positive number; got {brief(limit)}")
    _check_options(budget)


@dataclass(frozen=True, init=False, repr=False)
class Weights(Budget):
    """Keep this share of the single weights: the others are set to zero, and nothing gets smaller.

    Example:
        >>> Weights(0.1, scope="global")
        Weights(0.1, scope='global')
    """

    unit: ClassVar[str] = "weights"

    round_to: int = field(default=1, init=False, repr=False)
    even: bool = field(default=False, init=False, repr=False, kw_only=True)

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
        if isinstance(scope, str) and scope in ("auto", *BY_LOSS):
            raise InputError(f"Weights takes no scope={scope!r}: losses are measured for units of groups")
        super().__init__(keep, scope, floor)


@dataclass(frozen=True, init=False, repr=False)
class Budgets(Budget):
    """Several budgets at once: all must hold.  `as_budget` makes it from a list.

    Attributes:
        keep: The budgets.
        scope: Their common scope, apart from "auto".
        floor: The largest of theirs.
        round_to: The least common multiple of theirs.
        even: Whether any of them is even.
    """

    unit: ClassVar[str] = "budgets"

    def __init__(self, budgets: Sequence[Budget]) -> None:
        """Check that the budgets can hold together."""
        for budget in budgets:
            if type(budget) in (Weights, Budgets) or isinstance(budget.keep, Mapping):
                raise InputError(
                    f"several budgets at once count units, parameters, multiply-accumulates, bytes or "
                    f"milliseconds of the whole network; {budget!r} does not"
                )
        whole = [budget.as_share(1.0)._with_share(1.0) for budget in budgets]
        counted = [replace(budget, scope="layer", floor=1, round_to=1, even=False) for budget in whole]
        if twice := [b for b, what in zip(budgets, counted, strict=True) if counted.count(what) > 1]:
            raise InputError(f"{', '.join(map(repr, twice))} limit the same amount: give the smaller one")
        scopes = dict.fromkeys(budget.scope for budget in budgets if budget.scope != "auto")
        if len(scopes) > 1:
            raise InputError(f"budgets that hold at once must have one scope; got {', '.join(scopes)}")
        values = {
            "keep": tuple(budgets),
            "scope": next(iter(scopes), "auto"),
            "floor": max(budget.floor for budget in budgets),
            "round_to": lcm(*(budget.round_to or 1 for budget in budgets)),
            "even": any(budget.even for budget in budgets),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        """Return the list of budgets."""
        return f"[{', '.join(map(repr, self.keep))}]"

    @property
    def parts(self) -> tuple[Budget, ...]:
        """The budgets that must hold."""
        return tuple(self.keep)

    def with_scope(self, scope: Scope) -> Self:
        """Return the budgets with another scope."""
        return type(self)([budget.with_scope(scope) for budget in self.keep])

    def after(self, progress: float) -> Self:
        """Return the budgets on the way there; see `Budget.after`."""
        return type(self)([budget.after(progress) for budget in self.keep])

    def at_least(self, share: float) -> Self:
        """Return the budgets in which at least this share of each amount stays."""
        return type(self)([budget.at_least(share) for budget in self.keep])


def as_budget(budget: Any) -> Budget:
    """Return a budget, or a list of budgets as one.

    Raises:
        InputError: If it is neither, or if the budgets of the list contradict each other.

    Example:
        >>> as_budget([Params(0.5), Bytes(megabytes=2)])
        [Params(0.5), Bytes(megabytes=2)]
    """
    if isinstance(budget, Budget):
        return budget
    if isinstance(budget, (list, tuple)) and budget and all(isinstance(x, Budget) for x in budget):
        return budget[0] if len(budget) == 1 else Budgets(budget)
    share = budget if isinstance(budget, float) and 0 < budget <= 1 else 0.5
    raise InputError(
        f"a budget must say what it counts: Units, Params, Macs, Bytes, Latency or Weights, for instance "
        f"Units({share}); got {brief(budget)}. A list of budgets is one, too. A Tolerance is a schedule: "
        f"prune(model, x, schedule=Tolerance(...))"
    )
