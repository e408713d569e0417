"""Pruning by the scores of an integer program."""

from secateur.methods.mip.method import MIP

__all__ = ["MIP"]
