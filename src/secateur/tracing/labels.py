"""The algebra of axis labels: which indices of which axes live and die together.

Every index of every parameter axis is an *atom*; atom 0 is TRUE, always alive.  The label of an axis
of length n is an integer array [n, k]: index i is alive iff all k atoms of row i are alive.  `None`
stands for an axis on which nothing dies.

Two kinds of facts relate atoms:

* *Equalities*, kept in a union-find: two rows that meet in an addition live and die together.
* *Conjunctions*, kept in a table of definitions: ``u = v and w``.  A view of 6 features as 2 heads of 3
  makes feature (i, j) alive iff head i and position j are.  So an axis can be split and merged again, and
  heads, positions, or both can still go.

Frozen atoms equal TRUE, with a reason.  Atoms that are neither frozen nor defined are *free*: every choice of
alive and dead among them is consistent, because it determines all other atoms.  Every operation here
imposes *sufficient* constraints: ``v and w = x and y`` is met by v = x, w = y, although other solutions
exist.  So a mistake can only tie or freeze too much, never too little.

Example:
    >>> algebra = LabelAlgebra()
    >>> features = algebra.label(6)
    >>> heads, inner = algebra.split(features, 2, 3)     # a view of 6 features as 2 heads of 3
    >>> algebra.normal(features).shape                   # each feature is now (head, position)
    (6, 2)
    >>> algebra.freeze(inner, "hard-coded size")
    >>> algebra.normal(features)[:, 0].tolist() == algebra.normal(heads)[:, 0].repeat(3).tolist()
    True
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Label", "LabelAlgebra", "concatenate", "tile"]

Ints = NDArray[np.int64]
Label = Ints | None

DEPTH = 24  # definitions that are nested deeper than this count as cyclic and are frozen
ALWAYS = 1  # number of the reason of atom 0


class LabelAlgebra:
    """Atoms with equalities, conjunctions, and the reasons why some are frozen.

    Attributes:
        size: Number of atoms.
        reasons: Texts; each root has a number into this list, 0 if it is not frozen.
        why: The reason recorded when two axes that meet can only be reconciled by freezing.
    """

    def __init__(self) -> None:
        """Start with atom 0, TRUE."""
        self.size = 1
        self.reasons: list[str] = ["", "always alive"]
        self.why = "tied to an axis that stays"
        self._parent = np.zeros(64, dtype=np.int64)
        self._left = np.zeros(64, dtype=np.int64)
        self._right = np.zeros(64, dtype=np.int64)
        self._reason = np.zeros(64, dtype=np.int64)
        self._reason[0] = ALWAYS

    def new(self, n: int) -> Ints:
        """Return n fresh free atoms."""
        end = self.size + n
        if end > len(self._parent):
            grow = max(end, 2 * len(self._parent)) - len(self._parent)
            for name in ("_parent", "_left", "_right", "_reason"):
                setattr(self, name, np.concatenate([getattr(self, name), np.zeros(grow, dtype=np.int64)]))
        atoms = np.arange(self.size, end)
        self._parent[atoms] = atoms
        self.size = end
        return atoms

    def label(self, n: int) -> Label:
        """Return the label of a new axis of length n; an axis of length 1 cannot lose anything."""
        return self.new(n)[:, None] if n > 1 else None

    def find(self, atoms: Ints) -> Ints:
        """Return the roots of an array of atoms; shorten the paths to them."""
        root = self._parent[atoms]
        while True:
            above = self._parent[root]
            if (above == root).all():
                break
            root = above
        self._parent[atoms] = root
        return root

    def reason(self, label: Label) -> list[str]:
        """Return the distinct reasons for which atoms of this label are frozen."""
        if label is None:
            return []
        roots = self.find(label.ravel())
        numbers: set[int] = set()
        for _ in range(DEPTH):
            numbers.update(self._reason[roots].tolist())
            parts = roots[(self._reason[roots] == 0) & (self._left[roots] > 0)]
            roots = self.find(np.unique(np.concatenate([self._left[parts], self._right[parts]])))
        return [self.reasons[n] for n in sorted(numbers) if n > ALWAYS]

    def freeze(self, label: Label, why: str) -> None:
        """Make every atom of the label TRUE; if it is a conjunction, both its parts too."""
        if label is None:
            return
        if why not in self.reasons:
            self.reasons.append(why)
        self._freeze(label.ravel(), self.reasons.index(why))

    def _freeze(self, atoms: Ints, number: int) -> None:
        # v and w = TRUE iff v = TRUE and w = TRUE.
        while atoms.size:
            roots = np.unique(self.find(atoms))
            roots = roots[self._reason[roots] == 0]
            self._reason[roots] = number
            defined = roots[self._left[roots] > 0]
            atoms = np.concatenate([self._left[defined], self._right[defined]])

    def unite(self, a: Ints, b: Ints) -> None:
        """Make a[i] and b[i] equal, for all i; the parts of equal conjunctions become equal too."""
        queue = [(a, b)]
        while queue:
            first, second = (self.find(side) for side in queue.pop())
            apart = first != second
            if not apart.any():
                continue
            first, second = first[apart], second[apart]
            roots, compact = np.unique(np.concatenate([first, second]), return_inverse=True)
            if len(roots) == compact.size and not (self._reason[roots] | self._left[roots]).any():
                # Distinct pairs of free atoms: nothing else follows from these equalities.
                self._parent[first] = self._parent[second] = np.minimum(first, second)
            else:
                queue += self._merge(roots, compact.reshape(2, -1))

    def _merge(self, roots: Ints, edges: Ints) -> list[tuple[Ints, Ints]]:
        """Join roots into classes; return the equalities that follow from their definitions.

        Args:
            roots: Distinct roots [n].
            edges: Pairs of positions in `roots` [2, m] to be made equal, in any number and order.

        Returns:
            Equalities between parts of conjunctions that became equal.
        """
        from scipy.sparse import coo_array  # half of the time of `import secateur`
        from scipy.sparse.csgraph import connected_components

        graph = coo_array((np.ones(edges.shape[1]), (edges[0], edges[1])), shape=(len(roots), len(roots)))
        count, component = connected_components(graph, directed=False)
        # The least atom of a class represents it, so names and order do not depend on the order of edges.
        head = np.full(count, np.iinfo(np.int64).max)
        np.minimum.at(head, component, roots)
        number = np.zeros(count, dtype=np.int64)
        np.maximum.at(number, component, self._reason[roots])
        self._parent[roots] = head[component]
        # One frozen member freezes its class, and the parts of every conjunction in it.
        frozen = number[component] > 0
        for n in np.unique(number[component][frozen]):
            members = roots[number[component] == n]
            self._reason[members] = 0
            self._freeze_class(members, int(n))
        # A class keeps the first definition of its members.  Every further one must agree with it:
        # v and w = x and y holds if v = x and w = y.
        defined = np.flatnonzero(self._left[roots] > 0)
        if not defined.size:
            return []
        defined = defined[np.argsort(component[defined], kind="stable")]
        classes, start = np.unique(component[defined], return_index=True)
        first = roots[defined[start]]
        self._left[head[classes]], self._right[head[classes]] = self._left[first], self._right[first]
        others = np.delete(defined, start)
        heads = head[component[others]]
        return [
            (self._left[heads], self._left[roots[others]]),
            (self._right[heads], self._right[roots[others]]),
        ]

    def _freeze_class(self, members: Ints, number: int) -> None:
        parts = members[self._left[members] > 0]
        self._reason[np.unique(self.find(members))] = number
        self._freeze(np.concatenate([self._left[parts], self._right[parts]]), number)

    def define(self, atom: Ints, left: Ints, right: Ints) -> None:
        """Make atom[i] the conjunction of left[i] and right[i], for all i.

        Let u = v and w.  If u is TRUE, both parts are.  If u and v are the same atom, w must be TRUE.  If one
        part is TRUE, u equals the other.  If u has a definition already, the parts must agree.
        """
        atom, left, right = self.find(atom), self.find(left), self.find(right)
        number = self._reason[atom]
        for n in np.unique(number[number > 0]):
            rows = number == n
            self._freeze(np.concatenate([left[rows], right[rows]]), int(n))
        if self.why not in self.reasons:
            self.reasons.append(self.why)
        tied = self.reasons.index(self.why)
        self._freeze(right[(atom == left) & (number == 0)], tied)
        self._freeze(left[(atom == right) & (number == 0)], tied)
        rows = (number == 0) & (atom != left) & (atom != right)
        thin = rows & ((self._reason[left] > 0) | (self._reason[right] > 0))
        if thin.any():
            self.unite(atom[thin], np.where(self._reason[left[thin]] > 0, right[thin], left[thin]))
        rows = np.flatnonzero(rows & ~thin)
        atom, left, right = self.find(atom), self.find(left), self.find(right)
        known = self._left[atom[rows]] > 0
        # The same atom may come several times: its first row defines it, and the others must agree.
        fresh, at = np.unique(atom[rows[~known]], return_index=True)
        first = rows[~known][at]
        self._left[fresh], self._right[fresh] = left[first], right[first]
        self.unite(self._left[atom[rows]], left[rows])
        self.unite(self._right[self.find(atom[rows])], right[rows])

    def normal(self, label: Label) -> Label:
        """Return the label in free atoms: replace conjunctions by their parts, drop TRUE and repetitions."""
        if label is None:
            return None
        columns = [self.find(column) for column in label.T]
        if len(columns) == 1 and not (self._left[columns[0]] | self._reason[columns[0]]).any():
            return columns[0][:, None]
        for _ in range(DEPTH):
            done = True
            for j in range(len(columns)):
                column = columns[j]
                open_ = (self._left[column] > 0) & (self._reason[column] == 0)
                if open_.any():
                    done = False
                    columns[j] = self.find(np.where(open_, self._left[column], column))
                    columns.append(self.find(np.where(open_, self._right[column], 0)))
            columns = self._tidy(columns)
            if done:
                return np.stack(columns, 1) if columns else None
        self.freeze(label, "cyclic reshapes")
        return None

    def _tidy(self, columns: list[Ints]) -> list[Ints]:
        """Replace frozen atoms, and repeats within a row, by 0; drop columns of zeros."""
        kept: list[Ints] = []
        for column in columns:
            column = np.where(self._reason[column] > 0, 0, column)
            for other in kept:
                column = np.where(column == other, 0, column)
            if column.any():
                kept.append(column)
        return kept

    def split(self, label: Label, outer: int, inner: int) -> tuple[Label, Label]:
        """Split the label of an axis of length outer * inner, as a view does.

        A column that depends on the outer index only goes to the outer axis, one that depends on the inner
        index only to the inner axis.  Any other column becomes a conjunction of new atoms for both.
        """
        label = self.normal(label)
        if label is None:
            return None, None
        outers, inners = [], []
        for column in label.T:
            table = column.reshape(outer, inner)
            if (table == table[:, :1]).all():
                outers.append(table[:, 0])
            elif (table == table[:1]).all():
                inners.append(table[0])
            else:
                e, f = self.new(outer), self.new(inner)
                self.define(column, np.repeat(e, inner), np.tile(f, outer))
                outers.append(e)
                inners.append(f)
        return (np.stack(outers, 1) if outers else None), (np.stack(inners, 1) if inners else None)

    def merge(self, outer: Label, n: int, inner: Label, m: int) -> Label:
        """Return the label of the axis of length n * m that a view makes of two axes."""
        outer, inner = self.normal(outer), self.normal(inner)
        columns = [] if outer is None else [np.repeat(outer, m, 0)]
        columns += [] if inner is None else [np.tile(inner, (n, 1))]
        return np.concatenate(columns, 1) if columns else None

    def equate(self, a: Label, b: Label) -> None:
        """Require that two axes of the same length lose the same indices."""
        a, b = self.normal(a), self.normal(b)
        if a is None or b is None:
            self.freeze(a, self.why)
            self.freeze(b, self.why)
            return
        a, b = _without_common(a, b)
        if a.shape[1] == 1 and b.shape[1] == 1:
            self.unite(a[:, 0], b[:, 0])
        elif 1 in (a.shape[1], b.shape[1]):
            one, many = (a, b) if a.shape[1] == 1 else (b, a)
            self._conjunction(one[:, 0], many)
        else:
            self._match(a, b)

    def _conjunction(self, atom: Ints, parts: Ints) -> None:
        """Make atom[i] the conjunction of the row parts[i]: u = a and (b and (c and d))."""
        if parts.shape[1] == 0:
            self.freeze(atom, self.why)
            return
        right = parts[:, -1]
        for column in parts[:, 1:-1].T[::-1]:
            both = self.new(len(atom))
            self.define(both, column, right)
            right = both
        self.define(atom, parts[:, 0], right)

    def _match(self, a: Ints, b: Ints) -> None:
        """Unite columns that repeat their atoms in the same pattern; freeze those without a partner."""
        left: list[Any] = [np.unique(column, return_inverse=True)[1] for column in b.T]
        for column in a.T:
            pattern = np.unique(column, return_inverse=True)[1]
            partner = next((j for j, p in enumerate(left) if p is not None and _same(p, pattern)), None)
            if partner is None:
                self.freeze(column, self.why)
            else:
                self.unite(column, b[:, partner])
                left[partner] = None
        for j, pattern in enumerate(left):
            if pattern is not None:
                self.freeze(b[:, j], self.why)


def _without_common(a: Ints, b: Ints) -> tuple[Ints, Ints]:
    """Drop the columns that both labels have."""
    keep_a = [j for j in range(a.shape[1]) if not (a[:, j, None] == b).all(0).any()]
    keep_b = [j for j in range(b.shape[1]) if not (b[:, j, None] == a).all(0).any()]
    return a[:, keep_a], b[:, keep_b]


def _same(p: Ints, q: Ints) -> bool:
    """Return whether two arrays partition the positions in the same way."""
    pairs = np.unique(np.stack([p, q]), axis=1).shape[1]
    return bool(pairs == p.max() + 1 == q.max() + 1)


def tile(label: Label, n: int) -> Label:
    """Repeat a label end to end n times."""
    return None if label is None else np.tile(label, (n, 1))


def concatenate(labels: Sequence[Label], sizes: Sequence[int]) -> Label:
    """Join labels end to end; an axis without a label gets atom 0, which is always alive."""
    width = max((x.shape[1] for x in labels if x is not None), default=0)
    if not width:
        return None
    rows = []
    for label, n in zip(labels, sizes, strict=True):
        full = np.zeros((n, width), dtype=np.int64)
        if label is not None:
            full[:, : label.shape[1]] = label
        rows.append(full)
    return np.concatenate(rows)
