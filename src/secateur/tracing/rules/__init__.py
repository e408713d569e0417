"""One rule an operation: how the labels of its operands pass to its results.

A rule is called as the operation is, with `Axes` where the operation takes tensors, after the `Flow`
and the shapes of the results; it returns the `Axes` of the results.  Operations are named as in ATen,
without overload and without the underscore of in-place forms.  An operation that has no rule freezes
what it touches.
"""

from secateur.tracing.rules import (  # noqa: F401
    contraction,
    creation,
    elementwise,
    norms,
    recurrent,
    shapes,
    slices,
)
from secateur.tracing.rules.base import RULES, Rule

__all__ = ["RULES", "Rule"]
