"""One rule an operation: how the labels of its operands pass to its results.

A rule gets the `Propagation`, the shapes of the results, and the arguments of the operation, with
`TensorAxes` for tensors.  It returns the `TensorAxes` of the results.  Operations have their ATen names,
without overload and without the underscore of in-place forms.  An operation that has no rule freezes what it
touches.
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
