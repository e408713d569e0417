"""How many units stay, and the config that states it, before any weight is read."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from secateur.allocation import allocate
from secateur.apply.shrink import shrink
from secateur.core import Budget, Group, InputError, NothingToPrune, Plan, PruningGraph
from secateur.formats.plain_model import plain_models
from secateur.streaming.blocks import BlockChain
from secateur.tracing.head_positions import find_head_positions
from secateur.tracing.trace import trace, trace_with_positions

__all__ = ["EXAMPLE", "choose_sizes", "example_of_block", "trace_chain"]

ATTENTION = ("head positions", "heads", "key-value groups")
EXAMPLE = (2, 13)  # sequences and tokens of example inputs


def trace_chain(
    chain: BlockChain, budget: Budget, ignored_layers: Iterable[str], positions: bool = False
) -> PruningGraph:
    """Return the graph of a model without weights; the units between blocks stay whole."""
    ids = torch.zeros(EXAMPLE, dtype=torch.long, device="meta")
    model, ignored = copy.deepcopy(chain.empty).to("meta"), [*ignored_layers, "kind:hidden"]
    if positions:
        graph = trace_with_positions(model, ids, ignored, _head_positions(chain))
    else:
        graph = trace(model, ids, ignored)
    return replace(graph.with_even_layers(budget.even), example_inputs=(), example_kwargs={})


def example_of_block(chain: BlockChain, number: int) -> dict[str, Any]:
    """Return what `BlockModel` is called with: hidden states of a few tokens."""
    ids = torch.arange(math.prod(EXAMPLE)).reshape(EXAMPLE) % len(chain.empty.get_input_embeddings().weight)
    ((hidden, calls),) = chain.calls([{"input_ids": ids}])
    return {"original": hidden, "pruned": hidden, **calls[number]}


def _head_positions(chain: BlockChain) -> list[Group]:
    """Return the positions within the heads of all blocks; of blocks that look alike only one is read."""
    known: dict[Any, tuple[str, list[Group]]] = {}
    found: list[Group] = []
    for number, name in enumerate(chain.names):
        parameters = chain.empty.get_submodule(name).named_parameters()
        alike = tuple((x, tuple(tensor.shape)) for x, tensor in parameters)
        if alike not in known:
            block, example = chain.block(number), example_of_block(chain, number)
            known[alike] = name, find_head_positions(block, (), example)
        first, groups = known[alike]
        found += [_renamed(group, f"{first}.", f"{name}.") for group in groups]
    return found


def _renamed(group: Group, old: str, new: str) -> Group:
    slots = (replace(slot, tensor=slot.tensor.replace(old, new, 1)) for slot in group.slots)
    return replace(group, name=group.name.replace(old, new, 1), slots=tuple(slots))


def choose_sizes(
    chain: BlockChain, graph: PruningGraph, budget: Budget
) -> tuple[PruningGraph, Mapping[str, int], Any]:
    """Return graph, counts and config; attention stays whole where no config states fewer heads.

    Llama takes only numbers of heads that divide the width of its residual stream.
    """
    counts = allocate(graph, budget).counts
    try:
        return graph, counts, _config(chain, graph, counts)
    except InputError as error:
        names = [g.name for g in graph.groups if g.kind in ATTENTION and counts[g.name] < g.size]
        if not names or len(names) == len(graph.groups):
            raise
        warnings.warn(f"attention stays whole, and other units make up for it: {error}", stacklevel=3)
        graph = graph.without_groups(names, "no config states fewer heads")
        counts = allocate(graph, budget).counts
        return graph, counts, _config(chain, graph, counts)


def _config(chain: BlockChain, graph: PruningGraph, counts: Mapping[str, int]) -> Any:
    """Return the config of the new sizes, which depend on the counts alone.

    Raises:
        InputError: If no config states them.
        NothingToPrune: If all units stay.
    """
    keep = {g.name: np.arange(counts[g.name]) for g in graph.groups if counts[g.name] < g.size}
    if not keep:
        raise NothingToPrune(
            f"the counts round to the whole of every group: keep less\n{graph.describe_frozen()}"
        )
    keep = {name: kept for name, kept in keep.items() if not graph.group(name).padded}
    if not keep:
        return chain.empty.config
    plan = Plan(graph, "counts", keep)
    small = shrink(chain.empty, plan, check=False)
    return next(iter(plain_models(small, plan, "error"))).config
