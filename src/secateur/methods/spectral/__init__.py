"""Pruning by the spectra of layer graphs: effective resistance, sparsifiers, leverage of units."""

from secateur.methods.spectral.graphs import Leverages, layer_leverages, network_leverages
from secateur.methods.spectral.method import Spectral
from secateur.methods.spectral.scores import edge_scores

__all__ = ["Leverages", "Spectral", "edge_scores", "layer_leverages", "network_leverages"]
