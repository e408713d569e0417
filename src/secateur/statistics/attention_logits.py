"""Moments of what positions of queries and keys add to the logits of attention.

The logit of query t and key s in a head is the sum of q_tp k_sp over its positions p.  So a unit u, some
positions of a key-value group, adds c_u(t, s) = sum_{p in u} q_tp k_sp to it.  Over all pairs of a query and
a key in the data, whether the model lets them meet or not,

    E[c_u c_v] = sum_{p in u, p' in v} E[q_p q_p'] E[k_p k_p'],

so second moments of queries and keys are enough.  They are taken where both enter the attention, behind their
norms and the rotary embedding.  The query heads that share a key add up.

A softmax does not see what all keys of a query have in common.  So what a unit does to the attention is how
c_u varies with s: the same sum with the covariance of the keys.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from secateur.core import Group, LogitMoments, PruningGraph
from secateur.modules.padded_linear import output_places
from secateur.processes import sum_over_processes
from secateur.statistics.token_gates import gates_keys
from secateur.tracing.attentions import AttentionWatch

__all__ = ["AttentionLogits"]


@dataclass(eq=False)
class _Units:
    """The units of a key-value layer, and sums over the tokens seen.

    Attributes:
        name: Name of the group.
        layer: The module that makes the keys.
        queries: Outputs of the layer of queries that each unit owns [units, heads * positions].
        keys: Outputs of the layer of keys that each unit owns [units, positions].
        fused: Whether one layer makes queries and keys.
        heads: Key-value group of each unit [units]; empty before the first batch.
        positions: Positions of each unit in its head [units, positions].
        sums: Second moments and sums of queries and keys, and their numbers.
    """

    name: str
    layer: nn.Module
    queries: Tensor
    keys: Tensor
    fused: bool
    heads: Tensor
    positions: Tensor
    sums: dict[str, Tensor]


class AttentionLogits:
    """Sums of queries and keys where they meet, for the groups of query-key positions.

    A context manager: the model runs inside, once for each batch.

    Args:
        model: The model.
        graph: Its trace.
        gram: Whether moments of pairs of units are wanted.
    """

    def __init__(self, model: nn.Module, graph: PruningGraph, gram: bool) -> None:
        """Find the layers that make keys."""
        groups = filter(gates_keys, graph.groups)
        self._units = {units.layer: units for units in (_units(model, group) for group in groups)}
        self._gram, self._stack = gram, ExitStack()
        self._latest: tuple[_Units, int] | None = None  # the last layer of keys, and how many outputs it has

    def __enter__(self) -> Self:
        """Watch the layers of keys and the attentions behind them."""
        for layer, units in self._units.items():
            hook = layer.register_forward_hook(lambda _, __, made, units=units: self._note(units, made))
            self._stack.callback(hook.remove)
        self._stack.enter_context(AttentionWatch(self._add))
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self._stack.close()

    def _note(self, units: _Units, made: Tensor) -> None:
        self._latest = units, made.shape[-1]

    def _add(self, query: Tensor, key: Tensor, _: Tensor) -> None:
        if self._latest is None:
            return
        (units, width), self._latest = self._latest, None
        heads, length = query.shape[1], key.shape[-1]
        shared = (width // length - heads) // 2 if units.fused else width // length
        if not len(units.heads):
            units.heads, units.positions = _places(units, heads, shared, length)
        k = key.detach()[:, :: key.shape[1] // shared].double()
        q = query.detach().unflatten(1, (shared, -1)).double()
        terms = {
            "queries": torch.einsum("bgrtp,bgrtq->gpq", q, q),
            "keys": torch.einsum("bgsp,bgsq->gpq", k, k),
            "query": q.sum((0, 2, 3)),
            "key": k.sum((0, 2)),
            "tokens": torch.tensor([q.shape[0] * q.shape[3], k.shape[0] * k.shape[2]]).to(q),
        }
        units.sums = {name: x + units.sums[name] if units.sums else x for name, x in terms.items()}

    def add_other_processes(self) -> None:
        """Add the sums of all processes that share the batches."""
        for units in self._units.values():
            units.sums = sum_over_processes(units.sums)

    def moments(self) -> dict[str, LogitMoments]:
        """Return the moments by group, where an attention was seen."""
        return {x.name: _moments(x, self._gram) for x in self._units.values() if x.sums}


def _units(model: nn.Module, group: Group) -> _Units:
    query, key = (slot for slot in group.slots_with("out") if slot.tensor.endswith("weight"))
    layers = [model.get_submodule(slot.tensor.rpartition(".")[0]) for slot in (query, key)]
    queries, keys = (
        output_places(layer, torch.from_numpy(slot.index))
        for layer, slot in zip(layers, (query, key), strict=True)
    )
    none = torch.zeros(0, dtype=torch.long)
    return _Units(group.name, layers[1], queries, keys, layers[0] is layers[1], none, none, {})


def _places(units: _Units, heads: int, shared: int, length: int) -> tuple[Tensor, Tensor]:
    """Return the key-value group [units] and the positions in its head [units, positions] of each unit.

    One layer for queries, keys and values has all queries first, or those of a key-value group and then its
    key and value.
    """
    block, positions = units.keys[:, 0] // length, units.keys % length
    if units.fused:
        size = heads // shared + 2
        first = units.queries[:, 0] // length
        grouped = (first // size == block // size).all() and (block % size == size - 2).all()
        block = block // size if grouped else block - heads
    return block, positions


def _moments(units: _Units, gram: bool) -> LogitMoments:
    queries, keys = units.sums["tokens"]
    device = units.sums["keys"].device
    g, p = units.heads.to(device), units.positions.to(device)
    Q, K = units.sums["queries"] / queries, units.sums["keys"] / keys
    q, k = units.sums["query"] / queries, units.sums["key"] / keys
    at = g[:, None, None], p[:, :, None], p[:, None]
    centred = K - k[:, :, None] * k[:, None]
    pairs = None
    if gram:
        pairs = Q.new_zeros(len(g), len(g))
        for head in g.unique():
            own = (g == head).nonzero()[:, 0]
            products = (Q[head] * K[head])[p[own].flatten()][:, p[own].flatten()]
            products = products.view(len(own), p.shape[1], len(own), p.shape[1]).sum((1, 3))
            pairs[own[:, None], own] = products
    return LogitMoments(
        mean=(q * k)[g[:, None], p].sum(1),
        second=(Q * K)[at].sum((1, 2)),
        variance=(Q * centred)[at].sum((1, 2)).clamp_min(0),
        gram=pairs,
    )
