"""The study of lattice-based pruning of recurrent networks: `secateur study lattice`.

Three parts: ``literal``, the paper's Algorithms 2 and 3 as they stand beside its Tables I and II and a
control without recurrence; ``rigorous``, whole units removed by the order of the network's own weights or
data against other criteria, with what that does to modularity, Lyapunov exponent and information; ``g2p``, a
real GRU encoder-decoder, where its weights are installed.
"""

from secateur_studies.lattice.study import FOLDERS, PARTS, run

__all__ = ["FOLDERS", "PARTS", "run"]
