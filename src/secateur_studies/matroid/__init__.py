"""The first seed, reproduced and audited, and its idea on ordinary networks.

"Matroid-Guided Pruning: Removing 70% of Neurons for Free" (blog post), and the experiment its author
published.
"""

from secateur_studies.matroid.study import FOLDERS, run

__all__ = ["FOLDERS", "run"]
