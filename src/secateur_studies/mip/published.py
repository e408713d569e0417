"""Numbers printed in arXiv:2002.07376v4: accuracies and shares in percent, means of three initialisations."""

from __future__ import annotations

__all__ = ["MODES", "PRUNING", "REFERENCE", "REFERENCE_4", "REFERENCE_5", "RESCALE", "SNIP", "TRANSFER"]

# Table 2: (data, network) -> REF., RP., CP., OURS, OURS + FT, share pruned. None: not printed.
_TABLE_2: dict[tuple[str, str], tuple[float | None, ...]] = {
    ("mnist", "FC-3"): (98.1, 83.6, 44.5, 95.9, 97.8, 44.5),
    ("mnist", "FC-4"): (97.9, 77.1, 50.0, 96.6, 97.6, 42.9),
    ("mnist", "LeNet-5"): (98.9, 56.9, 38.6, 98.7, 98.9, 17.2),
    ("fashion", "FC-3"): (87.7, 35.3, 11.7, 80.0, 88.1, 68.0),
    ("fashion", "FC-4"): (88.9, 38.3, 16.6, 86.9, 88.0, 60.8),
    ("fashion", "LeNet-5"): (89.7, 33.0, 28.6, 87.7, 89.8, 17.8),
    ("cifar10", "LeNet-5"): (72.2, 50.1, 27.5, 67.7, 68.6, 9.9),
    ("cifar10", "VGG-16"): (83.9, 85.0, 83.3, None, 85.3, 36.0),
}
_COLUMNS = ("ref", "random scored", "critical", "ours", "ours + ft", "pruned weights")
PRUNING: dict[tuple[str, str], dict[str, float]] = {
    key: {name: value for name, value in zip(_COLUMNS, values, strict=True) if value is not None}
    for key, values in _TABLE_2.items()
}

# Tables 1 and 6: (data, mode, threshold) -> accuracy, share pruned; LeNet-5.
MODES: dict[tuple[str, str, float], tuple[float, float]] = {
    ("mnist", "per_class", 0.01): (98.6, 19.8),
    ("mnist", "imbalanced", 0.01): (98.6, 15.0),
    ("mnist", "joint", 0.01): (98.4, 13.2),
    ("mnist", "per_class", 0.1): (96.6, 28.4),
    ("mnist", "joint", 0.1): (98.5, 16.5),
    ("fashion", "per_class", 0.01): (87.3, 21.8),
    ("fashion", "imbalanced", 0.01): (88.0, 18.1),
    ("fashion", "joint", 0.01): (87.9, 18.8),
    ("fashion", "per_class", 0.1): (86.81, 29.6),
    ("fashion", "joint", 0.1): (88.7, 18.9),
}

# Accuracies of the whole LeNet-5 in Tables 1 and 6, in Table 4, and in Table 5 and section 4.5.
REFERENCE = {"mnist": 98.8, "fashion": 89.5}
REFERENCE_4 = {"mnist": 98.9, "fashion": 89.9}
REFERENCE_5 = {"fashion": 89.7, "cifar10": 72.2}

# Table 3: (network, source, target) -> reference, masked, share pruned.
TRANSFER: dict[tuple[str, str, str], tuple[float, float, float]] = {
    ("LeNet-5", "mnist", "fashion"): (89.7, 89.2, 16.2),
    ("LeNet-5", "mnist", "cifar10"): (72.2, 68.1, 16.2),
    ("VGG-16", "cifar10", "mnist"): (99.1, 99.4, 36.0),
    ("VGG-16", "cifar10", "fashion"): (92.3, 92.1, 36.0),
}

# Table 4: (data, c) of s - c -> accuracy, share pruned; LeNet-5, threshold 0.05.
RESCALE: dict[tuple[str, float], tuple[float, float]] = {
    ("mnist", 2.0): (98.7, 13.2),
    ("mnist", 1.0): (98.8, 9.6),
    ("mnist", 0.0): (98.9, 8.0),
    ("fashion", 2.0): (89.1, 17.1),
    ("fashion", 1.0): (89.2, 17.0),
    ("fashion", 0.0): (89.0, 10.8),
}

# Table 5: (method, source, target) -> masked accuracy, share pruned; at initialisation. The printed row of
# CIFAR-10 repeats the accuracies in the column of shares, so its shares are omitted. Section 4.5, with the
# same data set for both, prints shares of the parameters only.
SNIP: dict[tuple[str, str, str], tuple[float, float | None]] = {
    ("snip", "mnist", "fashion"): (85.8, 53.5),
    ("ours", "mnist", "fashion"): (88.5, 63.6),
    ("snip", "mnist", "cifar10"): (53.5, None),
    ("ours", "mnist", "cifar10"): (59.1, None),
    ("snip", "fashion", "fashion"): (88.8, None),
    ("ours", "fashion", "fashion"): (88.7, None),
}
