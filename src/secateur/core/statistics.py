"""What a method may look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """Streamed statistics of what reaches one reading weight, over samples and positions.

    Attributes:
        count: Number of rows seen (samples times positions).
        mean: Mean of each input feature, float64 [features].
        absolute: Mean absolute value of each feature, float64 [features].
        second: Mean square of each feature, float64 [features].
        gram: Mean of x x^T, float64 [features, features] (or, where `taps` > 1, of the patches),
            or None if only the means were asked for.
        taps: Kernel positions that a Gram row spans: its features are (input feature, tap), tap
            fastest.  1 where every tap shares the statistics of its input feature.
        gram_mean: Mean of the rows behind `gram`, float64, one entry a row and column of it: where
            taps > 1, padding and stride make it differ from `mean`.
    """

    count: int
    mean: Tensor
    absolute: Tensor
    second: Tensor
    gram: Tensor | None = None
    taps: int = 1
    gram_mean: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a method may look at.  Only what it asked for (`Method.needs`) is filled in.

    Attributes:
        weights: Every parameter and buffer, detached, by its first name.
        moments: By reading weight (`PruningGraph.input_key`): its input (needs "moments", "gram").
        gradients: By parameter: summed loss gradient over the batches (needs "gradients").
        taylor: By group: sum over examples of (d loss / d gate of the unit)^2 (needs "taylor").
        flow: Called with masks by weight name (may be empty), returns |theta * dR/dtheta| of
            SynFlow's objective R for the masked network; with `neutral_bn=True` BatchNorm counts as at
            initialisation (needs "flow").
        chain: The network as an affine-ReLU chain (needs "chain").
        images: Calibration inputs and targets kept whole (needs "images").
        activations: By group: a sample of its units' activations [rows, units] (needs "activations").
        seed: Seed from which a method derives every random choice.
    """

    weights: Mapping[str, Tensor]
    moments: Mapping[str, Moments] = field(default_factory=dict)
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    taylor: Mapping[str, Tensor] = field(default_factory=dict)
    flow: Callable[..., Mapping[str, Tensor]] | None = None
    chain: Any = None
    images: tuple[Tensor, Tensor] | None = None
    activations: Mapping[str, Tensor] = field(default_factory=dict)
    seed: int = 0
