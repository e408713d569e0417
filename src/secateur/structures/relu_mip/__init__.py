"""ReLU networks as mixed-integer programs: importance scores of neurons and feature maps.

After ElAraby, Wolf and Carvalho, "Identifying Critical Neurons in ANN Architectures using Mixed
Integer Programming" (arXiv:2002.07376; CPAIOR 2023).
"""

from .chain import Affine, Chain, MaxPool, ReLU, average_matrix, conv_matrix, pool_windows
from .conic import minimise_conic
from .interval_bounds import Bounds, bounds
from .program import Program, build
from .scores import (
    Part,
    Scores,
    Solver,
    average,
    balanced_images,
    imbalanced_images,
    importance_scores,
    joined,
)
from .search import Progress, Solution, minimise
from .tighten import tighten_by_lp

__all__ = [
    "Affine",
    "Bounds",
    "Chain",
    "MaxPool",
    "Part",
    "Program",
    "Progress",
    "ReLU",
    "Scores",
    "Solution",
    "Solver",
    "average",
    "average_matrix",
    "balanced_images",
    "bounds",
    "build",
    "conv_matrix",
    "imbalanced_images",
    "importance_scores",
    "joined",
    "minimise",
    "minimise_conic",
    "pool_windows",
    "tighten_by_lp",
]
