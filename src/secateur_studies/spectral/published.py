"""The numbers of the paper's Table 1. Its figures are plots without numbers."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["CHANNELS", "SLOWER", "TABLE_1", "Printed"]


class Printed(NamedTuple):
    """A row of Table 1: seconds for the mask, accuracy in percent and its spread, data, density."""

    seconds: float
    accuracy: float
    spread: float
    data: str
    density: float


# (network, graph) -> row
TABLE_1 = {
    ("VGG-16", "layer"): Printed(321.0, 59.81, 0.21, "cifar100", 0.01),
    ("VGG-16", "network"): Printed(4321.0, 59.62, 0.32, "cifar100", 0.01),
    ("ResNet-20", "layer"): Printed(61.0, 77.21, 0.21, "cifar10", 0.03),
    ("ResNet-20", "network"): Printed(1620.0, 77.49, 0.39, "cifar10", 0.03),
}
SLOWER = {
    net: TABLE_1[net, "network"].seconds / TABLE_1[net, "layer"].seconds for net in ("VGG-16", "ResNet-20")
}
# channels of the published networks, from the image to the classes
CHANNELS = {
    "VGG-16": (3, 64, 64, 128, 128, 256, 256, 256, *(512,) * 6, 100),
    "ResNet-20": (3, *(16,) * 7, *(32,) * 6, *(64,) * 6, 10),
}
