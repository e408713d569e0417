"""Numbers printed in the paper; its figures are plots, of which the text is quoted in sense."""

from __future__ import annotations

TABLE_1 = {
    ("VGG-16", "layer"): {
        "seconds": 321,
        "accuracy": 59.81,
        "spread": 0.21,
        "data": "CIFAR-100",
        "density": 0.01,
    },
    ("VGG-16", "network"): {
        "seconds": 4321,
        "accuracy": 59.62,
        "spread": 0.32,
        "data": "CIFAR-100",
        "density": 0.01,
    },
    ("ResNet-20", "layer"): {
        "seconds": 61,
        "accuracy": 77.21,
        "spread": 0.21,
        "data": "CIFAR-10",
        "density": 0.03,
    },
    ("ResNet-20", "network"): {
        "seconds": 1620,
        "accuracy": 77.49,
        "spread": 0.39,
        "data": "CIFAR-10",
        "density": 0.03,
    },
}
FIGURE_2 = (
    "Published: Sparsify is better than Greedy in general, for all scores; they are alike at high densities; "
    "with SNIP layers collapse; on tinyImageNet Greedy is better at extreme sparsity; SynFlow's scores are "
    "best."
)
FIGURE_3 = (
    "Published: Sparsify equals or beats MagPrune, most at high sparsity; connectivity falls for both; "
    "MagPrune collapses layer 10. The paper does not say whether MagPrune ranks globally: `greedy, global` "
    "and `greedy` are both here."
)

__all__ = ["FIGURE_2", "FIGURE_3", "TABLE_1"]
