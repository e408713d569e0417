"""Top-down feedback between the lattices of two layers (arXiv 2502.16525, Definition III.4).

The paper assumes an operator T(x, a) that refines an element a of the lower layer's lattice by an element x
of the upper one's, and that keeps meets and joins in a; it derives T from no network.  Here an element of a
lattice is a lower cut of its layer's poset.  The units of x act on the units that they feed back to; F(x) is
the smallest cut of the lower layer that holds these, and T(x, a) = F(x) ^ a: what of a the feedback touches.
T keeps meets always, and joins exactly if F(x) ^ (a v b) = (F(x) ^ a) v (F(x) ^ b): always in distributive
lattices.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.structures.order import bitset
from secateur.structures.order.completion import Completion

__all__ = ["feedback_operator"]


def feedback_operator(upper: Completion, lower: Completion, feedback: Any) -> NDArray[np.int64]:
    """Derive T from the feedback connections of a network.

    Args:
        upper: The lattice of the upper layer.
        lower: The lattice of the lower layer.
        feedback: [upper units, lower units], not zero where an upper unit acts on a lower one; units are the
            vertices of the digraphs of both posets.

    Returns:
        Element T(x, a) of the lower lattice, [upper elements, lower elements].

    Raises:
        ValueError: If the feedback has another shape.

    Example:
        >>> from secateur.structures.order import Poset
        >>> chain = Poset.from_digraph([[0, 1], [0, 0]]).completion()
        >>> feedback_operator(chain, chain, [[1, 0], [0, 0]]).tolist()  # feedback onto unit 0 only
        [[0, 0], [0, 0]]
    """
    acts = np.asarray(feedback) != 0
    shape = (len(upper.poset.component), len(lower.poset.component))
    if acts.shape != shape:
        raise ValueError(f"feedback must be [upper units, lower units], {shape}; got {acts.shape}")
    between = np.zeros((len(upper.poset), len(lower.poset)), np.bool_)
    starts, ends = np.nonzero(acts)
    between[upper.poset.component[starts], lower.poset.component[ends]] = True
    inside = bitset.unpack(upper.bits, len(upper.poset))
    cuts = bitset.unpack(lower.bits, len(lower.poset))
    touched = inside.astype(np.int64) @ between > 0
    # F(x): the intersection of all cuts that hold what x touches; the whole layer is one of them.
    holds = np.invert((touched[:, None, :] & ~cuts[None]).any(2))
    smallest = [np.logical_and.reduce(cuts[row], axis=0) for row in holds]
    number = {cut.tobytes(): i for i, cut in enumerate(cuts)}
    return np.array([[number[(f & cut).tobytes()] for cut in cuts] for f in smallest], np.int64)
