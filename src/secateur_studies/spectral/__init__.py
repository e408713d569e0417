"""The study of S. Laenen, "One-shot neural network pruning via spectral graph sparsification" (2306.08849).

It reproduces Table 1 and Figures 2 to 4 of the paper, adds controls, and prunes without retraining.
"""

from secateur_studies.spectral.study import STUDY

__all__ = ["STUDY"]
