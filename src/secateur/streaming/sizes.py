"""How many units stay, and the config that states it, before any weight is read."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from secateur.allocation import allocate
from secateur.apply.shrink import shrink
from secateur.core import Budget, InputError, NothingToPrune, Plan, PruningGraph
from secateur.formats.plain_model import plain_models
from secateur.streaming.blocks import BlockChain
from secateur.tracing.trace import trace

__all__ = ["EXAMPLE", "choose_sizes", "trace_chain"]

ATTENTION = ("head positions", "heads", "key-value groups")
EXAMPLE = (2, 13)  # sequences and tokens of example inputs


def trace_chain(chain: BlockChain, budget: Budget, ignored_layers: Iterable[str]) -> PruningGraph:
    """Return the graph of a model without weights; the units between blocks stay whole."""
    ids = torch.zeros(EXAMPLE, dtype=torch.long, device="meta")
    model = copy.deepcopy(chain.empty).to("meta")
    graph = trace(model, ids, [*ignored_layers, "kind:hidden"]).with_even_layers(budget.even)
    return replace(graph, example_inputs=(), example_kwargs={})


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
    plan = Plan(graph, "counts", keep)
    small = shrink(chain.empty, plan, check=False)
    return next(iter(plain_models(small, plan, "error"))).config
