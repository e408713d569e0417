"""Numbers printed in arXiv:2002.07376v4: accuracies and shares in percent, over three initialisations."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = [
    "COUNT",
    "MODES",
    "PRUNING",
    "REFERENCE",
    "REFERENCE_4",
    "REFERENCE_5",
    "RESCALE",
    "SNIP",
    "TRANSFER",
    "Printed",
]

COUNT = 3  # initialisations behind each number


@dataclass(frozen=True)
class Printed:
    """A printed mean with its standard deviation, 0 where none is printed.

    Example:
        >>> Printed(88.0, 3.0) - Printed(80.0, 4.0)
        Printed(mean=8.0, spread=5.0)
    """

    mean: float
    spread: float = 0.0

    def __sub__(self, other: Printed) -> Printed:
        """Return the difference, with the spread that it has if the two are independent."""
        return Printed(round(self.mean - other.mean, 3), math.hypot(self.spread, other.spread))


P = Printed
_COLUMNS = ("ref", "random scored", "critical", "ours", "ours + ft", "pruned weights")
# Table 2: (data, network) -> REF., RP., CP., OURS, OURS + FT, share pruned. None: not printed.
_TABLE_2: dict[tuple[str, str], tuple[Printed | None, ...]] = {
    ("mnist", "FC-3"): (P(98.1, 0.1), P(83.6, 4.6), P(44.5, 7.2), P(95.9, 0.87), P(97.8, 0.2), P(44.5, 7.2)),
    ("mnist", "FC-4"): (P(97.9, 0.1), P(77.1, 4.8), P(50, 15.8), P(96.6, 0.4), P(97.6, 0.01), P(42.9, 4.5)),
    ("mnist", "LeNet-5"): (
        *(P(98.9, 0.1), P(56.9, 36.2), P(38.6, 40.8)),
        *(P(98.7, 0.1), P(98.9, 0.04), P(17.2, 2.4)),
    ),
    ("fashion", "FC-3"): (P(87.7, 0.6), P(35.3, 6.9), P(11.7, 1.2), P(80, 2.7), P(88.1, 0.2), P(68, 1.4)),
    ("fashion", "FC-4"): (P(88.9, 0.1), P(38.3, 4.7), P(16.6, 4.1), P(86.9, 0.7), P(88, 0.03), P(60.8, 3.2)),
    ("fashion", "LeNet-5"): (
        *(P(89.7, 0.2), P(33, 24.3), P(28.6, 26.3)),
        *(P(87.7, 2.2), P(89.8, 0.4), P(17.8, 2.1)),
    ),
    ("cifar10", "LeNet-5"): (
        *(P(72.2, 0.2), P(50.1, 5.6), P(27.5, 1.7)),
        *(P(67.7, 2.2), P(68.6, 1.4), P(9.9, 1.4)),
    ),
    ("cifar10", "VGG-16"): (P(83.9, 0.4), P(85, 0.4), P(83.3, 0.3), None, P(85.3, 0.2), P(36, 1.1)),
}
PRUNING: dict[tuple[str, str], dict[str, Printed]] = {
    key: {name: value for name, value in zip(_COLUMNS, values, strict=True) if value is not None}
    for key, values in _TABLE_2.items()
}

# Tables 1 and 6: (data, mode, threshold) -> accuracy, share pruned; LeNet-5.
MODES: dict[tuple[str, str, float], tuple[Printed, Printed]] = {
    ("mnist", "per_class", 0.01): (P(98.6, 0.15), P(19.8, 0.18)),
    ("mnist", "imbalanced", 0.01): (P(98.6, 0.1), P(15, 0.1)),
    ("mnist", "joint", 0.01): (P(98.4, 0.3), P(13.2, 0.42)),
    ("mnist", "per_class", 0.1): (P(96.6, 2.4), P(28.4, 1.5)),
    ("mnist", "joint", 0.1): (P(98.5, 0.28), P(16.5, 0.5)),
    ("fashion", "per_class", 0.01): (P(87.3, 0.3), P(21.8, 0.5)),
    ("fashion", "imbalanced", 0.01): (P(88, 0.1), P(18.1, 0.3)),
    ("fashion", "joint", 0.01): (P(87.9, 0.1), P(18.8, 1.3)),
    ("fashion", "per_class", 0.1): (P(86.81, 1.2), P(29.6, 1.8)),
    ("fashion", "joint", 0.1): (P(88.7, 0.4), P(18.9, 1.4)),
}

# Accuracies of the whole LeNet-5 in Tables 1 and 6, in Table 4, and in Table 5 and section 4.5.
REFERENCE = {"mnist": P(98.8, 0.09), "fashion": P(89.5, 0.3)}
REFERENCE_4 = {"mnist": P(98.9, 0.1), "fashion": P(89.9, 0.2)}
REFERENCE_5 = {"fashion": P(89.7, 0.3), "cifar10": P(72.2, 0.2)}

# Table 3: (network, source, target) -> reference, masked, share pruned.
TRANSFER: dict[tuple[str, str, str], tuple[Printed, Printed, Printed]] = {
    ("LeNet-5", "mnist", "fashion"): (P(89.7, 0.3), P(89.2, 0.5), P(16.2, 0.2)),
    ("LeNet-5", "mnist", "cifar10"): (P(72.2, 0.2), P(68.1, 2.5), P(16.2, 0.2)),
    ("VGG-16", "cifar10", "mnist"): (P(99.1, 0.1), P(99.4, 0.1), P(36, 1.1)),
    ("VGG-16", "cifar10", "fashion"): (P(92.3, 0.4), P(92.1, 0.6), P(36, 1.1)),
}

# Table 4: (data, c) of s - c -> accuracy, share pruned; LeNet-5, threshold 0.05.
RESCALE: dict[tuple[str, float], tuple[Printed, Printed]] = {
    ("mnist", 2.0): (P(98.7, 0.1), P(13.2, 2.9)),
    ("mnist", 1.0): (P(98.8, 0.1), P(9.6, 1.1)),
    ("mnist", 0.0): (P(98.9, 0.2), P(8, 1.6)),
    ("fashion", 2.0): (P(89.1, 0.3), P(17.1, 1.2)),
    ("fashion", 1.0): (P(89.2, 0.1), P(17, 3.4)),
    ("fashion", 0.0): (P(89, 0.4), P(10.8, 2.1)),
}

# Table 5: (method, source, target) -> masked accuracy, share pruned; at initialisation. The printed row of
# CIFAR-10 repeats the accuracies in the column of shares, so its shares are omitted. Section 4.5, with the
# same data set for both, prints shares of the parameters only.
SNIP: dict[tuple[str, str, str], tuple[Printed, Printed | None]] = {
    ("snip", "mnist", "fashion"): (P(85.8, 1.1), P(53.5, 3.3)),
    ("ours", "mnist", "fashion"): (P(88.5, 0.3), P(63.6, 1.4)),
    ("snip", "mnist", "cifar10"): (P(53.5, 1.8), None),
    ("ours", "mnist", "cifar10"): (P(59.1, 0.8), None),
    ("snip", "fashion", "fashion"): (P(88.8, 0.6), None),
    ("ours", "fashion", "fashion"): (P(88.7, 0.5), None),
}
