"""Grouping of units: the 64-bit signature against a dict of counts."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.tracing.groups import _families, _Occurrences


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 40))
def test_a_family_is_all_atoms_with_equal_counts_on_every_axis(seed: int, axes: int, atoms: int) -> None:
    rng = np.random.default_rng(seed)
    owned: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for axis in range(axes):
        for index, atom in enumerate(rng.integers(0, atoms + 1, 2 * atoms)):
            if atom:
                owned[int(atom)].append((axis, index))
    rows = [(atom, axis, index) for atom, places in owned.items() for axis, index in places]
    columns = np.array(rng.permutation(rows), dtype=np.int64).reshape(-1, 3).T
    expected: dict[frozenset[tuple[int, int]], set[int]] = defaultdict(set)
    for atom, places in owned.items():
        expected[frozenset(Counter(axis for axis, _ in places).items())].add(atom)
    families = _families(_Occurrences(*columns, [("", axis) for axis in range(axes)]))
    assert sorted(map(sorted, expected.values())) == sorted(sorted(roots.tolist()) for roots, _ in families)
    for roots, indices in families:
        for axis, index in indices:
            for root, row in zip(roots, index, strict=True):
                assert row.tolist() == [i for a, i in sorted(owned[int(root)]) if a == axis]
