"""Export models that pack sequences: all sequences run at full length.

The number of rows of a packed sequence is a sum of lengths, which `torch.export` cannot represent.  Which
units live and die together does not depend on the lengths.  So the export packs whole sequences, padding
included, into rows [time * batch, ...], one step after the other.  The check that compares the masked with
the shrunk model runs the model itself, with its lengths.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

from secateur.core import InputError

__all__ = ["Unpacked", "check_not_packed"]

_FUNCTIONS: Any = torch._C._VariableFunctions


def check_not_packed(inputs: Iterable[Any]) -> None:
    """Raise `InputError` if an example input is itself a packed sequence."""
    if any(isinstance(x, PackedSequence) for x in inputs):
        raise InputError(
            "an example input is a PackedSequence, whose number of rows a graph cannot represent: "
            "trace with a padded tensor; the pruned model takes packed sequences as before"
        )


class Unpacked(TorchFunctionMode):
    """Inside this context, packing returns all rows, with the batch sizes of full lengths."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace `torch._pack_padded_sequence` (input, lengths, batch_first)."""
        if func is not _FUNCTIONS._pack_padded_sequence:
            return func(*args, **(kwargs or {}))
        x, _, batch_first = args
        x = x.transpose(0, 1) if batch_first else x
        return x.flatten(0, 1), _FullSizes(*x.shape[:2])


class _FullSizes:
    """The batch sizes of full sequences; torch asks this object, instead of a tensor, how to run."""

    device = torch.device("cpu")

    def __init__(self, steps: int, batch: int) -> None:
        self.steps, self.batch = steps, batch

    def __getitem__(self, step: int) -> int:
        return self.batch

    def size(self, axis: int = 0) -> int:
        """Return the number of steps."""
        return self.steps

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace `torch._pad_packed_sequence` and kernels (rows, sizes, states, parameters, ...)."""
        if not isinstance(args[1], cls):
            return NotImplemented
        rows, sizes, *rest = args
        x = rows.unflatten(0, (sizes.steps, sizes.batch))
        if func is _FUNCTIONS._pad_packed_sequence:
            return sizes.padded(x, *rest)
        y, *states = func(x, *rest, False)
        return y.flatten(0, 1), *states

    def padded(self, x: Tensor, batch_first: bool, value: float, steps: int) -> tuple[Tensor, Tensor]:
        """Return full sequences and their lengths."""
        if value:
            x = x + value  # with padding other than 0, a feature is not 0 at its dead units
        return x.transpose(0, 1) if batch_first else x, torch.full((self.batch,), self.steps)
