"""The third seed, reproduced: neuron importance by mixed-integer programming (arXiv:2002.07376).

Its Tables 1 to 6 and Figures 2 and 3 beside the published numbers, with the comparators that it lacks.
"""

from secateur_studies.mip.study import FOLDERS, run

__all__ = ["FOLDERS", "run"]
