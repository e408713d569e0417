"""The study of arXiv:2002.07376: neuron importance by mixed-integer programming.

It reproduces Tables 1 to 6 and Figures 2 and 3, and adds criteria that the paper does not compare with.
"""

from secateur_studies.mip.study import STUDY

__all__ = ["STUDY"]
