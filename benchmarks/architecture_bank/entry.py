"""An architecture: how to build it, and what to call it with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.utils._pytree import tree_map

from secateur.apply.float64 import in_float64

__all__ = ["Architecture", "Maker", "in_float32", "integers", "normal", "with_inputs"]

Maker = Callable[[int, Generator], Any]


class OneOutput(nn.Module):
    """A model that returns one field of its outputs."""

    def __init__(self, model: nn.Module, field: str) -> None:
        super().__init__()
        self.model, self.field = model, field

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the field."""
        outputs: Tensor = self.model(*args, **kwargs)[self.field]
        return outputs


@dataclass(frozen=True)
class Architecture:
    """An architecture of another library.

    Attributes:
        name: Library and model.
        make: Builds the model.
        inputs: (batch, generator) -> positional and keyword inputs.
        fields: Names of output fields; the first that the model returns is the one that counts.
        batch: Batch size of the example inputs.
        outputs: Names of the layers that make the output, for Torch-Pruning.
        heads: Given the model, the number of heads of each projection, for Torch-Pruning.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int, Generator], tuple[tuple[Any, ...], dict[str, Any]]]
    fields: tuple[str, ...] = ()
    batch: int = 2
    outputs: tuple[str, ...] = ()
    heads: Callable[[nn.Module], dict[nn.Module, int]] | None = None

    def build(self) -> nn.Module:
        """Build the model in float64 and evaluation mode, the same at every call."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = self.make().double().eval()
        return OneOutput(model, self._field(model)) if self.fields else model

    def example(self, batch: int = 0, seed: int = 0) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Make positional and keyword inputs; `batch` 0 means that of the entry."""
        return self.inputs(batch or self.batch, Generator().manual_seed(seed))

    def _field(self, model: nn.Module) -> str:
        args, kwargs = self.example()
        try:
            with in_float64():
                found = model(*args, **kwargs)
        except RuntimeError:  # an operation without float64
            args, kwargs = in_float32((args, kwargs))
            with torch.no_grad():
                found = copy.deepcopy(model).float()(*args, **kwargs)
        return next(name for name in self.fields if found.get(name) is not None)


def in_float32(value: Any) -> Any:
    """Return a structure with its floating tensors in float32."""

    def low(x: Any) -> Any:
        return x.float() if isinstance(x, Tensor) and x.is_floating_point() else x

    return tree_map(low, value)


def normal(*shape: int) -> Maker:
    """Return a maker of normal numbers [batch, *shape]."""
    return lambda batch, g: torch.randn(batch, *shape, generator=g, dtype=torch.float64)


def integers(below: int, *shape: int) -> Maker:
    """Return a maker of integers [batch, *shape]."""
    return lambda batch, g: torch.randint(0, below, (batch, *shape), generator=g)


def with_inputs(
    name: str,
    make: Callable[[], nn.Module],
    inputs: Sequence[Maker] | Mapping[str, Any],
    fields: tuple[str, ...] = (),
) -> Architecture:
    """Return an architecture with fixed makers of inputs; other values than makers are passed as they are."""

    def build(batch: int, g: Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if isinstance(inputs, Mapping):
            return (), {key: x(batch, g) if callable(x) else x for key, x in inputs.items()}
        return tuple(make_one(batch, g) for make_one in inputs), {}

    return Architecture(name, make, build, fields)
