"""Layers as weighted bipartite graphs: effective resistances, sparsifiers, connectivity.

Pure mathematics on torch tensors, on any device, in float32 and float64.
"""

from secateur.structures.spectral.chain import ChainResistance, Link, chain_resistance
from secateur.structures.spectral.graph import LayerGraph, layer_graph
from secateur.structures.spectral.resistance import Resistance, effective_resistance, leverage
from secateur.structures.spectral.sampling import Mode, Sparsifier, epsilon_for_count, inclusion, sparsify
from secateur.structures.spectral.spectrum import Connectivity, Quality, connectivity, sparsifier_quality

__all__ = [
    "ChainResistance",
    "Connectivity",
    "LayerGraph",
    "Link",
    "Mode",
    "Quality",
    "Resistance",
    "Sparsifier",
    "chain_resistance",
    "connectivity",
    "effective_resistance",
    "epsilon_for_count",
    "inclusion",
    "layer_graph",
    "leverage",
    "sparsifier_quality",
    "sparsify",
]
