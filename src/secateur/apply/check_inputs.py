"""Further inputs and weights for the exactness check, besides the user's example.

An example may hide a difference: zeros stay zero in a network without biases, and a branch on a length gives
the same for inputs that no unit reacts to.  So the check also runs on other values of the same shapes and
types.  Weights that are zero, as in a last layer before training, hide differences too; then the check is
made with other weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from secateur.execution import duplicate

__all__ = ["SEED", "hides_parts", "other_inputs", "with_one_more_row", "with_other_weights"]

SEED = 0


def other_inputs(args: Any, kwargs: Mapping[str, Any], seed: int = SEED) -> tuple[Any, dict[str, Any]]:
    """Return inputs of the same shapes and types with other values.

    The values of each tensor are shuffled, so that they stay in its range: numbers of words stay numbers of
    words.  Equal numbers are scaled by 0.5 to 1.5, zeros become normal numbers.  Boolean tensors, tensors
    with infinite values (additive masks) and equal integers stay.

    Example:
        >>> other_inputs((torch.arange(4), torch.zeros(2)), {})[0]
        (tensor([0, 1, 3, 2]), tensor([0.3643, 0.1344]))
    """
    generator = Generator().manual_seed(seed)

    def change(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dtype == torch.bool or leaf.numel() == 0:
            return leaf
        values = leaf.detach().flatten()
        if (values != values[0]).any():
            order = torch.randperm(len(values), generator=generator).to(leaf.device)
            shuffled = values[order]
            if torch.equal(shuffled, values):  # of few values every other order may be this one
                shuffled = values.roll(1)
            return leaf if values.isinf().any() else shuffled.reshape(leaf.shape)
        if not leaf.is_floating_point() or not bool(values[0].isfinite()):
            return leaf
        drawn = torch.randn(len(values), generator=generator, dtype=torch.float64)
        if bool(values[0] != 0):
            drawn = float(values[0]) * (0.5 + torch.rand(len(values), generator=generator))
        return drawn.to(values).reshape(leaf.shape)

    return tree_map(change, (args, dict(kwargs)))


def with_one_more_row(args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return inputs of another batch size.

    Each tensor whose first axis is as long as that of the first tensor gets its first row once more.

    Example:
        >>> with_one_more_row((torch.arange(2), torch.zeros(3, 1)), {"mask": torch.tensor([True, False])})
        ((tensor([0, 1, 0]), tensor([[0.],
                [0.],
                [0.]])), {'mask': tensor([ True, False,  True])})
    """
    tensors = [x for x in tree_leaves((args, dict(kwargs))) if isinstance(x, Tensor) and x.numel()]
    rows = next((len(x) for x in tensors if x.ndim), 0)

    def lengthen(x: Any) -> Any:
        fits = isinstance(x, Tensor) and x.ndim and x.numel() and len(x) == rows
        return torch.cat([x, x[:1]]) if fits else x

    return tree_map(lengthen, (args, dict(kwargs)))


def hides_parts(model: nn.Module) -> bool:
    """Return whether a parameter is all zeros, a bias aside: what it multiplies reaches no output.

    Gains of residual branches often start at zero.

    Example:
        >>> layer = nn.LayerNorm(2)  # its bias is zero
        >>> hides_parts(layer)
        False
        >>> _ = nn.init.zeros_(layer.weight)
        >>> hides_parts(layer)
        True
    """
    return any(
        x.is_floating_point() and x.numel() > 0 and not x.any()
        for name, x in model.named_parameters()
        if "bias" not in name.rpartition(".")[2]
    )


@torch.no_grad()
def with_other_weights(model: nn.Module, seed: int = SEED) -> nn.Module:
    """Return a copy of a model whose floating parameters are moved by normal numbers.

    From seed 2 on the numbers replace them, since large weights hardly move.  With an odd seed none is
    negative: then a ReLU passes what is positive, however few units are left.
    """
    generator = Generator().manual_seed(seed)
    copied = duplicate(model)
    for parameter in copied.parameters():
        if parameter.is_floating_point():
            fan = parameter[0].numel() if parameter.ndim > 1 else 1
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            moved = (noise * max(fan, 1) ** -0.5).to(parameter)
            parameter.copy_(parameter + moved if seed < 2 else moved)
            if seed % 2:
                parameter.abs_()
    return copied
