"""Finite order theory: posets of digraphs, their completions and irreducibles, laws, contexts from data."""

from secateur.structures.order.completion import Completion, CompletionTooLarge, cuts
from secateur.structures.order.context import (
    Elimination,
    attribute_gaps,
    attribute_order,
    eliminate_attributes,
)
from secateur.structures.order.digraph import (
    OrderProfile,
    density_profile,
    strongest_edges,
    unroll,
)
from secateur.structures.order.feedback import feedback_operator
from secateur.structures.order.laws import (
    Violation,
    modular_violation,
)
from secateur.structures.order.parts import Parts, decompose
from secateur.structures.order.poset import Poset

__all__ = [
    "Completion",
    "CompletionTooLarge",
    "Elimination",
    "OrderProfile",
    "Parts",
    "Poset",
    "Violation",
    "attribute_gaps",
    "attribute_order",
    "cuts",
    "decompose",
    "density_profile",
    "eliminate_attributes",
    "feedback_operator",
    "modular_violation",
    "strongest_edges",
    "unroll",
]
