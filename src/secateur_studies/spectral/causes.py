"""What was measured about the paper's statements and numbers that are not reproduced."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from secateur_studies.rows import Rows, distinct, select
from secateur_studies.spectral.mask_variants import RANDOM_SIZES
from secateur_studies.spectral.published import CHANNELS
from secateur_studies.statistics import Comparison

__all__ = ["explain_connected", "explain_sizes", "explain_time", "predict_ratio"]


def predict_ratio(net: str) -> float:
    """Return how much longer pseudo-inverses take for the whole network than layer by layer.

    A pseudo-inverse of n nodes takes time in n^3. Nodes are the channels of the published network, as many
    in the whole network as in all its layers' outputs and the first input.

    Example:
        >>> round(predict_ratio("ResNet-20"), 1)
        25.7
    """
    channels = CHANNELS[net]
    return float(sum(channels) ** 3 / sum((a + b) ** 3 for a, b in pairwise(channels)))


def explain_time(net: str) -> str:
    """Return what the cost of pseudo-inverses predicts for the ratio of the two times."""
    return (
        f"pseudo-inverses, in the cube of the channels, would take {predict_ratio(net):.1f} times as long; "
        "neither algorithm has one here"
    )


def explain_sizes(compare: Callable[[str], Comparison | None]) -> str:
    """Return what random masks with the layer sizes of `sparsify` lose against it.

    Args:
        compare: Compares `sparsify` with a variant of masks.
    """
    random = compare(RANDOM_SIZES)
    return "" if random is None else f"`sparsify` less random masks with its layer sizes: {random}"


def explain_connected(layers: Rows, variant: str, least: float) -> str:
    """Return below which density a layer of a variant falls apart.

    Args:
        layers: Rows of connectivity.
        variant: Name of the masks.
        least: Share of connected nodes below which a layer counts as collapsed.
    """
    by_density = {
        density: min(row["share"] for row in select(layers, variant=variant, density=density))
        for density in sorted(distinct(select(layers, variant=variant), "density"), reverse=True)
    }
    broken = [(density, share) for density, share in by_density.items() if share < least]
    if not broken:
        return "no layer of it collapses at any density"
    density, share = broken[0]
    return f"its first layer to collapse does so at {density:.0%} ({share:.0%} of the nodes connected)"
