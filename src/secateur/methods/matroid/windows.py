"""The published criterion: the tail of [W | b] by rank-deficient windows of neighbouring units."""

from __future__ import annotations

from collections.abc import Mapping

from secateur.allocation import prunable
from secateur.core import NothingToPrune, PruningGraph, Statistics, shorten
from secateur.methods.matroid.upper_bound import Offer
from secateur.methods.matroid.weight_rows import augmented_rows, eligible
from secateur.structures.matroid import Tail, tail_partition
from secateur.structures.matroid.tail import Order

__all__ = ["HINT", "partitions", "window_offers"]

HINT = (
    "no window of k neighbouring rows of [W | b] (k its rank) is deficient. A tail can exist only where a "
    "layer has more than d + 1 units for d inputs, and shows where weights are structured (totally positive "
    "parametrizations, biases left at exactly 0, duplicated neighbours); layers trained without constraints "
    "have none. ground='activations' works on those"
)


def partitions(
    graph: PruningGraph, statistics: Statistics, exact: bool = False, rtol: float | None = None
) -> Mapping[str, Tail]:
    """Return the partition of every eligible group, its units in their order.

    Raises:
        NothingToPrune: If no group is eligible; the message gives the first reasons.
    """
    reasons = {g.name: eligible(graph, g) for g in prunable(graph)}
    if all(reasons.values()):
        raise NothingToPrune("ground='windows' needs rows of [W | b]: " + shorten(reasons.values(), "; "))
    return {
        name: tail_partition(augmented_rows(graph, statistics, graph.group(name)), exact=exact, rtol=rtol)
        for name, reason in reasons.items()
        if not reason
    }


def window_offers(tails: Mapping[str, Tail], order: Order, share: float, exact: bool) -> dict[str, Offer]:
    """Offer the first `share` of each tail, rounded as the published experiment does."""
    return {
        name: Offer(t.removal_order(order)[: round(share * len(t.tail))], _note(t, order, share, exact))
        for name, t in tails.items()
    }


def _note(tail: Tail, order: Order, share: float, exact: bool) -> dict[str, object]:
    return {
        "ground": "windows",
        "rank": tail.rank,
        "deficient windows": tail.deficient,
        "essential": len(tail.essential),
        "tail": len(tail.tail),
        "share": share,
        "order": order,
        "verdicts": "exact" if exact else f"numerical, smallest gap {tail.gap:.3g}",
    }
