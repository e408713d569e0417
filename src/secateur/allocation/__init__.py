"""How many units or weights of each group stay, and the cost of what is left.

Three scopes: ``"layer"`` keeps the same share of every group; ``"global"`` ranks all units (or
weights) together by a criterion's scores; ``"erk"`` spreads the budget by the Erdos-Renyi-kernel
rule.  The criterion decides which units stay.

Counts are exact and deterministic: ranking is stable, ties go to the first group and the lower index, and
no threshold is involved.  With `round_to`, a group keeps a multiple of it, or stays whole; then the counts
are the closest that do not exceed the target.  The groups of a recurrent module keep equal counts under every
scope (`PruningGraph.equal_counts`).
"""

from secateur.allocation.allocation import (
    Allocation,
    allocate,
    allowed_counts,
    make_equal,
    prunable,
    weight_sizes,
)
from secateur.allocation.amounts import Amounts, predicted_latency, with_shares
from secateur.allocation.cost import Cost, CostModel, GroupCost, graph_cost, group_costs
from secateur.allocation.erk import erk_densities
from secateur.allocation.ranking import ranked, top, top_of_every
from secateur.allocation.schedule import reached
from secateur.allocation.terms import CostTerms, Term, counted_terms, length_terms, size_terms

__all__ = [
    "Allocation",
    "Amounts",
    "Cost",
    "CostModel",
    "CostTerms",
    "GroupCost",
    "Term",
    "allocate",
    "allowed_counts",
    "counted_terms",
    "erk_densities",
    "graph_cost",
    "group_costs",
    "length_terms",
    "make_equal",
    "predicted_latency",
    "prunable",
    "ranked",
    "reached",
    "size_terms",
    "top",
    "top_of_every",
    "weight_sizes",
    "with_shares",
]
