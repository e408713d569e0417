"""Directed modularity of weighted digraphs, and communities.

    Q = sum_ij (A_ij - k_i^out k_j^in / W) delta(c_i, c_j) / W,   W = sum_ij A_ij

(E. Leicht and M. Newman, Community structure in directed networks, 2008; arXiv 2502.16525, Section III-E).
Communities are found by networkx's directed Louvain method.
"""

from __future__ import annotations

import networkx as nx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from secateur.core import InputError

__all__ = ["communities", "modularity"]

IntArray = NDArray[np.int64]


def modularity(adjacency: ArrayLike, community: ArrayLike) -> float:
    """Return Q of a partition.

    Args:
        adjacency: Non-negative weights [n, n], A[i, j] from i to j.
        community: Label of each vertex [n].

    Raises:
        InputError: If the matrix is not square, holds NaN or negative weights or no weight at all, or the
            labels do not fit.

    Example:
        >>> modularity(np.kron(np.eye(2), np.ones((3, 3))), [0, 0, 0, 1, 1, 1])
        0.5
    """
    a, c = _check_weights(adjacency), np.asarray(community)
    if c.shape != (len(a),):
        raise InputError(f"{len(a)} vertices need as many community labels; got shape {c.shape}")
    labels, c = np.unique(c, return_inverse=True)
    within = a[c[:, None] == c[None]].sum()
    out, into = (np.bincount(c, a.sum(axis), len(labels)) for axis in (1, 0))
    total = a.sum()
    return float(within / total - (out @ into) / total**2)


def communities(adjacency: ArrayLike, seed: int = 0, resolution: float = 1.0) -> IntArray:
    """Find communities of high modularity (Louvain), and label each vertex [n].

    Raises:
        InputError: As in `modularity`.
    """
    a = _check_weights(adjacency)
    graph = nx.from_numpy_array(a, create_using=nx.DiGraph)
    groups = nx.community.louvain_communities(graph, weight="weight", seed=seed, resolution=resolution)
    labels = np.empty(len(a), np.int64)
    for number, members in enumerate(sorted(groups, key=min)):
        labels[sorted(members)] = number
    return labels


def _check_weights(adjacency: ArrayLike) -> NDArray[np.float64]:
    a = np.asarray(adjacency, np.float64)
    if a.ndim != 2 or a.shape[0] != a.shape[1] or a.size == 0:
        raise InputError(f"an adjacency matrix is square with at least one vertex; got shape {a.shape}")
    if not np.isfinite(a).all() or (a < 0).any():
        raise InputError("modularity needs finite, non-negative weights; take absolute values or norms")
    if a.sum() == 0:
        raise InputError("a digraph without edges has no modularity")
    return a
