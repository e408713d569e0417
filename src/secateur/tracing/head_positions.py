"""Positions within the heads of attention: units that each key-value group loses by itself.

The code of attention has one length for all heads, so zeros take the place of the positions that go (see
`Group.padded`).  A pair of positions that a rotary embedding turns into one another goes together, in the
queries and the key of a key-value group; a position of a value goes with the columns that read it.

Which rows of which projection these are is found by trial, not from names: the model runs with some rows at
zero, and the queries, keys and values that reach the attention must be zero at just the positions that these
rows are thought to be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur.core import Group, InputError, IntArray, Kind, Slot
from secateur.execution import call, evaluating
from secateur.tracing.export import first_names, without_fused_attention
from secateur.tracing.ignored import IgnoredLayer

__all__ = ["find_head_positions", "without_ignored"]

QUERY, KEY, VALUE = range(3)
SHARES = (1.0, 0.5, 0.25, 0.75, 0.4, 0.125)  # of a head that a rotary embedding turns
SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)
PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)
NONE = "no attention has linear layers of its own for queries, keys and values whose heads can be found"


@dataclass(frozen=True, eq=False)
class _Use:
    """A linear layer as it ran: the name of its module, and what it read and returned."""

    name: str
    read: Tensor
    made: Tensor


@dataclass(frozen=True, eq=False)
class _Attention:
    """An attention as it ran.

    Attributes:
        before: The last three linear layers before it.
        after: The first one behind it that reads so many features.
        inputs: Queries, keys and values [batch, heads, tokens, positions].
    """

    before: tuple[_Use, ...]
    after: _Use
    inputs: tuple[Tensor, Tensor, Tensor]


class _Recorder(TorchFunctionMode):
    """Record linear layers and attentions in their order; keep some outputs of the layers at zero.

    An attention is the fused function, or a softmax between two products.
    """

    def __init__(self, names: Mapping[int, str], alive: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names, self._alive = names, alive
        self._scored: tuple[Tensor, Tensor] | None = None  # queries and keys of the last product
        self._weighted = False  # whether a softmax came after it
        self.calls: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is F.linear and (name := self._names.get(id(args[1]))) is not None:
            if name in self._alive:
                result = result * self._alive[name].to(result)
            self.calls.append(_Use(name, args[0], result))
        if func is F.scaled_dot_product_attention:
            named = {**dict(zip(("query", "key", "value"), args, strict=False)), **kwargs}
            self.calls.append(tuple(named[name] for name in ("query", "key", "value")))
        elif func in SOFTMAX:
            self._weighted = self._scored is not None
        elif func in PRODUCTS and args[0].ndim == 4:
            if self._weighted and self._scored is not None:
                self.calls.append((*self._scored, args[1]))
            self._scored = None if self._weighted else (args[0], args[1].transpose(-1, -2))
            self._weighted = False
        return result


@dataclass(frozen=True, eq=False)
class _Heads:
    """The projections of an attention and the lengths of their heads.

    Attributes:
        names: Modules of queries, keys, values, and of the layer that reads the result.
        shared: Number of key-value groups.
        repeated: Query heads in each.
        lengths: Positions of a head, of queries and keys, and of values.
    """

    names: tuple[str, str, str, str]
    shared: int
    repeated: int
    lengths: tuple[int, int]

    def rows(self, which: int) -> IntArray:
        """Return the features of queries, keys or values as [key-value groups, heads in each, positions]."""
        length = self.lengths[which == VALUE]
        heads = self.shared * (self.repeated if which == QUERY else 1)
        return np.arange(heads * length).reshape(self.shared, -1, length)


def find_head_positions(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Group]:
    """Return the groups of positions, of queries with keys and of values, for each attention of a model.

    Raises:
        InputError: If there are none, with the reason.
    """
    if any(tensor.is_meta for tensor in model.parameters()):
        raise InputError("positions within heads are found by running the model, whose weights are not here")
    names = _plain_linears(model)

    def run(alive: Mapping[str, Tensor]) -> list[_Attention]:
        recorder = _Recorder(names, alive)
        with evaluating(model), without_fused_attention(), torch.random.fork_rng(), recorder:
            torch.manual_seed(0)
            call(model, args, kwargs)
        return list(_attentions(recorder.calls))

    whole = run({})
    owners = [_owners(run, whole, i) for i in range(3)]
    found = [
        _heads(attention, which) for attention, which in zip(whole, zip(*owners, strict=True), strict=True)
    ]
    heads = list({x.names: x for x in found if x is not None}.values())
    uses = [name for x in heads for name in x.names]
    heads = [x for x in heads if all(uses.count(name) == 1 for name in x.names)]
    pairs = _find_pairs(run, heads)
    groups = [g for x in heads if (p := pairs.get(x.names)) is not None for g in _groups(model, x, p)]
    if not groups:
        raise InputError(f"positions within heads cannot go: {NONE}")
    return groups


def without_ignored(
    groups: Sequence[Group], ignored: Sequence[IgnoredLayer]
) -> tuple[tuple[Group, ...], tuple[IgnoredLayer, ...]]:
    """Return the groups that no entry names, nor a layer that makes them, and the entries for other groups."""

    def names(layer: IgnoredLayer, group: Group) -> bool:
        return layer.matches(group) or any(s.tensor in layer.tensors for s in group.slots_with("out"))

    left = tuple(group for group in groups if not any(names(layer, group) for layer in ignored))
    others = (x for x in ignored if x.tensors or x.is_kind or not any(x.matches(group) for group in groups))
    return left, tuple(others)


def _plain_linears(model: nn.Module) -> dict[int, str]:
    """Return the modules by the identity of their weights, of linear layers whose weights are not tied."""
    first = list(first_names(model).values())
    return {
        id(module.weight): name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and first.count(f"{name}.weight") == 1
    }


def _attentions(calls: list[Any]) -> Iterator[_Attention]:
    """Yield the attentions with four axes that three linear layers come before and one reads."""
    places = [-1, *(i for i, x in enumerate(calls) if isinstance(x, tuple)), len(calls)]
    for (start, at), (_, end) in pairwise(pairwise(places)):
        before, inputs = calls[start + 1 : at][-3:], calls[at]
        if len(before) == 3 and all(x.ndim == 4 for x in inputs):
            width = inputs[QUERY].shape[1] * inputs[VALUE].shape[3]
            after = next((x for x in calls[at + 1 : end] if x.read.shape[-1] == width), None)
            if after is not None:
                yield _Attention(tuple(before), after, inputs)


def _owners(run: Any, whole: list[_Attention], number: int) -> list[int | None]:
    """Return what the layer of that number before each attention makes: queries, keys or values."""
    layers = [x.before[number] for x in whole]
    seen = run({x.name: torch.zeros(x.made.shape[-1]) for x in layers})
    zero = [[bool((x == 0).all()) for x in attention.inputs] for attention in seen]
    return [flags.index(True) if sum(flags) == 1 else None for flags in zero]


def _heads(attention: _Attention, which: tuple[int | None, ...]) -> _Heads | None:
    """Return the projections of an attention; None if they are not three, or their widths do not fit."""
    if set(which) != {QUERY, KEY, VALUE}:
        return None
    query, key, value = (attention.before[which.index(i)] for i in (QUERY, KEY, VALUE))
    length, value_length = attention.inputs[QUERY].shape[3], attention.inputs[VALUE].shape[3]
    heads, rest = divmod(query.made.shape[-1], length)
    shared, more = divmod(key.made.shape[-1], length)
    fits = not (rest or more) and shared and heads % shared == 0
    if not fits or value.made.shape[-1] != shared * value_length or length % 2:
        return None
    names = query.name, key.name, value.name, attention.after.name
    return _Heads(names, shared, heads // shared, (length, value_length))


def _find_pairs(run: Any, heads: list[_Heads]) -> dict[tuple[str, ...], IntArray]:
    """Return, by the names of the projections, pairs [n, 2] of positions that only go together."""
    found: dict[tuple[str, ...], IntArray] = {}
    for share in SHARES:
        for interleaved in (False, True):
            left = [x for x in heads if x.names not in found]
            trial = {x.names: _pairs(x.lengths[0], share, interleaved) for x in left}
            trial = {names: pairs for names, pairs in trial.items() if pairs is not None}
            if trial:
                found |= _confirmed(run, [x for x in left if x.names in trial], trial)
    return found


def _pairs(length: int, share: float, interleaved: bool) -> IntArray | None:
    """Return the pairs if a rotary embedding turns the first positions of a head, by halves or neighbours."""
    turned = round(length * share)
    if turned % 2 or not turned:
        return None
    pairs = np.arange(turned).reshape((-1, 2) if interleaved else (2, -1))
    rest = np.arange(turned, length).reshape(-1, 2)
    return np.concatenate([pairs if interleaved else pairs.T, rest])


def _confirmed(
    run: Any, heads: list[_Heads], trial: Mapping[tuple[str, ...], IntArray]
) -> dict[tuple[str, ...], IntArray]:
    """Return the pairs of those attentions that are zero just where half of the units are zero."""
    generator = np.random.default_rng(0)
    alive: dict[str, Tensor] = {}
    gone: dict[tuple[str, ...], list[Any]] = {}
    for x in heads:
        pairs = trial[x.names]
        some = generator.random((x.shared, len(pairs))) < 0.5
        dead = np.zeros((x.shared, x.lengths[0]), dtype=bool)
        for group, chosen in enumerate(some):
            dead[group, pairs[chosen].ravel()] = True
        gone[x.names] = [dead, dead, generator.random((x.shared, x.lengths[1])) < 0.5]
        for which in (QUERY, KEY, VALUE):
            stays = np.ones(x.rows(which).size)
            stays[x.rows(which).swapaxes(1, 2)[gone[x.names][which]].ravel()] = 0
            alive[x.names[which]] = torch.from_numpy(stays)
    seen = {_names_of(attention, heads): attention for attention in run(alive)}
    return {
        x.names: trial[x.names]
        for x in heads
        if x.names in seen and _as_thought(seen[x.names], x, gone[x.names])
    }


def _names_of(attention: _Attention, heads: list[_Heads]) -> tuple[str, ...] | None:
    """Return the names of the projections of an attention."""
    before = {use.name for use in attention.before}
    return next(
        (x.names for x in heads if before == set(x.names[:3]) and x.names[3] == attention.after.name), None
    )


def _as_thought(attention: _Attention, heads: _Heads, gone: list[Any]) -> bool:
    """Return whether queries, keys, values and what is read of them are zero just where they should be."""
    for which, x in enumerate(attention.inputs):
        times = x.shape[1] // heads.shared
        if x.shape[1] % heads.shared or not _zero_at(x.transpose(1, 2), np.repeat(gone[which], times, 0)):
            return False
    read = attention.after.read
    read = read.reshape(-1, heads.shared * heads.repeated, heads.lengths[1])
    return _zero_at(read, np.repeat(gone[VALUE], heads.repeated, 0))


def _zero_at(x: Tensor, gone: IntArray) -> bool:
    """Return whether the last axes of a tensor, heads and positions, are zero everywhere just at `gone`."""
    zero = (x == 0).flatten(0, -3).all(0)
    return zero.shape == gone.shape and bool((zero.cpu() == torch.from_numpy(gone)).all())


def _groups(model: nn.Module, heads: _Heads, pairs: IntArray) -> Iterator[Group]:
    """Yield the two groups of an attention; unit p of key-value group k has the number k * P + p."""
    query, key, value, output = heads.names
    queries, keys, values = (heads.rows(which) for which in (QUERY, KEY, VALUE))
    own_queries = queries[:, :, pairs].transpose(0, 2, 1, 3).reshape(heads.shared * len(pairs), -1)
    own_keys = keys[:, :, pairs].transpose(0, 2, 1, 3).reshape(heads.shared * len(pairs), -1)
    slots = (*_rows(model, query, own_queries), *_rows(model, key, own_keys))
    yield _group(query, "query-key positions", slots)
    columns = np.arange(heads.shared * heads.repeated * heads.lengths[1])
    columns = columns.reshape(heads.shared, heads.repeated, -1).swapaxes(1, 2).reshape(values.size, -1)
    reader = Slot(f"{output}.weight", 1, columns, "in")
    yield _group(value, "value positions", (*_rows(model, value, values.reshape(-1, 1)), reader))


def _rows(model: nn.Module, name: str, index: IntArray) -> Iterator[Slot]:
    yield Slot(f"{name}.weight", 0, index, "out")
    if model.get_submodule(name).bias is not None:
        yield Slot(f"{name}.bias", 0, index, "out")


def _group(name: str, kind: Kind, slots: tuple[Slot, ...]) -> Group:
    return Group(f"{name} ({kind})", len(slots[0].index), slots, kind)
