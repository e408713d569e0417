"""A transformers model as a chain of blocks, of which one is in memory at a time.

The model itself says what its blocks get: its own forward pass runs on the embedding with blocks that only
note their arguments (masks, rotary embeddings), and at the end with blocks that pass on what is known.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.core import InputError, Interface, PruningGraph
from secateur.execution import evaluating, read_batches
from secateur.formats.model_tensors import tied_names
from secateur.measure.metrics import perplexity
from secateur.pretrained import empty_model
from secateur.streaming.shards import ShardReader

__all__ = ["BlockChain", "BlockModel", "graph_of_block"]

WHO = "Llama, Mistral, Qwen 2 and 3, Gemma 2 and 3"
Call = Mapping[str, Any]  # the other arguments of a block


class BlockModel(nn.Module):
    """A block with the names that its tensors have in the whole model.

    It is called with the hidden states of the original and of the pruned network, and reads one of the two.

    Args:
        name: Qualified name of the block in the model.
        block: The block.
    """

    def __init__(self, name: str, block: nn.Module) -> None:
        """Put the block into modules of the names around it."""
        super().__init__()
        self.name, self.reads_pruned = name, False
        parent: nn.Module = self
        *path, last = name.split(".")
        for part in path:
            child = nn.Module()
            parent.add_module(part, child)
            parent = child
        parent.add_module(last, block)

    def forward(self, original: Tensor, pruned: Tensor, **others: Any) -> Tensor:
        """Return the hidden states behind the block."""
        result = self.get_submodule(self.name)(pruned if self.reads_pruned else original, **others)
        return result[0] if isinstance(result, tuple) else result


class BlockChain:
    """The blocks of a transformers folder, and what is around them.

    Attributes:
        empty: The model with parameters on the meta device.
        names: Qualified names of the blocks, in order.
        outer: Names of the tensors outside of the blocks, tied ones once.

    Raises:
        InputError: If the model is not a chain of blocks, or its folder does not fit.
    """

    def __init__(self, folder: Path) -> None:
        """Read the config and the names of the tensors."""
        self.empty: Any = empty_model(folder)
        self.names = _block_names(self.empty)
        self.shards = ShardReader(folder, self.empty)
        tied = tied_names(self.empty)
        inside = tuple(f"{name}." for name in self.names)
        self.outer = [x for x in self.empty.state_dict() if not x.startswith(inside) and x not in tied]
        if across := [
            f"{a} and {b}" for a, b in tied.items() if a.startswith(inside) or b.startswith(inside)
        ]:
            raise _refusal(self.empty, f"shares weights between blocks ({across[0]})")
        self._around: Any = copy.deepcopy(self.empty)
        values = self.shards.read(self.outer)
        values |= {name: values[first] for name, first in tied.items() if first in values}
        self._around.load_state_dict(values, strict=False, assign=True)

    def block(self, number: int) -> BlockModel:
        """Return a block with its weights."""
        name = self.names[number]
        model = BlockModel(name, copy.deepcopy(self.empty.get_submodule(name)))
        values = self.shards.read(model.state_dict())
        model.load_state_dict(values, assign=True)
        return model.requires_grad_(False).eval()

    @torch.no_grad()
    def calls(self, batches: Iterable[Any]) -> Iterator[tuple[Tensor, list[Call]]]:
        """Yield, for each batch, the hidden states that the first block gets, and what else each block gets.

        Raises:
            InputError: If a block does not get what the one before returned.
        """
        base = self._around.base_model
        for _, args, kwargs, _ in read_batches(batches, self._around):
            seen = list[tuple[int, tuple[Any, ...], Call]]()

            def note(number: int, *given: Any, seen: Any = seen, **others: Any) -> Any:
                seen.append((number, given, others))
                return given[0]

            with self._blocks_replaced(note):
                base(*args, **kwargs)
            chained = [number for number, *_ in seen] == list(range(len(self.names)))
            if not chained or any(len(x) != 1 or x[0] is not seen[0][1][0] for _, x, _ in seen):
                raise _refusal(self.empty, "does more between its blocks than to pass on hidden states")
            yield seen[0][1][0], [others for *_, others in seen]

    def perplexity(self, batches: Iterable[Any], hidden: Iterable[Tensor]) -> float:
        """Return the perplexity on batches, given the hidden states behind the last block for each."""
        rest, last = iter(hidden), len(self.names) - 1
        with self._blocks_replaced(lambda number, x, **_: next(rest) if number == last else x):
            return perplexity(self._around, batches)

    @contextmanager
    def _blocks_replaced(self, forward: Callable[..., Any]) -> Iterator[None]:
        """Let the blocks call a function of their number and their arguments instead."""
        blocks = [self._around.get_submodule(name) for name in self.names]
        with evaluating(self._around):
            for number, block in enumerate(blocks):
                block.forward = lambda *x, number=number, **named: forward(number, *x, **named)
            yield


def graph_of_block(graph: PruningGraph, name: str, example: Mapping[str, Any]) -> PruningGraph:
    """Return what a graph of the whole model says about one block, for `BlockModel`.

    Args:
        graph: The graph, in which the units between blocks stay whole.
        name: Qualified name of the block.
        example: What the block is called with.
    """

    def inside(tensor: str) -> bool:
        return tensor.startswith(f"{name}.")

    groups = tuple(g for g in graph.groups if any(inside(slot.tensor) for slot in g.slots))
    if across := [g for g in groups if not all(inside(slot.tensor) for slot in g.slots)]:
        raise InputError(f"the units of {across[0].name!r} go through several blocks: they must stay whole")
    names = {g.name for g in groups}
    return replace(
        graph,
        groups=groups,
        frozen=tuple(x for x in graph.frozen if inside(x.tensor)),
        layers=tuple(x for x in graph.layers if inside(x.weight)),
        shapes={k: shape for k, shape in graph.shapes.items() if inside(k)},
        parameters=tuple(filter(inside, graph.parameters)),
        aliases={},
        sizes=tuple(x for x in graph.sizes if names.issuperset(x.groups) and x.groups),
        equal_counts=tuple(x for x in graph.equal_counts if names.issuperset(x)),
        element_sizes={k: size for k, size in graph.element_sizes.items() if inside(k)},
        interface=Interface(),
        example_inputs=(),
        example_kwargs=dict(example),
    )


def _block_names(model: Any) -> list[str]:
    blocks = getattr(model.base_model, "layers", None)
    if not isinstance(blocks, nn.ModuleList) or len({type(block) for block in blocks}) != 1:
        raise _refusal(model, "has no list of equal blocks called layers")
    known = {id(module): name for name, module in model.named_modules()}
    return [known[id(block)] for block in blocks]


def _refusal(model: nn.Module, why: str) -> InputError:
    return InputError(
        f"{type(model).__name__} {why}, so it cannot be streamed: {WHO} can; prune this one in memory, "
        "without --stream"
    )
