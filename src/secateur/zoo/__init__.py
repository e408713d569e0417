"""Ordinary small networks for the demonstration, the studies and the tests.

Every factory takes sizes and a `seed` for the initial weights, can be called without arguments, and has an
attribute `example_inputs` that fits its default sizes.  Images are [batch, channels, side, side].
"""

from secateur.zoo.plain import lenet5, mlp, small_cnn, vgg11, vgg16, vgg_small
from secateur.zoo.residual import resnet18, resnet20
from secateur.zoo.sequence import gru, lstm, top_down, transformer
from secateur.zoo.training import Trained, train

ZOO = {
    "mlp": mlp,
    "small_cnn": small_cnn,
    "lenet5": lenet5,
    "vgg_small": vgg_small,
    "vgg11": vgg11,
    "vgg16": vgg16,
    "resnet20": resnet20,
    "resnet18": resnet18,
    "lstm": lstm,
    "gru": gru,
    "top_down": top_down,
    "transformer": transformer,
}

__all__ = [
    "ZOO",
    "Trained",
    "gru",
    "lenet5",
    "lstm",
    "mlp",
    "resnet18",
    "resnet20",
    "small_cnn",
    "top_down",
    "train",
    "transformer",
    "vgg11",
    "vgg16",
    "vgg_small",
]
