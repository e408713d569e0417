"""Matroids of the rows of a matrix and of activations: exact, numerical, by intervals.

`LinearMatroid` gives ranks, bases and circuits of any set of rows, `IntervalMatroid` and `window_ranks` the
ranks of neighbouring rows.  `activation_basis` chooses units of a layer that span the others.
`parallel_rows` finds rows that are multiples of one another, `row_basis` a basis of rows.
`parametrize_linear` builds layers of structured matroids.
"""

from secateur.structures.matroid.activations import (
    ActivationBasis,
    Expression,
    activation_basis,
    center_gram,
    express,
    output_error,
    ridge_leverages,
)
from secateur.structures.matroid.base import Circuit, FiniteMatroid
from secateur.structures.matroid.dependence import RowBasis, row_basis
from secateur.structures.matroid.exchange import exchange_units
from secateur.structures.matroid.interval import Decorated, IntervalMatroid
from secateur.structures.matroid.linear import LinearMatroid, RankVerdict
from secateur.structures.matroid.parallel import ParallelRows, parallel_rows
from secateur.structures.matroid.parametrize import (
    KernelWeight,
    cauchy,
    draw_raw,
    gaussian,
    increasing,
    negated_bidiagonal,
    parametrize_linear,
    tp_exponential,
)
from secateur.structures.matroid.positroid import (
    MinorSigns,
    TooMany,
    cell_dimension,
    count_regions,
    is_positroid,
    is_totally_positive,
    is_uniform,
    maximal_minor_signs,
    necklace_bases,
)
from secateur.structures.matroid.sliding import WindowRanks, window_ranks
from secateur.structures.matroid.tail import Tail, tail_partition

__all__ = [
    "ActivationBasis",
    "Circuit",
    "Decorated",
    "Expression",
    "FiniteMatroid",
    "IntervalMatroid",
    "KernelWeight",
    "LinearMatroid",
    "MinorSigns",
    "ParallelRows",
    "RankVerdict",
    "RowBasis",
    "Tail",
    "TooMany",
    "WindowRanks",
    "activation_basis",
    "cauchy",
    "cell_dimension",
    "center_gram",
    "count_regions",
    "draw_raw",
    "exchange_units",
    "express",
    "gaussian",
    "increasing",
    "is_positroid",
    "is_totally_positive",
    "is_uniform",
    "maximal_minor_signs",
    "necklace_bases",
    "negated_bidiagonal",
    "output_error",
    "parallel_rows",
    "parametrize_linear",
    "ridge_leverages",
    "row_basis",
    "tail_partition",
    "tp_exponential",
    "window_ranks",
]
