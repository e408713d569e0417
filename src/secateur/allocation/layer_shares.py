"""Shares of single groups: which groups a per-layer budget means."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from secateur.core import Group, InputError, PruningGraph, brief, shorten, unknown

__all__ = ["layer_shares"]


def layer_shares(graph: PruningGraph, keep: Mapping[str, float]) -> dict[str, float]:
    """Return the share of every group that a mapping names, in the order of the graph.

    A key is the name of a group, the name of a module whose weights make a group's units, or a pattern of
    either (``"layer4.*"``).  A group's own name comes before a module's, and both come before patterns.
    Groups that must keep equal counts share what one of them gets.

    Raises:
        InputError: If a key matches nothing, or if equally specific keys give one group different shares, or
            groups that must keep equal counts.

    Example:
        >>> import numpy as np
        >>> from secateur.core import Slot
        >>> rows = np.arange(4)[:, None]
        >>> first, second = (Group(n, 4, (Slot(f"{n}.weight", 0, rows, "out"),)) for n in ("fc.0", "fc.1"))
        >>> layer_shares(PruningGraph((first, second), (), (), {}, ()), {"fc.*": 0.5, "fc.1": 0.25})
        {'fc.0': 0.5, 'fc.1': 0.25}
    """
    names = {group.name: _module_names(group) for group in graph.groups}
    matches: dict[str, list[tuple[int, str]]] = {group: [] for group in names}
    for key in keep:
        ranks = {group: _match(key, group, modules) for group, modules in names.items()}
        matched = {group: rank for group, rank in ranks.items() if rank is not None}
        if not matched:
            what = "group or module matches the pattern" if set(key) & set("*?[") else "group or module"
            known = [*names, *sorted({m for modules in names.values() for m in modules} - {*names, ""})]
            raise InputError(unknown(what, key, known))
        for group, rank in matched.items():
            matches[group].append((rank, key))
    shares = {group: _decide(group, keep, found) for group, found in matches.items() if found}
    for tied in graph.equal_counts:
        given = {name: shares[name] for name in tied if name in shares}
        if len(set(given.values())) > 1:
            raise InputError(
                f"the groups {shorten(map(repr, tied), count=8)} must keep equally many units; got the "
                f"shares {brief(given)}: give one for all"
            )
        shares |= dict.fromkeys(tied, *set(given.values())) if given else {}
    return {name: shares[name] for name in names if name in shares}


def _module_names(group: Group) -> set[str]:
    return {slot.tensor.rpartition(".")[0] for slot in group.slots if slot.role == "out"}


def _match(key: str, group: str, modules: set[str]) -> int | None:
    """Return how specific a match is, 0 first, or None."""
    if key == group:
        return 0
    if key in modules:
        return 1
    return 2 if any(fnmatchcase(name, key) for name in (group, *modules)) else None


def _decide(group: str, keep: Mapping[str, float], matches: list[tuple[int, str]]) -> float:
    best = min(rank for rank, _ in matches)
    shares = {key: keep[key] for rank, key in matches if rank == best}
    if len(set(shares.values())) > 1:
        raise InputError(f"group {group!r} has several shares: {shares}. Name it alone to set its share")
    return next(iter(shares.values()))
