"""Ridge leverage scores of units.

Lin, Gao, Smith, Patel, Tuli, Shen, Jin and Hsu, "MoDeGPT: Modular Decomposition for Large Language Model
Compression" (ICLR 2025, arXiv:2408.09632), choose the feed-forward units of a language model by them, before
a Nystroem approximation, which is the least-squares fold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from secateur.allocation import prunable
from secateur.core import Budget, Group, InputError, PruningGraph, Statistics
from secateur.methods.base import ScoreMethod, Scores
from secateur.methods.unit_grams import reading
from secateur.structures.matroid import ridge_leverages

__all__ = ["RidgeLeverage"]


@dataclass(frozen=True, kw_only=True)
class RidgeLeverage(ScoreMethod):
    """How badly other units replace a unit: its ridge leverage score [G (G + r I)^-1]_uu.

    G is the Gram matrix of the units as their consumers read them, centred where these have a bias.  Unlike a
    basis (`Matroid`), the scores are of each unit alone: copies go together.  No weight reads positions
    of queries and keys: their Gram matrix is that of what they add to the logits of attention.

    Args:
        ridge: r relative to the mean of the diagonal of G.  A small one asks whether a unit depends on
            others at all, a large one how strong it is.  Below 1, a strong unit that others resemble may go.
    """

    name: ClassVar[str] = "leverage"
    ridge: float = 1.0

    def __post_init__(self) -> None:
        """Check the option."""
        super().__post_init__()
        if not 0 < self.ridge < math.inf:
            raise InputError(f"RidgeLeverage.ridge must be a positive number; got {self.ridge!r}")

    def needs(self, budget: Budget) -> frozenset[str]:
        """Return the Gram matrices of the weights' inputs."""
        return frozenset({"gram"})

    def unit_scores(self, graph: PruningGraph, statistics: Statistics) -> Scores:
        """Return the leverage of each unit, between 0 and 1."""

        def gram(group: Group) -> Tensor:
            logits = statistics.logits.get(group.name)
            pairs = None if logits is None else logits.gram
            return reading(graph, statistics, group).gram if pairs is None else pairs

        return {g.name: ridge_leverages(gram(g), self.ridge) for g in prunable(graph)}
