"""Pruning by the order of influence among units."""

from secateur.methods.lattice.method import Lattice

__all__ = ["Lattice"]
