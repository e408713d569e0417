"""Controls of the published experiment: permuted neurons, exact ranks, untrained networks, other data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.datasets import make_moons

from secateur.structures.matroid import parallel_rows, tail_partition
from secateur.structures.matroid.parametrize import Kind
from secateur.structures.matroid.tail import Order
from secateur_studies.matroid.post import FRACTIONS, Ints, Post, accuracy, curve, moons, train

__all__ = ["check_network", "check_real_moons", "check_untrained", "merge_multiples"]

Row = dict[str, Any]
PARTITION, UNTRAINED, PERMUTED, MERGED = "partition", "untrained", "permuted", "merged"
FRESH, REAL, WITHIN = "fresh test set", "real moons", "within the tail"
PERMUTATIONS = 20
TOLERANCES = (1e-12, 1e-6)
_AT_75 = FRACTIONS.index(0.75)


def check_network(net: Post) -> Iterator[Row]:
    """Yield the controls of one network of the post."""
    common = {"mode": net.mode, "units": len(net.w2)}
    tail = net.tail
    exact = tail_partition(net.rows, exact=True)
    yield common | {
        "part": PARTITION,
        "accuracy": accuracy(net),
        "essential": len(tail.essential),
        "tail": len(tail.tail),
        "exact tail": len(exact.tail),
        "exact rank": exact.rank,
        "zero biases": int((net.b1 == 0).sum()),
        "smallest gap": tail.gap if math.isfinite(tail.gap) else None,
    }
    if not len(tail.tail):
        return
    generator = np.random.default_rng(net.seed)
    changes = []
    for _ in range(PERMUTATIONS):
        other = net.permute(generator.permutation(len(net.w2)))
        changes.append(curve(other, "matroid", other.tail.tail)[_AT_75])
    yield common | {"part": PERMUTED, "change": float(np.mean(changes)), "worst": min(changes)}
    yield common | {"part": WITHIN} | _choose_within_tail(net)
    fresh = moons(np.random.default_rng(10_000 + net.seed))
    yield common | {
        "part": FRESH,
        "accuracy": accuracy(net, None, fresh),
        "change": curve(net, "matroid", tail.tail, fresh)[_AT_75],
    }
    yield from (common | merge_multiples(net, tolerance) for tolerance in TOLERANCES)


def _choose_within_tail(net: Post) -> Row:
    """Return the changes of accuracy for 75 % of the tail, chosen in several ways."""
    tail, before, everything = net.tail, accuracy(net), np.arange(len(net.w2))
    count = round(0.75 * len(tail.tail))
    orders: tuple[Order, ...] = ("index", "most-windows", "outermost")
    sets: dict[str, list[Ints]] = {order: [tail.removal_order(order)[:count]] for order in orders}
    with np.errstate(over="ignore"):
        norms = np.linalg.norm(net.w1[tail.tail], axis=1)
    sets["smallest norm"] = [tail.tail[np.argsort(norms, kind="stable")][:count]]
    generator = np.random.default_rng(net.seed)
    sets["random"] = [generator.permutation(tail.tail)[:count] for _ in range(PERMUTATIONS)]
    changes = {
        name: 100 * float(np.mean([accuracy(net, np.setdiff1d(everything, gone)) for gone in drawn]) - before)
        for name, drawn in sets.items()
    }
    rank = int(np.linalg.matrix_rank(net.rows))
    windows = np.lib.stride_tricks.sliding_window_view(net.rows, rank, axis=0)
    deficient = np.linalg.matrix_rank(windows) < rank
    unscaled = np.unique(np.flatnonzero(deficient)[:, None] + np.arange(rank))
    return changes | {"rank of unscaled rows": rank, "tail of unscaled rows": len(unscaled)}


def merge_multiples(net: Post, tolerance: float) -> Row:
    """Merge rows of [W1 | b1] that are positive multiples within a tolerance: relu(c z) = c relu(z)."""
    parallel = parallel_rows(net.rows, tolerance=tolerance)
    leaders = np.array([star[0] for star in parallel.classes])
    w2 = np.array(
        [
            sum(c * net.w2[i] for i, c in zip(star, scales, strict=True))
            for star, scales in zip(parallel.classes, parallel.scales, strict=True)
        ]
    )
    after = replace(net, w1=net.w1[leaders], b1=net.b1[leaders], w2=w2)
    difference = np.abs(after.logits() - net.logits()).max() / np.abs(net.logits()).max()
    return {
        "part": MERGED,
        "tolerance": tolerance,
        "kept": len(leaders),
        "change": 100 * (accuracy(after) - accuracy(net)),
        "relative logit difference": float(difference),
    }


def check_untrained(mode: Kind, units: int, seed: int) -> Row:
    """Return the tail of a network before training, where all biases are 0."""
    data = moons(np.random.default_rng(seed))
    tail = train(mode, units, seed, data, epochs=0).tail
    return {"part": UNTRAINED, "mode": mode, "units": units, "tail": len(tail.tail)}


def check_real_moons(units: int, seed: int, mode: Kind = "tp_exponential") -> Row:
    """Repeat the experiment on scikit-learn's moons, which interlock, with a fresh test set."""
    x, y = make_moons(200, noise=0.1, random_state=seed)
    net = train(mode, units, seed, (x, y.astype(float)))
    tail = net.tail.tail
    x, y = make_moons(1000, noise=0.1, random_state=10_000 + seed)
    return {
        "part": REAL,
        "mode": mode,
        "units": units,
        "accuracy": accuracy(net),
        "tail": len(tail),
        "change": curve(net, "matroid", tail)[_AT_75],
        "test accuracy": accuracy(net, None, (x, y)),
        "test change": curve(net, "matroid", tail, (x, y))[_AT_75],
    }
