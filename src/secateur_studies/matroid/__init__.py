"""The study of the blog post "Matroid-Guided Pruning: Removing 70% of Neurons for Free".

It reproduces the published experiment, adds controls, and applies the idea to ordinary networks.
"""

from secateur_studies.matroid.study import STUDY

__all__ = ["STUDY"]
