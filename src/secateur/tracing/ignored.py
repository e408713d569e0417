"""Layers that a user wants whole: names, modules, patterns, group names and kinds in `ignored_layers`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from secateur.core import KINDS, Group, InputError, unknown
from secateur.tracing.export import first_names
from secateur.tracing.groups import Tensors, UnitFamily, find_equal_counts
from secateur.tracing.propagate import Propagation

__all__ = ["IgnoredLayer", "find_ignored_layers", "freeze_ignored_groups", "freeze_ignored_layers"]

GROUP_SUFFIX = re.compile(r"( \([a-z -]+\))?( #\d+)?$")  # what a group's name adds to that of its module
KIND = "kind:"  # before the kind of groups, or a pattern of kinds


@dataclass(frozen=True)
class IgnoredLayer:
    """One entry of `ignored_layers`.

    Attributes:
        name: The name or pattern, as the user wrote it.
        tensors: First names of the parameters and buffers in the modules that it names.
    """

    name: str
    tensors: frozenset[str]

    @property
    def is_pattern(self) -> bool:
        """Whether the entry may match several names."""
        return any(character in self.name for character in "*?[")

    @property
    def is_kind(self) -> bool:
        """Whether the entry names groups by their kind."""
        return self.name.startswith(KIND)

    def matches(self, group: Group) -> bool:
        """Return whether the entry names a group: by its name, a pattern of names, or its kind."""
        if self.is_kind:
            return fnmatchcase(KIND + group.kind, self.name)
        return group.name == self.name or (self.is_pattern and fnmatchcase(group.name, self.name))


def find_ignored_layers(model: nn.Module, entries: Any) -> tuple[IgnoredLayer, ...]:
    """Look up modules, names and patterns in a model.

    Args:
        model: The model.
        entries: Modules of the model; names of modules, parameters or groups; patterns (`fnmatch`) of
            these; or kinds of groups, as in ``"kind:hidden"``.  Groups are not known yet:
            `freeze_ignored_groups` looks them up.

    Raises:
        InputError: If `entries` is not a list, a name or kind is unknown, or a named module has no
            parameters.
    """
    if (
        isinstance(entries, (str, nn.Module))
        or not isinstance(entries, Iterable)
        or getattr(entries, "ndim", 1) == 0
    ):
        raise InputError(f"ignored_layers is a list of modules and names; got {type(entries).__name__}")
    modules, first = list(model.named_modules(remove_duplicate=False)), first_names(model)
    name_of = {id(module): name for name, module in reversed(modules)}
    known = {*dict(modules), *first}
    ignored = []
    for entry in entries:
        name = name_of.get(id(entry)) if isinstance(entry, nn.Module) else entry
        if not isinstance(name, str):
            raise InputError(unknown("layer", type(entry).__name__, sorted(known - {""})))
        if name.startswith(KIND):
            if not any(fnmatchcase(KIND + kind, name) for kind in KINDS):
                raise InputError(unknown("kind of groups", name.removeprefix(KIND), list(KINDS)))
            ignored.append(IgnoredLayer(name, frozenset()))
            continue
        layer = IgnoredLayer(name, frozenset(_tensors_inside(name, known, first)))
        if name in known and not layer.tensors:
            kind = type(model.get_submodule(name)).__name__
            raise InputError(f"ignored_layers: {name!r} ({kind}) makes no units; name the layer before it")
        if not layer.tensors and not layer.is_pattern and GROUP_SUFFIX.sub("", name) not in known:
            raise InputError(unknown("layer", name, sorted(known - {""})))
        ignored.append(layer)
    return tuple(ignored)


def _tensors_inside(name: str, known: set[str], first: Mapping[str, str]) -> set[str]:
    names = [name] if name in known else [n for n in known if n and fnmatchcase(n, name)]
    prefixes = tuple(n + "." if n else "" for n in names)
    return {f for n, f in first.items() if n in names or n.startswith(prefixes)}


def freeze_ignored_layers(
    propagation: Propagation, tensors: Tensors, ignored: Sequence[IgnoredLayer]
) -> None:
    """Freeze every axis on which an ignored layer makes units; what it reads may still get narrower."""
    for layer in ignored:
        for (tensor, axis), role in propagation.roles.items():
            if tensor in layer.tensors and role != "in":
                label = tensors.states[tensor].labels[axis]
                propagation.algebra.freeze(label, f"ignored_layers has {layer.name!r}")


def freeze_ignored_groups(
    propagation: Propagation, families: Sequence[UnitFamily], ignored: Sequence[IgnoredLayer]
) -> list[UnitFamily]:
    """Freeze the groups whose names are ignored; return the others, with the names that they had.

    Groups that must keep equal counts stay whole together.

    Raises:
        InputError: If an entry of `ignored_layers` matches no module, parameter or group.
    """
    groups = [family.group for family in families]
    equal_counts = find_equal_counts(propagation, families)
    removed: set[str] = set()
    for layer in ignored:
        matches = {group.name for group in groups if layer.matches(group)}
        if not (matches or layer.tensors or layer.is_kind):
            what = "layer with parameters or group that matches" if layer.is_pattern else "group"
            raise InputError(unknown(what, layer.name, sorted(group.name for group in groups)))
        matches |= {n for tied in equal_counts if matches & set(tied) for n in tied}
        for family in families:
            if family.group.name in matches:
                propagation.algebra.freeze(family.roots[:, None], f"ignored_layers has {layer.name!r}")
        removed |= matches
    return [family for family in families if family.group.name not in removed]
