"""Axes that one number sizes: they keep equally many units, not the same ones.

`hidden_size` of a recurrent module is the number of units of all its layers and directions.  Rules record
such axes in `Propagation.equal_lengths`.  If each of them is exactly the units of one group, these groups
must keep equal counts, and nothing else.  If not (some units of an axis stay, or they are heads times
positions), the axes are tied: they lose the same indices, which may be more than necessary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from secateur.tracing.labels import Label
from secateur.tracing.propagate import Propagation

__all__ = ["equally_long", "tie_uncountable"]

Ints = NDArray[np.int64]


def equally_long(propagation: Propagation) -> list[list[Ints]]:
    """Return sets of axes, each axis as its atoms [n], that must keep equally many of them.

    Axes that are tied anyway are one; sets that share an axis are one.
    """
    sets: list[dict[bytes, Ints]] = []
    for labels, _ in propagation.equal_lengths:
        axes = {}
        for label in labels:
            atoms = _atoms(propagation.algebra.normal(label))
            if atoms is not None:
                axes[np.sort(atoms).tobytes()] = atoms
        for other in [s for s in sets if s.keys() & axes.keys()]:
            sets.remove(other)
            axes = {**other, **axes}
        sets.append(axes)
    return [list(axes.values()) for axes in sets if len(axes) > 1]


def tie_uncountable(propagation: Propagation, families: Sequence[Ints] | None = None) -> bool:
    """Tie axes that must be equally long where counts of groups cannot say so; return whether any were tied.

    Args:
        propagation: After labels have passed through the graph.
        families: Atoms [units] of every group; None if they are not known yet.
    """
    known = None if families is None else {np.sort(roots).tobytes() for roots in families}
    changed = False
    for labels, why in propagation.equal_lengths:
        normal = [propagation.algebra.normal(label) for label in labels]
        atoms = [_atoms(label) for label in normal]
        if all(label is None for label in normal) or _countable(atoms, known):
            continue
        propagation.algebra.why = why
        for label in labels[1:]:
            propagation.equate(labels[0], label)
        changed |= not _same(normal, [propagation.algebra.normal(label) for label in labels])
    return changed


def _atoms(label: Label) -> Ints | None:
    """Return the atoms of an axis if each index is a different free unit."""
    if label is None or label.shape[1] != 1 or not label.all() or len(np.unique(label)) < len(label):
        return None
    return label[:, 0]


def _countable(axes: Sequence[Ints | None], families: set[bytes] | None) -> bool:
    """Return whether the axes are the same units or groups without a unit in common."""
    if any(axis is None for axis in axes):
        return False
    distinct = {np.sort(axis).tobytes(): axis for axis in axes if axis is not None}
    if len(distinct) == 1:
        return True
    everything = np.concatenate(list(distinct.values()))
    apart = len(np.unique(everything)) == len(everything)
    return apart and (families is None or distinct.keys() <= families)


def _same(before: Sequence[Label], after: Sequence[Label]) -> bool:
    pairs = zip(before, after, strict=True)
    return all(a is b or (a is not None and b is not None and np.array_equal(a, b)) for a, b in pairs)
