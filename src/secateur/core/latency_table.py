"""The milliseconds of a network by the widths of its layers, fitted to those of the whole."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LatencyTable", "LayerTimes"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LayerTimes:
    """The milliseconds of one layer at a few widths.

    Attributes:
        weight: Name of its weight.
        axes: Axes of the weight that read inputs and that produce outputs.
        inputs: Lengths of the first axis, rising, two or more.
        outputs: Lengths of the second axis, rising, two or more.
        milliseconds: [inputs, outputs].
        measured: Whether the layer was timed; otherwise its multiply-accumulates are multiplied by a rate.

    Example:
        >>> times = LayerTimes("w", (1, 0), (0, 8), (0, 16), ((0.0, 0.0), (0.0, 4.0)))
        >>> float(times(4, 8))
        1.0
    """

    weight: str
    axes: tuple[int, int]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    milliseconds: tuple[tuple[float, ...], ...]
    measured: bool = True

    def __call__(self, inputs: Any, outputs: Any) -> Floats:
        """Return the milliseconds at these lengths of both axes, arrays by the rules of broadcasting."""
        grid = (np.array(self.inputs, float), np.array(self.outputs, float), np.array(self.milliseconds))
        return _interpolate(*grid, np.asarray(inputs, float), np.asarray(outputs, float))


def _interpolate(rows: Floats, columns: Floats, values: Floats, x: Floats, y: Floats) -> Floats:
    """Return values [..., rows, columns] at (x, y), bilinear between the knots and below them, at least 0."""
    i, s = _segment(rows, x)
    j, t = _segment(columns, y)

    def corner(a: NDArray[np.int64], b: NDArray[np.int64]) -> Floats:
        if values.ndim == 2:
            return values[a, b]
        return values[np.arange(len(values)), a, b]

    low = (1 - t) * corner(i, j) + t * corner(i, j + 1)
    high = (1 - t) * corner(i + 1, j) + t * corner(i + 1, j + 1)
    found: Floats = np.maximum((1 - s) * low + s * high, 0.0)
    return found


def _segment(knots: Floats, x: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Return between which knots x lies, and where: 0 at the left knot, 1 at the right."""
    i = (x[..., None] >= knots[..., 1:-1]).sum(-1)
    if knots.ndim == 1:
        left, right = knots[i], knots[i + 1]
    else:
        at = np.arange(len(knots))
        left, right = knots[at, i], knots[at, i + 1]
    return i, (x - left) / (right - left)


@dataclass(frozen=True, eq=False, repr=False)
class LatencyTable:
    """The milliseconds of a network as a sum over its layers: constant + scale * sum.

    Attributes:
        layers: The layers.
        constant: Milliseconds that no width changes.
        scale: Factor of the sum.
        step: Widths that the device likes are multiples of it.
        noise: How far apart the quartiles of the whole network's time lay, relative to its median.

    Example:
        >>> layer = LayerTimes("w", (1, 0), (0, 8), (0, 16), ((0.0, 0.0), (0.0, 4.0)))
        >>> table = LatencyTable((layer,), constant=1.0)
        >>> table.total(np.array([8.0]), np.array([8.0]))
        3.0
        >>> table.through(5.0, 3.0, 2.0).total(np.array([8.0]), np.array([8.0]))
        2.0
    """

    layers: tuple[LayerTimes, ...]
    constant: float = 0.0
    scale: float = 1.0
    step: int = 8
    noise: float = 0.0

    def __post_init__(self) -> None:
        """Stack the grids of all layers, so that they are interpolated together."""
        widest = max((len(k) for x in self.layers for k in (x.inputs, x.outputs)), default=2)
        rows = np.array([_padded(x.inputs, widest) for x in self.layers]).reshape(-1, widest)
        columns = np.array([_padded(x.outputs, widest) for x in self.layers]).reshape(-1, widest)
        values = [np.array(x.milliseconds, float) for x in self.layers]
        padded = [
            np.pad(v, [(0, widest - v.shape[0]), (0, widest - v.shape[1])], mode="edge") for v in values
        ]
        stacked = rows, columns, np.array(padded).reshape(-1, widest, widest)
        object.__setattr__(self, "_stacked", stacked)

    def total(self, inputs: Floats, outputs: Floats) -> float:
        """Return the milliseconds of the network; lengths of both axes of each layer's weight."""
        return float(self.constant + self.scale * self.by_layer(inputs, outputs).sum())

    def by_layer(self, inputs: Floats, outputs: Floats) -> Floats:
        """Return the milliseconds of each layer, before they are scaled."""
        rows, columns, values = vars(self)["_stacked"]
        return _interpolate(rows, columns, values, np.asarray(inputs, float), np.asarray(outputs, float))

    def through(self, whole: float, predicted: float, measured: float) -> LatencyTable:
        """Return the table corrected for another network; its prediction for the original stays the same.

        Args:
            whole: What it predicts for the original.
            predicted: What it predicts for the other network, less than `whole`.
            measured: What the other network takes.
        """
        factor = (whole - measured) / (whole - predicted)
        return replace(self, constant=whole + factor * (self.constant - whole), scale=factor * self.scale)

    def __repr__(self) -> str:
        """Summarise the table in one line."""
        return f"LatencyTable({len(self.layers)} layers, step {self.step}, {self.constant:.3g} ms constant)"


def _padded(knots: tuple[int, ...], count: int) -> list[float]:
    """Return the knots with more beyond their end; values there are those of the end."""
    return [*map(float, knots), *(float(knots[-1] + i + 1) for i in range(count - len(knots)))]
