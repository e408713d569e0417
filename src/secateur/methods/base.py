"""What a pruning method is: evidence in, plan out."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from secateur.core import Budget, Evidence, Network, Plan


@runtime_checkable
class Method(Protocol):
    """A way to decide what goes.  Implementations are frozen dataclasses; options are fields."""

    @property
    def name(self) -> str:
        """Key in `METHODS`."""
        ...

    def needs(self, budget: Budget) -> frozenset[str]:
        """Say what `Evidence` must hold: of "moments", "gram", "gradients", "taylor", "flow", "chain", "images"."""
        ...

    def plan(self, network: Network, evidence: Evidence, budget: Budget) -> Plan:
        """Decide what goes.  `budget` is never a `Tolerance`: `prune` turns that into steps of `Units`."""
        ...
