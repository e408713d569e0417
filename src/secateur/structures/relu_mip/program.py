"""The mixed-integer program of arXiv:2002.07376: constraints (1), (2), (9), (10), objectives (4) to (6).

Columns: the scores s of all layers, one column for the sparsity term, one a image for log-sum-exp,
then whatever the images need.  The log-sum-exp is kept as data (`logits`); a solver replaces it by
cuts or by a cone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import sparse
from scipy.special import logsumexp

from secateur.structures.relu_mip.chain import Bool, Chain, Float, Int, MaxPool, ReLU
from secateur.structures.relu_mip.encode import Builder, Encoded, Place, Tighten, encode
from secateur.structures.relu_mip.interval_bounds import BoundsKind, bounds

__all__ = ["Objective", "Program", "build"]

Objective = Literal["layer_mean", "paper"]
_ZERO_WIDTH = 1e-10


@dataclass(frozen=True, eq=False)
class Program:
    """Minimise cost @ v + offset over lower <= v <= upper, row_lower <= rows @ v <= row_upper.

    The columns `integer` are binary; column `epigraph[i]` is at least the log-sum-exp of image i's
    logits, rows i * classes to (i + 1) * classes of `logits` @ v + `constant`.

    Attributes:
        lazy: Rows that may be left out until they are violated.
        layers: Columns of the scores, by layer.
        dead: By layer, units that are not active on any image.
        places: By image, the columns that hold the values of a forward pass.
        drops: D by step number, [images, width].
        caps: Valid U by step number, [images, width]; empty in the published form.
        kind: The bounds that it is made of.
    """

    chain: Chain
    x: Float
    labels: Int
    layers: Mapping[str, Int]
    cost: Float
    offset: float
    lower: Float
    upper: Float
    integer: Int
    rows: sparse.csr_array
    row_lower: Float
    row_upper: Float
    lazy: Bool
    logits: sparse.csr_array
    constant: Float
    epigraph: Int
    sparsity: int
    places: tuple[tuple[Place, ...], ...]
    drops: Mapping[int, Float]
    caps: Mapping[int, Float]
    dead: Mapping[str, Bool]
    kind: BoundsKind

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.cost)

    @property
    def score_columns(self) -> Int:
        """All score columns: the first ones."""
        return np.concatenate(list(self.layers.values()))

    def scores(self, v: Float) -> dict[str, Float]:
        """Return the scores by layer, clipped to [0, 1]."""
        return {name: np.clip(v[columns], 0, 1) for name, columns in self.layers.items()}

    def logits_of(self, v: Float) -> Float:
        """Return the logits [images, classes] at v."""
        return (self.logits @ v + self.constant).reshape(len(self.x), -1)

    def value(self, v: Float) -> float:
        """Return the true objective at v: the epigraph columns replaced by the log-sum-exp."""
        linear = self.cost.copy()
        linear[self.epigraph] = 0
        return float(
            linear @ v + self.cost[self.epigraph] @ logsumexp(self.logits_of(v), axis=1) + self.offset
        )

    def loss(self, v: Float) -> Float:
        """Return the marginal softmax loss (5) of every image at v."""
        out = self.logits_of(v)
        return logsumexp(out, axis=1) - out[np.arange(len(out)), self.labels]

    def violation(self, v: Float) -> float:
        """Return the largest violation of a row or bound by v."""
        a = self.rows @ v
        misses = [self.lower - v, v - self.upper, self.row_lower - a, a - self.row_upper]
        return max(0.0, *(float(miss.max()) for miss in misses if len(miss)))

    def complete(self, scores: Mapping[str, Float]) -> Float:
        """Return the columns that a forward pass with these scores gives; it may violate rows."""
        v = np.zeros(self.width)
        for name, columns in self.layers.items():
            v[columns] = scores[name]
        outputs = self.chain.outputs(self.x, scores, self.drops, self.caps)
        for image, places in enumerate(self.places):
            for place in places:
                before = outputs[place.step - 1][image] if place.step else self.x[image]
                v[place.columns] = self._column_values(
                    place, image, before, outputs[place.step][image], scores
                )
        first = len(self.layers)  # the rows of the sparsity term come first, one a layer
        a = self.rows[:first] @ v
        v[self.sparsity] = (self.row_lower[:first] - a).max()
        v[self.epigraph] = logsumexp(self.logits_of(v), axis=1)
        return v

    def _column_values(
        self, place: Place, image: int, before: Float, after: Float, scores: Mapping[str, Float]
    ) -> Float | Bool:
        """Return the values of a place's columns, given the input and the output of its step."""
        step = self.chain.steps[place.step]
        if place.kind == "input":
            return before[place.index]
        if place.kind == "active":
            return after[place.index] > 0
        if isinstance(step, MaxPool) and place.kind == "winner":
            window, item = place.index.T
            winner = np.full(len(step.windows), -1)
            # Reversed, so that the first of equal candidates is written last and wins.
            hits = np.flatnonzero(before[item] >= after[window])[::-1]
            winner[window[hits]] = item[hits]
            return winner[window] == item
        return after[place.index]

    def activity(self) -> dict[str, Float]:
        """Return the mean output of every unit over places and images at s = 1."""
        means = {name: np.zeros(len(columns)) for name, columns in self.layers.items()}
        for step, h in zip(self.chain.steps, self.chain.outputs(self.x), strict=True):
            if isinstance(step, ReLU) and step.scored:
                places = np.bincount(step.units, minlength=step.size)
                means[step.name] += np.bincount(step.units, h.mean(0), minlength=step.size) / places
        return means


def build(
    chain: Chain,
    x: Float,
    labels: Int,
    *,
    lam: float = 5.0,
    epsilon: float = 1e-5,
    kind: BoundsKind = "paper",
    objective: Objective = "layer_mean",
    rescale: float = 2.0,
    memory: float = 4e9,
    tighten: Tighten | None = None,
    seconds: float = np.inf,
) -> Program:
    """Build the program.

    Args:
        chain: The network.
        x: Images [images, inputs].
        labels: Their classes [images].
        lam: Weight lambda of the softmax term.
        epsilon: Half width of the published bounds' box.
        kind: ``"paper"``, ``"valid"`` or ``"free"``; see `importance_scores`.
        objective: ``"paper"``: equation (4) literally, softmax summed over the images.  ``"layer_mean"``:
            layer means, softmax averaged, as the authors' programs have it.
        rescale: c in s - c: 2 as published, 1 and 0 are the others of Table 4.
        memory: Limit on the program's size in bytes; the error states the estimate.
        tighten: Improves the valid bounds before each ReLU; see `relu_mip.tighten`.
        seconds: Time limit, checked after every image.

    Raises:
        ValueError: If an argument is invalid, or if the program exceeds the memory limit.
        TimeoutError: If building it takes longer than `seconds`.
    """
    x, labels = check_images(chain, x, labels)
    if not (np.isfinite(lam) and lam >= 0):
        raise ValueError(f"lam must be finite and 0 or more; got {lam!r}")
    if objective not in ("paper", "layer_mean"):
        raise ValueError(f"objective must be 'layer_mean' or 'paper'; got {objective!r}")
    bounds(chain, x, kind, epsilon)
    builder, layers = Builder(tighten=tighten), {}
    for name, size in chain.layers.items():
        layers[name] = builder.columns(np.zeros(size), np.ones(size))
    sparsity = int(builder.columns(np.array([-np.inf]), np.array([np.inf]))[0])
    epigraph = builder.columns(np.full(len(x), -np.inf), np.full(len(x), np.inf))
    _sparsity_rows(builder, layers, sparsity, objective, rescale)
    images: list[Encoded] = []
    began = time.monotonic()
    for image in x:
        images.append(encode(builder, chain, image, layers, kind, epsilon))
        _check_memory(builder, len(images), len(x), memory)
        _check_time(time.monotonic() - began, len(images), len(x), seconds)
    weight = lam if objective == "paper" else lam / len(x)
    return _assemble_program(builder, chain, x, labels, layers, sparsity, epigraph, images, weight, kind)


def check_images(chain: Chain, x: Float, labels: Int) -> tuple[Float, Int]:
    """Return images and labels as arrays, or raise a `ValueError` that explains the problem."""
    x, labels = np.asarray(x, float), np.asarray(labels)
    if x.ndim != 2 or x.shape[1] != chain.inputs or not len(x):
        raise ValueError(f"images must be [images, {chain.inputs}], at least one; got {list(x.shape)}")
    if not np.isfinite(x).all():
        raise ValueError("images hold NaN or infinity")
    if labels.shape != (len(x),) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be {len(x)} integers; got shape {labels.shape}, {labels.dtype}")
    if labels.min() < 0 or labels.max() >= chain.classes:
        wrong = labels[(labels < 0) | (labels >= chain.classes)][0]
        raise ValueError(f"label {wrong} is out of range: the network has logits 0 to {chain.classes - 1}")
    return x, labels.astype(np.int64)


def _sparsity_rows(
    builder: Builder, layers: Mapping[str, Int], column: int, objective: Objective, rescale: float
) -> None:
    """Add equation (4): the column is at least the sum over every choice of n - 1 layers (one: itself)."""
    total = sum(len(c) for c in layers.values())
    names = list(layers)
    for left_out in names if len(names) > 1 else [None]:
        parts = [layers[name] for name in names if name != left_out]
        weights = [1 / (total if objective == "paper" else len(c)) for c in parts]
        E = np.zeros((1, builder.width))
        E[0, column] = 1
        for c, w in zip(parts, weights, strict=True):
            E[0, c] = -w
        least = -rescale * sum(w * len(c) for c, w in zip(parts, weights, strict=True))
        builder.rows(sparse.csr_array(E), np.array([least]), np.array([np.inf]))


def _check_memory(builder: Builder, done: int, images: int, cap: float) -> None:
    """Raise if the estimated size exceeds the cap: 12 bytes a non-zero, three copies."""
    estimate = 36.0 * builder.nonzeros / done * images
    if estimate > cap:
        raise ValueError(
            f"the program would need about {estimate / 1e9:.1f} GB for {images} images "
            f"({builder.nonzeros / done:.2g} non-zeros an image), more than memory={cap / 1e9:.1f} GB; "
            "use fewer images, class by class, or layer by layer with auxiliary networks"
        )


def _check_time(spent: float, done: int, images: int, limit: float) -> None:
    """Raise if building the program would exceed the time limit."""
    if spent / done * images > limit:
        raise TimeoutError(
            f"building the program takes about {spent / done * images:.3g} s for {images} images, more "
            f"than the {limit:.3g} s left; give more time, fewer images, or go layer by layer"
        )


def _assemble_program(
    builder: Builder,
    chain: Chain,
    x: Float,
    labels: Int,
    layers: Mapping[str, Int],
    sparsity: int,
    epigraph: Int,
    images: list[Encoded],
    weight: float,
    kind: BoundsKind,
) -> Program:
    """Stack the blocks of rows and of images."""
    scores = np.concatenate(list(layers.values()))
    rows, low, high, lazy, lower, upper = _stack_rows(builder, scores)
    logits = _stack_blocks([image.E for image in images], builder.width)
    constant = np.concatenate([image.d for image in images])
    cost = np.zeros(builder.width)
    cost[sparsity], cost[epigraph] = 1, weight
    # Loss (5) = log-sum-exp - logit of the label; the logit is affine in v and goes into the cost.
    chosen = np.arange(len(x)) * chain.classes + labels
    cost -= weight * np.asarray(logits[chosen].sum(axis=0)).ravel()
    offset = -weight * float(constant[chosen].sum())
    integer = np.concatenate(builder.integer) if builder.integer else np.zeros(0, np.int64)
    return Program(
        chain,
        x,
        labels,
        layers,
        cost,
        offset,
        lower,
        upper,
        integer,
        rows,
        low,
        high,
        lazy,
        logits,
        constant,
        epigraph,
        sparsity,
        tuple(image.places for image in images),
        _stack_steps([image.drops for image in images]),
        _stack_steps([image.caps for image in images]),
        _dead_units(chain, x),
        kind,
    )


def _stack_rows(builder: Builder, scores: Int) -> tuple[sparse.csr_array, Float, Float, Bool, Float, Float]:
    """Stack the rows; those of one column become bounds, empty ones are dropped.

    Returns:
        The rows, their ends, which of them are lazy, and the bounds of the columns.
    """
    rows = _stack_blocks([block[0] for block in builder.blocks], builder.width)
    low, high = (np.concatenate([block[k] for block in builder.blocks]) for k in (1, 2))
    lazy = np.concatenate([np.full(block[0].shape[0], block[3]) for block in builder.blocks])
    lower, upper = builder.box()
    keep = _move_singletons_to_bounds(rows, low, high, lazy, lower, upper)
    # s = 1 is feasible; rounding must not exclude it.
    lower[scores], upper[scores] = np.clip(lower[scores], 0, 1), 1.0
    rows, low, high, lazy = rows[keep], low[keep], high[keep], lazy[keep]
    # Rows whose ends coincide up to rounding become equations.
    flat = high - low <= _ZERO_WIDTH
    low[flat] = high[flat] = (low[flat] + high[flat]) / 2
    return rows, low, high, lazy, lower, upper


def _move_singletons_to_bounds(
    rows: sparse.csr_array, low: Float, high: Float, lazy: Bool, lower: Float, upper: Float
) -> Bool:
    """Turn lazy rows of one column into bounds (in place); return which rows stay."""
    counts = np.diff(rows.indptr)
    one = np.flatnonzero((counts == 1) & lazy)
    column, factor = rows.indices[rows.indptr[one]], rows.data[rows.indptr[one]]
    # A negative factor swaps the ends.
    ends = np.stack([low[one] / factor, high[one] / factor])
    np.maximum.at(lower, column, ends.min(0))
    np.minimum.at(upper, column, ends.max(0))
    keep = counts > 0
    keep[one] = False
    return keep


def _stack_blocks(blocks: list[sparse.csr_array], width: int) -> sparse.csr_array:
    """Stack sparse blocks, each widened to `width` columns."""
    wide = [sparse.csr_array((E.data, E.indices, E.indptr), shape=(E.shape[0], width)) for E in blocks]
    return sparse.csr_array(sparse.vstack(wide, format="csr"))


def _stack_steps(images: list[dict[int, Float]]) -> dict[int, Float]:
    """Stack the images' values of every step."""
    return {number: np.stack([image[number] for image in images]) for number in images[0]}


def _dead_units(chain: Chain, x: Float) -> dict[str, Bool]:
    """Return by layer the units whose ReLU gives 0 at every place of every image."""
    dead = {name: np.ones(size, bool) for name, size in chain.layers.items()}
    for step, h in zip(chain.steps, chain.outputs(x), strict=True):
        if isinstance(step, ReLU) and step.scored:
            dead[step.name][np.unique(step.units[(h > 0).any(0)])] = False
    return dead
