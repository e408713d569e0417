"""Weights as matrices, whatever the layer: [out, in, taps], or in blocks [blocks, outputs, features].

A convolution with groups has a block for each group; its features are channels and taps.  A transposed
convolution gives every tap its own output, and so does a weight that is multiplied along one of more
than two axes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.core import InputError, Layer

__all__ = ["as_blocks", "as_matrix", "block_count", "in_axis_of", "set_blocks", "set_matrix"]


def in_axis_of(layer: Layer) -> int:
    """Return the axis of a layer's weight along which it reads features."""
    if layer.in_axis is None:
        raise InputError(f"{layer.weight!r} has no axis of features that it reads")
    return layer.in_axis


def as_matrix(weight: Tensor, layer: Layer) -> Tensor:
    """View a weight as [out, in, taps]."""
    matrix = weight.detach().movedim((layer.out_axis or 0, in_axis_of(layer)), (0, 1))
    return matrix.flatten(2) if matrix.ndim > 2 else matrix[..., None]


def set_matrix(weight: Tensor, layer: Layer, matrix: Tensor) -> None:
    """Copy a matrix [out, in, taps] into a weight, in place: the inverse of `as_matrix`."""
    order = (layer.out_axis or 0, in_axis_of(layer))
    kernel = [n for axis, n in enumerate(weight.shape) if axis not in order]
    with torch.no_grad():
        weight.copy_(matrix.reshape(*matrix.shape[:2], *kernel).movedim((0, 1), order))


def block_count(weight: Tensor, layer: Layer, features: int) -> int:
    """Return the number of blocks of a weight whose input has so many features."""
    if layer.kind == "conv":
        return features // weight.shape[in_axis_of(layer)]
    return layer.groups if layer.kind == "conv_transpose" else 1


def as_blocks(weight: Tensor, layer: Layer, count: int) -> Tensor:
    """Return a copy of a weight as [blocks, outputs, features], float64."""
    matrix = as_matrix(weight, layer).double()
    outs, ins, taps = matrix.shape
    if layer.kind == "conv":
        return matrix.reshape(count, outs // count, ins * taps)
    return matrix.reshape(outs, count, ins // count, taps).permute(1, 0, 3, 2).reshape(count, outs * taps, -1)


def set_blocks(weight: Tensor, layer: Layer, values: Tensor) -> None:
    """Copy blocks into a weight, in place: the inverse of `as_blocks`."""
    outs, ins, taps = as_matrix(weight, layer).shape
    if layer.kind != "conv":
        values = values.reshape(len(values), outs, taps, -1).permute(1, 0, 3, 2)
    set_matrix(weight, layer, values.reshape(outs, ins, taps))
