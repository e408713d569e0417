"""Diagnostics of the integer program: scores of the units, what the bounds decide, what the solver proved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.allocation import prunable
from secateur.core import BoolArray, InputError
from secateur.core.markdown import format_value
from secateur.diagnostics.context import DiagnosticContext
from secateur.diagnostics.figures import (
    GREY,
    KEPT,
    REMOVED,
    Json,
    bars,
    figure,
    lines,
    points,
    round_numbers,
    section,
)
from secateur.methods.mip.method import group_scores
from secateur.structures.relu_mip import Chain, ReLU, balanced_images
from secateur.structures.relu_mip.interval_bounds import bounds

__all__ = ["mip_sections", "relu_states"]

STATES = {"off": "always off", "open": "undecided", "on": "always on"}
COLOURS = {"off": "var(--c10)", "open": "var(--c1)", "on": "var(--c2)"}


def mip_sections(context: DiagnosticContext) -> list[Json]:
    """Return sections on the solver, the bounds, and the scores of each group.

    Raises:
        InputError: If the plan's notes have no scores.
    """
    note = context.plan.notes.get("mip", {})
    if "scores" not in note:
        raise InputError(
            "the plan's notes have no importance scores: it was made by another method or an older version"
        )
    groups = prunable(context.plan.graph)
    scores = group_scores(groups, {name: np.array(values) for name, values in note["scores"].items()})
    sections = [_solver({key: value for key, value in note.items() if key != "scores"}), *_bounds(context)]
    for group in groups:
        dead = sum(note["dead units"].get(slot.tensor, 0) for slot in group.slots_with("out"))
        kept = context.kept_units(group)
        sections.append(_scores(group.name, scores[group.name], kept, dead, note.get("threshold")))
    return sections


def _solver(solver: Mapping[str, Any]) -> Json:
    best, proven = solver["objective"], solver["bound"]
    text = (
        f"The solver stopped with status {solver['status']!r}. Its best solution has the objective "
        f"{format_value(best)}; no solution can be below {format_value(proven)}, a gap of "
        f"{format_value(solver['gap'])}. The bounds left {solver['free binaries']} on-off decisions open."
    )
    traces = [
        points([best], ["objective"], "best solution", KEPT, size=13),
        points([proven], ["objective"], "proven bound", REMOVED, size=13, symbol="line-ns-open"),
    ]
    rows = [
        {"quantity": key, "value": value if isinstance(value, (int, float)) else str(value)}
        for key, value in solver.items()
        if not isinstance(value, (dict, list))
    ]
    drawn = figure(traces, "objective", "", yaxis={"type": "category"}, height=240)
    return section("What the solver proved", text, rows, drawn)


def _bounds(context: DiagnosticContext) -> list[Json]:
    """Return a section on what the bounds decide for the images of the first draw, if there are any."""
    method = context.method
    statistics = context.statistics() if method.parts is None else None
    images, targets = (statistics.images if statistics is not None else None) or (None, None)
    if statistics is None or images is None or targets is None:
        return []
    x = images.detach().reshape(len(images), -1).cpu().double().numpy()
    labels = targets.detach().cpu().numpy()
    generator = np.random.default_rng([statistics.seed, 0])
    chosen = balanced_images(labels, min(method.images, len(labels)), generator)
    states = relu_states(statistics.chain, x[chosen], method.bounds, method.epsilon)
    traces = [
        bars(states, [state[key] for state in states.values()], name, COLOURS[key])
        for key, name in STATES.items()
    ]
    text = (
        f"What the {method.bounds!r} bounds prove about the input of each ReLU on {len(chosen)} images: "
        "never positive (always off), never negative (always on), or undecided. Only an undecided ReLU needs "
        "an on-off decision in the program."
    )
    rows = [
        {"layer": layer, **{name: state[key] for key, name in STATES.items()}, "median width": state["width"]}
        for layer, state in states.items()
    ]
    drawn = figure(traces, "layer", "share of (image, unit)", xaxis={"type": "category"}, barmode="stack")
    return [section("What the bounds decide", text, rows, drawn)]


def relu_states(
    chain: Chain, x: NDArray[np.float64], form: Any, epsilon: float = 1e-5
) -> dict[str, dict[str, float]]:
    """Return by layer the shares of (image, unit) whose ReLU the bounds prove off or on, or leave open.

    Args:
        chain: The network.
        x: Images [images, inputs].
        form: ``"paper"``, ``"valid"`` or ``"free"``.
        epsilon: Half width of the box of the published bounds.

    Returns:
        By layer ``"off"``, ``"on"``, ``"open"``, and ``"width"``, the median width of the bounds.

    Example:
        >>> chain = Chain.dense([np.diag([1.0, -1.0]), np.ones((1, 2))], [np.zeros(2), np.zeros(1)])
        >>> relu_states(chain, np.array([[1.0, 2.0]]), "paper")["layer1"]["off"]
        0.5
    """
    box = bounds(chain, x, form, epsilon)
    by_layer: dict[str, list[tuple[Any, Any]]] = {}
    for number, step in enumerate(chain.steps):
        if isinstance(step, ReLU) and step.scored:
            by_layer.setdefault(step.name, []).append((box.lower[number], box.upper[number]))
    states = {}
    for name, pairs in by_layer.items():
        L, U = (np.concatenate(side, 1) for side in zip(*pairs, strict=True))
        off, on = U <= 0, (L >= 0) & (U > 0)
        shares = {"off": off.mean(), "on": on.mean(), "open": (~off & ~on).mean(), "width": np.median(U - L)}
        states[name] = {key: round_numbers(float(value)) for key, value in shares.items()}
    return states


def _scores(
    name: str, scores: NDArray[np.float64], kept: BoolArray, dead: int, threshold: float | None
) -> Json:
    order = np.argsort(-scores, kind="stable")
    rank = np.empty(len(scores), int)
    rank[order] = np.arange(len(scores))
    values = round_numbers(scores)
    traces = []
    for chosen, label, colour, symbol in ((kept, "kept", KEPT, "circle"), (~kept, "removed", REMOVED, "x")):
        units = np.flatnonzero(chosen).tolist()
        hover = [f"unit {u}: {values[u]:.4g}" for u in units]
        y = [values[u] for u in units]
        traces.append(points(rank[units].tolist(), y, label, colour, symbol=symbol, text=hover))
    if threshold is not None:
        traces.append(lines([0, len(scores) - 1], [threshold] * 2, "threshold", GREY, dash="dash"))
    text = (
        "A score of 1 asks for all of a unit's activity on the images, 0 for none of it. Units are sorted by "
        f"score; of units with equal scores the more active one is kept. {int((~kept).sum())} of "
        f"{len(scores)} units are removed; {dead} are active on no image."
    )
    rows = [
        {"unit": u, "score": s, "kept": k} for u, (s, k) in enumerate(zip(values, kept.tolist(), strict=True))
    ]
    drawn = figure(traces, "units by falling score", "importance score", yaxis={"range": [-0.05, 1.05]})
    return section(f"Importance scores of group {name}", text, rows, drawn, layer=name)
