"""A linear layer that has lost inputs or outputs, and whose neighbours keep their sizes.

Attention splits its features into heads of one length.  A layer before it puts zeros where outputs are gone,
and the layer behind it reads the inputs that are left, so each head can lose other features than the next.
The module needs nothing but torch: a folder of transformers may carry its source.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PaddedLinear", "feature_axes", "output_places"]

# Layers of transformers that compute what `nn.Linear` does: axes of outputs and inputs of their weights.
LINEAR_LAYERS = {"Conv1D": (1, 0), "FalconLinear": (0, 1)}


class PaddedLinear(nn.Linear):
    """A linear layer that reads some features of its input, and fills its output up with zeros.

    Args:
        in_features: Number of features that it reads.
        out_features: Number of features that it computes.
        bias: Whether it adds a bias.
        reads: Whether the input has other features, too: `inputs` [in_features] are the places of those read.
        length: Features of the output with the zeros, or None: `outputs` [length] holds the number of the
            computed feature that is there, or `out_features` for a zero.
        transposed: Whether the weight is [in, out], as in the Conv1D of transformers.

    Example:
        >>> layer = PaddedLinear(2, 1, bias=False, length=3)
        >>> layer.outputs.copy_(torch.tensor([1, 0, 1]))
        tensor([1, 0, 1])
        >>> (layer(torch.ones(2)) != 0).tolist()
        [False, True, False]
    """

    inputs: Tensor | None
    outputs: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        reads: bool = False,
        length: int | None = None,
        transposed: bool = False,
    ) -> None:
        """Start with random weights that read the first features and come before the zeros."""
        super().__init__(in_features, out_features, bias)
        self.transposed = transposed
        if transposed:
            self.weight = nn.Parameter(self.weight.detach().T.contiguous())
        places = None if length is None else torch.arange(length).clamp_max(out_features)
        self.register_buffer("inputs", torch.arange(in_features) if reads else None)
        self.register_buffer("outputs", places)

    def forward(self, input: Tensor) -> Tensor:
        """Map [..., features] to [..., length]."""
        x = input if self.inputs is None else input.index_select(-1, self.inputs)
        y = F.linear(x, self.weight.T if self.transposed else self.weight, self.bias)
        return y if self.outputs is None else F.pad(y, (0, 1)).index_select(-1, self.outputs)

    def extra_repr(self) -> str:
        """Show sizes."""
        wide = "" if self.outputs is None else f", filled up to {len(self.outputs)}"
        return super().extra_repr() + wide


def feature_axes(layer: nn.Module) -> tuple[int, int] | None:
    """Return the axes of outputs and inputs of a layer's weight; None if it is no linear layer.

    Example:
        >>> feature_axes(nn.Linear(2, 3)), feature_axes(nn.ReLU())
        ((0, 1), None)
    """
    kind = type(layer)
    if kind is nn.Linear:
        return 0, 1
    return LINEAR_LAYERS.get(kind.__name__) if kind.__module__.startswith("transformers.") else None


def output_places(layer: nn.Module, outputs: Tensor) -> Tensor:
    """Return where the outputs that a layer computes are among those that it returns.

    Args:
        layer: Any layer; only a `PaddedLinear` returns more than it computes.
        outputs: Numbers of computed outputs, of any shape.
    """
    if not isinstance(layer, PaddedLinear) or layer.outputs is None:
        return outputs
    return (layer.outputs < layer.out_features).nonzero()[:, 0].to(outputs.device)[outputs]
