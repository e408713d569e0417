"""The study of lattice-based pruning of recurrent networks, arXiv:2502.16525.

Part ``literal`` trains with the paper's Algorithms 2 and 3 as printed, and compares with Tables I
and II and with a control without recurrence. Part ``rigorous`` removes whole units by the order of the
network's own weights or data, compares other criteria, and measures modularity, Lyapunov exponents and
information. Part ``g2p`` prunes a real GRU encoder-decoder, if its weights are installed.
"""

from secateur_studies.lattice.study import STUDY

__all__ = ["STUDY"]
