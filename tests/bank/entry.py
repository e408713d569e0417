"""What an entry of the model bank is, and the makers of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor, nn

B = -1
"""Stands for the batch size in the shapes given to `floats` and `tokens`."""

Maker = Callable[[int, Generator], Any]


def floats(*shape: int) -> Maker:
    """Make standard normal float64 inputs of this shape, `B` standing for the batch size."""

    def make(batch: int, generator: Generator) -> Tensor:
        size = [batch if n == B else n for n in shape]
        return torch.randn(size, generator=generator, dtype=torch.float64)

    return make


def tokens(vocabulary: int, *shape: int) -> Maker:
    """Make integers below `vocabulary` of this shape, `B` standing for the batch size."""

    def make(batch: int, generator: Generator) -> Tensor:
        size = [batch if n == B else n for n in shape]
        return torch.randint(vocabulary, size, generator=generator)

    return make


def ones(*shape: int) -> Maker:
    """Make integer ones of this shape, `B` standing for the batch size: an attention mask."""
    return lambda batch, generator: torch.ones([batch if n == B else n for n in shape], dtype=torch.long)


@dataclass(frozen=True)
class Entry:
    """A small model, with what to feed it and what to expect of tracing it.

    Attributes:
        name: Unique in the bank.
        make: Builds the model; called under a fixed seed.
        inputs: Makers of the positional inputs.
        kwargs: Makers of the keyword inputs.
        outputs: Names of the modules that make the output: what a user of a tool that must be told
            lists as ignored.
        heads: Given the model, the number of heads of each projection: likewise.
        units: Removable units that tracing must find at least.
        refused: Why tracing or shrinking must fail, as a pattern that the message matches.
        batch: Batch size of the example inputs.
        needs: Package that the model comes from, beyond torch.
        slow: Whether the entry takes seconds.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: tuple[Maker, ...] = ()
    kwargs: Mapping[str, Maker] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    heads: Callable[[nn.Module], dict[nn.Module, int]] | None = None
    units: int = 1
    refused: str = ""
    batch: int = 3
    needs: str = ""
    slow: bool = False

    def build(self) -> nn.Module:
        """Build the model in float64 and evaluation mode, the same at every call."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.make().double().eval()

    def example(self, batch: int = 0, seed: int = 0) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Make positional and keyword inputs; `batch` 0 means that of the entry."""
        generator = Generator().manual_seed(seed)
        size = batch or self.batch
        args = tuple(make(size, generator) for make in self.inputs)
        return args, {key: make(size, generator) for key, make in self.kwargs.items()}
