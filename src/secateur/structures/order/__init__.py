"""Finite order theory: posets of digraphs, their completions and irreducibles, laws, contexts from data."""

from secateur.structures.order.completion import Completion, CompletionTooLarge, cuts
from secateur.structures.order.context import (
    Elimination,
    attribute_gaps,
    attribute_order,
    eliminate_attributes,
    irreducible_attributes,
)
from secateur.structures.order.digraph import (
    OrderProfile,
    density_profile,
    mu_centrality,
    stack_layers,
    strongest_edges,
    unroll,
)
from secateur.structures.order.laws import (
    OperatorViolation,
    Violation,
    distributive_violation,
    is_lattice,
    modular_violation,
    operator_violation,
)
from secateur.structures.order.parts import Parts, decompose
from secateur.structures.order.poset import Poset

__all__ = [
    "Completion",
    "CompletionTooLarge",
    "Elimination",
    "OperatorViolation",
    "OrderProfile",
    "Parts",
    "Poset",
    "Violation",
    "attribute_gaps",
    "attribute_order",
    "cuts",
    "decompose",
    "density_profile",
    "distributive_violation",
    "eliminate_attributes",
    "irreducible_attributes",
    "is_lattice",
    "modular_violation",
    "mu_centrality",
    "operator_violation",
    "stack_layers",
    "strongest_edges",
    "unroll",
]
