"""A network as a chain of sparse affine maps, ReLUs and maxima, evaluated in numpy.

ElAraby, Wolf and Carvalho, "Identifying Critical Neurons in ANN Architectures using Mixed Integer
Programming" (arXiv:2002.07376), writes every layer as h = ReLU(W h + b), convolutions included.  Here
W is a sparse matrix; average pooling, batch normalisation and flattening are sparse affine maps too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

__all__ = [
    "Affine",
    "Bool",
    "Chain",
    "Float",
    "Int",
    "MaxPool",
    "ReLU",
    "Step",
    "average_matrix",
    "conv_matrix",
    "pool_windows",
]

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Affine:
    """The map h -> W h + b, W sparse [out, in], b [out]."""

    W: sparse.csr_array
    b: Float

    @property
    def width(self) -> int:
        """Number of output coordinates."""
        return int(self.W.shape[0])

    def __call__(self, h: Float) -> Float:
        """Map rows of `h` [images, in] to [images, out]."""
        return np.asarray((self.W @ h.T).T) + self.b


@dataclass(frozen=True, eq=False)
class ReLU:
    """max(a, 0), coordinate by coordinate, and the unit that each coordinate belongs to.

    With slopes it is a leaky or parametric ReLU: max(a, 0) + slope * min(a, 0).

    Attributes:
        name: Name of the layer; ReLUs of one name share their scores.
        units: Unit (neuron, or feature map) of every coordinate, [width].
        scored: Whether the units have scores; if not, they stay (s = 1).
        normalised: Whether a normalisation acts on the outputs before a layer reads them.
        slopes: Factor of negative inputs at every coordinate, [width]; None for 0.
    """

    name: str
    units: Int
    scored: bool = True
    normalised: bool = False
    slopes: Float | None = None

    def __call__(self, a: Float) -> Float:
        """Map rows of `a` [images, width]."""
        h = np.maximum(a, 0.0)
        if self.slopes is not None:
            np.multiply(a, self.slopes, out=h, where=(a < 0) & (self.slopes != 0))  # 0 * inf is NaN
        return h

    @property
    def width(self) -> int:
        """Number of coordinates."""
        return len(self.units)

    @property
    def size(self) -> int:
        """Number of units."""
        return int(self.units.max()) + 1


@dataclass(frozen=True, eq=False)
class MaxPool:
    """The maximum over windows of coordinates: `windows` [out, window], -1 for padding."""

    windows: Int

    @property
    def width(self) -> int:
        """Number of maxima."""
        return len(self.windows)

    def __call__(self, h: Float) -> Float:
        """Map rows of `h` [images, in] to [images, out]."""
        padded = np.concatenate([h, np.full((len(h), 1), -np.inf)], axis=1)
        return padded[:, self.windows].max(axis=2)


Step = Affine | ReLU | MaxPool


@dataclass(frozen=True, eq=False)
class Chain:
    """An affine-ReLU chain: `steps` applied in order to inputs of `inputs` coordinates.

    The last step is affine; its outputs are the logits.

    Raises:
        ValueError: If widths do not fit, a step is not finite, or no ReLU is scored.

    Example:
        >>> import numpy as np
        >>> W1, W2 = np.array([[1.0, -1.0], [2.0, 0.0], [-1.0, -1.0]]), np.array([[1.0, 1.0, 1.0]])
        >>> chain = Chain.dense([W1, W2], [np.zeros(3), np.zeros(1)])
        >>> chain.logits(np.array([[3.0, 1.0]]))
        array([[8.]])
        >>> chain.logits(np.array([[3.0, 1.0]]), keep={"layer1": np.array([True, False, True])})
        array([[2.]])
    """

    steps: tuple[Step, ...]
    inputs: int

    def __post_init__(self) -> None:
        """Check that the steps fit one another."""
        width = self.inputs
        for number, step in enumerate(self.steps):
            width = _check_step(number, step, width)
        if not self.steps or not isinstance(self.steps[-1], Affine):
            raise ValueError("a chain must end with the affine map that gives the logits")
        if not self.layers:
            raise ValueError("the chain has no scored ReLU: there is no neuron to score")
        for name, size in self.layers.items():
            if any(relu.size != size for relu in self.relus if relu.name == name):
                raise ValueError(f"ReLUs named {name!r} share scores but have different numbers of units")

    @staticmethod
    def dense(weights: Sequence[NDArray], biases: Sequence[NDArray], names: Sequence[str] = ()) -> Chain:
        """Build a fully connected chain from weights [out, in] and biases [out], a ReLU between each two."""
        names = names or [f"layer{k + 1}" for k in range(len(weights) - 1)]
        steps: list[Step] = []
        for k, (W, b) in enumerate(zip(weights, biases, strict=True)):
            steps.append(Affine(sparse.csr_array(np.asarray(W, float)), np.asarray(b, float)))
            if k < len(weights) - 1:
                steps.append(ReLU(names[k], np.arange(len(W))))
        return Chain(tuple(steps), int(np.shape(weights[0])[1]))

    @property
    def relus(self) -> tuple[ReLU, ...]:
        """The scored ReLUs in order."""
        return tuple(s for s in self.steps if isinstance(s, ReLU) and s.scored)

    @property
    def layers(self) -> dict[str, int]:
        """Number of units of every scored layer, by name, in order."""
        return {relu.name: relu.size for relu in self.relus}

    @property
    def classes(self) -> int:
        """Number of logits."""
        return self.steps[-1].width

    def outputs(
        self,
        x: Float,
        scores: Mapping[str, Float] | None = None,
        drops: Mapping[int, Float] | None = None,
        caps: Mapping[int, Float] | None = None,
        keep: Mapping[str, Bool] | None = None,
    ) -> list[Float]:
        """Evaluate the chain and return the output of every step, each [images, width].

        Args:
            x: Inputs [images, inputs].
            scores: Scores by layer: a ReLU gives max(a - (1 - s) D, 0) instead of max(a, 0).  Only for chains
                without slopes.
            drops: D by step number, [images, width]; needed with `scores`.
            caps: U by step number: the output of a ReLU is at most s U.
            keep: Units that stay by layer; the others give 0, as in the pruned network.
        """
        h, outputs = np.asarray(x, float), []
        for number, step in enumerate(self.steps):
            if not isinstance(step, ReLU):
                h = step(h)
            else:
                if scores is not None and step.scored:
                    h = h - (1 - scores[step.name][step.units]) * (drops or {})[number]
                h = step(h)
                if scores is not None and caps is not None and number in caps:
                    h = np.minimum(h, scores[step.name][step.units] * caps[number])
                if keep is not None and step.name in keep:
                    h = h * keep[step.name][step.units]
            outputs.append(h)
        return outputs

    def logits(self, x: Float, keep: Mapping[str, Bool] | None = None) -> Float:
        """Return the logits [images, classes], of the pruned network where `keep` is given."""
        return self.outputs(x, keep=keep)[-1]

    def fuse(self) -> Chain:
        """Return the same chain with consecutive affine maps multiplied if that saves non-zeros.

        Bounds on the fused chain are at least as tight; the mathematics is the same.
        """
        steps: list[Step] = []
        for step in self.steps:
            before = steps[-1] if steps else None
            if isinstance(step, Affine) and isinstance(before, Affine):
                W = sparse.csr_array(step.W @ before.W)
                if W.nnz <= step.W.nnz + before.W.nnz:
                    steps[-1] = Affine(W, step.W @ before.b + step.b)
                    continue
            steps.append(step)
        return Chain(tuple(steps), self.inputs)

    @property
    def nonzeros(self) -> int:
        """Non-zeros of all affine maps."""
        return sum(step.W.nnz for step in self.steps if isinstance(step, Affine))


def _check_step(number: int, step: Step, width: int) -> int:
    """Check that a step reads `width` coordinates and is finite; return its output width."""
    if isinstance(step, Affine):
        if step.W.shape[1] != width or step.b.shape != (step.W.shape[0],):
            raise ValueError(
                f"step {number}: W has shape {step.W.shape} and b {step.b.shape}, but {width} values come in"
            )
        if not (np.isfinite(step.W.data).all() and np.isfinite(step.b).all()):
            raise ValueError(f"step {number}: weights or bias hold NaN or infinity")
    elif isinstance(step, ReLU) and step.width != width:
        raise ValueError(f"step {number}: {step.name!r} names {step.width} units, but {width} values come in")
    elif isinstance(step, MaxPool) and not (
        step.windows.max() < width and (step.windows.max(axis=1) >= 0).all()
    ):
        raise ValueError(
            f"step {number}: pooling windows must hold numbers 0 to {width - 1}, each at least one of them"
        )
    return step.width


def _patches(
    shape: tuple[int, int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    size: tuple[int, int] | None = None,
) -> tuple[Int, tuple[int, int]]:
    """Return im2col indices [positions, taps] into one channel (-1 outside), and the output's size."""
    _, H, W = shape
    axes = []
    for extent, k, s, p, d, out in zip(
        (H, W), kernel, stride, padding, dilation, size or (0, 0), strict=True
    ):
        out = out or (extent + 2 * p - d * (k - 1) - 1) // s + 1
        at = s * np.arange(out)[:, None] - p + d * np.arange(k)
        axes.append(np.where((at >= 0) & (at < extent), at, -1))
    rows, cols = axes
    index = np.where(
        (rows[:, None, :, None] < 0) | (cols[None, :, None, :] < 0),
        -1,
        rows[:, None, :, None] * W + cols[None, :, None, :],
    )
    return index.reshape(len(rows) * len(cols), -1), (len(rows), len(cols))


def conv_matrix(
    weight: Float,
    shape: tuple[int, int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    size: tuple[int, int] | None = None,
) -> tuple[sparse.csr_array, tuple[int, int, int]]:
    """Return the matrix of a 2-d convolution, and the shape of its output.

    Args:
        weight: [out, in / groups, kernel height, kernel width].
        shape: Channels, height, width of the input; flattened in that order.
        stride: Steps down and across.
        padding: Zeros added on each side, down and across.
        dilation: Distance of the kernel's taps.
        groups: Groups of channels.
        size: Height and width of the output if they differ from the formula (uneven padding).

    Example:
        >>> matrix, shape = conv_matrix(np.ones((1, 1, 2, 2)), (1, 3, 3))
        >>> shape, (matrix @ np.arange(9.0)).tolist()
        ((1, 2, 2), [8.0, 12.0, 20.0, 24.0])
    """
    out, per_group, *kernel = weight.shape
    taps, (h, w) = _patches(shape, (kernel[0], kernel[1]), stride, padding, dilation, size)
    positions, area = len(taps), shape[1] * shape[2]
    # Rows are (output channel, position), columns (input channel, pixel); padded taps have no entry.
    first = np.arange(out) // (out // groups) * per_group
    channel = first[:, None] + np.arange(per_group)
    columns = channel[:, None, :, None] * area + taps[None, :, None, :]
    inside = np.broadcast_to((taps >= 0)[None, :, None, :], columns.shape)
    values = np.broadcast_to(weight.reshape(out, 1, per_group, -1), columns.shape)
    counts = np.broadcast_to((taps >= 0).sum(1) * per_group, (out, positions)).ravel()
    indptr = np.concatenate([[0], np.cumsum(counts)])
    matrix = sparse.csr_array(
        (values[inside], columns[inside], indptr), shape=(out * positions, shape[0] * area)
    )
    return matrix, (out, h, w)


def average_matrix(windows: Int, divisors: Float, width: int) -> sparse.csr_array:
    """Return the matrix of an average over `windows` [out, window] (-1: padding) of `width` values."""
    inside = windows >= 0
    values = np.broadcast_to(1 / divisors[:, None], windows.shape)[inside]
    indptr = np.concatenate([[0], np.cumsum(inside.sum(1))])
    return sparse.csr_array((values, windows[inside], indptr), shape=(len(windows), width))


def pool_windows(
    shape: tuple[int, int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    size: tuple[int, int] | None = None,
) -> tuple[Int, tuple[int, int, int]]:
    """Return the pooling windows [channels * positions, taps] of a [channels, height, width] input.

    Indices count the flattened input; -1 is padding.  `size` overrides the output's size
    (rounding up).  The second value is the shape of the output.
    """
    taps, (h, w) = _patches(shape, kernel, stride, padding, dilation, size)
    start = np.arange(shape[0])[:, None, None] * shape[1] * shape[2]
    windows = np.where(taps < 0, -1, taps + start)
    return windows.reshape(shape[0] * h * w, -1), (shape[0], h, w)
