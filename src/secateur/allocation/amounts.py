"""What budgets count, as a function of the units that stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from secateur.allocation.cost import CostModel, counted_amount
from secateur.core import (
    Budget,
    InputError,
    IntArray,
    Latency,
    LatencyTable,
    NothingToPrune,
    PruningGraph,
    Units,
)
from secateur.core.budget import as_budget

__all__ = ["Amounts", "measured_table", "predicted_latency", "widths_step", "with_shares"]


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
        self._counted = [self._amount_of(graph, part) for part in budget.parts]
        self.whole = self({})

    def __call__(self, keep: Mapping[str, IntArray]) -> NDArray[np.float64]:
        """Return the amount of each part if only these units stay; other groups stay whole."""
        return np.array([amount(keep) for amount in self._counted], dtype=float)

    def _amount_of(self, graph: PruningGraph, part: Budget) -> Callable[[Mapping[str, IntArray]], float]:
        if isinstance(part, Units):
            return self._units
        return predicted_latency(graph, part) if isinstance(part, Latency) else counted_amount(graph, part)

    def _units(self, keep: Mapping[str, IntArray]) -> int:
        return sum(len(keep[name]) if name in keep else group.size for name, group in self.groups.items())


def predicted_latency(graph: PruningGraph, budget: Latency) -> Callable[[Mapping[str, IntArray]], float]:
    """Return the milliseconds that a budget's table predicts, as a function of the kept units.

    Raises:
        InputError: If nothing was measured yet.
    """
    table, model = measured_table(budget), CostModel(graph)
    rows = np.array([[model.rows[x.weight, axis] for axis in x.axes] for x in table.layers]).reshape(-1, 2)
    return lambda keep: table.total(*model.lengths(keep)[rows].T)


def measured_table(budget: Latency) -> LatencyTable:
    """Return the table of a budget, or raise `InputError` if nothing was measured yet."""
    if budget.table is None:
        raise InputError(f"{budget} needs measured layers, which prune() and plan() of the package take")
    return budget.table


def widths_step(budget: Budget) -> int:
    """Return the multiple that all widths should be, by the tables of a budget."""
    tables = [part.table for part in budget.parts if isinstance(part, Latency) and part.round_to == 0]
    return max((table.step for table in tables if table is not None), default=1)


def with_shares(graph: PruningGraph, budget: Budget) -> Budget:
    """Return the budget with a share in place of every limit.

    Raises:
        NothingToPrune: If the whole network is within every limit.

    Example:
        >>> from secateur.core import Bytes
        >>> graph = PruningGraph((), (), (), {"w": (4, 3)}, ("w",), element_sizes={"w": 2})
        >>> with_shares(graph, Bytes(megabytes=12e-6))
        Bytes(0.5)
    """
    if all(part.limit is None for part in budget.parts):
        return budget
    totals = Amounts(graph, budget).whole
    shares = as_budget([part.as_share(total) for part, total in zip(budget.parts, totals, strict=True)])
    if all(part.keep == 1 for part in shares.parts):
        raise NothingToPrune(
            f"the network is already within {budget}: nothing has to go. Give a smaller budget"
        )
    return shares
