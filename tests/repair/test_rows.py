"""Rows of inputs and weights in blocks: their product is what the layer computes."""

from __future__ import annotations

import pytest
import torch
from layer_kinds import KINDS
from torch import Tensor, nn

from secateur.repair.rows import draw_rows, row_shape, rows
from secateur.repair.weight_matrix import as_blocks, block_count, set_blocks
from secateur.statistics.collect import consumer_layers
from secateur.statistics.weight_inputs import InputHooks, WeightInput
from secateur.tracing.trace import trace


def observe(layer: nn.Module, x: Tensor) -> tuple[WeightInput, Tensor]:
    seen: list[WeightInput] = []
    with InputHooks({"weight": (layer.weight, 0 if "Transpose" in type(layer).__name__ else 1)}, seen.append):
        y = layer(x).detach()
    return seen[0], y


def product(layer: nn.Module, x: Tensor, z: Tensor, blocks: int) -> Tensor:
    """Return W z [n, outputs] for rows z."""
    model = nn.Sequential(layer)
    described = next(iter(consumer_layers(trace(model, x)).values()))
    return torch.einsum("nbf,bof->nbo", z, as_blocks(layer.weight, described, blocks)).flatten(1)


@pytest.mark.parametrize("kind", [k for k in KINDS if "transposed" not in k])
def test_rows_times_blocks_is_the_output(kind: str) -> None:
    make, shape = KINDS[kind]
    torch.manual_seed(0)
    layer, x = (
        make(shape[1 if len(shape) > 2 and "linear" not in kind else -1]).double(),
        torch.randn(shape).double(),
    )
    entry, y = observe(layer, x)
    blocks = getattr(layer, "groups", 1)
    z = rows(entry, blocks)
    assert len(z) == torch.Size(row_shape(entry)).numel()
    found = product(layer, x, z, blocks)
    wanted = y if isinstance(layer, nn.Linear) else y.movedim(1, -1)
    bias = 0 if layer.bias is None else layer.bias.detach()
    torch.testing.assert_close(found, wanted.reshape(len(z), -1) - bias)
    numbers = draw_rows(row_shape(entry), 0.4, seed=3)
    assert numbers is not None and len(numbers) < len(z)
    torch.testing.assert_close(rows(entry, blocks, numbers), z[numbers], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["transposed", "transposed, grouped"])
def test_a_transposed_convolution_has_an_output_for_each_tap(kind: str) -> None:
    make, shape = KINDS[kind]
    layer, x = make(shape[1]).double(), torch.randn(shape).double()
    entry, y = observe(layer, x)
    z = rows(entry, layer.groups)
    taps = product(layer, x, z, layer.groups).reshape(shape[0], *shape[2:], y.shape[1], -1)
    bias = 0 if layer.bias is None else layer.bias.detach().reshape(-1, *(1,) * (y.ndim - 2))
    # Stride and kernel are 2, so every output is one tap of one position.
    if y.ndim == 3:
        found = taps.permute(0, 2, 1, 3).flatten(2)
    else:
        found = taps.unflatten(-1, (2, 2)).permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
    torch.testing.assert_close(found, y - bias)


@pytest.mark.parametrize("kind", KINDS)
def test_setting_blocks_undoes_taking_them(kind: str) -> None:
    make, shape = KINDS[kind]
    channels = shape[-1] if "linear" in kind else shape[1]
    layer, x = make(channels).double(), torch.randn(shape).double()
    described = next(iter(consumer_layers(trace(nn.Sequential(layer), x)).values()))
    count = block_count(layer.weight, described, channels)
    assert count == getattr(layer, "groups", 1)
    before = layer.weight.detach().clone()
    blocks = as_blocks(layer.weight, described, count)
    assert blocks.numel() == before.numel() and len(blocks) == count
    set_blocks(layer.weight, described, 2 * blocks)
    assert torch.equal(layer.weight.detach(), 2 * before)


def test_rows_of_half_precision_are_widened_and_unbatched_input_is_taken() -> None:
    layer = nn.Conv2d(2, 3, 2).bfloat16()
    entry, _ = observe(layer, torch.randn(2, 5, 5).bfloat16())
    assert row_shape(entry) == (1, 4, 4) and rows(entry, 1).dtype == torch.float32


def test_draws_are_of_the_share_and_repeatable() -> None:
    first, again = draw_rows((10, 10), 0.25, 1), draw_rows((10, 10), 0.25, 1)
    assert first is not None and again is not None
    assert len(first) == 25 and torch.equal(first, again) and int(first.max()) < 100
    assert draw_rows((10, 10), 1.0, 1) is None
