"""Grouping of units: the 64-bit signature against a dict of counts; axes that must not end empty."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.core.indices import kept_shapes
from secateur.tracing.empty_axes import find_needed_atoms
from secateur.tracing.groups import _families, _Occurrences
from secateur.tracing.trace import trace


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


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 3))
def test_no_choice_of_units_empties_an_axis(seed: int, count: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    families = [1 + 3 * n + np.arange(rng.integers(2, 4)) for n in range(count)]
    atoms = np.concatenate(families)
    axes = []
    for _ in range(2):
        rows = [rng.choice(atoms, rng.integers(1, min(most, len(atoms)) + 1), False) for _ in range(6)]
        if max(map(len, rows)) == 1:  # every unit of a family has as many indices of the axis
            rows = [atoms[i : i + 1] for i in range(len(atoms))]
        axes.append((np.repeat(np.arange(len(rows)), list(map(len, rows))), np.concatenate(rows), len(rows)))
    needed = set(find_needed_atoms(axes, families, int(atoms.max()) + 1).tolist())
    for choice in itertools.product(*families):
        alive = needed | set(choice)
        for index, owners, length in axes:
            dead = set(index[~np.isin(owners, list(alive))].tolist())
            assert len(dead) < length


def test_axes_of_heads_and_positions_need_nothing() -> None:
    heads, positions = np.array([1, 2]), np.array([3, 4, 5])
    atoms = np.stack([np.repeat(heads, 3), np.tile(positions, 2)], 1).ravel()
    assert not find_needed_atoms([(np.repeat(np.arange(6), 2), atoms, 6)], [heads, positions], 6).size


def test_a_shuffle_between_groups_never_empties_a_convolution() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.deep = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=12)
            self.grouped, self.last = nn.Conv2d(12, 6, 1, groups=3), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            h = h.view(len(h), 3, 4, *h.shape[2:]).transpose(1, 2).reshape(h.shape)
            return self.last(self.grouped(self.deep(h)).mean((2, 3)))

    graph = trace(Shuffled(), torch.randn(2, 3, 5, 5))
    for unit in (0, -1):
        keep = {g.name: [range(g.size)[unit]] for g in graph.groups}
        assert all(map(np.all, kept_shapes(graph, keep).values()))
