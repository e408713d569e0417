"""Exchange edges of a sparse graph H so that it has a smaller condition number relative to its graph G.

The condition number is that of A = F^-1 L_H F^-T, where F F^T = L_G.  With eigenvalues a_k, its logarithm is
at most, and for large p close to, the smooth

    f = (log sum a_k^-p + log sum a_k^p) / p.

Edge e adds w_e v v^T to A, with v = F^-1 (e_i - e_j), and so changes f to first order by

    - w_e sum a_k^(-p - 1) (v x_k)^2 / sum a_k^-p  +  w_e sum a_k^(p - 1) (v x_k)^2 / sum a_k^p.

A step takes out the edges of least worth, puts in those of most worth, and stays only if f falls.  (For edges
that may be rescaled: J. Batson, D. Spielman and N. Srivastava, SIAM J. Comput. 41, 2012.)
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from secateur.structures.spectral.spectrum import dense_laplacian

__all__ = ["exchange_edges"]

POWERS = (4, 16, 64)  # p, rising: first all eigenvalues count, in the end the extreme ones
EDGES = 32  # exchanged in a step; halved when a step does not help
CONNECTED = 1e-9  # least eigenvalue relative to the largest


def exchange_edges(scores: Tensor, mask: Tensor, condition: float, solves: int = 60) -> Tensor:
    """Return a mask of as many edges whose graph has at most this condition number, if exchanges reach it.

    A graph that keeps fewer components connected than `scores` stays as it is.

    Args:
        scores: Non-negative weights [inputs, outputs].
        mask: True where the edge stays.
        condition: The condition number to reach.
        solves: Most eigenvalue problems of the size of all nodes.

    Example:
        >>> from secateur.structures.spectral import sparsifier_quality
        >>> G = torch.rand(30, 10, generator=torch.Generator().manual_seed(0))
        >>> some = torch.rand(30, 10, generator=torch.Generator().manual_seed(1)) < 0.4
        >>> better = exchange_edges(G, some, 6.0)
        >>> before, after = (sparsifier_quality(G, G * m).condition for m in (some, better))
        >>> int(better.sum()), before > 18, after <= 6
        (116, True, True)
    """
    scores = scores.double()
    if bool(mask.sum() == 0) or bool(mask[scores > 0].all()):
        return mask
    nodes = _whiten(scores)
    values, vectors = _eigenpairs(scores, mask, nodes)
    if values[0] <= CONNECTED * values[-1]:
        return mask
    for power in POWERS:
        edges, worth = EDGES, _edge_worth(scores, nodes @ vectors, values, power)
        while edges and solves and values[-1] > condition * values[0]:
            trial = _exchange(mask, worth, scores > 0, edges)
            new_values, new_vectors = _eigenpairs(scores, trial, nodes)
            solves -= 1
            if _smooth_condition(new_values, power) < _smooth_condition(values, power):
                mask, values, vectors = trial, new_values, new_vectors
                worth = _edge_worth(scores, nodes @ vectors, values, power)
            else:
                edges //= 2
    return mask


def _whiten(scores: Tensor) -> Tensor:
    """Return F^-1 e_i as the row of each node i, with one node of each component grounded at 0.

    Grounding keeps the quotients x^T L_H x / x^T L_G x, and makes L_G definite.
    """
    first, nodes = scores.shape[0], sum(scores.shape)
    rows, columns = (x.cpu().numpy() for x in torch.nonzero(scores, as_tuple=True))
    joined = coo_matrix((np.ones(len(rows)), (rows, columns + first)), shape=(nodes, nodes))
    _, labels = connected_components(joined, directed=False)
    grounded = np.unique(labels, return_index=True)[1]
    others = torch.from_numpy(np.setdiff1d(np.arange(nodes), grounded)).to(scores.device)
    laplacian = dense_laplacian(scores)[others][:, others]
    factor = torch.linalg.cholesky(laplacian)
    inverse = torch.linalg.solve_triangular(factor, torch.eye(len(others)).to(laplacian), upper=False)
    return scores.new_zeros(nodes, len(others)).index_copy_(0, others, inverse.T)


def _eigenpairs(scores: Tensor, mask: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues of A, ascending, and its eigenvectors."""
    A = nodes.T @ dense_laplacian(scores * mask) @ nodes
    return torch.linalg.eigh((A + A.T) / 2)


def _smooth_condition(values: Tensor, power: int) -> float:
    """Return f; infinite if rounding leaves an eigenvalue that is not positive."""
    if values[0] <= 0:
        return float("inf")
    logs = values.log() * power
    return float(logs.logsumexp(0) + (-logs).logsumexp(0)) / power


def _edge_worth(scores: Tensor, ends: Tensor, values: Tensor, power: int) -> Tensor:
    """Return by how much each edge lowers f, to first order.

    Args:
        scores: Weights [inputs, outputs].
        ends: Components of each node along the eigenvectors.
        values: Eigenvalues.
        power: p.
    """
    logs, worth = values.log() * power, torch.zeros_like(scores)
    for sign in (-1, 1):
        across = ends * ((sign * logs).softmax(0) / values).sqrt()
        inputs, outputs = across[: len(scores)], across[len(scores) :]
        squares = inputs.square().sum(1)[:, None] + outputs.square().sum(1) - 2 * inputs @ outputs.T
        worth -= sign * scores * squares
    return worth


def _exchange(mask: Tensor, worth: Tensor, edges: Tensor, count: int) -> Tensor:
    """Take the edges of least worth out and put those of most worth in; ties go to the lower index."""
    count = min(count, int(mask.sum()), int((edges & ~mask).sum()))
    out = worth.masked_fill(~mask, torch.inf).flatten().argsort(stable=True)[:count]
    into = (
        worth.masked_fill(mask | ~edges, -torch.inf).flatten().argsort(descending=True, stable=True)[:count]
    )
    exchanged = mask.flatten().clone()
    exchanged[out], exchanged[into] = False, True
    return exchanged.view(mask.shape)
