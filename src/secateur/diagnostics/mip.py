"""A portrait along the mixed-integer program: importance scores, bounds, and what the solver proved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from secateur.allocation import prunable
from secateur.core import InputError
from secateur.diagnostics.context import Look, short
from secateur.methods.mip.method import group_scores
from secateur.structures.relu_mip import Chain, ReLU, balanced_images
from secateur.structures.relu_mip.bounds import bounds


def mip_portrait(look: Look) -> dict[str, Any]:
    """Return the portrait.

    Returns:
        ``"structure"``, ``"solver"`` (what the plan's notes say), ``"layers"`` (by group: scores, which
        units stay, how many are dead), ``"bounds"`` (by layer: shares of the ReLUs that the bounds decide),
        on ``"images"`` images, in the ``"form"`` that the method has.

    Raises:
        InputError: The plan's notes hold no scores.
    """
    note = look.plan.notes.get("mip", {})
    if "scores" not in note:
        raise InputError(
            "the plan's notes hold no importance scores: it was not made by this version of 'mip'"
        )
    groups = prunable(look.plan.graph)
    scores = group_scores(groups, {name: np.array(values) for name, values in note["scores"].items()})
    layers = {
        g.name: {"scores": short(scores[g.name]), "stays": look.stays(g), "dead": _dead(note, g)}
        for g in groups
    }
    solver = {key: value for key, value in note.items() if key != "scores"}
    decided, images = _decided(look)
    return {
        "structure": "mip",
        "solver": solver,
        "layers": layers,
        "bounds": decided,
        "images": images,
        "form": look.method.bounds,
    }


def _dead(note: Mapping[str, Any], group: Any) -> int:
    return sum(note["dead units"].get(slot.tensor, 0) for slot in group.producers())


def _decided(look: Look) -> tuple[dict[str, Any], int]:
    """Say what the bounds decide of every scored ReLU on the images of the first draw."""
    method = look.method
    if method.parts is not None:
        return {}, 0
    statistics = look.statistics(look.needs())
    inputs, targets = statistics.images if statistics.images is not None else (None, None)
    if inputs is None or targets is None:
        return {}, 0
    x = inputs.detach().reshape(len(inputs), -1).cpu().double().numpy()
    labels = targets.detach().cpu().numpy()
    chosen = balanced_images(
        labels, min(method.images, len(labels)), np.random.default_rng([statistics.seed, 0])
    )
    return states(statistics.chain, x[chosen], method.bounds, method.epsilon), len(chosen)


def states(chain: Chain, x: Any, form: Any, epsilon: float = 1e-5) -> dict[str, Any]:
    """Return by layer the shares of (image, unit) whose ReLU the bounds find always off, on, or neither.

    Args:
        chain: The network.
        x: Images [images, inputs].
        form: ``"paper"``, ``"valid"`` or ``"free"``.
        epsilon: Half width of the published bounds' box.

    Example:
        >>> chain = Chain.dense([np.diag([1.0, -1.0]), np.ones((1, 2))], [np.zeros(2), np.zeros(1)])
        >>> states(chain, np.array([[1.0, 2.0]]), "paper")["layer1"]["off"]
        0.5
    """
    found = bounds(chain, x, form, epsilon)
    parts: dict[str, list[tuple[Any, Any]]] = {}
    for number, step in enumerate(chain.steps):
        if isinstance(step, ReLU) and step.scored:
            parts.setdefault(step.name, []).append((found.lower[number], found.upper[number]))
    told = {}
    for name, pairs in parts.items():
        L, U = (np.concatenate(side, 1) for side in zip(*pairs, strict=True))
        off, on = U <= 0, (L >= 0) & (U > 0)
        told[name] = {
            "off": short(float(off.mean())),
            "on": short(float(on.mean())),
            "open": short(float((~off & ~on).mean())),
            "width": short(float(np.median(U - L))),
        }
    return told


__all__ = ["mip_portrait", "states"]
