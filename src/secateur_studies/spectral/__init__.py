"""Laenen, "One-shot neural network pruning via spectral graph sparsification" (arXiv:2306.08849), again."""

from secateur_studies.spectral.study import FOLDERS, run

__all__ = ["FOLDERS", "run"]
