"""Submodules of a model that `torch.export` cannot export as a whole: their calls, recorded and made again.

The model runs once, and the arguments of every call of the submodules are recorded.  A `Replay` then stands
for the model: it has the same modules under the same names, and its forward makes these calls.  So groups,
frozen axes and sizes bear the names of the whole model, and all that leaves a submodule is an output.

Repairs compare calls, too: what a detector returns depends on the boxes that it finds, and two networks find
different ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from secateur.core import CaptureError, InputError, PruningGraph, unknown
from secateur.core.interface import entries_of
from secateur.execution import (
    copy_tensors,
    duplicate,
    evaluating,
    explain_errors,
    read_batches,
    tensors_by_name,
)
from secateur.tracing.export import copy_sharing_tensors, export_model, without_fused_attention

__all__ = [
    "Replay",
    "as_replayed",
    "check_inside",
    "find_exportable",
    "freeze_shared",
    "record_batches",
    "record_calls",
]

AUTO = "auto"
Call = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword arguments


class Replay(nn.Module):
    """Stands for a model: it has its modules, and makes recorded calls of some of them."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        """Share the modules and tensors of a model; `names` has the submodule of each call."""
        super().__init__()
        for registry in ("_parameters", "_buffers", "_modules"):
            vars(self)[registry] = vars(model)[registry]
        self.names = tuple(names)

    def _get_name(self) -> str:
        """Return what messages call it."""
        return f"inside {', '.join(dict.fromkeys(self.names))}: a submodule"

    def forward(self, calls: Sequence[Call]) -> list[Any]:
        """Call the submodules; return what each returns."""
        return [
            self.get_submodule(name)(*args, **kwargs)
            for name, (args, kwargs) in zip(self.names, calls, strict=True)
        ]


def check_inside(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    inside: Any,
    outputs: Sequence[str] = (),
    states: Sequence[tuple[str, str]] = (),
) -> tuple[str, ...]:
    """Return the names of the submodules to trace; () for the whole model.

    Raises:
        CaptureError: If ``"auto"`` finds no submodule that can be exported.
        InputError: If a name is unknown or lies within another one, or `outputs` or `states` are given, too.
    """
    if inside is None:
        return ()
    names = (inside,) if isinstance(inside, str) else entries_of(inside)
    known = [name for name, _ in model.named_modules() if name]
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"inside is a name of a submodule, a list of names, or 'auto'; got {inside!r}")
    if outputs or states:
        raise InputError(
            "inside= keeps the size of everything that leaves a submodule: outputs= and states= are for "
            "models that are traced as a whole"
        )
    if names == (AUTO,) and AUTO not in known:
        return find_exportable(model, args, kwargs)
    for name in names:
        if name not in known:
            raise InputError(unknown("submodule", name, known))
        if around := next((x for x in names if name.startswith(f"{x}.")), None):
            raise InputError(f"inside: {name!r} lies within {around!r}: name one of them")
    return tuple(dict.fromkeys(names))


def record_calls(
    model: nn.Module, names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Replay, tuple[Call, ...]]:
    """Run a model, and return what makes the calls of its submodules again, with their arguments.

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
        >>> replayed, calls = record_calls(model, ["1"], (torch.ones(1, 2),), {})
        >>> replayed.names, calls[0][0][0].shape
        (('1',), torch.Size([1, 3]))
    """
    calls = _calls(model, names, args, kwargs)
    if missing := [name for name in names if name not in dict(calls)]:
        raise InputError(
            f"inside: the model does not call {missing[0]!r} on the example inputs: name a module that it "
            "calls"
        )
    return Replay(model, [name for name, _ in calls]), tuple(call for _, call in calls)


def _calls(
    model: nn.Module, names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[tuple[str, Call]]:
    calls: list[tuple[str, Call]] = []
    within: list[str] = []  # the submodules that run now

    def enter(name: str, call: Call) -> None:
        if name not in names:
            if not within:
                owner = next(x for x in names if name.startswith(f"{x}."))
                raise InputError(
                    f"inside: the model also calls {name!r} from outside of {owner!r}: name it, or the "
                    "module that calls it, instead"
                )
            return
        if not within:
            calls.append((name, copy_tensors(call)))
        within.append(name)

    def leave(name: str) -> None:
        if name in names:
            within.pop()

    watched = [name for name, _ in model.named_modules() if name in names or name.startswith(_below(names))]
    _run(_listening(model, watched, enter, leave), args, kwargs)
    return calls


class RecordedBatches(list[Any]):
    """The calls of the traced submodules on each of some batches, for `Replay`.

    Attributes:
        names: The submodule of each call; the same in all batches.
        first_number: Number of the first batch, for messages.
    """

    def __init__(self, names: Sequence[str], calls: Iterable[Sequence[Call]], first_number: int) -> None:
        super().__init__({"calls": each} for each in calls)
        self.names, self.first_number = tuple(names), first_number


def record_batches(model: nn.Module, graph: PruningGraph, batches: Sequence[Any]) -> Sequence[Any]:
    """Return the calls of the traced submodules on each batch; the batches themselves if all is traced.

    Raises:
        InputError: If the model cannot take a batch, or calls other submodules than on the first one.
    """
    if not graph.inside or isinstance(batches, RecordedBatches):
        return batches
    copied = duplicate(model)
    found: list[list[tuple[str, Call]]] = []
    with evaluating(copied):
        for where, args, kwargs, _ in read_batches(batches, copied):
            found.append(_calls(copied, graph.inside, args, kwargs))
            names = [[name for name, _ in calls] for calls in (found[0], found[-1])]
            if names[0] != names[1] or not names[0]:
                raise InputError(
                    f"inside: on {where} the model calls {', '.join(names[1]) or 'no traced submodule'}, on "
                    f"the first batch {', '.join(names[0])}: leave the batch out, or set repair=None"
                )
    first_number = getattr(batches, "first_number", 0)
    return RecordedBatches(names[0], [tuple(call for _, call in calls) for calls in found], first_number)


def as_replayed(model: nn.Module, batches: Sequence[Any]) -> nn.Module:
    """Return what takes the batches in the model's place: a `Replay` for recorded calls, else the model."""
    return Replay(model, batches.names) if isinstance(batches, RecordedBatches) else model


def find_exportable(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the largest submodules that `torch.export` can export; () if it can the model.

    Submodules with less than two layers are left out: nothing in them could lose units.

    Raises:
        CaptureError: If there are none.
    """
    try:
        export_model(model, args, kwargs)
        return ()
    except CaptureError as error:
        refusal = error
    called: set[str] = set()
    below = [name for name, _ in model.named_modules() if name]
    _run(_listening(model, below, lambda name, _: called.add(name), lambda _: None), args, kwargs)
    found = list(_exportable_below(model, "", called, args, kwargs))
    if not found:
        raise CaptureError(f"{refusal}. No submodule with two layers can be exported either") from refusal
    return tuple(found)


def _exportable_below(
    model: nn.Module, name: str, called: set[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[str]:
    for child, module in model.get_submodule(name).named_children():
        path = f"{name}.{child}" if name else child
        if sum(p.ndim > 1 for p in module.parameters()) < 2:
            continue
        if path in called and _can_export(model, path, args, kwargs):
            yield path
        else:
            yield from _exportable_below(model, path, called, args, kwargs)


def _can_export(model: nn.Module, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    try:
        replayed, calls = record_calls(model, [name], args, kwargs)
        export_model(replayed, (calls,), {})
    except (CaptureError, InputError):
        return False
    return True


def freeze_shared(graph: PruningGraph, model: nn.Module) -> PruningGraph:
    """Return the graph without the groups whose tensors are also used outside of the traced submodules."""
    if not graph.inside:
        return graph
    below = _below(graph.inside)
    named = (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    outside = {id(x) for pairs in named for name, x in pairs if not name.startswith(below)}
    shared = {name for name, x in tensors_by_name(model).items() if id(x) in outside}
    tied = [group.name for group in graph.groups if any(slot.tensor in shared for slot in group.slots)]
    reason = f"a tensor of the group is also used outside of {', '.join(graph.inside)}"
    return graph.without_groups(tied, reason) if tied else graph


def _below(names: Sequence[str]) -> tuple[str, ...]:
    """Return the beginnings of the names of what lies in some submodules."""
    return tuple(f"{name}." for name in names)


def _listening(
    model: nn.Module, names: Sequence[str], enter: Callable[..., None], leave: Callable[[str], None]
) -> nn.Module:
    """Return a copy of a model that says when it enters and leaves some of its submodules."""
    copied = copy_sharing_tensors(model)
    for name in names:
        module = copied.get_submodule(name)
        module.register_forward_pre_hook(lambda _, *call, name=name: enter(name, call), with_kwargs=True)
        module.register_forward_hook(lambda *_, name=name: leave(name))
    return copied


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    with (
        explain_errors("the example inputs", args, kwargs),
        torch.no_grad(),
        without_fused_attention(),
        torch.random.fork_rng(),
    ):
        inputs, named = copy_tensors((args, dict(kwargs)))
        model(*inputs, **named)
