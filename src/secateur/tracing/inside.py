"""Which submodules to trace in a model that `torch.export` cannot export as a whole; see `replay`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from secateur.core import CaptureError, InputError, PruningGraph, brief, unknown
from secateur.core.interface import entries_of
from secateur.execution import tensors_by_name
from secateur.tracing.export import export_model
from secateur.tracing.replay import called_submodules, make_replay, prefixes, record_calls

__all__ = ["check_inside", "find_exportable", "freeze_shared"]

AUTO = "auto"


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
        raise InputError(f"inside is a name of a submodule, a list of names, or 'auto'; got {brief(inside)}")
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


def find_exportable(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the largest submodules that `torch.export` can export; () for the whole model.

    Submodules with less than two layers are left out: nothing in them could lose units.

    Raises:
        CaptureError: If there are none.
    """
    try:
        export_model(model, args, kwargs)
        return ()
    except CaptureError as error:
        refusal = error
    called = called_submodules(model, args, kwargs)
    found = tuple(_exportable_below(model, "", called, args, kwargs))
    chained = _with_chains(model, found, called, args, kwargs)
    if chained != found and _can_export(model, chained, args, kwargs):
        found = chained
    if not found:
        raise CaptureError(f"{refusal}. No submodule with two layers can be exported either") from refusal
    return found


def _with_chains(
    model: nn.Module,
    found: tuple[str, ...],
    called: set[str],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> tuple[str, ...]:
    """Add single layers, and modules without weights, that pass their results on to each other."""
    names, below = [*found], prefixes(found)
    for name in called:
        parts = model.get_submodule(name).named_parameters()
        if sum(p.ndim > 1 for _, p in parts) < 2 and not (name in found or name.startswith(below)):
            names.append(name)
    single = [x for x in names if not any(x.startswith(f"{other}.") for other in names)]
    try:
        recorded = record_calls(model, single, args, kwargs)
    except InputError:  # a part of one is also called from outside
        return found
    members = {recorded.names[n] for reader, _, giver in recorded.links for n in (reader, giver)}
    return tuple(name for name, _ in model.named_modules() if name in found or name in members)


def _exportable_below(
    model: nn.Module, name: str, called: set[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[str]:
    for child, module in model.get_submodule(name).named_children():
        path = f"{name}.{child}" if name else child
        if sum(p.ndim > 1 for p in module.parameters()) < 2:
            continue
        if path in called and _can_export(model, [path], args, kwargs):
            yield path
        else:
            yield from _exportable_below(model, path, called, args, kwargs)


def _can_export(
    model: nn.Module, names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bool:
    try:
        replayed, calls = make_replay(model, names, args, kwargs)
        export_model(replayed, (calls,), {})
    except (CaptureError, InputError):
        return False
    return True


def freeze_shared(graph: PruningGraph, model: nn.Module) -> PruningGraph:
    """Return the graph without the groups whose tensors are also used outside of the traced submodules."""
    if not graph.inside:
        return graph
    below = prefixes(graph.inside)
    named = (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    outside = {id(x) for pairs in named for name, x in pairs if not name.startswith(below)}
    shared = {name for name, x in tensors_by_name(model).items() if id(x) in outside}
    tied = [group.name for group in graph.groups if any(slot.tensor in shared for slot in group.slots)]
    reason = f"a tensor of the group is also used outside of {', '.join(graph.inside)}"
    return graph.without_groups(tied, reason) if tied else graph
