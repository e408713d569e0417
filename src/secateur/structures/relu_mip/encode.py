"""Propagate one image through the chain as expressions, columns and rows of a mixed-integer program.

The state is an expression a = E v + d in the program's columns v, so that everything decided
in advance is substituted instead of modelled: the constant first layer, dead units, units that the
bounds hold active (h = a - (1 - s) D), maxima with one candidate.  The substitution is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse
from scipy.sparse import csr_array as Csr

from secateur.structures.relu_mip.chain import Affine, Bool, Chain, Float, Int, MaxPool, ReLU, Step
from secateur.structures.relu_mip.interval_bounds import BoundsKind, drops_for, expression_bounds, step_bounds

__all__ = ["Builder", "Encoded", "Place", "Tighten", "encode"]

Tighten = Callable[["Builder", int, Csr, Float, Float, Float], tuple[Float, Float]]


@dataclass(eq=False)
class Builder:
    """The columns and rows so far.

    Attributes:
        tighten: Called before every ReLU with the builder, the number of the first row block of the
            image, and E, d, L, U; returns better bounds.
    """

    lower: list[Float] = field(default_factory=list)
    upper: list[Float] = field(default_factory=list)
    integer: list[Int] = field(default_factory=list)
    blocks: list[tuple[Csr, Float, Float, bool]] = field(default_factory=list)
    width: int = 0
    nonzeros: int = 0
    tighten: Tighten | None = None

    def columns(self, lower: Float, upper: Float, integer: bool = False) -> Int:
        """Add columns and return their numbers."""
        numbers = np.arange(self.width, self.width + len(lower))
        self.lower.append(np.asarray(lower, float))
        self.upper.append(np.asarray(upper, float))
        if integer:
            self.integer.append(numbers)
        self.width += len(lower)
        return numbers

    def rows(self, E: Csr, lower: Float, upper: Float, lazy: bool = False) -> None:
        """Add lower <= E v <= upper; `lazy` rows may wait until they are violated."""
        if E.shape[0]:
            self.blocks.append((E, lower, upper, lazy))
            self.nonzeros += E.nnz

    def widen(self, E: Csr) -> Csr:
        """Return E with the current number of columns."""
        return Csr((E.data, E.indices, E.indptr), shape=(E.shape[0], self.width))

    def pick(self, columns: Int, values: Float | float = 1.0) -> Csr:
        """Return one row for each given column, with its entry of `values` in that column."""
        n = len(columns)
        data = np.broadcast_to(np.asarray(values, float), n).copy()
        # columns are copied: scipy compresses index arrays in place
        return Csr((data, columns.copy(), np.arange(n + 1)), shape=(n, self.width))

    def box(self) -> tuple[Float, Float]:
        """Return lower and upper bounds of all columns."""
        return np.concatenate(self.lower), np.concatenate(self.upper)


@dataclass(frozen=True, eq=False)
class Place:
    """The columns of one step's values, so that a forward pass can set them.

    Attributes:
        step: Step number.
        index: Coordinates of the step's output (for ``"input"``: of its input).
        columns: Their columns.
        kind: ``"value"``, ``"input"``, ``"active"`` (z) or ``"winner"`` (m; `index` then holds pairs of
            window and candidate).
    """

    step: int
    index: Int
    columns: Int
    kind: str


@dataclass(frozen=True, eq=False)
class Encoded:
    """One image, encoded: logits = E v + d, the columns of its values, D and valid U by step number."""

    E: Csr
    d: Float
    places: tuple[Place, ...]
    drops: dict[int, Float]
    caps: dict[int, Float]


class _Image:
    """The state of an image between steps: a = E v + d, and bounds on a.

    L and U are the constants of the rows.  `low` and `high` are what the rows allow, the box of new
    columns.  Valid bounds are both.  The published L and U are those of the unpruned network, which no row
    repeats after a ReLU: there the rows allow all of 0 <= h <= U.
    """

    def __init__(self, builder: Builder, chain: Chain, x: Float, kind: BoundsKind, epsilon: float) -> None:
        self.build, self.chain, self.kind = builder, chain, kind
        half = epsilon if kind == "paper" else 0.0
        self.E, self.d = Csr((len(x), builder.width)), x
        self.L, self.U = x - half, x + half
        self.low, self.high = x, x
        self.places: list[Place] = []
        self.drops: dict[int, Float] = {}
        self.caps: dict[int, Float] = {}
        self.first = len(builder.blocks)

    def place(self, step: int, index: Int, columns: Int, kind: str = "value") -> None:
        if len(columns):
            self.places.append(Place(step, index, columns, kind))

    def affine(self, number: int, step: Affine) -> None:
        """Multiply out, or add columns for the inputs if that saves non-zeros."""
        # W E has at most `products` non-zeros.  New columns for the moving inputs cost W's non-zeros there,
        # the rows that define the columns, and one entry for each.
        per_row = np.diff(self.E.indptr)
        moving = per_row > 0
        reached = int(moving[step.W.indices].sum())
        products = min(int(per_row[step.W.indices].sum()), step.width * len(np.unique(self.E.indices)))
        if products > reached + self.E.nnz + moving.sum() and per_row.max() > 1:
            index = np.flatnonzero(moving)
            columns = self.build.columns(self.low[index], self.high[index])
            E = self.build.widen(self.E[index])
            self.build.rows(self.build.pick(columns) - E, self.d[index], self.d[index])
            self.place(number, index, columns, "input")
            spread = Csr((np.ones(len(index)), (index, columns)), shape=(len(moving), self.build.width))
            self.E, self.d = spread, np.where(moving, 0.0, self.d)
        self.E, self.d = Csr(step.W @ self.E), step.W @ self.d + step.b
        self.E.eliminate_zeros()
        self.advance(step)

    def advance(self, step: Step, D: Float | None = None) -> None:
        """Bound the output of a step; valid bounds are intersected with those of the expression itself."""
        self.L, self.U = (v[0] for v in step_bounds(step, self.L[None], self.U[None], D))
        if self.kind == "paper":
            if isinstance(step, ReLU):
                self.low, self.high = np.zeros(step.width), self.U
            else:
                self.low, self.high = (v[0] for v in step_bounds(step, self.low[None], self.high[None]))
            return
        L, U = expression_bounds(self.build.widen(self.E), self.d, *self.build.box())
        self.L, self.U = np.maximum(self.L, L), np.minimum(self.U, U)
        self.U = np.maximum(self.L, self.U)
        self.low, self.high = self.L, self.U

    def relu(self, number: int, step: ReLU, score: Int, nominal: Float) -> None:
        """Apply constraints (1) and (2): units are dead, constant, always active, or have a binary z.

        With s the unit's score and D its drop, the ReLU gets a - (1 - s) D: its input a at s = 1, less at
        lower scores.  Only units whose sign the bounds leave open need h and z as columns.
        """
        paper, n = self.kind == "paper", step.width
        if self.build.tighten is not None:
            self.L, self.U = self.build.tighten(self.build, self.first, self.E, self.d, self.L, self.U)
        constant = np.diff(self.E.indptr) == 0  # a depends on no column
        D = drops_for(step, self.kind, nominal, self.U) if step.scored else np.zeros(n)
        if step.scored:
            self.drops[number] = D
            if not paper:
                self.caps[number] = np.where(constant, D, np.maximum(self.U, 0))
        columns = score[step.units] if step.scored else np.zeros(n, int)
        dead = self.U <= 0  # h = 0
        active = self.L > 0  # h = a - (1 - s) D
        if not paper:
            # Valid bounds hold for every s.  A scored unit that moves stays open even if L > 0: s < 1 may
            # bring a - (1 - s) D below 0.
            dead |= constant & (self.d <= 0)
            active = ~dead & (constant | ((self.L >= 0) & (not step.scored)))
        free = ~dead & ~active
        # a - (1 - s) D as an expression; the columns of D = 0 vanish
        S = self.build.pick(columns, D)
        S.eliminate_zeros()
        lowered, base = Csr(self.build.widen(self.E) + S), self.d - D
        if paper:
            self._add_published_rows(dead & ~constant, active, lowered, base)
        # What is left open gets columns h and z.
        chosen = np.flatnonzero(free)
        h, rows = self._add_open_units(chosen, lowered, base, D, columns, step.scored)
        self.place(number, chosen, h)
        self.place(number, chosen, rows, "active")
        # The output: substituted where active, the column h where open, nothing where dead.
        stay = sparse.diags_array(active.astype(float)).tocsr()
        spread = Csr((np.ones(len(h)), (chosen, h)), shape=(n, self.build.width))
        self.E = Csr(stay @ self.build.widen(lowered) + spread)
        self.E.eliminate_zeros()
        self.d = np.where(active, base, 0.0)
        self.advance(step, D if step.scored and not paper else None)

    def _add_published_rows(self, dead: Bool, active: Bool, lowered: Csr, base: Float) -> None:
        """Add the published constraints on decided units: L <= a <= 0, or 0 <= h <= U."""
        self.build.rows(lowered[dead], self.L[dead] - base[dead], -base[dead], lazy=True)
        self.build.rows(lowered[active], -base[active], self.U[active] - base[active], lazy=True)

    def _add_open_units(
        self, free: Int, lowered: Csr, base: Float, D: Float, columns: Int, scored: bool
    ) -> tuple[Int, Int]:
        """Add h and z with constraints (1d), (2a), (2b).

        The valid form adds h <= s U, so that s = 0 means h = 0; (2b) then asks for a <= D as well.  The free
        form has U for D in (2b) and asks for nothing more.
        """
        build, U = self.build, self.U[free]
        M = self.L[free] if self.kind == "paper" else self.L[free] - D[free]
        h = build.columns(np.zeros(len(free)), U)
        z = build.columns(np.zeros(len(free)), np.ones(len(free)), integer=True)
        a, H = build.widen(lowered[free]), build.pick(h)
        never = np.full(len(free), np.inf)
        relief = U - D[free] if self.kind == "free" and scored else np.zeros(len(free))
        build.rows(Csr(H - a - build.pick(columns[free], relief)), base[free] - relief, never)
        build.rows(Csr(H - a - build.pick(z, M)), -never, base[free] - M)
        build.rows(Csr(H - build.pick(z, U)), -never, np.zeros(len(free)))
        if self.kind != "paper" and scored:
            build.rows(Csr(H - build.pick(columns[free], U)), -never, np.zeros(len(free)))
        return h, z

    def maximum(self, number: int, step: MaxPool) -> None:
        """Apply equations (9) and (10) to windows with more than one candidate left."""
        windows, inside = step.windows, step.windows >= 0
        L = np.where(inside, self.L[windows], -np.inf)
        U = np.where(inside, self.U[windows], -np.inf)
        # The candidate of the best lower bound stays open, and all whose upper bound exceeds that.
        champion = L.argmax(1)
        open_ = inside & (np.take_along_axis(L, champion[:, None], 1) < U)
        np.put_along_axis(open_, champion[:, None], True, 1)
        single = self._constant_winners(windows, inside)
        if self.kind == "paper":
            self._fix_winners(windows, champion, inside & ~open_ & (single < 0)[:, None])
        many = (open_.sum(1) > 1) & (single < 0)
        winner = np.where(single >= 0, single, champion)
        item = np.take_along_axis(windows, winner[:, None], 1)[:, 0]
        x = self._add_maxima(number, windows[many], open_[many], np.flatnonzero(many))
        E, d = self.build.widen(self.E)[item], self.d[item]
        stay = sparse.diags_array((~many).astype(float)).tocsr()
        spread = Csr((np.ones(len(x)), (np.flatnonzero(many), x)), shape=(len(many), self.build.width))
        self.E, self.d = Csr(stay @ self.build.widen(E) + spread), np.where(many, 0.0, d)
        self.E.eliminate_zeros()
        self.advance(step)

    def _fix_winners(self, windows: Int, champion: Int, others: Bool) -> None:
        """Add h_winner >= h_other where the published bounds single out a winner: it stays the winner."""
        window, slot = np.nonzero(others)
        winner, loser = windows[window, champion[window]], windows[window, slot]
        E = Csr(self.E[winner] - self.E[loser])
        self.build.rows(E, self.d[loser] - self.d[winner], np.full(len(winner), np.inf), lazy=True)

    def _constant_winners(self, windows: Int, inside: Bool) -> Int:
        """Return for each window the slot that wins for every score, if one column moves all; else -1."""
        # Candidates d + slope s of one score s in [0, 1] (or constants, column -1) are linear: a slot that
        # wins at s = 0 and at s = 1 wins in between.  -2: more than one column, not decided here.
        counts = np.diff(self.E.indptr)
        first = np.append(self.E.indices, 0)[self.E.indptr[:-1]]
        column = np.where(counts == 1, first, np.where(counts == 0, -1, -2))
        slope = np.asarray(self.E.sum(axis=1)).ravel()
        lo = np.where(inside, self.d[windows], -np.inf)
        hi = np.where(inside, (self.d + slope)[windows], -np.inf)
        c = np.where(inside, column[windows], -1)
        low, high = np.where(c < 0, np.iinfo(int).max, c).min(1), c.max(1)
        alone = (c != -2).all(1) & ((low == high) | (high == -1)) & (high < sum(self.chain.layers.values()))
        best = np.where(hi == hi.max(1, keepdims=True), lo, -np.inf).argmax(1)
        wins = np.take_along_axis(lo, best[:, None], 1)[:, 0] >= lo.max(1)
        return np.where(alone & wins, best, -1)

    def _add_maxima(self, number: int, windows: Int, open_: Bool, at: Int) -> Int:
        """Add x = max of the open candidates with binaries m, one of which is 1."""
        build = self.build
        if not len(at):
            return np.zeros(0, int)
        window, slot = np.nonzero(open_)
        item = windows[window, slot]
        top = np.where(open_, self.high[windows], -np.inf).max(1)
        x = build.columns(np.where(open_, self.low[windows], -np.inf).max(1), top)
        m = build.columns(np.zeros(len(item)), np.ones(len(item)), integer=True)
        # m = 1 forces x <= h + (1 - m) gap, the big-M form of equation (10).
        gap = top[window] - self.low[item]
        H, X = build.widen(self.E[item]), build.pick(x[window])
        never = np.full(len(item), np.inf)
        build.rows(Csr(X - H), self.d[item], never)
        build.rows(Csr(X - H + build.pick(m, gap)), -never, self.d[item] + gap)
        one = Csr((np.ones(len(m)), (window, m)), shape=(len(at), build.width))
        build.rows(one, np.ones(len(at)), np.ones(len(at)))
        self.place(number, at, x)
        self.place(number, np.stack([at[window], item], 1), m, "winner")
        return x


def encode(
    builder: Builder, chain: Chain, x: Float, scores: dict[str, Int], kind: BoundsKind, epsilon: float
) -> Encoded:
    """Encode one image [inputs], given the score columns of every scored layer."""
    image = _Image(builder, chain, x, kind, epsilon)
    nominal = [x, *(output[0] for output in chain.outputs(x[None]))]
    for number, step in enumerate(chain.steps):
        if isinstance(step, Affine):
            image.affine(number, step)
        elif isinstance(step, MaxPool):
            image.maximum(number, step)
        else:
            image.relu(number, step, scores.get(step.name, np.zeros(0, int)), nominal[number])
    return Encoded(builder.widen(image.E), image.d, tuple(image.places), image.drops, image.caps)
