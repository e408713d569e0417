"""The figures of the blog post "Matroid-Guided Pruning: Removing 70% of Neurons for Free", as printed.

Changes of accuracy in points, tp_exponential, means over five seeds; from its tables and text, and from the
numbers that its figures 3 and 4 draw.
"""

from __future__ import annotations

__all__ = ["AT_75", "AT_100", "CURVES_200", "FACTS"]

# Table 1 and figure 4: 75 % of the tail removed.
AT_75: dict[int, dict[str, float]] = {
    20: {"matroid": 0.0, "magnitude": -0.3, "activation": -0.3, "sensitivity": -0.3, "random": -12.5},
    50: {"matroid": 0.0, "magnitude": -0.7, "activation": -0.7, "sensitivity": -0.7, "random": -10.2},
    100: {"matroid": 0.0, "magnitude": -0.5, "activation": -0.5, "sensitivity": -0.5, "random": -15.4},
    200: {"matroid": 0.0, "magnitude": -0.3, "activation": -0.3, "sensitivity": -0.3, "random": -14.4},
}

# Figure 3: H = 200, at 25, 50, 75 and 100 % of the tail.
CURVES_200: dict[str, tuple[float, float, float, float]] = {
    "matroid": (0.0, 0.0, 0.0, -0.7),
    "magnitude": (-0.3, -0.3, -0.3, -0.3),
    "activation": (-0.3, -0.3, -0.3, -0.3),
    "sensitivity": (-0.3, -0.3, -0.3, -0.3),
    "random": (-4.9, -11.9, -14.4, -20.9),
}

# Table 2: the whole tail removed: mean, best and worst seed of the matroid, mean of random where stated.
AT_100: dict[int, dict[str, float]] = {
    20: {"mean": -10.5, "best": -1.5, "worst": -48.5, "random": -18.9},
    100: {"mean": -0.7, "best": -0.5, "worst": -48.5},
    200: {"mean": -0.7, "best": 0.0, "worst": -2.0, "random": -20.9},
}

# Single statements: figure 1 (H = 20), figure 2 (H = 50), text (H = 200).
FACTS: dict[str, float] = {
    "figure 1: essential": 4,
    "figure 1: tail": 16,
    "figure 2: removed": 33,
    "figure 2: accuracy before": 98.5,
    "figure 2: accuracy by matroid": 98.5,
    "figure 2: accuracy by random": 48.5,
    "H=200: essential (about)": 16,
    "H=200: kept (about)": 60,
}
