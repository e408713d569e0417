"""The cost of a network as a constant plus terms, each a function of the counts of a few groups.

A tensor's size is the product of its axis lengths.  An index of an axis stays if all units that own it do.
So the indices owned by one unit of A add a multiple of n_A to the length, those owned by a unit of A and one
of B (heads and positions inside a head) a multiple of n_A * n_B, and a concatenation is the sum of what its
groups add.  Multiplied out, a linear layer is a term of the two groups at its ends, with a concatenation of
k groups k such terms; a term has three groups only where two meet on one axis and a third on another.

That is exact where every combination of units owns equally many indices, as in every network of the tests.
Elsewhere a term is the mean over all choices of that many units, and `CostTerms.exact` is False.

The time that a layer takes is a function of the lengths at its ends, so of the same groups; where more than
three groups meet (concatenations), it is taken as linear in the length of the concatenation.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import comb, perm, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.allocation.amounts import measured_table
from secateur.allocation.cost import layer_uses
from secateur.core import (
    Budget,
    Bytes,
    IntArray,
    Latency,
    LatencyTable,
    LayerTimes,
    Params,
    PruningGraph,
    Units,
)

__all__ = ["CostTerms", "Term", "counted_terms", "length_terms", "size_terms"]

Floats = NDArray[np.float64]
# The length of an axis, or a size: sum of coefficient * product of falling powers of counts.  A monomial is
# the sorted pairs (group, k), each for the factor n * (n - 1) * ... * (n - k + 1); () is the constant.
Monomial = tuple[tuple[str, int], ...]
Polynomial = Mapping[Monomial, float]
MOST = 3  # groups of a term of `length_terms`


@dataclass(frozen=True, eq=False)
class Term:
    """What the counts of a few groups add to a cost.

    Attributes:
        groups: Names of the groups, each once: the first of every set that is counted together.
        function: Counts of these groups, one array each -> cost, by the rules of broadcasting.

    Example:
        >>> term = Term(("a", "b"), lambda a, b: 9.0 * a * b)
        >>> term.table([np.array([1, 2]), np.array([10, 20, 30])]).tolist()
        [[90.0, 180.0, 270.0], [180.0, 360.0, 540.0]]
    """

    groups: tuple[str, ...]
    function: Callable[..., Any]

    def table(self, counts: Iterable[IntArray]) -> Floats:
        """Return the cost for every combination of these counts, an axis for each group."""
        open_mesh = np.ix_(*counts)
        shape = np.broadcast_shapes(*(n.shape for n in open_mesh))
        return np.broadcast_to(np.asarray(self.function(*open_mesh), dtype=np.float64), shape)


@dataclass(frozen=True, eq=False)
class CostTerms:
    """A cost as a function of how many units each group keeps.

    Attributes:
        constant: What does not depend on the counts.
        terms: What does.
        exact: Whether the cost depends on nothing else; otherwise it also depends on which units stay.
    """

    constant: float
    terms: tuple[Term, ...]
    exact: bool = True

    def __call__(self, counts: Mapping[str, int]) -> float:
        """Return the cost; the counts are by the name of the first group of every set counted together."""
        return self.constant + sum(
            float(term.function(*(np.float64(counts[name]) for name in term.groups))) for term in self.terms
        )

    def __add__(self, other: CostTerms) -> CostTerms:
        """Return the sum of two costs."""
        return CostTerms(
            self.constant + other.constant, (*self.terms, *other.terms), self.exact and other.exact
        )


def counted_terms(graph: PruningGraph, budget: Budget, tensors: Collection[str] | None = None) -> CostTerms:
    """Return what a budget counts, of units, parameters, bytes, MACs or milliseconds, as terms.

    Args:
        graph: A traced network.
        budget: The budget.
        tensors: Names of tensors, if only these count: no units, and no time outside of layers.

    Example:
        >>> from secateur.core import Group, Layer, Slot
        >>> rows = np.arange(4)[:, None]
        >>> hidden = Group("0", 4, (Slot("0.weight", 0, rows, "out"), Slot("2.weight", 1, rows, "in")))
        >>> shapes = {"0.weight": (4, 3), "2.weight": (2, 4)}
        >>> layers = (Layer("0", "linear", "0.weight"), Layer("2", "linear", "2.weight"))
        >>> graph = PruningGraph((hidden,), (), layers, shapes, tuple(shapes))
        >>> counted_terms(graph, Params(0.5))({"0": 2})
        10.0
    """
    if isinstance(budget, Units):
        units: dict[Monomial, float] = {((s[0].name, 1),): float(len(s)) for s in graph.counted_together()}
        return _as_terms(units, True)
    if isinstance(budget, Latency):
        return _latency_terms(graph, measured_table(budget), tensors)
    weights: Mapping[str, float] = layer_uses(graph)
    if isinstance(budget, Params):
        without = graph.embeddings() if budget.of == "body" else ()
        weights = {name: 1.0 for name in graph.parameters if name not in without}
    elif isinstance(budget, Bytes):
        weights = graph.element_sizes
    counted = {name: x for name, x in weights.items() if tensors is None or name in tensors}
    sizes = size_terms(graph, counted)
    prunable = isinstance(budget, Params) and budget.of == "prunable"
    return replace(sizes, constant=0.0) if prunable else sizes


def _latency_terms(graph: PruningGraph, table: LatencyTable, tensors: Collection[str] | None) -> CostTerms:
    terms = CostTerms(table.constant if tensors is None else 0.0, ())
    for layer in table.layers:
        if tensors is None or layer.weight in tensors:
            terms += length_terms(graph, layer.weight, layer.axes, partial(_scaled, layer, table.scale))
    return terms


def _scaled(layer: LayerTimes, scale: float, inputs: Any, outputs: Any) -> Any:
    return scale * layer(inputs, outputs)


def size_terms(graph: PruningGraph, weights: Mapping[str, float]) -> CostTerms:
    """Return the weighted sum of the sizes of tensors as terms.

    Args:
        graph: A traced network.
        weights: Tensor name -> what one of its entries costs: 1 for parameters, how often it is used for
            multiply-accumulates, its bytes for the size of a file.
    """
    axes, exact = _axis_lengths(graph, weights)
    total: dict[Monomial, float] = defaultdict(float)
    for tensor, weight in weights.items():
        size: Polynomial = {(): weight}
        for axis, length in enumerate(graph.shapes[tensor]):
            size = _product(size, axes.get((tensor, axis), {(): length}))
        for monomial, coefficient in size.items():
            total[monomial] += coefficient
    return _as_terms(total, exact)


def length_terms(
    graph: PruningGraph, tensor: str, axes: tuple[int, ...], function: Callable[..., Any]
) -> CostTerms:
    """Return a function of the lengths of some axes of a tensor as terms.

    Args:
        graph: A traced network.
        tensor: Name of a parameter or buffer, such as the weight of a layer.
        axes: Axes of it, such as those of the layer's inputs and outputs.
        function: The lengths of these axes, one array each -> cost, by the rules of broadcasting.

    Returns:
        One term, of all groups on these axes; or, where more than three meet, terms that take the function as
        linear in the length that most groups share, through its values at the whole length and at half.

    Example:
        >>> from secateur.core import Group, Layer, Slot
        >>> hidden = Group("0", 4, (Slot("0.weight", 0, np.arange(4)[:, None], "out"),))
        >>> graph = PruningGraph((hidden,), (), (), {"0.weight": (4, 3)}, ())
        >>> length_terms(graph, "0.weight", (1, 0), lambda n_in, n_out: n_in + np.sqrt(n_out))({"0": 4})
        5.0
    """
    known, exact = _axis_lengths(graph, [tensor])
    lengths = [known.get((tensor, axis), {(): float(graph.shapes[tensor][axis])}) for axis in axes]
    whole = [float(graph.shapes[tensor][axis]) for axis in axes]
    terms = _composed(lengths, whole, function)
    single = len(_groups(*lengths)) <= MOST
    constant = sum((float(term.function()) for term in terms if not term.groups), 0.0)
    return CostTerms(constant, tuple(term for term in terms if term.groups), exact and single)


def _composed(lengths: list[Polynomial], whole: list[float], function: Callable[..., Any]) -> list[Term]:
    """Return a function of lengths as terms of the groups that the lengths depend on."""
    names = _groups(*lengths)
    widest = max(range(len(lengths)), key=lambda i: len(_groups(lengths[i])))
    if len(names) <= MOST or len(lengths[widest]) == 1:
        parts = [_function(names, length) for length in lengths]
        return [Term(names, lambda *counts: function(*(part(*counts) for part in parts)))]
    end, middle = whole[widest], whole[widest] / 2

    def with_length(x: Any, at: list[Any]) -> Any:
        return function(*at[:widest], x, *at[widest + 1 :])

    def share(*at: Any) -> Any:  # at[widest] is one summand of the length
        at_end, at_middle = (with_length(x, list(at)) for x in (end, middle))
        return at[widest] * (at_end - at_middle) / (end - middle)

    def replaced(length: Polynomial) -> list[Polynomial]:
        return [*lengths[:widest], length, *lengths[widest + 1 :]]

    summands = {**lengths[widest], (): lengths[widest].get((), 0.0) - end}
    terms = _composed(replaced({(): end}), whole, function)
    for monomial, coefficient in summands.items():
        terms += _composed(replaced({monomial: coefficient}), whole, share)
    return terms


def _groups(*lengths: Polynomial) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for x in lengths for monomial in x for name, _ in monomial))


def _axis_lengths(
    graph: PruningGraph, tensors: Iterable[str]
) -> tuple[dict[tuple[str, int], Polynomial], bool]:
    """Return the length of every axis of these tensors that units own, and whether all are exact."""
    wanted = set(tensors)
    owners: dict[tuple[str, int], list[tuple[str, IntArray]]] = defaultdict(list)
    for group in graph.groups:
        for slot in group.slots:
            if slot.tensor in wanted:
                owners[slot.tensor, slot.axis].append((group.name, slot.index))
    counted = {group.name: groups[0].name for groups in graph.counted_together() for group in groups}
    known: dict[Any, tuple[Polynomial, bool]] = {}
    lengths, exact = {}, True
    for (tensor, axis), slots in owners.items():
        length = graph.shapes[tensor][axis]
        # Axes with the same owners (a matrix and its bias) are looked at once.
        key = (length, *((name, index.tobytes()) for name, index in slots))
        if key not in known:
            known[key] = _axis_length(length, slots, counted)
        lengths[tensor, axis] = known[key][0]
        exact &= known[key][1]
    return lengths, exact


def _axis_length(
    length: int, slots: list[tuple[str, IntArray]], counted: Mapping[str, str]
) -> tuple[Polynomial, bool]:
    """Return the mean length of an axis over all choices of units, and whether it is the same for all."""
    sizes = {name: len(index) for name, index in slots}
    owners: list[list[tuple[str, int]]] = [[] for _ in range(length)]
    for name, index in slots:
        for unit, indices in enumerate(index.tolist()):
            for i in indices:
                owners[i].append((name, unit))
    # Indices with the same combination of units, counted; then by how many units of which groups.
    combinations = Counter(tuple(sorted(set(units))) for units in owners)
    classes: dict[Monomial, list[int]] = defaultdict(list)
    for units, count in combinations.items():
        classes[tuple(sorted(Counter(name for name, _ in units).items()))].append(count)
    total: dict[Monomial, float] = defaultdict(float)
    exact = True
    for members, counts in classes.items():
        # All members stay with probability prod n (n - 1) .. / (s (s - 1) ..), s being the sizes.
        every = prod(comb(sizes[name], k) for name, k in members)
        exact &= len(counts) == every and len(set(counts)) == 1
        monomial = tuple(sorted((counted[name], k) for name, k in members))
        total[monomial] += sum(counts) / prod(perm(sizes[name], k) for name, k in members)
    return total, exact


def _product(a: Polynomial, b: Polynomial) -> Polynomial:
    result: dict[Monomial, float] = defaultdict(float)
    for x, p in a.items():
        for y, q in b.items():
            result[tuple(sorted(x + y))] += p * q
    return result


def _as_terms(total: Polynomial, exact: bool) -> CostTerms:
    """Return a polynomial as one term for each set of groups that meet."""
    parts: dict[tuple[str, ...], dict[Monomial, float]] = defaultdict(dict)
    for monomial, coefficient in total.items():
        parts[tuple(dict.fromkeys(name for name, _ in monomial))][monomial] = coefficient
    constant = parts.pop((), {(): 0.0})[()]
    return CostTerms(constant, tuple(Term(names, _function(names, p)) for names, p in parts.items()), exact)


def _function(names: tuple[str, ...], part: Polynomial) -> Callable[..., Any]:
    at = {name: i for i, name in enumerate(names)}

    def function(*counts: Any) -> Any:
        return sum(
            coefficient * prod(counts[at[name]] - i for name, k in monomial for i in range(k))
            for monomial, coefficient in part.items()
        )

    return function
