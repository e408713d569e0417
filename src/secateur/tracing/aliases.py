"""Tensors of a graph that share memory: an in-place operation changes them all.

A view has the labels of its base, piece by piece, so a write ties or freezes the labels of both.  It may also
change which values are 0 at dead indices.
"""

from __future__ import annotations

from typing import Any

from torch.fx import Node
from torch.utils._pytree import tree_map

from secateur.tracing.export import is_inplace
from secateur.tracing.propagate import Propagation, TensorAxes
from secateur.tracing.rules.base import words

__all__ = ["Aliases"]

# Operations that may return their operand, or views of it, although their schema does not say so.
MAY_ALIAS = words("dropout feature_dropout alpha_dropout feature_alpha_dropout type_as meshgrid getitem")
MAY_ALIAS += words("broadcast_tensors atleast_1d atleast_2d atleast_3d")


class Aliases:
    """Sets of nodes that may share memory, as a graph is walked through."""

    def __init__(self) -> None:
        """Start without nodes."""
        self._sets: dict[Node, set[Node]] = {}

    def add(self, node: Node) -> None:
        """Add the next node of the graph."""
        shared = {node}
        for source in node.all_input_nodes if _may_alias(node) else ():
            shared |= self._sets[source]
        for member in shared:
            self._sets[member] = shared

    def write(self, node: Node, values: dict[Node, Any], propagation: Propagation) -> None:
        """Change the values of the nodes that show what an in-place operation wrote.

        Args:
            node: The operation, already in `values`.
            values: Node -> `TensorAxes`, or a list of them; changed in place.
            propagation: What the rules share.
        """
        written, others = values[node], self._sets[node] - {node}
        while is_inplace(node) and isinstance(node.args[0], Node):
            node = node.args[0]
            values[node] = written  # the same tensor
            others -= {node}
        labels = [propagation.algebra.normal(label) for label in written.labels]
        zero = all(z for z, label in zip(written.zero, labels, strict=True) if label is not None)

        def changed(x: Any) -> Any:
            if not isinstance(x, TensorAxes):
                return x
            flags = x.zero if zero else (False,) * x.ndim
            return x.derived(zero=flags, data=x.data or written.data)

        for other in others:
            values[other] = tree_map(changed, values[other])


def _may_alias(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    if any(r.alias_info is not None for r in getattr(schema, "returns", ())):
        return True
    name = getattr(node.target, "_opname", None) or getattr(node.target, "__name__", "")
    return node.op == "call_function" and name in MAY_ALIAS
