"""The mip method: scores from a mixed-integer program."""

from secateur.methods.mip.method import MIP

__all__ = ["MIP"]
