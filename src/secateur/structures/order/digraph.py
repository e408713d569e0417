"""Digraphs of influence: the strongest edges, unrolled in time, and their profile over density.

Strengths are matrices S with S[j, i] >= 0 the strength of the influence of unit j on unit i, so that a
non-zero entry is an edge j -> i and the order reads "j comes before i".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from secateur.structures.order.poset import Poset

__all__ = ["OrderProfile", "density_profile", "strongest_edges", "unroll"]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


def strongest_edges(strength: ArrayLike, density: float) -> BoolArray:
    """Keep the strongest off-diagonal edges; ties go to the first in row order.

    Args:
        strength: [n, n], non-negative.
        density: Share of the n (n - 1) possible edges, in (0, 1].  Zero strengths never become edges.

    Returns:
        Boolean adjacency [n, n].

    Raises:
        ValueError: If the matrix is not square or holds NaN or negative values, if the density is outside
            (0, 1], or if no edge is left.
    """
    s = _check_strengths(strength).copy()
    n = len(s)
    if not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1]; got {density}")
    np.fill_diagonal(s, 0)
    count = min(round(density * n * (n - 1)), np.count_nonzero(s))
    if count == 0:
        smallest = f"1 edge needs a density of at least {1 / max(n * (n - 1), 1):.2g}"
        raise ValueError(
            f"density {density} leaves no edge among {n} vertices "
            f"({np.count_nonzero(s)} have a strength above 0); {smallest}"
        )
    kept = np.argsort(-s, axis=None, kind="stable")[:count]
    adjacency = np.zeros(n * n, np.bool_)
    adjacency[kept] = True
    return adjacency.reshape(n, n)


def unroll(adjacency: ArrayLike, steps: int = 2) -> sparse.csr_array:
    """Unroll a digraph in time: vertex (i, t) is t * n + i, with edges (j, t) -> (i, t + 1); no cycles.

    Args:
        adjacency: [n, n]; entry (j, i) not zero: an edge j -> i.  Self-loops count here.
        steps: Number of copies, at least 2.

    Returns:
        Adjacency [steps * n, steps * n].

    Raises:
        ValueError: If it is not square or steps < 2.
    """
    a = sparse.csr_array(np.asarray(adjacency) != 0)
    if a.ndim != 2 or a.shape[0] != a.shape[1]:
        raise ValueError(f"an adjacency matrix is square; got shape {a.shape}")
    if steps < 2:
        raise ValueError(f"a digraph unrolled in time needs at least 2 copies; got steps={steps}")
    return sparse.csr_array(sparse.kron(sparse.eye_array(steps, k=1, dtype=np.bool_), a, format="csr"))


@dataclass(frozen=True)
class OrderProfile:
    """The order at one density.

    Attributes:
        density: Requested share of the possible edges.
        edges: Number of edges kept.
        elements: Number of strongly connected components.
        largest: Vertices in the largest of them.
        parts: Number of weakly connected parts.
        comparable: Share of the pairs of elements that are ordered.
        irreducible: Vertices whose element is meet-irreducible.
        informative: Whether irreducibility separates the vertices: some are irreducible, some are not, and no
            component has more than half of them.
    """

    density: float
    edges: int
    elements: int
    largest: int
    parts: int
    comparable: float
    irreducible: int
    informative: bool

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)


def density_profile(strength: ArrayLike, densities: Sequence[float]) -> tuple[OrderProfile, ...]:
    """Describe the order of the strongest edges at each density; skip densities without edges.

    Raises:
        ValueError: As in `strongest_edges`, or if no density leaves an edge.
    """
    s = _check_strengths(strength)
    possible = len(s) * (len(s) - 1)
    useful = [d for d in densities if min(round(d * possible), 1)]
    if not useful:
        raise ValueError(f"none of the densities {list(densities)} leaves an edge among {len(s)} vertices")
    return tuple(_order_profile(strongest_edges(s, d), d) for d in useful)


def _order_profile(adjacency: BoolArray, density: float) -> OrderProfile:
    poset = Poset.from_digraph(adjacency)
    n, elements = len(adjacency), len(poset)
    members = np.bincount(poset.component, minlength=elements)
    irreducible = int(members[poset.meet_irreducibles()].sum())
    parts = connected_components(sparse.csr_array(adjacency), directed=True, connection="weak")[0]
    pairs = elements * (elements - 1) / 2
    ordered = int(poset.relation().sum()) - elements
    informative = 0 < irreducible < n and 2 * members.max() <= n
    return OrderProfile(
        density,
        int(adjacency.sum()),
        elements,
        int(members.max()),
        int(parts),
        ordered / max(pairs, 1),
        irreducible,
        bool(informative),
    )


def _check_strengths(strength: ArrayLike) -> FloatArray:
    s = np.asarray(strength, np.float64)
    if s.ndim != 2 or s.shape[0] != s.shape[1] or s.shape[0] == 0:
        raise ValueError(f"a strength matrix is square with at least one vertex; got shape {s.shape}")
    if np.isnan(s).any():
        raise ValueError("the strengths hold NaN: the strongest edges are undefined")
    if (s < 0).any():
        raise ValueError(f"strengths are norms and must not be negative; the smallest is {s.min():.3g}")
    return s
