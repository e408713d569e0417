"""Bounds on the input of every ReLU: equation (3) of arXiv:2002.07376, and bounds that stay valid.

The published bounds are those of the *unpruned* network on the box x +- epsilon (with bias, and
with h >= 0, which the equation as printed lacks).  Once a score falls below 1 they are no longer
bounds but constraints.  The valid ones hold for x itself and every s in [0, 1];
the form ``"free"`` has the same bounds and differs in the program.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import sparse

from secateur.structures.relu_mip.chain import Affine, Chain, Float, MaxPool, ReLU, Step

__all__ = ["Bounds", "BoundsKind", "affine_bounds", "bounds", "drops_for", "relu_bounds", "step_bounds"]

BoundsKind = Literal["paper", "valid", "free"]


@dataclass(frozen=True, eq=False)
class Bounds:
    """Bounds on the input of every step and on the logits.

    Attributes:
        lower: One array [images, width] for the input of each step; the last one is for the logits.
        upper: The same for upper bounds.
        drops: D by step number of the scored ReLUs, [images, width]: what s = 0 subtracts.
    """

    lower: tuple[Float, ...]
    upper: tuple[Float, ...]
    drops: dict[int, Float]

    def __post_init__(self) -> None:
        """Refuse bounds that are not finite or cross."""
        for number, (L, U) in enumerate(zip(self.lower, self.upper, strict=True)):
            if not (np.isfinite(L).all() and np.isfinite(U).all()):
                raise ValueError(f"bounds before step {number} are not finite: inputs or weights overflow")
            if (L > U).any():
                raise ValueError(f"bounds before step {number} cross: L > U at {int((L > U).sum())} places")


def affine_bounds(step: Affine, L: Float, U: Float) -> tuple[Float, Float]:
    """Return bounds after an affine map by interval arithmetic: equations (3c) and (3d), with the bias."""
    size = abs(step.W)
    centre, radius = step((L + U) / 2), np.asarray((size @ ((U - L) / 2).T).T)
    return centre - radius, centre + radius


def relu_bounds(L: Float, U: Float, D: Float | None) -> tuple[Float, Float]:
    """Return bounds of max(a - (1 - s) D, 0) over a in [L, U] and, where D is given, s in [0, 1]."""
    return np.maximum(L - D if D is not None else L, 0), np.maximum(U, 0)


def step_bounds(step: Step, L: Float, U: Float, D: Float | None = None) -> tuple[Float, Float]:
    """Return bounds of a step's output from bounds of its input."""
    if isinstance(step, Affine):
        return affine_bounds(step, L, U)
    if isinstance(step, MaxPool):
        return step(L), step(U)
    if step.slopes is not None:
        return _leaky_bounds(step, L, U)
    return relu_bounds(L, U, D)


def _leaky_bounds(step: ReLU, L: Float, U: Float) -> tuple[Float, Float]:
    """Return the extremes over [L, U]: at an end, or at the kink if it lies inside."""
    ends, kink = (step(L), step(U)), np.where((L < 0) & (U > 0), 0.0, step(L))
    return np.minimum.reduce([*ends, kink]), np.maximum.reduce([*ends, kink])


def drops_for(step: ReLU, kind: BoundsKind, nominal: Float, U: Float) -> Float:
    """Return D of a scored ReLU: max(U, 0) as published, the nominal activation in the valid form."""
    return np.maximum(U if kind == "paper" else nominal, 0)


def bounds(chain: Chain, x: Float, kind: BoundsKind = "paper", epsilon: float = 1e-5) -> Bounds:
    """Propagate bounds through the chain.

    Args:
        chain: The network.
        x: Inputs [images, inputs].
        kind: ``"paper"``: of the unpruned network over x +- epsilon; ``"valid"`` and ``"free"``: at x, over
            all scores.
        epsilon: Half the width of the published bounds' box; the valid bounds do not use it.

    Raises:
        ValueError: If an argument is invalid, or a ReLU has slopes: scores are defined for ReLUs.

    Example:
        >>> chain = Chain.dense([np.eye(2), np.array([[1.0, -1.0]])], [np.zeros(2), np.zeros(1)])
        >>> result = bounds(chain, np.array([[1.0, 2.0]]), "valid")
        >>> result.lower[-1], result.upper[-1]
        (array([[-2.]]), array([[1.]]))
        >>> bounds(chain, np.array([[1.0, 2.0]]), "paper", epsilon=0).lower[-1]
        array([[-1.]])
    """
    if kind not in ("paper", "valid", "free"):
        raise ValueError(f"bounds must be 'paper', 'valid' or 'free'; got {kind!r}")
    if not epsilon >= 0:
        raise ValueError(f"epsilon must be 0 or more; got {epsilon!r}")
    if leaky := [step.name for step in chain.steps if isinstance(step, ReLU) and step.slopes is not None]:
        raise ValueError(
            f"importance scores are defined for ReLUs; {leaky[0]!r} has a slope below 0 (LeakyReLU, PReLU)"
        )
    half = epsilon if kind == "paper" else 0.0
    outputs = chain.outputs(x)
    lower, upper, drops = [x - half], [x + half], {}
    for number, step in enumerate(chain.steps):
        D = None
        if isinstance(step, ReLU) and step.scored:
            before = outputs[number - 1] if number else x
            drops[number] = drops_for(step, kind, before, upper[-1])
            D = drops[number] if kind != "paper" else None
        L, U = step_bounds(step, lower[-1], upper[-1], D)
        lower.append(L)
        upper.append(U)
    return Bounds(tuple(lower), tuple(upper), drops)


def expression_bounds(E: sparse.csr_array, d: Float, lower: Float, upper: Float) -> tuple[Float, Float]:
    """Return bounds of E v + d over the box lower <= v <= upper; unbounded columns must not occur in E."""
    rising, falling = E.maximum(0), E.minimum(0)
    low, high = np.where(np.isfinite(lower), lower, 0), np.where(np.isfinite(upper), upper, 0)
    return rising @ low + falling @ high + d, rising @ high + falling @ low + d
