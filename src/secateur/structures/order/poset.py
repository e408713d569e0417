"""Finite partially ordered sets and the irreducibles of their Dedekind-MacNeille completion.

The smallest lattice that contains a poset P is its Dedekind-MacNeille completion (H. M. MacNeille, Partially
ordered sets, 1937), the concept lattice of (P, P, <=) (B. Ganter and R. Wille, Formal Concept Analysis,
1999).  Its meet-irreducibles all lie in P, and m is one exactly if down(m) is not the intersection of down(c)
over the upper covers c of m: the lattice, which may be exponentially larger, is never built to find them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from secateur.structures.order import bitset

if TYPE_CHECKING:
    from secateur.structures.order.completion import Completion

__all__ = ["Poset", "edges_of"]

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


def edges_of(adjacency: Any) -> tuple[bitset.Indices, bitset.Indices]:
    """Return (starts, targets) of the non-zero off-diagonal entries of a square matrix.

    Args:
        adjacency: [n, n], dense (array, tensor) or scipy sparse; entry (i, j) not zero: an edge i -> j.

    Raises:
        ValueError: If it is not a square matrix, is empty, or holds NaN.
    """
    if not sparse.issparse(adjacency):
        dense = np.asarray(adjacency)
        _check_square(dense.shape, bool(np.isnan(dense).any()) if dense.dtype.kind == "f" else False)
        return bitset.rows_of(np.ascontiguousarray(dense if dense.dtype == np.bool_ else dense != 0))
    matrix = sparse.csr_array(adjacency)
    _check_square(matrix.shape, bool(np.isnan(matrix.data).any()) if matrix.dtype.kind == "f" else False)
    coo = matrix.tocoo()
    keep = (coo.data != 0) & (coo.row != coo.col)
    clean = sparse.csr_array((np.ones(keep.sum(), np.bool_), (coo.row[keep], coo.col[keep])), matrix.shape)
    clean.sum_duplicates()
    return clean.indptr.astype(np.int32), clean.indices.astype(np.int32)


def _check_square(shape: tuple[int, ...], has_nan: bool) -> None:
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise ValueError(f"an adjacency matrix is square with at least one vertex; got shape {tuple(shape)}")
    if has_nan:
        raise ValueError("the adjacency matrix holds NaN: whether those edges exist is undefined")


@dataclass(frozen=True, eq=False)
class Poset:
    """A finite partially ordered set; elements are 0..n-1.

    Build it with `Poset.from_digraph`.  Two vertices that reach each other are one element.  Elements are
    numbered by their smallest vertex, so the elements of an acyclic digraph are its vertices.

    Attributes:
        component: Element of each vertex of the digraph [vertices].
        order: A linear extension: every element comes after all that are below it [n].
        up: Up-set of each element (itself included), rows of bits [n, words].
        down: Down-set of each element, as rows of bits.
        cover_starts: Upper covers in compressed rows [n + 1].
        cover_targets: The covering elements.

    Example:
        >>> toy = Poset.from_digraph([[0, 0, 1], [0, 0, 1], [0, 0, 0]])  # a <= c, b <= c
        >>> toy.meet_irreducibles().tolist(), toy.join(0, 1)
        ([0, 1], 2)
    """

    component: IntArray
    order: IntArray
    up: bitset.Bits
    down: bitset.Bits
    cover_starts: bitset.Indices
    cover_targets: bitset.Indices

    @classmethod
    def from_digraph(cls, adjacency: ArrayLike | Any) -> Poset:
        """Build the poset of reachability: i <= j where a path leads from i to j.

        Args:
            adjacency: [n, n], dense or scipy sparse; entry (i, j) not zero: an edge i -> j.

        Raises:
            ValueError: If it is not square, is empty, or holds NaN.
        """
        starts, targets = edges_of(adjacency)
        n = len(starts) - 1
        # Vertices on a common cycle become one element.
        graph = sparse.csr_array((np.ones(len(targets)), targets, starts), shape=(n, n))
        count, labels = connected_components(graph, directed=True, connection="strong")
        component = bitset.number_by_first_member(labels, count)
        if count < n:
            starts, targets = bitset.condense(starts, targets, component, count)
        order = bitset.topological_order(starts, targets)
        # `closure` needs every row sorted by `order`: transposing twice sorts them.
        source_starts, sources = bitset.transpose(starts, targets, np.arange(count))
        starts, targets = bitset.transpose(source_starts, sources, order)
        up, cover_starts, cover_targets = bitset.closure(starts, targets, order)
        down = bitset.down_sets(cover_starts, cover_targets, order)
        return cls(component, order, up, down, cover_starts, cover_targets)

    def __len__(self) -> int:
        """Return the number of elements."""
        return len(self.order)

    @cached_property
    def rank(self) -> IntArray:
        """Position of each element in `order` [n]."""
        rank = np.empty(len(self), np.int64)
        rank[self.order] = np.arange(len(self))
        return rank

    def members(self, element: int) -> IntArray:
        """Return the vertices of the digraph that are this element."""
        return np.flatnonzero(self.component == self._check_element(element))

    def less_equal(self, a: int, b: int) -> bool:
        """Return whether a <= b."""
        row = self.up[self._check_element(a)]
        return bool((int(row[self._check_element(b) >> 6]) >> (b & 63)) & 1)

    def relation(self) -> BoolArray:
        """Return the order as a matrix [n, n], true where row <= column."""
        return bitset.unpack(self.up, len(self))

    def up_set(self, element: int) -> IntArray:
        """Return all elements >= this one, ascending by number."""
        return np.flatnonzero(bitset.unpack(self.up[[self._check_element(element)]], len(self))[0])

    def down_set(self, element: int) -> IntArray:
        """Return all elements <= this one, ascending by number."""
        return np.flatnonzero(bitset.unpack(self.down[[self._check_element(element)]], len(self))[0])

    def upper_covers(self, element: int) -> IntArray:
        """Return the elements that cover this one (nothing in between), ascending by number."""
        first, last = self.cover_starts[self._check_element(element)], self.cover_starts[element + 1]
        return np.sort(self.cover_targets[first:last]).astype(np.int64)

    def heights(self) -> IntArray:
        """Return for each element the number of steps in the longest chain that ends there [n]."""
        return bitset.heights(self.cover_starts, self.cover_targets, self.order)

    @property
    def height(self) -> int:
        """Number of steps in a longest chain."""
        return int(self.heights().max())

    @cached_property
    def dual(self) -> Poset:
        """The same elements in the reversed order."""
        starts, targets = bitset.transpose(self.cover_starts, self.cover_targets, np.arange(len(self)))
        return Poset(self.component, self.order[::-1].copy(), self.down, self.up, starts, targets)

    def least(self) -> int | None:
        """Return the element below all others, or None."""
        first = int(self.order[0])
        return first if np.array_equal(self.up[first], bitset.full_row(len(self))) else None

    def greatest(self) -> int | None:
        """Return the element above all others, or None."""
        last = int(self.order[-1])
        return last if np.array_equal(self.down[last], bitset.full_row(len(self))) else None

    def meet(self, a: int, b: int) -> int | None:
        """Return the greatest lower bound of two elements, or None where there is none in P."""
        return self._greatest_common(self.down, self.rank, a, b)

    def join(self, a: int, b: int) -> int | None:
        """Return the least upper bound of two elements, or None where there is none in P."""
        return self._greatest_common(self.up, -self.rank, a, b)

    def meet_table(self) -> NDArray[np.int32]:
        """Return the meets of all pairs [n, n], -1 where there is none."""
        return bitset.bound_table(self.down, self.rank)

    def join_table(self) -> NDArray[np.int32]:
        """Return the joins of all pairs [n, n], -1 where there is none."""
        return bitset.bound_table(self.up, len(self) - 1 - self.rank)

    def meet_irreducibles(self, include_top: bool = False) -> IntArray:
        """Return the meet-irreducibles of the completion (all of them are elements), ascending.

        Args:
            include_top: Whether a greatest element of P counts.  It is never the meet
                of two others, but by convention it is the meet of the empty set.
        """
        full = bitset.full_row(len(self))
        irreducible = bitset.irreducible(self.down, self.cover_starts, self.cover_targets, full)
        top = self.greatest()
        if include_top and top is not None:
            irreducible[top] = True
        return np.flatnonzero(irreducible)

    def join_irreducibles(self, include_bottom: bool = False) -> IntArray:
        """Return the join-irreducibles of the completion (all of them are elements), ascending."""
        return self.dual.meet_irreducibles(include_top=include_bottom)

    def moebius(self) -> IntArray:
        """Return the Moebius function mu(x, y) of P, [n, n]: the inverse of the order relation's matrix.

        mu(x, x) = 1 and mu(x, y) = -sum of mu(x, z) over x <= z < y; 0 where x is not <= y.

        Raises:
            OverflowError: If a value does not fit in 64 bits.
        """
        matrix = np.zeros((len(self), len(self)), np.int64)
        if not bitset.moebius_matrix(self.up, self.down, self.order, matrix):
            raise OverflowError("a Moebius value of this poset exceeds 64-bit integers")
        return matrix

    def moebius_from_bottom(self) -> IntArray:
        """Return mu(0, x) for every x [n], with a least element 0 adjoined where P has none.

        Raises:
            OverflowError: If a value does not fit in 64 bits.
        """
        n, bottom = len(self), self.least()
        if bottom is None:
            return self._with_bottom().moebius_from_bottom()[:n]
        row = np.zeros(n, np.int64)
        if not bitset.moebius_row(bottom, self.up, self.down, self.order, row):
            raise OverflowError("a Moebius value of this poset exceeds 64-bit integers")
        return row

    def completion(self, limit: int = 100_000) -> Completion:
        """Build the Dedekind-MacNeille completion, unless it has more than `limit` elements.

        Raises:
            CompletionTooLarge: If there are more; it holds the number found so far.
        """
        from secateur.structures.order.completion import complete

        return complete(self, limit)

    def to_dot(self, labels: Sequence[str] | None = None) -> str:
        """Return the Hasse diagram in the DOT language, least elements at the bottom, irreducibles filled."""
        names, chosen = self._node_labels(labels), set(self.meet_irreducibles().tolist())
        lines = ["digraph hasse {", "  rankdir=BT;", "  edge [dir=none];"]
        for i, name in enumerate(names):
            quoted = name.replace("\\", "\\\\").replace('"', '\\"')
            style = ", style=filled, fillcolor=lightblue" if i in chosen else ""
            lines.append(f'  {i} [label="{quoted}"{style}];')
        lines += [f"  {i} -> {j};" for i in range(len(self)) for j in self.upper_covers(i)]
        return "\n".join([*lines, "}"])

    def _node_labels(self, labels: Sequence[str] | None) -> list[str]:
        if labels is None:
            return [",".join(map(str, self.members(i))) for i in range(len(self))]
        if len(labels) != len(self):
            raise ValueError(f"{len(self)} elements need as many labels; got {len(labels)}")
        return [str(label) for label in labels]

    def _greatest_common(self, sets: bitset.Bits, rank: IntArray, a: int, b: int) -> int | None:
        """Return the element whose set is sets[a] & sets[b]: the common one of highest rank, or none."""
        common = sets[self._check_element(a)] & sets[self._check_element(b)]
        candidates = np.flatnonzero(bitset.unpack(common[None], len(self))[0])
        if len(candidates) == 0:
            return None
        bound = int(candidates[np.argmax(rank[candidates])])
        return bound if np.array_equal(sets[bound], common) else None

    def _with_bottom(self) -> Poset:
        n = len(self)
        relation = np.zeros((n + 1, n + 1), np.bool_)
        relation[:n, :n] = self.relation()
        relation[n] = True
        return Poset.from_digraph(relation)

    def _check_element(self, element: int) -> int:
        if not 0 <= element < len(self):
            raise ValueError(f"elements are 0..{len(self) - 1}; got {element}")
        return element
