"""Positions within the heads of attention: units that each key-value group loses by itself.

The code of attention has one length for all heads, so zeros take the place of the positions that go (see
`Group.padded`).  A pair of positions that a rotary embedding turns into one another goes together, in the
queries and the key of a key-value group; a position of a value goes with the columns that read it.

Which rows of which projection these are is found by trial, not from names: the model runs with some rows at
zero, and the queries, keys and values that reach the attention must be zero at just the positions that these
rows are thought to be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.core import Group, InputError, IntArray, Kind, Slot
from secateur.execution import call, evaluating
from secateur.modules.padded_linear import feature_axes
from secateur.tracing.attentions import AttentionWatch
from secateur.tracing.export import first_names, without_fused_attention
from secateur.tracing.ignored import IgnoredLayer
from secateur.tracing.replay import prefixes

__all__ = ["find_head_positions", "without_ignored"]

QUERY, KEY, VALUE = range(3)
SHARES = (1.0, 0.5, 0.25, 0.75, 0.4, 0.125)  # of a head that a rotary embedding turns
NONE = "no attention has queries, keys and values from linear layers whose heads can be found"


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
        before: The last linear layers before it, three at most.
        after: The first one behind it that reads so many features.
        inputs: Queries, keys and values [batch, heads, tokens, positions].
    """

    before: tuple[_Use, ...]
    after: _Use
    inputs: tuple[Tensor, Tensor, Tensor]


@contextmanager
def _watching(
    model: nn.Module, names: Sequence[str], alive: Mapping[str, Tensor], calls: list[Any]
) -> Iterator[None]:
    """Record linear layers; keep some of their outputs at zero."""

    def watch(name: str) -> Any:
        def record(_: nn.Module, args: tuple[Tensor, ...], made: Tensor) -> Tensor:
            made = made * alive[name].to(made) if name in alive else made
            calls.append(_Use(name, args[0], made))
            return made

        return model.get_submodule(name).register_forward_hook(record)

    hooks = [watch(name) for name in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True, eq=False)
class _Heads:
    """The projections of an attention and the places of their heads.

    Attributes:
        names: Modules of queries, keys, values, and of the layer that reads the result.
        rows: The features of queries, keys and values that their modules make, each [key-value groups, heads
            in each, positions].
    """

    names: tuple[str, str, str, str]
    rows: tuple[IntArray, IntArray, IntArray]

    @property
    def shape(self) -> tuple[int, int]:
        """Return the number of key-value groups, and of query heads in each."""
        return self.rows[QUERY].shape[0], self.rows[QUERY].shape[1]

    def length(self, which: int) -> int:
        """Return the positions of a head of queries, keys or values."""
        return int(self.rows[which].shape[2])


def find_head_positions(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], inside: Sequence[str] = ()
) -> list[Group]:
    """Return the groups of positions, of queries with keys and of values, for each attention of a model.

    Args:
        model: The model.
        args: What it is called with.
        kwargs: What it is called with, by keyword.
        inside: If given, the submodules that hold all layers of an attention.

    Raises:
        InputError: If there are none, with the reason.
    """
    if any(tensor.is_meta for tensor in model.parameters()):
        raise InputError("positions within heads are found by running the model, whose weights are not here")
    below = prefixes(inside)
    names = [name for name in _plain_linears(model) if not inside or name.startswith(below)]

    def run(alive: Mapping[str, Tensor]) -> list[_Attention]:
        calls: list[Any] = []
        with (
            evaluating(model),
            without_fused_attention(),
            torch.random.fork_rng(),
            _watching(model, names, alive, calls),
            AttentionWatch(lambda *inputs: calls.append(inputs)),
        ):
            torch.manual_seed(0)
            call(model, args, kwargs)
        return list(_attentions(calls))

    whole = run({})
    owners = [_owners(run, whole, number) for number in range(3)]
    candidates: dict[int, list[_Heads]] = {}
    used: set[str] = set()
    for number, (attention, which) in enumerate(zip(whole, zip(*owners, strict=True), strict=True)):
        found = _separate(attention, which) or _fused(attention)
        if found and used.isdisjoint(found[0].names):
            candidates[number] = found
            used.update(found[0].names)
    groups = [g for heads, pairs in _find_pairs(run, whole, candidates) for g in _groups(model, heads, pairs)]
    if not groups:
        raise InputError(f"positions within heads cannot go: {NONE}")
    return groups


def without_ignored(
    groups: Sequence[Group], ignored: Sequence[IgnoredLayer]
) -> tuple[tuple[Group, ...], tuple[IgnoredLayer, ...]]:
    """Return the groups that stay after the entries for them and their layers, and the other entries."""

    def names(layer: IgnoredLayer, group: Group) -> bool:
        return layer.matches(group) or any(s.tensor in layer.tensors for s in group.slots_with("out"))

    left = tuple(group for group in groups if not any(names(layer, group) for layer in ignored))
    others = (x for x in ignored if x.tensors or x.is_kind or not any(x.matches(group) for group in groups))
    return left, tuple(others)


def _plain_linears(model: nn.Module) -> list[str]:
    """Return the names of the linear layers whose weights are not tied."""
    uses = Counter(first_names(model).values())
    return [
        name
        for name, module in model.named_modules()
        if feature_axes(module) is not None and uses[f"{name}.weight"] == 1
    ]


def _attentions(calls: list[Any]) -> Iterator[_Attention]:
    """Yield the attentions with four axes that linear layers come before and one reads."""
    places = [-1, *(i for i, x in enumerate(calls) if isinstance(x, tuple)), len(calls)]
    for (start, at), (_, end) in pairwise(pairwise(places)):
        before, inputs = calls[start + 1 : at][-3:], calls[at]
        if before and all(x.ndim == 4 for x in inputs):
            width = inputs[QUERY].shape[1] * inputs[VALUE].shape[3]
            after = next((x for x in calls[at + 1 : end] if x.read.shape[-1] == width), None)
            if after is not None:
                yield _Attention(tuple(before), after, inputs)


def _owners(run: Any, whole: list[_Attention], number: int) -> list[int | None]:
    """Return what the layer of that number before each attention makes: queries, keys or values."""
    layers = [x.before[number] for x in whole if number < len(x.before)]
    seen = run({x.name: torch.zeros(x.made.shape[-1]) for x in layers})
    zero = [[bool((x == 0).all()) for x in attention.inputs] for attention in seen]
    return [flags.index(True) if sum(flags) == 1 else None for flags in zero]


def _separate(attention: _Attention, which: tuple[int | None, ...]) -> list[_Heads]:
    """Return the projections of an attention if they are three whose widths fit."""
    if len(attention.before) < 3 or set(which) != {QUERY, KEY, VALUE}:
        return []
    made = [attention.before[which.index(i)] for i in (QUERY, KEY, VALUE)]
    lengths = [x.shape[3] for x in attention.inputs]
    (heads, a), (shared, b), (values, c) = (
        divmod(x.made.shape[-1], length) for x, length in zip(made, lengths, strict=True)
    )
    if a or b or c or values != shared or not shared or heads % shared:
        return []
    rows = (np.arange(x.made.shape[-1]).reshape(shared, -1, n) for x, n in zip(made, lengths, strict=True))
    query, key, value = (x.name for x in made)
    return [_Heads((query, key, value, attention.after.name), tuple(rows))]  # type: ignore[arg-type]


def _fused(attention: _Attention) -> list[_Heads]:
    """Return what one layer that makes queries, keys and values may be: one after the other, or by heads."""
    layer, length = attention.before[-1], attention.inputs[QUERY].shape[3]
    heads = attention.inputs[QUERY].shape[1]
    total, rest = divmod(layer.made.shape[-1], length)
    shared, odd = divmod(total - heads, 2)
    if rest or odd or shared < 1 or heads % shared or attention.inputs[VALUE].shape[3] != length:
        return []
    rows = np.arange(layer.made.shape[-1]).reshape(-1, length)
    cuts = (rows[:heads], rows[heads : heads + shared], rows[heads + shared :])
    grouped = rows.reshape(shared, -1, length)
    names = (layer.name, layer.name, layer.name, attention.after.name)
    stacked = tuple(x.reshape(shared, -1, length) for x in cuts)
    return [
        _Heads(names, stacked),  # type: ignore[arg-type]
        _Heads(names, (grouped[:, :-2], grouped[:, -2:-1], grouped[:, -1:])),
    ]


def _find_pairs(
    run: Any, whole: Sequence[_Attention], candidates: Mapping[int, list[_Heads]]
) -> list[tuple[_Heads, IntArray]]:
    """Return the heads that are as thought, with pairs [n, 2] of positions that only go together."""
    found: dict[int, tuple[_Heads, IntArray]] = {}
    for share in SHARES:
        for interleaved in (False, True):
            for layout in range(2):
                trial = {}
                for number, heads in candidates.items():
                    if number in found or layout >= len(heads):
                        continue
                    pairs = _pairs(heads[layout].length(QUERY), share, interleaved)
                    if pairs is not None:
                        trial[number] = heads[layout], pairs
                found |= _confirmed(run, whole, trial) if trial else {}
    return [found[number] for number in sorted(found)]


def _pairs(length: int, share: float, interleaved: bool) -> IntArray | None:
    """Return the pairs if a rotary embedding turns the first positions of a head, by halves or neighbours."""
    turned = round(length * share)
    if turned % 2 or not turned:
        return None
    pairs = np.arange(turned).reshape((-1, 2) if interleaved else (2, -1))
    rest = np.arange(turned, length).reshape(-1, 2)
    return np.concatenate([pairs if interleaved else pairs.T, rest])


def _confirmed(
    run: Any, whole: Sequence[_Attention], trial: Mapping[int, tuple[_Heads, IntArray]]
) -> dict[int, tuple[_Heads, IntArray]]:
    """Return what is zero just where it should be while half of the units are zero."""
    generator = np.random.default_rng(0)
    alive: dict[str, Tensor] = {}
    gone: dict[int, list[Any]] = {}
    for number, (heads, pairs) in trial.items():
        some = generator.random((heads.shape[0], len(pairs))) < 0.5
        dead = np.zeros((heads.shape[0], heads.length(QUERY)), dtype=bool)
        for group, chosen in enumerate(some):
            dead[group, pairs[chosen].ravel()] = True
        values = generator.random((heads.shape[0], heads.length(VALUE))) < 0.5
        gone[number] = [dead, dead, values]
        widths = dict.fromkeys(heads.names[:3], 0)
        for name, rows in zip(heads.names, heads.rows, strict=False):
            widths[name] += rows.size
        alive |= {name: torch.ones(width) for name, width in widths.items()}
        for name, rows, dead in zip(heads.names, heads.rows, gone[number], strict=False):
            alive[name][rows.swapaxes(1, 2)[dead].ravel()] = 0
    seen = run(alive)
    return {
        number: found
        for number, found in trial.items()
        if number < len(seen) and _as_thought(seen[number], whole[number], found[0], gone[number])
    }


def _as_thought(attention: _Attention, whole: _Attention, heads: _Heads, gone: list[Any]) -> bool:
    """Return whether queries, keys, values and what is read of them are zero just where they should be."""
    shared, repeated = heads.shape
    for which, (x, before) in enumerate(zip(attention.inputs, whole.inputs, strict=True)):
        times, rest = divmod(x.shape[1], shared)
        dead = np.repeat(gone[which], times, 0)
        if rest or not _zero_at(x.transpose(1, 2), before.transpose(1, 2), dead):
            return False
    shape = -1, shared * repeated, heads.length(VALUE)
    read, before = (x.after.read.reshape(shape) for x in (attention, whole))
    return _zero_at(read, before, np.repeat(gone[VALUE], repeated, 0))


def _zero_at(x: Tensor, before: Tensor, gone: IntArray) -> bool:
    """Return whether the last axes of a tensor, heads and positions, became zero everywhere just at `gone`.

    The gain of a norm may switch positions off, as in three layers of Gemma 3 270M: they were zero before.
    """
    zero, was = ((y == 0).flatten(0, -3).all(0).cpu() for y in (x, before))
    return zero.shape == gone.shape and bool((zero == (was | torch.from_numpy(gone))).all())


def _groups(model: nn.Module, heads: _Heads, pairs: IntArray) -> Iterator[Group]:
    """Yield the two groups of an attention; unit p of key-value group k has the number k * P + p."""
    query, key, value, output = heads.names
    units = heads.shape[0] * len(pairs)
    queries, keys = (
        heads.rows[which][:, :, pairs].transpose(0, 2, 1, 3).reshape(units, -1) for which in (QUERY, KEY)
    )
    slots = (*_rows(model, query, queries), *_rows(model, key, keys))
    yield _group(query, "query-key positions", slots)
    values = heads.rows[VALUE].reshape(-1, 1)
    columns = np.arange(values.size * heads.shape[1]).reshape(*heads.shape, -1)
    _, axis = _axes(model, output)
    reader = Slot(f"{output}.weight", axis, columns.swapaxes(1, 2).reshape(values.size, -1), "in")
    yield _group(value, "value positions", (*_rows(model, value, values), reader))


def _rows(model: nn.Module, name: str, index: IntArray) -> Iterator[Slot]:
    yield Slot(f"{name}.weight", _axes(model, name)[0], index, "out")
    if model.get_submodule(name).bias is not None:
        yield Slot(f"{name}.bias", 0, index, "out")


def _axes(model: nn.Module, name: str) -> tuple[int, int]:
    """Return the axes of outputs and inputs of a layer's weight."""
    return feature_axes(model.get_submodule(name)) or (0, 1)


def _group(name: str, kind: Kind, slots: tuple[Slot, ...]) -> Group:
    return Group(f"{name} ({kind})", len(slots[0].index), slots, kind)
