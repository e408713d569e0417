"""Connectivity of layer graphs, and of a subgraph compared with its graph.

lambda_2 of the normalised Laplacian bounds the conductance Phi of a graph from both sides,
lambda_2 / 2 <= Phi <= sqrt(2 lambda_2) (N. Alon, Combinatorica 6, 1986).  For a bipartite graph it is
1 - sigma_2(D1^-1/2 S D2^-1/2), an eigenvalue problem of the smaller side.  It describes one component only:
read it together with that component's share of the nodes, the number of components and the dead units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.structures.spectral.graph import bipartite, checked_scores
from secateur.structures.spectral.schur import full_precision, gram

__all__ = ["Connectivity", "Quality", "connectivity", "dense_laplacian", "sparsifier_quality"]

_LARGEST = 8192


@dataclass(frozen=True)
class Connectivity:
    """Connectivity of a layer's graph.

    Attributes:
        lambda2: Second eigenvalue of the normalised Laplacian of the largest component.
        share: That component's share of all nodes, dead units included.
        components: Number of components with at least one edge.
        dead_inputs: Rows without an edge.
        dead_outputs: Columns without an edge.
        edges: Number of edges.
    """

    lambda2: float
    share: float
    components: int
    dead_inputs: int
    dead_outputs: int
    edges: int

    @property
    def conductance(self) -> tuple[float, float]:
        """Cheeger's bounds on the conductance of the largest component."""
        return self.lambda2 / 2, min(1.0, math.sqrt(2 * self.lambda2))


def connectivity(scores: Tensor) -> Connectivity:
    """Measure the connectivity of one bipartite graph [inputs, outputs], in float64.

    A graph without an edge has no component: lambda2 and share are 0.

    Raises:
        ValueError: If the scores are not a matrix of non-negative weights.

    Example:
        >>> result = connectivity(torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
        >>> round(result.lambda2, 6), round(result.share, 2), result.components, result.dead_inputs
        (1.0, 0.67, 1, 1)
    """
    if scores.dim() != 2:
        raise ValueError(f"connectivity needs one graph [inputs, outputs]; got shape {tuple(scores.shape)}")
    if not bool(scores.any()):
        return Connectivity(0.0, 0.0, 0, scores.shape[0], scores.shape[1], 0)
    scores = checked_scores(scores)
    graph = bipartite(scores)
    S = _largest_component(graph.S, graph.label1, graph.label2)
    dead = int((scores.sum(1) == 0).sum()), int((scores.sum(0) == 0).sum())
    share = sum(S.shape) / sum(scores.shape)
    edges = int(torch.count_nonzero(scores))
    return Connectivity(_lambda2(S.double()), share, graph.components, *dead, edges)


def _largest_component(S: Tensor, label1: Tensor | None, label2: Tensor | None) -> Tensor:
    if label1 is None or label2 is None:
        return S
    largest = torch.cat([label1, label2]).bincount().argmax()
    S = S[label1 == largest][:, label2 == largest]
    return S if S.shape[0] >= S.shape[1] else S.T


def _lambda2(S: Tensor) -> float:
    """Return 1 - sigma_2 = mu / (1 + sqrt(1 - mu)), mu = 1 - sigma_2^2; of a star, sigma_2 = 0."""
    if S.shape[1] == 1:
        return 1.0
    d1, d2 = S.sum(1), S.sum(0)
    with full_precision():
        H = gram(S, d1).fill_diagonal_(0)
    r = d2.rsqrt()
    L = torch.diag(H.sum(1) / d2) - H * r[:, None] * r[None, :]
    mu = min(1.0, max(0.0, float(torch.linalg.eigvalsh(L)[1])))
    return mu / (1 + math.sqrt(1 - mu))


@dataclass(frozen=True)
class Quality:
    """Extreme values of x^T L_H x / x^T L_G x over x outside the kernel of L_G.

    Attributes:
        low: The smallest; 0 if H has more components than G.
        high: The largest.
    """

    low: float
    high: float

    @property
    def epsilon(self) -> float:
        """The true epsilon of Definition 2.2: (1 - epsilon) L_G <= L_H <= (1 + epsilon) L_G."""
        return max(1 - self.low, self.high - 1)

    @property
    def condition(self) -> float:
        """Condition number of the pencil, the same for every multiple of H; infinite if H disconnects G."""
        return self.high / self.low if self.low > 1e-9 * self.high else math.inf


def sparsifier_quality(G: Tensor, H: Tensor) -> Quality:
    """Measure how well the graph H approximates G, both [inputs, outputs] weights on the same nodes.

    Works in float64 on the dense Laplacian of all nodes (8,192 at most).

    Raises:
        ValueError: If the shapes differ, H has an edge between components of G, or there are too many nodes.

    Example:
        >>> G = torch.ones(4, 3)
        >>> round(sparsifier_quality(G, 0.5 * G).epsilon, 6)
        0.5
    """
    G = checked_scores(G)
    if G.shape != H.shape or G.dim() != 2:
        raise ValueError(
            f"G and H must be graphs on the same nodes; got {tuple(G.shape)} and {tuple(H.shape)}"
        )
    if sum(G.shape) > _LARGEST:
        raise ValueError(f"{sum(G.shape)} nodes are too many for the dense eigenproblem; at most {_LARGEST}")
    graph = bipartite(G)
    rows = slice(None) if graph.rows is None else graph.rows
    cols = slice(None) if graph.cols is None else graph.cols
    part = H[rows][:, cols].double() / graph.unit
    part = part.T if graph.flipped else part
    separate = None if graph.label1 is None or graph.label2 is None else graph.label1[:, None] != graph.label2
    crossing = separate is not None and bool((part * separate).any())
    if (
        crossing
        or bool((H < 0).any())
        or not math.isclose(float(H.sum()), float(part.sum()) * graph.unit, rel_tol=1e-5)
    ):
        raise ValueError("H must have non-negative weights and no edge where G has no connection")
    labels = torch.zeros(graph.nodes, dtype=torch.long, device=G.device)
    if graph.label1 is not None and graph.label2 is not None:
        labels = torch.cat([graph.label1, graph.label2])
    return _extreme_quotients(dense_laplacian(graph.S.double()), dense_laplacian(part), labels)


def dense_laplacian(S: Tensor) -> Tensor:
    """Return the Laplacian [nodes, nodes] of the graph S [inputs, outputs], rows before columns."""
    n1, n2 = S.shape
    L = S.new_zeros(n1 + n2, n1 + n2)
    L[:n1, n1:], L[n1:, :n1] = -S, -S.T
    L.diagonal().copy_(torch.cat([S.sum(1), S.sum(0)]))
    return L


def _extreme_quotients(LG: Tensor, LH: Tensor, labels: Tensor) -> Quality:
    """Ground one node of each component: the quotients stay, and L_G becomes definite."""
    seen, keep = set(), []  # all nodes but the first of each component
    for node, label in enumerate(labels.tolist()):
        if label in seen:
            keep.append(node)
        seen.add(label)
    index = torch.tensor(keep, device=LG.device)
    factor = torch.linalg.cholesky(LG[index][:, index])
    half = torch.linalg.solve_triangular(factor, LH[index][:, index], upper=False)
    whole = torch.linalg.solve_triangular(factor, half.T, upper=False)
    values = torch.linalg.eigvalsh((whole + whole.T) / 2)
    return Quality(max(0.0, float(values[0])), float(values[-1]))
