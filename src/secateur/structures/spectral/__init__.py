"""Layers as weighted bipartite graphs: effective resistances, sparsifiers, connectivity.

Pure mathematics on torch tensors, on any device, in float32 and float64.
"""

from secateur.structures.spectral.graph import LayerGraph, layer_graph
from secateur.structures.spectral.resistance import Resistance, effective_resistance, leverage

__all__ = ["LayerGraph", "Resistance", "effective_resistance", "layer_graph", "leverage"]
