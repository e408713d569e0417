"""Exchanges of a kept for a removed unit, by updates of one tableau.  Letters as in `activations`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.structures.matroid.activations import center_gram, check_consumer
from secateur.structures.matroid.greedy import FOLLOWS, factor_root, independent_units

__all__ = ["exchange_units"]

# An exchange must lower the error by more than this share.
_LEAST_GAIN = 1e-9


def exchange_units(
    gram: Tensor, kept: Sequence[int] | Tensor, consumer: Tensor | None = None, *, limit: int = 100
) -> tuple[Tensor, Tensor]:
    """Improve a choice by exchanging one kept for one removed unit while the error falls.

    Each round adds the unit that lowers tr(Q S) most and then drops the one that raises it least.  A round
    gains no more than the unit that it adds, so the exchange ends without trying where that is too little.

    Cost, for n units and m outputs: two updates of n (n + m) numbers a round, after one inverse, n^3 + m n^2.

    Args:
        gram: Centred Gram matrix [n, n].
        kept: Units to start from.
        consumer: Q [n, n]; None: the identity.
        limit: Most rounds.

    Returns:
        The kept units, sorted, and the error before and after each exchange.

    Raises:
        ValueError: If shapes do not fit, or nothing is kept.
    """
    g = center_gram(gram)
    reader = factor_root(check_consumer(consumer, g))
    start = [int(i) for i in kept]
    if not start:
        raise ValueError("swaps need at least one kept unit")
    tableau = _Tableau(g, reader, start)
    errors = [tableau.error()]
    chosen = tableau.kept()
    for _ in range(limit):
        if not tableau.exchange(errors[-1]):
            break
        chosen = tableau.kept()
        errors.append(tableau.error())
    return torch.tensor(chosen), torch.tensor(errors, dtype=torch.float64)


class _Tableau:
    """What adding and dropping each unit changes, kept up to date by sweeps (Beaton 1964).

    T is -G[K, K]^-1 on K x K, S on R x R, and the coefficients G[K, K]^-1 G[K, R] between them.  Y [m, n] is
    W S on R, and the refitted reader W G[:, K] G[K, K]^-1 on K.  To add or drop unit p changes the error by
    |Y_p|^2 / T_pp, negative to drop.  Kept units that follow from other kept ones are `spare`: they do not
    enter K, and go first.
    """

    def __init__(self, g: Tensor, reader: Tensor, kept: list[int]) -> None:
        k = torch.tensor(kept, device=g.device)
        basis, factor = independent_units(g[k][:, k])
        k, n = k[basis], len(g)
        self.own, self.inside = g.diagonal(), torch.zeros(n, dtype=torch.bool, device=g.device)
        self.inside[k] = True
        self.spare = sorted(set(kept) - set(k.tolist()))
        r = (~self.inside).nonzero()[:, 0]
        c = torch.cholesky_solve(g[k][:, r], factor)
        s = g[r][:, r].addmm_(g[r][:, k], c, alpha=-1)
        self.t = torch.empty_like(g)
        self.t[k[:, None], k] = -torch.cholesky_inverse(factor)
        self.t[k[:, None], r], self.t[r[:, None], k] = c, c.T
        self.t[r[:, None], r] = s
        self.reader = reader
        self.y = torch.empty_like(reader)
        self.y[:, r] = reader[:, r] @ s
        self.y[:, k] = reader[:, k] + reader[:, r] @ c.T

    def kept(self) -> list[int]:
        """Return the kept units, sorted."""
        return sorted([*self.inside.nonzero()[:, 0].tolist(), *self.spare])

    def error(self) -> float:
        """Return tr(Q S)."""
        return max(float(((self.y * self.reader).sum(0) * ~self.inside).sum()), 0.0)

    def exchange(self, error: float) -> bool:
        """Add the best unit and drop the cheapest; return whether the error falls enough."""
        least = error * _LEAST_GAIN
        usable = ~self.inside & (self.t.diagonal() > FOLLOWS * self.own)
        usable[self.spare] = False
        gain = torch.where(usable, self._changes(), -torch.inf)
        best, gained = int(gain.argmax()), float(gain.max())
        if not gained > least:
            return False
        self._sweep(best)
        if self.spare:
            self.spare.pop()
            return True
        cost = torch.where(self.inside, -self._changes(), torch.inf)
        worst = int(cost.argmin())
        self._sweep(worst)
        return gained - float(cost[worst]) > least

    def _changes(self) -> Tensor:
        return torch.linalg.vector_norm(self.y, dim=0) ** 2 / self.t.diagonal()

    def _sweep(self, p: int) -> None:
        """Move unit p into K, or out of it."""
        pivot, sign = float(self.t[p, p]), -1.0 if self.inside[p] else 1.0
        row, column = self.t[p].clone(), self.y[:, p].clone()
        self.t.addr_(row, row, alpha=-1 / pivot)
        self.y.addr_(column, row, alpha=-1 / pivot)
        self.t[p] = self.t[:, p] = row * (sign / pivot)
        self.t[p, p] = -1 / pivot
        self.y[:, p] = column * (sign / pivot)
        self.inside[p] = ~self.inside[p]
