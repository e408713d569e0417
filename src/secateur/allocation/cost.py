"""Parameters, bytes and multiply-accumulates of a network after a removal, by arithmetic.

A tensor's size after the removal is the product, over its axes, of the numbers of kept indices; an
index that several units own is kept if all of them are.  A layer's multiply-accumulates are
`Layer.positions` times the size of its weight.  Norms, embeddings and the products inside attention, which
have no weight matrix, count 0; the report counts the latter (`secateur.measure.cost`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np

from secateur.core import Budget, Bytes, Group, InputError, IntArray, Params, PruningGraph, Slot
from secateur.core.indices import check_units, kept_positions, removed_units

__all__ = [
    "Cost",
    "CostModel",
    "GroupCost",
    "counted_amount",
    "graph_cost",
    "group_costs",
    "is_matrix",
    "layer_uses",
]

STACKED = ("experts", "stacked")  # layers whose matrices are stacked along another axis


class Cost(NamedTuple):
    """Parameters, multiply-accumulates for one example, and bytes of parameters and buffers.

    `bytes` is 0 if the graph does not know the types of its tensors.
    """

    params: int
    macs: float
    bytes: int


class GroupCost(NamedTuple):
    """What the model would lose if all units of one group went.

    Attributes:
        params: Parameters.
        macs: Multiply-accumulates for one example.
        params_share: `params` divided by the parameters of the model.
        macs_share: `macs` divided by the multiply-accumulates of the model.
    """

    params: int
    macs: float
    params_share: float
    macs_share: float


def is_matrix(in_axis: int | None, out_axis: int | None) -> bool:
    """Return whether a layer multiplies by its weight as a matrix; embeddings and norms do not."""
    return in_axis is not None and out_axis is not None


def layer_uses(graph: PruningGraph) -> dict[str, float]:
    """Return, by the name of each matrix or stack of them, how often an entry is used for one example."""
    uses: dict[str, float] = defaultdict(float)
    for layer in graph.layers:
        if layer.kind in STACKED or is_matrix(layer.in_axis, layer.out_axis):
            uses[layer.weight] += layer.positions
    return dict(uses)


class CostModel:
    """The cost of a network as a function of the kept units; built once, called often.

    The length of an axis whose indices have at most one owner is linear in the numbers of removed units.
    The other axes (heads and positions inside a head) are counted index by index.

    Args:
        graph: A traced network.
        without: Names of parameters that do not count as parameters.

    Attributes:
        groups: The groups by name.
        rows: (tensor, axis) -> place among `lengths`.

    Example:
        >>> import numpy as np
        >>> from secateur.core import Group, Layer, PruningGraph, Slot
        >>> rows = np.arange(4)[:, None]
        >>> hidden = Group("0", 4, (Slot("0.weight", 0, rows, "out"), Slot("2.weight", 1, rows, "in")))
        >>> shapes = {"0.weight": (4, 3), "2.weight": (2, 4)}
        >>> layers = (Layer("0", "linear", "0.weight"), Layer("2", "linear", "2.weight"))
        >>> model = CostModel(PruningGraph((hidden,), (), layers, shapes, tuple(shapes)))
        >>> model({"0": np.array([1, 3])})
        Cost(params=10, macs=10.0, bytes=0)
    """

    def __init__(self, graph: PruningGraph, without: Collection[str] = ()) -> None:
        """Tabulate which units own which index of which axis."""
        self.groups: dict[str, Group] = {g.name: g for g in graph.groups}
        self._order = {name: i for i, name in enumerate(self.groups)}
        names = dict.fromkeys([*graph.parameters, *graph.shapes])
        tensors, scalars = ([n for n in names if bool(graph.shapes[n]) == full] for full in (True, False))
        counted = [name for name in graph.parameters if name not in without]
        self._parameters = np.array([name in counted for name in tensors])
        self._scalars = sum(name in counted for name in scalars)
        self._scalar_bytes = sum(graph.element_sizes.get(name, 0) for name in scalars)
        self._element_sizes = np.array([graph.element_sizes.get(name, 0) for name in tensors], dtype=np.int64)
        axes = [(name, axis) for name in tensors for axis in range(len(graph.shapes[name]))]
        self._full = np.array([graph.shapes[name][axis] for name, axis in axes], dtype=np.int64)
        self._starts = np.cumsum([0, *(len(graph.shapes[name]) for name in tensors)])[:-1]
        uses = layer_uses(graph)
        self._positions = np.array([uses.get(name, 0.0) for name in tensors])
        self.rows = {key: i for i, key in enumerate(axes)}
        self._tabulate(graph, self.rows)

    def _tabulate(self, graph: PruningGraph, rows: Mapping[tuple[str, int], int]) -> None:
        owners: dict[int, list[tuple[str, Slot]]] = defaultdict(list)
        for group in graph.groups:
            for slot in group.slots:
                if (row := rows.get((slot.tensor, slot.axis))) is not None:
                    owners[row].append((group.name, slot))
        self._linear = np.zeros((len(rows), len(self.groups)), dtype=np.int64)
        shared: dict[tuple[object, ...], list[int]] = defaultdict(list)
        self._shared: list[tuple[list[int], int, list[tuple[str, IntArray]]]] = []
        for row, slots in owners.items():
            if _disjoint(int(self._full[row]), [slot.index for _, slot in slots]):
                for name, slot in slots:
                    self._linear[row, self._order[name]] += slot.index.shape[1]
            else:
                # Axes with the same owners (a query matrix and its bias) are counted once.
                key = (int(self._full[row]), *((name, slot.index.tobytes()) for name, slot in slots))
                if not shared[key]:
                    indexed = [(name, slot.index) for name, slot in slots]
                    self._shared.append((shared[key], int(self._full[row]), indexed))
                shared[key].append(row)

    def lengths(self, keep: Mapping[str, IntArray]) -> IntArray:
        """Return the lengths of all axes, in the order of `rows`, if only these units stay."""
        gone = np.zeros(len(self.groups), dtype=np.int64)
        for name, kept in keep.items():
            gone[self._order[name]] = self.groups[name].size - len(kept)
        alive = self._full - self._linear @ gone
        for rows, size, owners in self._shared:
            gone_of = ((index, removed_units(len(index), keep.get(name))) for name, index in owners)
            alive[rows] = int(kept_positions(size, gone_of).sum())
        return alive

    def __call__(self, keep: Mapping[str, IntArray]) -> Cost:
        """Return the cost if only these units stay; other groups stay whole."""
        alive = self.lengths(keep)
        sizes = np.multiply.reduceat(alive, self._starts) if len(self._starts) else alive
        params = int(sizes[self._parameters].sum()) + self._scalars
        nbytes = int(sizes @ self._element_sizes) + self._scalar_bytes
        return Cost(params, float(sizes @ self._positions), nbytes)


def _disjoint(size: int, indices: list[IntArray]) -> bool:
    return int(np.bincount(np.concatenate([i.ravel() for i in indices]), minlength=size).max()) <= 1


def counted_amount(graph: PruningGraph, budget: Budget) -> Callable[[Mapping[str, IntArray]], float]:
    """Return what a budget of parameters, bytes or multiply-accumulates counts, by the kept units.

    Raises:
        InputError: If the graph does not know what the budget counts.

    Example:
        >>> import numpy as np
        >>> from secateur.core import Group, Params, PruningGraph, Slot
        >>> hidden = Group("0", 4, (Slot("0.weight", 0, np.arange(4)[:, None], "out"),))
        >>> shapes = {"0.weight": (4, 3), "1.weight": (5,)}
        >>> amount = counted_amount(PruningGraph((hidden,), (), (), shapes, tuple(shapes)), Params(0.5))
        >>> amount({}), amount({"0": np.array([1, 3])})
        (17.0, 11.0)
        >>> params = Params(0.5, of="prunable")
        >>> counted_amount(PruningGraph((hidden,), (), (), shapes, tuple(shapes)), params)({})
        12.0
    """
    if isinstance(budget, Bytes) and not graph.element_sizes:
        raise InputError("this graph, of an older version, has no types of tensors: trace again")
    counted = budget.of if isinstance(budget, Params) else "all"
    model = CostModel(graph, graph.embeddings() if counted == "body" else ())
    none = np.empty(0, dtype=np.int64)
    fixed = model(dict.fromkeys(model.groups, none)).params if counted == "prunable" else 0
    return lambda keep: float(getattr(model(keep), budget.unit) - fixed)


def graph_cost(graph: PruningGraph, keep: Mapping[str, IntArray] | None = None) -> Cost:
    """Return parameters and multiply-accumulates of a network if only these units stay.

    Args:
        graph: A traced network.
        keep: Group name -> distinct numbers of the units that stay; other groups stay whole.

    Raises:
        PlanError: If a unit is invalid.
        InputError: If a group is unknown.
    """
    keep = keep or {}
    for name, kept in keep.items():
        check_units(name, graph.group(name).size, kept)
    if not graph.shapes:
        raise InputError("the network has no parameters")
    return CostModel(graph)(keep)


def group_costs(graph: PruningGraph) -> dict[str, GroupCost]:
    """Return, by group name, the parameters and multiply-accumulates that the group's units own.

    A weight between two groups belongs to both: its rows to one, its columns to the other.  So the shares
    may add up to more than 1.

    Example:
        >>> import numpy as np
        >>> from secateur.core import Group, Layer, PruningGraph, Slot
        >>> rows = np.arange(4)[:, None]
        >>> hidden = Group("0", 4, (Slot("0.weight", 0, rows, "out"), Slot("2.weight", 1, rows, "in")))
        >>> shapes = {"0.weight": (4, 3), "2.weight": (2, 4), "2.bias": (2,)}
        >>> layers = (Layer("0", "linear", "0.weight"), Layer("2", "linear", "2.weight"))
        >>> group_costs(PruningGraph((hidden,), (), layers, shapes, tuple(shapes)))["0"].params
        20
    """
    model, nothing = CostModel(graph), np.empty(0, dtype=np.int64)
    whole, costs = model({}), {}
    for group in graph.groups:
        rest = model({group.name: nothing})
        params, macs = whole.params - rest.params, whole.macs - rest.macs
        costs[group.name] = GroupCost(
            params, macs, params / whole.params, macs / whole.macs if whole.macs else 0.0
        )
    return costs
