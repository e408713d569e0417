"""A portrait along the matroid: curves of what is unexplained, hyperplane arrangements, windows of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.allocation import prunable
from secateur.core import Group, Statistics
from secateur.diagnostics.context import Look, short
from secateur.methods.matroid.activations import basis_order
from secateur.methods.matroid.weight_rows import augmented_rows, eligible
from secateur.structures.matroid import IntervalMatroid, tail_partition, window_ranks
from secateur.structures.matroid.sliding import normalized

Floats = NDArray[np.float64]
ENTRIES = 1_000_000
LINES = 60


def matroid_portrait(look: Look) -> dict[str, Any]:
    """Return the portrait.

    Returns:
        ``"structure"``, ``"ground"``, ``"curves"`` (by group, where the ground is the activations),
        ``"layers"`` (by group with rows [W | b]: rank, windows, tail, arrangement), ``"skipped"`` (by group,
        why it has none).
    """
    graph = look.plan.graph
    ground = look.method.ground
    statistics = look.statistics(frozenset({"gram"} if ground == "activations" else ()))
    layers, skipped = {}, {}
    for group in prunable(graph):
        reason = eligible(graph, group)
        if not reason:
            rows = augmented_rows(graph, statistics, group)
            reason = "" if rows.size <= ENTRIES else f"{rows.size:,} entries are more than {ENTRIES:,}"
        if reason:
            skipped[group.name] = reason.removeprefix(f"{group.name}: ")
        else:
            layers[group.name] = _layer(look, group, rows)
    curves = _curves(look, statistics) if ground == "activations" else {}
    return {"structure": "matroid", "ground": ground, "curves": curves, "layers": layers, "skipped": skipped}


def _curves(look: Look, statistics: Statistics) -> dict[str, Any]:
    curves = {}
    for group in prunable(look.plan.graph):
        _, basis = basis_order(look.plan.graph, statistics, group, look.method.objective)
        total = float(basis.residuals[0])
        note = look.plan.notes.get(group.name, {})
        curves[group.name] = {
            "units": group.size,
            "kept": sum(look.stays(group)),
            "residual": note.get("residual"),
            "residuals": short((basis.residuals / total if total > 0 else basis.residuals).clamp_min(0)),
        }
    return curves


def _layer(look: Look, group: Group, rows: Floats) -> dict[str, Any]:
    exact = look.method.exact and look.method.ground == "windows"
    rtol = look.method.rtol if look.method.ground == "windows" else None
    tail = tail_partition(rows, exact=exact, rtol=rtol)
    return {
        "units": len(rows),
        "inputs": rows.shape[1] - 1,
        "rank": tail.rank,
        "deficient": tail.deficient,
        "gap": "exact" if exact else short(tail.gap),
        "tail": tail.tail.tolist(),
        "windows": tail.windows.tolist(),
        "ranks": _ranks(rows, tail.rank, exact, rtol),
        "removed": look.plan.removed(group.name).tolist(),
        "arrangement": _arrangement(look, group, rows),
    }


def _ranks(rows: Floats, rank: int, exact: bool, rtol: float | None) -> list[int]:
    if rank in (0, len(rows)):
        return [rank] if rank else []
    if exact:
        return IntervalMatroid(rows).window_ranks(rank).tolist()
    return window_ranks(normalized(rows), rank, rtol=rtol).ranks.tolist()


def _arrangement(look: Look, group: Group, rows: Floats) -> dict[str, Any] | None:
    """Cut the hyperplanes by a plane through the inputs: theirs, or that of most variance."""
    layer, _ = look.plan.graph.producers(group)[0]
    found = look.inputs(layer.weight)
    if found is None or rows.shape[1] < 3 or len(found[0]) < 3:
        return None
    x, labels = found
    centre, axes, plane, names = _plane(x)
    cloud = (x - centre) @ axes.T
    low, high = cloud.min(0), cloud.max(0)
    margin = 0.1 * np.maximum(high - low, 1e-9)
    low, high = low - margin, high + margin
    cut = np.column_stack([rows[:, :-1] @ axes.T, rows[:, :-1] @ centre + rows[:, -1]])
    ends = {unit: segment(a, b, c, low, high) for unit, (a, b, c) in enumerate(cut.tolist())}
    crossing = [(unit, found_ends) for unit, found_ends in ends.items() if found_ends is not None]
    stays = look.stays(group)
    return {
        "plane": plane,
        "axes": names,
        "box": short([low, high]),
        "crossing": len(crossing),
        "points": [[*short(p), label] for p, label in zip(cloud.tolist(), labels, strict=True)],
        "lines": [_line(unit, parts, stays[unit]) for unit, parts in _evenly(crossing, LINES)],
    }


def _plane(x: Floats) -> tuple[Floats, Floats, str, list[str]]:
    """Return a point of the plane, its two directions, and words for it."""
    if x.shape[1] == 2:
        return np.zeros(2), np.eye(2), "the plane of the inputs", ["input 0", "input 1"]
    centre = x.mean(0)
    _, sizes, axes = np.linalg.svd(x - centre, full_matrices=False)
    share = float((sizes[:2] ** 2).sum() / max((sizes**2).sum(), 1e-300))
    words = f"the plane through the mean input along the two directions of most variance ({share:.0%} of it)"
    return centre, axes[:2], words, ["first principal direction", "second principal direction"]


def _evenly(items: list[Any], count: int) -> list[Any]:
    chosen = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[i] for i in chosen]


def _line(unit: int, ends: tuple[Floats, Floats], stays: bool) -> dict[str, Any]:
    (x, y), (to_x, to_y) = map(short, ends)
    return {"unit": unit, "stays": stays, "x": x, "y": y, "to x": to_x, "to y": to_y}


def segment(a: float, b: float, c: float, low: Floats, high: Floats) -> tuple[Floats, Floats] | None:
    """Return the ends of the part of the line a s + b t + c = 0 inside a box, or None.

    Args:
        a: Coefficient of the first coordinate.
        b: Of the second.
        c: Constant.
        low: Smallest coordinates [2].
        high: Largest [2].

    Example:
        >>> p, q = segment(1.0, -1.0, 0.0, np.zeros(2), np.ones(2))
        >>> p.tolist(), q.tolist()
        ([0.0, 0.0], [1.0, 1.0])
    """
    length = a * a + b * b
    if length == 0:
        return None
    foot, along = np.array([-a * c, -b * c]) / length, np.array([-b, a])
    with np.errstate(divide="ignore", invalid="ignore"):
        to_low, to_high = (low - foot) / along, (high - foot) / along
    inside = (foot >= low) & (foot <= high)
    first = np.where(along == 0, np.where(inside, -np.inf, np.inf), np.minimum(to_low, to_high)).max()
    last = np.where(along == 0, np.where(inside, np.inf, -np.inf), np.maximum(to_low, to_high)).min()
    if not first < last:
        return None
    ends = sorted([(foot + first * along).tolist(), (foot + last * along).tolist()])
    return np.array(ends[0]), np.array(ends[1])


__all__ = ["matroid_portrait", "segment"]
