"""The oracle itself: right on networks shrunk by hand, and not fooled by networks shrunk wrongly."""

from __future__ import annotations

import copy

import oracles
import pytest
import torch
from bank import BANK, Entry
from torch import nn


def pruned_mlp(first: list[int], second: list[int]) -> tuple[Entry, nn.Module, nn.Module]:
    """Return the bank's MLP and a copy: its middle layer keeps rows `first`, its last reads `second`."""
    entry = BANK["MLP"]
    original = oracles.perturb(entry.build())
    small = copy.deepcopy(original)
    small[2].weight = nn.Parameter(original[2].weight[first].detach())
    small[2].bias = nn.Parameter(original[2].bias[first].detach())
    small[4].weight = nn.Parameter(original[4].weight[:, second].detach())
    return entry, original, small


def test_right_network_is_exact() -> None:
    entry, original, small = pruned_mlp([1, 4, 7, 19], [1, 4, 7, 19])
    assert oracles.deviation(entry, original, small) < oracles.TOLERANCE
    full = oracles.unshrunk(original, small)
    assert oracles.distance(oracles.run(full, entry.example()), oracles.run(original, entry.example())) > 1e-3


def test_order_of_units_does_not_matter() -> None:
    entry, original, small = pruned_mlp([7, 1, 19, 4], [7, 1, 19, 4])
    assert oracles.deviation(entry, original, small) < oracles.TOLERANCE


def test_wrong_columns_are_found_out() -> None:
    entry, original, small = pruned_mlp([1, 4, 7, 19], [1, 4, 8, 19])
    assert oracles.deviation(entry, original, small) > 1e-3


def test_foreign_values_are_found_out() -> None:
    entry, original, small = pruned_mlp([1, 4, 7], [1, 4, 7])
    with torch.no_grad():
        small[2].bias[0] = 0.123
    with pytest.raises(oracles.NotAPart, match=r"2\.bias"):
        oracles.deviation(entry, original, small)


def test_mixed_parameters_are_found_out() -> None:
    entry, original, small = pruned_mlp([1, 4, 7], [1, 4, 7])
    with torch.no_grad():
        small[2].bias[0] = original[0].bias[0]
    with pytest.raises(oracles.NotAPart, match=r"2\.bias"):
        oracles.deviation(entry, original, small)


def test_equal_entries_are_refused() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4)).double()
    with pytest.raises(ValueError, match="perturb"):
        oracles.entries(model)


def test_another_shape_is_infinitely_far() -> None:
    assert oracles.distance([torch.zeros(2, 3)], [torch.ones(3, 2)]) == float("inf")


def test_narrowed_normalisation_is_recognised() -> None:
    entry = BANK["MLP, LayerNorm after each layer"]
    original = oracles.perturb(entry.build())
    small, kept = copy.deepcopy(original), [0, 3, 5, 6, 17]
    for name in ("3.weight", "3.bias", "4.weight", "4.bias"):
        layer = small[int(name[0])]
        setattr(layer, name[2:], nn.Parameter(original.get_parameter(name)[kept].detach()))
    small[4].normalized_shape = (len(kept),)
    small[6].weight = nn.Parameter(original[6].weight[:, kept].detach())
    assert oracles.deviation(entry, original, small) > 1e-3
    full = oracles.renormalised(original, small)
    assert full is not None
    assert oracles.gap(entry, small, full) < oracles.TOLERANCE


@pytest.mark.parametrize("name", [name for name, entry in BANK.items() if not entry.needs])
def test_bank_entry_is_alive(name: str) -> None:
    """Outputs follow the inputs, are finite, and repeat when the model is built again."""
    entry = BANK[name]
    model = oracles.perturb(entry.build())
    here, there = oracles.run(model, entry.example()), oracles.run(model, entry.example(seed=1))
    assert all(y.isfinite().all() and y.dtype == torch.float64 for y in here)
    assert oracles.distance(here, there) > 1e-3
    again = oracles.perturb(entry.build())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
