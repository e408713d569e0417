"""The algebra of axis labels: which indices of which axes live and die together.

Every index of every parameter axis is an *atom*; atom 0 is TRUE, always alive.  The label of an axis
of length n is an integer array [n, k]: index i is alive iff all k atoms of row i are alive.  `None`
stands for an axis on which nothing dies.  A union-find holds which atoms are equal; a table of
definitions holds which atoms are the conjunction of two others (feature = head and position), so
that an axis can be split and merged without losing either.  Every operation imposes *sufficient*
constraints: a mistake can only tie or freeze too much, never too little.

Example:
    >>> atoms = Atoms()
    >>> features = atoms.label(6)
    >>> heads, inner = atoms.split(features, 2, 3)     # a view of 6 features as 2 heads of 3
    >>> atoms.normal(features).shape                   # each feature is now (head, position)
    (6, 2)
    >>> atoms.freeze(inner, "hard-coded size")
    >>> atoms.normal(features)[:, 0].tolist() == atoms.normal(heads)[:, 0].repeat(3).tolist()
    True
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Ints = NDArray[np.int64]
Label = Ints | None

__all__ = ["Atoms", "Label"]

DEPTH = 24  # definitions nested deeper than this are cyclic for all purposes: freeze them
ALWAYS = 1  # the reason number of atom 0


class Atoms:
    """Atoms with equalities, conjunctions, and reasons why some are frozen.

    Attributes:
        reasons: Texts; `reason[root]` is a number into it, 0 for a free atom.
        why: The reason recorded when two axes that meet can only be reconciled by freezing.
    """

    def __init__(self) -> None:
        """Start with TRUE alone."""
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
        """Return the label of a fresh axis of length n; an axis of length 1 cannot lose anything."""
        return self.new(n)[:, None] if n > 1 else None

    def find(self, atoms: Ints) -> Ints:
        """Return the roots of an array of atoms, compressing their paths."""
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
        """Make every atom of the label TRUE, and with a conjunction both its parts."""
        if label is None:
            return
        if why not in self.reasons:
            self.reasons.append(why)
        self._freeze(label.ravel(), self.reasons.index(why))

    def _freeze(self, atoms: Ints, number: int) -> None:
        while atoms.size:
            roots = np.unique(self.find(atoms))
            roots = roots[self._reason[roots] == 0]
            self._reason[roots] = number
            defined = roots[self._left[roots] > 0]
            atoms = np.concatenate([self._left[defined], self._right[defined]])

    def unite(self, a: Ints, b: Ints) -> None:
        """Make a[i] and b[i] equal, for all i; parts of equal conjunctions become equal too."""
        queue = [(a, b)]
        while queue:
            first, second = (self.find(side) for side in queue.pop())
            apart = first != second
            if not apart.any():
                continue
            first, second = first[apart], second[apart]
            roots, compact = np.unique(np.concatenate([first, second]), return_inverse=True)
            if len(roots) == compact.size and not (self._reason[roots] | self._left[roots]).any():
                self._parent[first] = self._parent[second] = np.minimum(first, second)  # pairs of free atoms
            else:
                queue += self._merge(roots, compact.reshape(2, -1))

    def _merge(self, roots: Ints, edges: Ints) -> list[tuple[Ints, Ints]]:
        """Join the roots along the edges; return the equalities that follow for their definitions."""
        graph = coo_array((np.ones(edges.shape[1]), (edges[0], edges[1])), shape=(len(roots), len(roots)))
        count, component = connected_components(graph, directed=False)
        head = np.full(count, np.iinfo(np.int64).max)
        np.minimum.at(head, component, roots)
        number = np.zeros(count, dtype=np.int64)
        np.maximum.at(number, component, self._reason[roots])
        self._parent[roots] = head[component]
        thawed = number[component] > 0
        for n in np.unique(number[component][thawed]):
            members = roots[number[component] == n]
            self._reason[members] = 0
            self._freeze_members(members, int(n))
        defined = np.flatnonzero(self._left[roots] > 0)
        if not defined.size:
            return []
        defined = defined[np.argsort(component[defined], kind="stable")]
        owner, start = np.unique(component[defined], return_index=True)
        model = roots[defined[start]]
        self._left[head[owner]], self._right[head[owner]] = self._left[model], self._right[model]
        rest = np.delete(defined, start)
        chief = head[component[rest]]
        return [
            (self._left[chief], self._left[roots[rest]]),
            (self._right[chief], self._right[roots[rest]]),
        ]

    def _freeze_members(self, members: Ints, number: int) -> None:
        parts = members[self._left[members] > 0]
        self._reason[np.unique(self.find(members))] = number
        self._freeze(np.concatenate([self._left[parts], self._right[parts]]), number)

    def define(self, atom: Ints, left: Ints, right: Ints) -> None:
        """Make atom[i] the conjunction of left[i] and right[i], for all i."""
        atom, left, right = self.find(atom), self.find(left), self.find(right)
        number = self._reason[atom]
        for n in np.unique(number[number > 0]):
            rows = number == n
            self._freeze(np.concatenate([left[rows], right[rows]]), int(n))
        if self.why not in self.reasons:
            self.reasons.append(self.why)
        tied = self.reasons.index(self.why)
        self._freeze(right[(atom == left) & (number == 0)], tied)  # u = u and w holds where w is TRUE
        self._freeze(left[(atom == right) & (number == 0)], tied)
        rows = (number == 0) & (atom != left) & (atom != right)
        thin = rows & ((self._reason[left] > 0) | (self._reason[right] > 0))
        if thin.any():  # u = TRUE and w is u = w
            self.unite(atom[thin], np.where(self._reason[left[thin]] > 0, right[thin], left[thin]))
        rows = np.flatnonzero(rows & ~thin)
        atom, left, right = self.find(atom), self.find(left), self.find(right)
        known = self._left[atom[rows]] > 0
        fresh, at = np.unique(atom[rows[~known]], return_index=True)
        first = rows[~known][at]
        self._left[fresh], self._right[fresh] = left[first], right[first]
        self.unite(self._left[atom[rows]], left[rows])
        self.unite(self._right[self.find(atom[rows])], right[rows])

    def normal(self, label: Label) -> Label:
        """Return the label in free roots: definitions substituted, TRUE and repeated columns dropped."""
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
        """Turn frozen atoms into 0, repeats within a row into 0, and drop columns of zeros."""
        kept: list[Ints] = []
        for column in columns:
            column = np.where(self._reason[column] > 0, 0, column)
            for other in kept:
                column = np.where(column == other, 0, column)
            if column.any():
                kept.append(column)
        return kept

    def split(self, label: Label, outer: int, inner: int) -> tuple[Label, Label]:
        """Split the label of an axis of length outer * inner, as a view does."""
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
        """Constrain two axes of one length to lose the same indices."""
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
        """Unite columns that have the same pattern of repetition; freeze what has no partner."""
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
    """Drop the columns that both labels have: equal already."""
    keep_a = [j for j in range(a.shape[1]) if not (a[:, j, None] == b).all(0).any()]
    keep_b = [j for j in range(b.shape[1]) if not (b[:, j, None] == a).all(0).any()]
    return a[:, keep_a], b[:, keep_b]


def _same(p: Ints, q: Ints) -> bool:
    """Whether two arrays partition the positions in the same way."""
    pairs = np.unique(np.stack([p, q]), axis=1).shape[1]
    return bool(pairs == p.max() + 1 == q.max() + 1)
