"""ReLU networks as mixed-integer programs: importance scores of neurons and feature maps.

After ElAraby, Wolf and Carvalho, "Identifying Critical Neurons in ANN Architectures using Mixed
Integer Programming" (arXiv:2002.07376; CPAIOR 2023).
"""

from secateur.structures.relu_mip.chain import (
    Affine,
    Chain,
    MaxPool,
    ReLU,
    average_matrix,
    conv_matrix,
    pool_windows,
)
from secateur.structures.relu_mip.conic import minimise_conic
from secateur.structures.relu_mip.interval_bounds import Bounds, bounds
from secateur.structures.relu_mip.program import Program, build
from secateur.structures.relu_mip.scores import (
    Part,
    Scores,
    Solver,
    average,
    balanced_images,
    imbalanced_images,
    importance_scores,
    join_scores,
)
from secateur.structures.relu_mip.search import Progress, Solution, minimise
from secateur.structures.relu_mip.tighten import tighten_by_lp

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
    "join_scores",
    "minimise",
    "minimise_conic",
    "pool_windows",
    "tighten_by_lp",
]
