"""Counts of least predicted loss under a budget, from curves of measured losses.

The loss of a plan is taken as the sum of what each group costs alone.  With a price p on the budgeted amount,
groups decide by themselves: each takes the count of least loss + p * amount, others fixed (the amount is
linear in each count, and bilinear in two that meet in a layer).  Bisection finds the price that meets the
budget; what is left of the budget goes to the groups that gain most.  This is Everett's method of Lagrange
multipliers (Operations Research 11, 1963).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from secateur.allocation.counts import AllowedCounts
from secateur.core import LossCurve

__all__ = ["counts_of_least_loss", "keep_more", "predicted_losses"]

Floats = NDArray[np.float64]
Amount = Callable[[list[int]], float]
BISECTIONS, ROUNDS = 40, 3
SMALL = 1e-9
UNTRIED = 12.0  # power of the removed share beyond the last measurement


def predicted_losses(curve: LossCurve, ruin: float = 0.0) -> Floats:
    """Return the loss with 0 .. size units kept, float64 [size + 1], never rising.

    Between two measurements it is a power of the removed share, as losses of small removals are.  Where more
    goes than was tried, nothing is known: it rises steeply, and at least along the straight line to `ruin`,
    where nothing is left.  (A wide embedding of few letters loses nothing until fewer units are left than
    letters; then all.)

    Args:
        curve: What was measured.
        ruin: The loss of a network that has lost a whole group, for instance the largest that was measured
            for any group.

    Example:
        >>> predicted_losses(LossCurve(5, (4, 3, 1), (0.1, 0.4, 1.6))).round(2).tolist()
        [23.28, 1.6, 0.9, 0.4, 0.1, 0.0]
    """
    if not curve.counts:  # a group of one unit, of which nothing can go in a trial
        return np.append(np.full(curve.size, max(ruin, SMALL)), 0.0)
    gone = curve.size - np.array(curve.counts, dtype=float)
    order = np.argsort(gone)
    gone, losses = gone[order], np.maximum.accumulate(np.maximum(np.array(curve.losses)[order], SMALL))
    x, y = np.log(gone), np.log(losses)
    wanted = np.log(np.arange(curve.size, 0, -1, dtype=float))
    found = np.interp(wanted, x, y)
    # A steeper first power would give small removals away; a flatter one would forbid them.
    first = np.clip((y[1] - y[0]) / (x[1] - x[0]), 1.0, 3.0) if len(x) > 1 else 2.0
    found = np.where(wanted < x[0], y[0] + first * (wanted - x[0]), found)
    found = np.exp(np.where(wanted > x[-1], y[-1] + UNTRIED * (wanted - x[-1]), found))
    beyond = np.clip((np.exp(wanted) - gone[-1]) / (curve.size - gone[-1]), 0, 1)
    line = losses[-1] + beyond * max(ruin - losses[-1], 0.0)
    return np.append(np.where(beyond > 0, np.maximum(found, line), found), 0.0)


def counts_of_least_loss(
    allowed: Sequence[AllowedCounts], losses: Sequence[Floats], amount: Amount, target: float
) -> list[int]:
    """Return a count for each group with an amount of at most the target, and little loss.

    Args:
        allowed: The counts that each group may keep.
        losses: For each group, the loss by count [size + 1].
        amount: Counts -> what the budget limits; rises with every count.
        target: Its largest value; the first allowed counts must meet it.
    """
    choices = [a.counts() for a in allowed]
    # No price reaches a target that only the smallest counts meet.
    best = [int(c[0]) for c in choices]
    low, high = 1e-12, 1e6
    total = amount([a.size for a in allowed])
    for _ in range(BISECTIONS):
        price = float(np.sqrt(low * high))
        counts = _at_price(choices, losses, amount, price / total)
        if amount(counts) <= target * (1 + 1e-12):
            best, high = counts, price
        else:
            low = price
        if high / low < 1.01:
            break
    return keep_more(best, choices, losses, amount, target)


def _at_price(
    choices: Sequence[NDArray[np.int64]], losses: Sequence[Floats], amount: Amount, price: float
) -> list[int]:
    """Return counts that no single group would change at this price."""
    counts = [int(c[-1]) for c in choices]
    for _ in range(ROUNDS):
        before = list(counts)
        for i, options in enumerate(choices):
            if len(options) > 1:
                slope = _slope(counts, i, options, amount)
                counts[i] = int(options[np.argmin(losses[i][options] + price * slope * options)])
        if counts == before:
            break
    return counts


def _slope(counts: list[int], i: int, options: NDArray[np.int64], amount: Amount) -> float:
    """Return what one unit of a group adds to the amount, the other counts fixed."""
    least, most = ([*counts[:i], int(n), *counts[i + 1 :]] for n in (options[0], options[-1]))
    return (amount(most) - amount(least)) / (options[-1] - options[0])


def keep_more(
    counts: list[int],
    choices: Sequence[NDArray[np.int64]],
    losses: Sequence[Floats],
    amount: Amount,
    target: float,
) -> list[int]:
    """Let groups keep more while the target allows, those first that gain most for what they add."""
    counts = list(counts)
    gains = []
    for i, options in enumerate(choices):
        slope = _slope(counts, i, options, amount) if len(options) > 1 else 0.0
        gains.append(losses[i][counts[i]] / slope if slope > 0 else 0.0)
    for i in np.argsort(-np.array(gains), kind="stable"):
        options = choices[i][choices[i] >= counts[i]]
        low, high = 0, len(options) - 1
        while low < high:
            middle = (low + high + 1) // 2
            trial = [*counts[:i], int(options[middle]), *counts[i + 1 :]]
            low, high = (middle, high) if amount(trial) <= target * (1 + 1e-12) else (low, middle - 1)
        counts[i] = int(options[low])
    return counts
