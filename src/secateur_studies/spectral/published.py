"""What the paper prints: Table 1 in numbers; of its figures, which are plots, what its text says of them."""

from __future__ import annotations

__all__ = ["SLOWER", "TABLE_1"]

# (network, graph): seconds for the mask, accuracy in percent and its spread, data, density.
TABLE_1 = {
    ("VGG-16", "layer"): (321.0, 59.81, 0.21, "cifar100", 0.01),
    ("VGG-16", "network"): (4321.0, 59.62, 0.32, "cifar100", 0.01),
    ("ResNet-20", "layer"): (61.0, 77.21, 0.21, "cifar10", 0.03),
    ("ResNet-20", "network"): (1620.0, 77.49, 0.39, "cifar10", 0.03),
}
SLOWER = {net: TABLE_1[net, "network"][0] / TABLE_1[net, "layer"][0] for net in ("VGG-16", "ResNet-20")}
