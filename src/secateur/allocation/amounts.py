"""What budgets count, as a function of the units that stay."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from secateur.allocation.cost import counted_amount
from secateur.core import Budget, IntArray, PruningGraph, Units
from secateur.core.budget import as_budget

__all__ = ["Amounts", "with_shares"]


class Amounts:
    """The amount that each part of a budget limits, as a function of the kept units.

    Args:
        graph: A traced network.
        budget: The budget; see `Budget.parts`.

    Attributes:
        groups: The groups by name.
        whole: The amounts of the whole network.

    Raises:
        InputError: If the graph does not know what the budget counts.

    Example:
        >>> import numpy as np
        >>> from secateur.core import Bytes, Group, Slot
        >>> hidden = Group("0", 4, (Slot("w", 0, np.arange(4)[:, None], "out"),))
        >>> graph = PruningGraph((hidden,), (), (), {"w": (4, 3)}, ("w",), element_sizes={"w": 2})
        >>> Amounts(graph, as_budget([Units(0.5), Bytes(0.5)]))({"0": np.array([1])}).tolist()
        [1.0, 6.0]
    """

    def __init__(self, graph: PruningGraph, budget: Budget) -> None:
        """Check the graph and tabulate it."""
        self.groups = {group.name: group for group in graph.groups}
        self._counted = [
            self._units if isinstance(part, Units) else counted_amount(graph, part) for part in budget.parts
        ]
        self.whole = self({})

    def __call__(self, keep: Mapping[str, IntArray]) -> NDArray[np.float64]:
        """Return the amount of each part if only these units stay; other groups stay whole."""
        return np.array([amount(keep) for amount in self._counted], dtype=float)

    def _units(self, keep: Mapping[str, IntArray]) -> int:
        return sum(len(keep[name]) if name in keep else group.size for name, group in self.groups.items())


def with_shares(graph: PruningGraph, budget: Budget) -> Budget:
    """Return the budget with a share in place of every limit.

    Example:
        >>> from secateur.core import Bytes
        >>> graph = PruningGraph((), (), (), {"w": (4, 3)}, ("w",), element_sizes={"w": 2})
        >>> with_shares(graph, Bytes(megabytes=12e-6))
        Bytes(0.5)
    """
    if all(part.limit is None for part in budget.parts):
        return budget
    totals = Amounts(graph, budget).whole
    return as_budget([part.as_share(total) for part, total in zip(budget.parts, totals, strict=True)])
