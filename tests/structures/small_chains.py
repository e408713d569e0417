"""Small chains with images that they classify as labelled."""

from __future__ import annotations

import itertools

import numpy as np

from secateur.structures.relu_mip import (
    Chain,
)


def tiny(seed: int, sizes: tuple[int, ...] = (3, 3, 2, 2), images: int = 1):
    """A random dense chain, with images that it classifies as labelled."""
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=(b, a)) for a, b in itertools.pairwise(sizes)]
    biases = [0.3 * rng.normal(size=b) for b in sizes[1:]]
    chain = Chain.dense(weights, biases)
    x = rng.normal(size=(images, sizes[0]))
    return chain, weights, biases, x, chain.logits(x).argmax(1)


def confident(width: int):
    """A network with large margins: units can go, and the search takes a while."""
    _, weights, biases, x, _ = tiny(0, (8, width, width, 5), 6)
    weights[-1] = 4 * weights[-1]
    chain = Chain.dense(weights, biases)
    return chain, x, chain.logits(x).argmax(1)


def active(width: int):
    """A network of which no unit is dead on the images, so that s = 1 is the only point known at first."""
    rng = np.random.default_rng(0)
    chain = Chain.dense(
        [rng.random((width, 8)), rng.random((width, width)), rng.normal(size=(5, width))],
        [np.zeros(width), np.zeros(width), np.zeros(5)],
    )
    x = rng.random((6, 8))
    return chain, x, chain.logits(x).argmax(1)
