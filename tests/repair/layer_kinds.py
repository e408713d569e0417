"""Layers of every kind, each with an input, and the error of their best weights by brute force."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

KINDS: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda c: nn.Linear(c, 3), (40, 8)),
    "linear without bias": (lambda c: nn.Linear(c, 3, bias=False), (40, 8)),
    "linear over steps": (lambda c: nn.Linear(c, 3), (6, 7, 8)),
    "conv1d": (lambda c: nn.Conv1d(c, 3, 3, stride=2, padding=1), (12, 8, 11)),
    "conv2d, stride": (lambda c: nn.Conv2d(c, 3, 3, stride=(2, 1), padding=(1, 0)), (8, 8, 7, 6)),
    "conv2d, dilation": (lambda c: nn.Conv2d(c, 3, 3, dilation=2, padding=2), (8, 8, 6, 6)),
    "conv2d, same": (lambda c: nn.Conv2d(c, 2, 3, padding="same", dilation=(1, 2)), (8, 8, 5, 6)),
    "conv2d, 1x1 stride": (lambda c: nn.Conv2d(c, 3, 1, stride=2), (12, 8, 7, 7)),
    "conv2d, no bias": (lambda c: nn.Conv2d(c, 3, 2, bias=False), (8, 8, 5, 5)),
    "conv2d, circular": (lambda c: nn.Conv2d(c, 2, 3, padding=1, padding_mode="circular"), (8, 8, 5, 5)),
    "conv2d, uneven": (lambda c: nn.Conv2d(c, 2, (3, 2), padding=(0, 1), stride=(1, 2)), (8, 8, 5, 6)),
    "conv3d": (lambda c: nn.Conv3d(c, 2, 2), (6, 8, 4, 4, 4)),
    "grouped": (lambda c: nn.Conv2d(c, c, 2, groups=c // 2), (8, 8, 6, 6)),
    "depthwise": (lambda c: nn.Conv2d(c, c, 3, padding=1, groups=c), (8, 8, 6, 6)),
    "transposed": (lambda c: nn.ConvTranspose2d(c, 3, 2, stride=2, bias=False), (8, 8, 4, 4)),
    "transposed, grouped": (lambda c: nn.ConvTranspose1d(c, 4, 2, stride=2, groups=2), (20, 8, 6)),
}


def best_error(layer: nn.Module, z: Tensor, target: Tensor) -> float:
    """Return the least mean square of layer(z) - target over all weights, from a run for each of them.

    The bias is free, too, except that of a transposed convolution, which stays.
    """
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()

    def run(w: Tensor, b: Tensor | None) -> Tensor:
        values = {"weight": w} if b is None else {"weight": w, "bias": b}
        return functional_call(layer, values, (z,)).detach().flatten()

    no_bias, goal = None if bias is None else bias * 0, target.flatten()
    columns = [run(w, no_bias) for w in torch.eye(weight.numel()).to(weight).reshape(-1, *weight.shape)]
    if bias is not None and "Transpose" in type(layer).__name__:
        goal = goal - run(weight * 0, bias)
    elif bias is not None:
        columns += [run(weight * 0, b) for b in torch.eye(len(bias)).to(bias)]
    design = torch.stack(columns, 1)
    solution = torch.linalg.lstsq(design, goal[:, None], driver="gelsd").solution
    return float((design @ solution - goal[:, None]).square().mean())
