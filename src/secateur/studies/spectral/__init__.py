"""Study of spectral sparsification: Laenen, arXiv:2306.08849 (TAG-ML at ICML 2023), beside its controls."""

from secateur.studies.spectral.run import PARTS, run

__all__ = ["PARTS", "run"]
