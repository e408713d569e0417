"""States of several recurrent layers in one tensor: each row has its own units.

A kernel returns the last states of all layers and directions as one tensor [rows, batch, units].  Its units
differ from row to row (`TensorAxes.rows`).  Code that takes single rows (``h[-1]``, ``a, b = h``) reads the
units of these rows.  Any other operation reads the tensor as a whole, which ties the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from secateur.tracing.labels import Label
from secateur.tracing.propagate import Propagation, TensorAxes
from secateur.tracing.rules.base import words

__all__ = ["read_rows", "stack_rows"]

# Operations that treat every row alike: they keep the units, or read the states row by row.
ROW_BY_ROW = words("clone contiguous detach to _to_copy alias lstm gru rnn_tanh rnn_relu")
ALONG_BATCH = words("index_select squeeze unsqueeze")  # the same if they act on axis 1


def stack_rows(state: TensorAxes, rows: Sequence[Label]) -> TensorAxes:
    """Return a tensor with these units in its rows; without `rows` if there is only one kind."""
    first = rows[0]
    alike = all(label is first or _equal(label, first) for label in rows)
    labels = (*state.labels[:-1], first)
    return replace(state, labels=labels, rows=() if alike else tuple(rows))


def read_rows(propagation: Propagation, operation: str, operands: Any) -> Any:
    """Return operands as the operation reads them: rows that it takes, or tensors whose rows are tied.

    Args:
        propagation: What the rules share.
        operation: The operation's name.
        operands: Its arguments: (positional, by keyword).
    """
    (first, *rest), options = operands[0] or (None,), operands[1]
    if isinstance(first, TensorAxes) and first.rows and not options:
        taken = _taken(operation, first, rest)
        if taken is not None:
            return (taken, *rest), options
    if operation in ROW_BY_ROW:
        return operands
    return torch.utils._pytree.tree_map(
        lambda x: _tied(propagation, x) if isinstance(x, TensorAxes) and x.rows else x, operands
    )


def _taken(operation: str, x: TensorAxes, rest: Sequence[Any]) -> TensorAxes | None:
    """Return the rows that an operation takes, or None if it reads them together."""
    dim = rest[0] if rest else 0
    if operation == "select" and dim == 0:
        return stack_rows(x, [x.rows[rest[1]]])
    if operation == "slice" and dim == 0:
        return stack_rows(x, x.rows[slice(*rest[1:])])
    separate = (operation == "unbind" and dim == 0) or (operation in ALONG_BATCH and dim == 1)
    return x if separate else None


def _tied(propagation: Propagation, x: TensorAxes) -> TensorAxes:
    for label in x.rows[1:]:
        propagation.equate(x.rows[0], label)
    return stack_rows(x, [propagation.algebra.normal(x.rows[0])])


def _equal(a: Label, b: Label) -> bool:
    return a is not None and b is not None and a.shape == b.shape and bool((a == b).all())
