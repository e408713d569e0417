"""The table of size attributes: which attribute of a layer states the length of which axis."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

__all__ = ["SIZE_ATTRIBUTES", "resize"]

_RECURRENT: Mapping[tuple[str, int], str] = {
    ("weight_ih_l0", 1): "input_size",
    ("weight_hh_l0", 1): "hidden_size",
}
_CELL: Mapping[tuple[str, int], str] = {("weight_ih", 1): "input_size", ("weight_hh", 1): "hidden_size"}

SIZE_ATTRIBUTES: Mapping[type[nn.Module], Mapping[tuple[str, int], str]] = {
    nn.Linear: {("weight", 0): "out_features", ("weight", 1): "in_features"},
    nn.Bilinear: {
        ("weight", 0): "out_features",
        ("weight", 1): "in1_features",
        ("weight", 2): "in2_features",
    },
    nn.Embedding: {("weight", 0): "num_embeddings", ("weight", 1): "embedding_dim"},
    nn.EmbeddingBag: {("weight", 0): "num_embeddings", ("weight", 1): "embedding_dim"},
    nn.PReLU: {("weight", 0): "num_parameters"},
    nn.modules.batchnorm._NormBase: {("weight", 0): "num_features", ("running_mean", 0): "num_features"},
    nn.GroupNorm: {("weight", 0): "num_channels"},
    nn.RNNBase: _RECURRENT,
    nn.RNNCellBase: _CELL,
}


def resize(module: nn.Module) -> None:
    """Set the size attributes of one layer from the shapes of its tensors.

    Example:
        >>> import torch
        >>> layer = nn.Linear(4, 8)
        >>> layer.weight = nn.Parameter(torch.zeros(5, 4))
        >>> resize(layer)
        >>> layer
        Linear(in_features=4, out_features=5, bias=True)
    """
    if isinstance(module, nn.modules.conv._ConvNd):
        _resize_convolution(module)
    for cls, table in SIZE_ATTRIBUTES.items():
        if isinstance(module, cls):
            for (name, axis), attribute in table.items():
                tensor = getattr(module, name, None)
                if tensor is not None and getattr(module, attribute) != tensor.shape[axis]:
                    setattr(module, attribute, tensor.shape[axis])
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()


def _resize_convolution(module: nn.modules.conv._ConvNd) -> None:
    """Set the channels; `groups` must be set before, because no tensor states it."""
    first, second = module.weight.shape[:2]
    if module.transposed:
        module.in_channels, module.out_channels = first, second * module.groups
    else:
        module.in_channels, module.out_channels = second * module.groups, first
