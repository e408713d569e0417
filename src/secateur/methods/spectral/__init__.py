"""The spectral method: effective resistances, sparsifiers and leverages of layer graphs."""

from secateur.methods.spectral.graphs import Leverages, layer_leverages, network_leverages
from secateur.methods.spectral.method import Spectral
from secateur.methods.spectral.scores import edge_scores

__all__ = ["Leverages", "Spectral", "edge_scores", "layer_leverages", "network_leverages"]
