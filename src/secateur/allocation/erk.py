"""The Erdos-Renyi-kernel rule: small and thin layers keep more.

Evci, Gale, Menick, Castro and Elsen, "Rigging the Lottery: Making All Tickets Winners" (ICML 2020,
arXiv:1911.11134): the density of a layer is eps * (sum of its weight's dimensions) / (their product),
and no more than 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from secateur.core import Group, PruningGraph

__all__ = ["erk_densities", "fill", "unit_factors"]


def erk_densities(
    dims: Mapping[str, Sequence[int]], density: float, sizes: Mapping[str, int] | None = None, floor: int = 0
) -> dict[str, float]:
    """Spread a density over layers by the Erdos-Renyi-kernel rule, dense layers saturating at 1.

    Args:
        dims: Layer name -> dimensions of its weight.
        density: Share of all entries that stay.
        sizes: Entries of each layer; their product of dimensions by default.
        floor: Least number of entries a layer keeps.

    Returns:
        Layer name -> share that stays, eps * sum(dims) / prod(dims) between floor / size and 1, with
        the eps for which the total is `density`.

    Example:
        >>> shares = erk_densities({"a": (100, 100), "b": (10, 10)}, 0.2)
        >>> {name: round(share, 4) for name, share in shares.items()}
        {'a': 0.192, 'b': 1.0}
    """
    n = np.array([sizes[k] if sizes else np.prod(d) for k, d in dims.items()], dtype=float)
    raw = np.array([_erdos_renyi(d) for d in dims.values()])
    filled = fill(raw * n, np.minimum(floor, n), n, density * n.sum())
    return dict(zip(dims, (filled / n).tolist(), strict=True))


def _erdos_renyi(dims: Sequence[int]) -> float:
    return sum(dims) / float(np.prod(dims, dtype=float))


def fill(slope: np.ndarray, low: np.ndarray, high: np.ndarray, total: float) -> np.ndarray:
    """Return clip(eps * slope, low, high) for the eps at which it sums to `total`.

    The sum rises with eps, linearly between the points where an entry leaves `low` or reaches `high`:
    so eps is interpolated between the two points that enclose the total.
    """
    knots = np.unique(np.concatenate([[0.0], low / slope, high / slope]))
    sums = np.array([np.clip(eps * slope, low, high).sum() for eps in knots])
    eps = np.interp(total, sums, knots)
    return np.clip(eps * slope, low, high)


def unit_factors(graph: PruningGraph, sets: Sequence[Sequence[Group]]) -> np.ndarray:
    """Return the Erdos-Renyi-kernel factor of each set of groups, over the matrices that produce units."""
    factors = []
    for groups in sets:
        tensors = dict.fromkeys(s.tensor for g in groups for s in g.slots_with("out") or g.slots)
        dims = [graph.shapes[t] for t in tensors if len(graph.shapes[t]) > 1]
        entries = sum(float(np.prod(d)) for d in dims)
        factors.append(sum(map(sum, dims)) / entries if dims else 1.0)
    return np.array(factors)
