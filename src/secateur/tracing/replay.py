"""Replay a model: record the calls of some of its submodules in one run, and make them again.

The model runs once, and the arguments of every call of the submodules are recorded.  A `Replay` then stands
for the model: it has the same modules under the same names, and its forward makes these calls.  So groups,
frozen axes and sizes bear the names of the whole model, and what leaves a submodule is an output.

A tensor that one submodule returns and only others of them take is not an output: the replay passes it on,
so it may lose units, as between the two layers of a feed-forward part.  The run that records the calls sees
whether anything else reads it.

Repairs compare calls, too: what a detector returns depends on the boxes that it finds, and two networks find
different ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from secateur.core import InputError, PruningGraph
from secateur.execution import copy_tensors, duplicate, evaluating, explain_errors, read_batches
from secateur.tracing.export import copy_sharing_tensors, without_fused_attention

__all__ = [
    "RecordedCalls",
    "Replay",
    "as_replayed",
    "called_submodules",
    "compared_submodules",
    "make_replay",
    "prefixes",
    "record_batches",
    "record_calls",
]

# What reads the shape or the type of a tensor, and none of its values.
QUERIES = {"__get__", "size", "dim", "numel", "stride", "is_floating_point", "is_contiguous", "__len__"}
Call = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword arguments
# A call, the number of a leaf of its arguments, and the earlier call that returned this leaf.
Link = tuple[int, int, int]


@dataclass(frozen=True)
class RecordedCalls:
    """Calls of submodules.

    Attributes:
        names: The submodule of each call.
        calls: Its arguments.
        links: The arguments that are passed on, each from an earlier call whose result nothing else reads.
    """

    names: tuple[str, ...]
    calls: tuple[Call, ...]
    links: tuple[Link, ...]

    @property
    def linked(self) -> set[str]:
        """The submodules whose results are only passed on."""
        return {self.names[giver] for _, _, giver in self.links}


class Replay(nn.Module):
    """Stands for a model: it has its modules, and makes recorded calls of some of them."""

    def __init__(self, model: nn.Module, names: Sequence[str], links: Sequence[Link] = ()) -> None:
        """Share the modules and tensors of a model; `names` has the submodule of each call."""
        super().__init__()
        for registry in ("_parameters", "_buffers", "_modules"):
            vars(self)[registry] = vars(model)[registry]
        self.names, self.links = tuple(names), tuple(links)

    def _get_name(self) -> str:
        """Return the model's name for messages."""
        return f"inside {', '.join(dict.fromkeys(self.names))}: a submodule"

    def forward(self, calls: Sequence[Call]) -> list[Any]:
        """Call the submodules; return what each returns, but not what is only passed on."""
        results: list[Any] = []
        for number, (name, call) in enumerate(zip(self.names, calls, strict=True)):
            leaves, form = tree_flatten(call)
            for reader, leaf, giver in self.links:
                if reader == number:
                    leaves[leaf] = results[giver]
            args, kwargs = tree_unflatten(leaves, form)
            results.append(self.get_submodule(name)(*args, **kwargs))
        passed_on = {giver for _, _, giver in self.links}
        return [result for number, result in enumerate(results) if number not in passed_on]


def make_replay(
    model: nn.Module, names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Replay, tuple[Call, ...]]:
    """Run a model; return a replay of the calls of its submodules, and their arguments.

    Args:
        model: The model; a copy of it runs.
        names: Names of submodules.
        args: Positional example inputs.
        kwargs: Keyword example inputs.

    Raises:
        InputError: If the model does not run, does not call a submodule, or also calls a part of one from
            outside.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> replayed, calls = make_replay(model, ["1"], (torch.ones(1, 2),), {})
        >>> replayed.names, calls[0][0][0].shape
        (('1',), torch.Size([1, 3]))
    """
    found = record_calls(model, names, args, kwargs)
    if missing := [name for name in names if name not in found.names]:
        raise InputError(
            f"inside: the model does not call {missing[0]!r} on the example inputs: name a module that it "
            "calls"
        )
    return Replay(model, found.names, found.links), found.calls


def compared_submodules(
    model: nn.Module, names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[str, ...]:
    """Return the traced submodules whose results keep their sizes."""
    if not names:
        return ()
    linked = record_calls(model, names, args, kwargs).linked
    return tuple(name for name in names if name not in linked)


class RecordedBatches(list[Any]):
    """The calls of the traced submodules on each of some batches, for `Replay`.

    Attributes:
        names: The submodule of each call; the same in all batches.
        links: What is passed on from call to call; the same in all batches.
        first_number: Number of the first batch, for messages.
    """

    def __init__(self, recorded: Sequence[RecordedCalls], first_number: int) -> None:
        super().__init__({"calls": each.calls} for each in recorded)
        self.names, self.links, self.first_number = recorded[0].names, recorded[0].links, first_number


def record_batches(model: nn.Module, graph: PruningGraph, batches: Sequence[Any]) -> Sequence[Any]:
    """Return the calls of the traced submodules on each batch; the batches themselves if all is traced.

    Raises:
        InputError: If the model cannot take a batch, or calls other submodules than on the first one.
    """
    if not graph.inside or isinstance(batches, RecordedBatches):
        return batches
    copied = duplicate(model)
    found: list[RecordedCalls] = []
    with evaluating(copied):
        for where, args, kwargs, _ in read_batches(batches, copied):
            found.append(record_calls(copied, graph.inside, args, kwargs))
            first, last = found[0], found[-1]
            if (first.names, first.links) != (last.names, last.links) or not first.names:
                called = ", ".join(last.names) or "no traced submodule"
                raise InputError(
                    f"inside: on {where} the model calls {called}, on the first batch "
                    f"{', '.join(first.names)}: leave the batch out, or set repair=None"
                )
    return RecordedBatches(found, getattr(batches, "first_number", 0))


def as_replayed(model: nn.Module, batches: Sequence[Any]) -> nn.Module:
    """Return what takes the batches in the model's place: a `Replay` for recorded calls, else the model."""
    return Replay(model, batches.names, batches.links) if isinstance(batches, RecordedBatches) else model


def record_calls(
    model: nn.Module, names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> RecordedCalls:
    """Run a model, and return the calls of its submodules and the links between them."""
    calls: list[tuple[str, Call]] = []
    within: list[str] = []  # the submodules that run now
    uses = _Uses(within)

    def enter(name: str, call: Call) -> None:
        if name not in names:
            if not within:
                owner = next(x for x in names if name.startswith(f"{x}."))
                raise InputError(
                    f"inside: the model also calls {name!r} from outside of {owner!r}: name it, or the "
                    "module that calls it, instead"
                )
            return
        within.append(name)  # first: the copies below are not uses
        if len(within) == 1:
            uses.read(call, len(calls))
            calls.append((name, copy_tensors(call)))

    def leave(name: str, result: Any) -> None:
        if name in names:
            within.pop()
            if not within:
                uses.give(result, len(calls) - 1)

    watched = [name for name, _ in model.named_modules() if name in names or name.startswith(prefixes(names))]
    uses.read(_run(_listening(model, watched, enter, leave), args, kwargs, uses), None)
    links = uses.links([name for name, _ in calls])
    return RecordedCalls(tuple(name for name, _ in calls), tuple(call for _, call in calls), links)


class _Uses(TorchFunctionMode):
    """Watches who reads the tensors that submodules return."""

    def __init__(self, within: list[str]) -> None:
        super().__init__()
        self._within = within
        self._given: dict[int, tuple[int, Any]] = {}  # id of a tensor -> the call that returned it, itself
        self._read: list[Link] = []
        self._read_elsewhere: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if not self._within and name not in QUERIES:
            # Dropout in evaluation mode returns its input as it is; in-place operations change it.
            leaves = [x for x in tree_leaves((args, kwargs)) if x is not result or name.endswith("_")]
            self.read(leaves, None)
        return result

    def give(self, result: Any, call: int) -> None:
        """Remember what a call returned."""
        if isinstance(result, Tensor):
            self._given[id(result)] = call, result
        else:
            self.read(result, None)

    def read(self, arguments: Any, call: int | None) -> None:
        """Remember that a call takes these tensors; without a call, that something else reads them."""
        for leaf, x in enumerate(tree_leaves(arguments)):
            giver = self._given.get(id(x), (None,))[0]
            if giver is None:
                continue
            if call is None:
                self._read_elsewhere.add(giver)
            else:
                self._read.append((call, leaf, giver))

    def links(self, names: Sequence[str]) -> tuple[Link, ...]:
        """Return the links from submodules whose every result is read by other submodules only.

        Args:
            names: The submodule of each call.
        """
        readers = {giver for _, _, giver in self._read}
        alone = {names[n] for n in range(len(names)) if n not in readers or n in self._read_elsewhere}
        return tuple(link for link in self._read if names[link[2]] not in alone)


def called_submodules(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> set[str]:
    """Return the names of the submodules that a run of the model calls."""
    called: set[str] = set()
    names = [name for name, _ in model.named_modules() if name]
    _run(_listening(model, names, lambda name, _: called.add(name), lambda *_: None), args, kwargs)
    return called


def _listening(
    model: nn.Module, names: Sequence[str], enter: Callable[..., None], leave: Callable[[str, Any], None]
) -> nn.Module:
    """Return a copy of a model that reports when it enters and leaves some of its submodules."""
    copied = copy_sharing_tensors(model)
    for name in names:
        module = copied.get_submodule(name)
        module.register_forward_pre_hook(lambda _, *call, name=name: enter(name, call), with_kwargs=True)
        module.register_forward_hook(lambda _, __, result, name=name: leave(name, result))
    return copied


def _run(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], watch: TorchFunctionMode | None = None
) -> Any:
    with (
        explain_errors("the example inputs", args, kwargs),
        torch.no_grad(),
        without_fused_attention(),
        torch.random.fork_rng(),
        watch or nullcontext(),
    ):
        inputs, named = copy_tensors((args, dict(kwargs)))
        return model(*inputs, **named)


def prefixes(names: Sequence[str]) -> tuple[str, ...]:
    """Return the prefixes of the names of everything inside some submodules."""
    return tuple(f"{name}." for name in names)
