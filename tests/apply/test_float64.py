"""Running in float64 without a copy of the weights in float64."""

from __future__ import annotations

import pytest
import torch
from bank import BANK
from torch import Tensor, nn

from secateur.apply.deviation import deviation
from secateur.apply.float64 import computing_in, copy_for_check, run, run_float64

ENTRIES = [entry for entry in BANK.values() if not (entry.slow or entry.needs)]


def outputs(model: nn.Module, args: object, kwargs: object, widened: bool) -> list[Tensor]:
    copied = copy_for_check(model, None, torch.float64, widened)
    with computing_in(torch.float64, widened):
        return run(copied, args, kwargs, None, torch.float64)


@pytest.mark.parametrize("entry", ENTRIES[::3], ids=lambda entry: entry.name)
def test_converting_each_weight_when_it_is_read_equals_a_copy_in_float64(entry) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = entry.make().float()
    args = tuple(make(entry.batch, generator) for make in entry.inputs)
    kwargs = {name: make(entry.batch, generator) for name, make in entry.kwargs.items()}
    before = {name: x.clone() for name, x in model.state_dict().items()}
    expected, found = (outputs(model, args, kwargs, widened) for widened in (False, True))
    assert all(x.dtype != torch.float32 for x in found)
    assert deviation(expected, found) <= 1e-14
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


class Shifts(nn.Module):
    """Writes into its own weight, or into a buffer, in each call."""

    def __init__(self, weight: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("seen", torch.zeros(3))
        self.weight_changes = weight

    def forward(self, x: Tensor) -> Tensor:
        (self.weight if self.weight_changes else self.seen).add_(1)
        return x * self.weight + self.seen


@pytest.mark.parametrize("weight", [True, False])
def test_what_a_model_writes_into_itself_counts(weight: bool) -> None:
    model = Shifts(weight)
    (found,) = run_float64(model, (torch.ones(3),), {})
    assert found.dtype == torch.float64 and found.tolist() == [2, 2, 2]
    assert model.weight.tolist() == [1, 1, 1] and model.seen.tolist() == [0, 0, 0]


def test_an_embedding_that_shortens_its_rows_leaves_the_model_alone() -> None:
    model = nn.Embedding(4, 3, max_norm=0.5)
    before = model.weight.detach().clone()
    (found,) = run_float64(model, (torch.arange(4),), {})
    assert torch.allclose(found.norm(dim=1), torch.full((4,), 0.5).double())
    assert torch.equal(model.weight, before)


def test_weights_of_half_precision_are_read_exactly() -> None:
    model = nn.Linear(64, 8).bfloat16()
    x = torch.randn(5, 64, dtype=torch.float64)
    (found,) = run_float64(model, (x,), {})
    assert torch.equal(found, nn.functional.linear(x, model.weight.double(), model.bias.double()))
