"""The lattice method: an order of influence among units."""

from secateur.methods.lattice.method import Lattice

__all__ = ["Lattice"]
