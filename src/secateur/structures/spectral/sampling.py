"""Sparsify a layer's graph by the leverage of its edges.

S. Laenen, arXiv:2306.08849, Algorithm 1 (after Spielman and Srivastava 2011) keeps the edge e with
probability p_e = min(1, 5 ln n l_e / eps^2) and weight w_e / p_e.  Its experiments replace 1 / eps^2 by an
unbounded parameter, also written eps; here `epsilon` is that parameter: p_e = min(1, 5 ln n l_e
epsilon), so that the eps of Theorem 2.3 is epsilon^-1/2.  n counts the nodes of the layer's graph.

For a given count, epsilon is solved for the expected number of edges: sum_e min(1, epsilon t_e) is
concave and piecewise linear in epsilon, so that epsilon <- (count - saturated) / sum of the unsaturated t
ends after as many steps as there are changes of the saturated set.  Systematic sampling (W. G. Madow, Ann.
Math. Statist. 20, 1949) along a random permutation then has exactly these probabilities and this count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import minimum_spanning_tree
from torch import Tensor

from secateur.structures.spectral.exchange import exchange_edges
from secateur.structures.spectral.graph import checked_scores
from secateur.structures.spectral.resistance import effective_resistance, leverage

__all__ = ["Mode", "Sparsifier", "epsilon_for_count", "inclusion", "sparsify"]

Mode = Literal["systematic", "paper", "reweighted", "coverage"]
# Most nodes of a graph whose edges are exchanged: an eigenvalue problem of it takes under a second.
EXCHANGED = 1024
CONDITION = 5.0  # at which exchanges end


@dataclass(frozen=True, eq=False)
class Sparsifier:
    """The edges that stay.

    Attributes:
        mask: True where the edge stays, in the shape of the scores.
        probability: p_e of every edge (float64); 1 or 0 where the choice was deterministic.  With mode
            "paper" and a count, the top-up adds a little to it.
        scale: Factor for the kept weights: 1 / p_e with mode "reweighted", else 1.
        epsilon: The parameter of the probabilities; NaN with mode "coverage", which has none.
    """

    mask: Tensor
    probability: Tensor
    scale: Tensor
    epsilon: float

    def reweight(self, scores: Tensor) -> Tensor:
        """Return the weights w_e / p_e of the kept edges: the graph H of Algorithm 1."""
        return torch.where(self.mask, scores / self.probability.clamp_min(1e-300), 0.0).to(scores.dtype)


def inclusion(leverages: Tensor, nodes: int, epsilon: float) -> Tensor:
    """Return p_e = min(1, 5 ln n l_e epsilon) in float64."""
    return (leverages.double() * (5 * math.log(nodes) * epsilon)).clamp_(max=1)


def epsilon_for_count(leverages: Sequence[Tensor], nodes: Sequence[int], count: float) -> float:
    """Find the one epsilon at which the graphs together keep `count` edges on average.

    Args:
        leverages: Leverages of the edges of each graph, 0 off the edges.
        nodes: Number of nodes n of each graph.
        count: Expected number of edges, at most the number of edges.

    Example:
        >>> round(epsilon_for_count([torch.full((4,), 0.5)], [4], 2) * 5 * math.log(4) * 0.5, 6)
        0.5
    """
    t = torch.cat([x.flatten().double() * (5 * math.log(n)) for x, n in zip(leverages, nodes, strict=True)])
    edges = int(torch.count_nonzero(t))
    if not 0 < count <= edges:
        raise ValueError(f"cannot keep {count} edges: the graphs have {edges} edges of positive leverage")
    if count == edges:
        return 1 / float(t[t > 0].min())
    remaining = float(count)
    # Saturated edges take one each; the others share what remains.  See the module's head.
    while True:
        epsilon = remaining / float(t.sum())
        saturated = t * epsilon >= 1
        number = int(saturated.sum())
        if number == 0:
            return epsilon
        t, remaining = t[~saturated], remaining - number
        if remaining <= 0:
            return epsilon


def sparsify(
    scores: Tensor,
    count: int | None = None,
    *,
    epsilon: float | None = None,
    mode: Mode = "systematic",
    generator: torch.Generator | None = None,
    leverages: Tensor | None = None,
    nodes: int | None = None,
) -> Sparsifier:
    """Choose which edges of a layer's graph stay.

    Args:
        scores: Non-negative weights [inputs, outputs], or [graphs, inputs, outputs], sampled together.
        count: Exact number of edges that stay; or else
        epsilon: The parameter of the probabilities (see the module's head); the count is then random
            (with "paper") or the expected number rounded down or up (with the others).
        mode: "systematic": exact probabilities and count; "reweighted": that, with 1 / p_e as `scale`;
            "paper": independent draws a little below the count, then uniform ones up to it (Appendix A);
            "coverage": no draws; edges of largest leverage in what is kept so far, after a spanning forest
            of largest leverage, so components stay connected while the count allows it; in graphs of at
            most 1,024 nodes edges are then exchanged until the condition number is 5, if that helps.
        generator: CPU generator of the draws; needed by all modes but "coverage".  Not one in the state that
            the weights were drawn from: torch's uniform and normal numbers of one seed are correlated.
        leverages: The leverages, if known.
        nodes: n in the probabilities, if the graph is part of a larger one.

    Raises:
        ValueError: If the scores are not a graph, the count exceeds the edges, or options conflict.

    Example:
        >>> kept = sparsify(torch.rand(20, 10), 40, generator=torch.Generator().manual_seed(0))
        >>> int(kept.mask.sum())
        40
    """
    scores = checked_scores(scores)
    edges = int(torch.count_nonzero(scores))
    _check_options(count, epsilon, mode, generator, edges)
    if mode == "coverage":
        if count is None:
            raise ValueError("mode 'coverage' needs a count; it has no epsilon")
        return _choose_by_coverage(scores, count)
    lev = leverage(scores) if leverages is None else leverages
    nodes = nodes or scores.shape[-1] + scores.shape[-2]
    epsilon = epsilon if count is None else epsilon_for_count([lev], [nodes], count)
    p = inclusion(lev, nodes, epsilon or 0.0)
    if mode == "paper":
        low = p if count is None else inclusion(lev, nodes, _slightly_below(lev, nodes, p, count))
        mask = _draw_as_published(low.flatten(), count, generator).view(scores.shape)
    else:
        mask = _draw_systematic(p.flatten(), count, generator).view(scores.shape)
    scale = torch.where(mask, 1 / p, 1.0) if mode == "reweighted" else torch.ones_like(p)
    return Sparsifier(mask, p, scale.to(scores.dtype), float(epsilon or 0.0))


def _check_options(
    count: int | None, epsilon: float | None, mode: str, generator: torch.Generator | None, edges: int
) -> None:
    if mode not in ("systematic", "paper", "reweighted", "coverage"):
        raise ValueError(f"no mode {mode!r}; there are 'systematic', 'paper', 'reweighted' and 'coverage'")
    if (count is None) == (epsilon is None):
        raise ValueError(f"give either count or epsilon; got count={count!r} and epsilon={epsilon!r}")
    if count is not None and not 1 <= count <= edges:
        raise ValueError(f"count must be from 1 to the number of edges, {edges}; got {count}")
    if epsilon is not None and not epsilon > 0:
        raise ValueError(f"epsilon must be positive; got {epsilon!r}")
    if generator is None and mode != "coverage":
        raise ValueError(f"mode {mode!r} draws at random: pass a torch.Generator with a seed")


def _draw_uniform(number: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    return torch.rand(number, dtype=torch.float64, generator=generator).to(device)


def _draw_systematic(p: Tensor, count: int | None, generator: torch.Generator | None) -> Tensor:
    """Sample systematically: put the edges on a line, each as long as its p, and take those hit by a comb.

    The comb has teeth at offset, offset + 1, ...; an edge with p < 1 is hit at most once, with probability p.
    """
    mask = p >= 1
    order = torch.nonzero((p > 0) & ~mask).flatten()
    offset = _draw_uniform(1, generator, p.device)
    order = order[torch.randperm(len(order), generator=generator).to(p.device)]
    ends = p[order].cumsum(0)
    if count is not None and len(order):
        # Up to rounding the last end is the number of edges still to draw; make it exact.
        ends = ends * ((count - int(mask.sum())) / ends[-1])
        ends[-1] = count - int(mask.sum())
    teeth = (ends - offset).floor()  # number of the last tooth before each end
    before = torch.cat([teeth.new_full((1,), -1.0), teeth[:-1]])
    mask[order[teeth > before]] = True
    return mask


def _slightly_below(lev: Tensor, nodes: int, p: Tensor, count: int) -> float:
    """Return the epsilon whose expected number is two standard deviations below the count (Appendix A).

    Edges with p = 1 stay certain at the lower epsilon as long as it allows, unlike under a common factor.
    """
    spread = 2 * math.sqrt(float((p * (1 - p)).sum()))
    return epsilon_for_count([lev], [nodes], max(count / 2, count - spread))


def _draw_as_published(p: Tensor, count: int | None, generator: torch.Generator | None) -> Tensor:
    """Draw independently, then fix the count, if there is one, by uniform draws."""
    drawn = _draw_uniform(len(p), generator, p.device) < p
    if count is None:
        return drawn
    surplus = int(drawn.sum()) - count
    pool = torch.nonzero(drawn if surplus > 0 else (p > 0) & ~drawn).flatten()
    drawn[pool[torch.randperm(len(pool), generator=generator)[: abs(surplus)].to(p.device)]] = surplus < 0
    return drawn


def _choose_by_coverage(scores: Tensor, count: int, rounds: int = 16) -> Sparsifier:
    """Grow H by the edges of largest leverage in H + delta G; ties go to the lower index.

    delta is the share of edges that stay: G stands in for what is to come, at its weight.  (From 5 % on, half
    or twice that gave condition numbers about as good; below, half of it is far worse.)
    """
    delta = count / int(torch.count_nonzero(scores))
    mask = torch.zeros_like(scores, dtype=torch.bool)
    for number in range(rounds):
        target = count * (number + 1) // rounds
        lev = leverage(scores, effective_resistance(torch.where(mask, scores, delta * scores)))
        if number == 0:
            mask = _spanning_forest(lev, count)
        mask = mask | _mark_largest(lev.masked_fill(mask, -1.0), max(0, target - int(mask.sum())))
    if sum(scores.shape[-2:]) <= EXCHANGED:
        graphs, chosen = (x if x.dim() == 3 else x[None] for x in (scores, mask))
        better = [exchange_edges(S, kept, CONDITION) for S, kept in zip(graphs, chosen, strict=True)]
        mask = torch.stack(better).view(scores.shape)
    one = torch.ones_like(scores)
    return Sparsifier(mask, mask.double(), one, math.nan)


def _mark_largest(values: Tensor, count: int) -> Tensor:
    """Mark the `count` largest values; ties go to the lower index."""
    order = values.flatten().argsort(descending=True, stable=True)[:count]
    marks = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    return marks.index_fill_(0, order, True).view(values.shape)


def _spanning_forest(lev: Tensor, count: int) -> Tensor:
    """Return the spanning forest of largest leverage, or its best edges if the count is smaller."""
    mask = torch.zeros_like(lev, dtype=torch.bool)
    stack, chosen = (x if x.dim() == 3 else x[None] for x in (lev, mask))
    n1, n2 = stack.shape[1:]
    for matrix, kept in zip(stack, chosen, strict=True):
        u, v = (x.cpu().numpy() for x in torch.nonzero(matrix, as_tuple=True))
        # Leverages are at most 1, so costs stay positive (0 would mean no edge to scipy).
        cost = 2 - matrix[matrix > 0].double().cpu().numpy()
        tree = minimum_spanning_tree(coo_matrix((cost, (u, v + n1)), shape=(n1 + n2, n1 + n2))).tocoo()
        ends = np.sort(np.stack([tree.row, tree.col]), axis=0)
        kept[
            torch.as_tensor(ends[0], device=lev.device), torch.as_tensor(ends[1] - n1, device=lev.device)
        ] = True
    if int(mask.sum()) > count:
        mask = _mark_largest(lev.masked_fill(~mask, -1.0), count)
    return mask
